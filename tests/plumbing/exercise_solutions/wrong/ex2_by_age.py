"""Wrong: a stable sort, so that among equal rewards the place in the pool decides."""

from exercise_solutions.reference.ex2_quantiles import *


def assign_quantiles(rewards, K, seed=0):
    quantiles = np.empty(len(rewards), dtype=int)
    quantiles[np.argsort(-np.asarray(rewards), kind="stable")[::-1]] = np.arange(len(rewards)) * K // len(rewards) + 1
    return quantiles
