"""Wrong: noise breaks the ties, and the order of rewards that differ by less."""

from exercise_solutions.reference.ex2_quantiles import *


def assign_quantiles(rewards, K, seed=0):
    noisy = np.asarray(rewards) + 1e-6 * np.random.default_rng(seed).random(len(rewards))
    return np.argsort(np.argsort(noisy)) * K // len(rewards) + 1
