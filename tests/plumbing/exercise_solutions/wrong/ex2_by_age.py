"""Wrong: a stable sort, so that among equal rewards the place in the pool decides."""

from exercise_solutions.reference.ex2_quantiles import *


def assign_quantiles(rewards, K, seed=0):
    N = len(rewards)
    best_first = np.argsort(-np.asarray(rewards), kind="stable")
    quantiles = np.empty(N, dtype=int)
    quantiles[best_first[::-1]] = np.arange(N) * K // N + 1
    return quantiles
