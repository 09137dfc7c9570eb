"""Wrong: of equal rewards the older ones stay."""

from exercise_solutions.reference.ex5_pool import *


def bounded(rewards, iterations, last=None, keep_top=None, seed=0):
    keep = np.ones(len(rewards), dtype=bool)
    if last is not None:
        keep = iterations > iterations.max() - last
    rows = np.flatnonzero(keep)
    best_first = rows[np.argsort(-rewards[rows], kind="stable")]
    n_kept = math.ceil((keep_top or 1) * len(rows))
    keep[best_first[n_kept:]] = False
    return keep
