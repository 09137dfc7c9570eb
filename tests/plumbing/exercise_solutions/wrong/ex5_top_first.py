"""Wrong: the best fraction of everything first, then the newest of that, if any are left."""

from exercise_solutions.reference.ex5_pool import *
from exercise_solutions.reference.ex5_pool import bounded as right


def bounded(rewards, iterations, last=None, keep_top=None, seed=0):
    best = right(rewards, iterations, None, keep_top, seed)
    newest = right(rewards, iterations, last, None, seed)
    return best & newest
