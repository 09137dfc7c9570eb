"""Wrong: of equal rewards the older ones stay."""

from exercise_solutions.reference.ex5_pool import *


def bounded(rewards, iterations, last=None, keep_top=None, seed=0):
    keep = np.ones(len(rewards), dtype=bool) if last is None else iterations > iterations.max() - last
    rows = np.flatnonzero(keep)
    n = math.ceil((keep_top or 1) * len(rows))
    keep[rows[np.argsort(-rewards[rows], kind="stable")][n:]] = False
    return keep
