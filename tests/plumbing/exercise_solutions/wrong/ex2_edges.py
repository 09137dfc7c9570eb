"""Wrong: it cuts at the values of np.quantile, so that equal rewards all fall into one part."""

from exercise_solutions.reference.ex2_quantiles import *


def assign_quantiles(rewards, K, seed=0):
    return np.searchsorted(np.quantile(rewards, np.arange(1, K) / K), rewards, side="left") + 1
