"""Wrong: fit ignores its direction."""

from exercise_solutions.reference import ex3_kl as right
from exercise_solutions.reference.ex3_kl import *


def fit(z0, x, direction, mu, log_sigma):
    return right.fit(z0, x, "forward", mu, log_sigma)
