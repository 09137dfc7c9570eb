"""Wrong: one iteration too many."""

from exercise_solutions.reference.ex5_pool import *
from exercise_solutions.reference.ex5_pool import bounded as right


def bounded(rewards, iterations, last=None, keep_top=None, seed=0):
    return right(rewards, iterations, None if last is None else last + 1, keep_top, seed)
