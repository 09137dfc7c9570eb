"""Wrong: the reverse gradient forgets that raising one logit lowers the other probabilities."""

from exercise_solutions.reference.ex3_kl import *


def reverse_kl_gradient(z0, z):
    log_p0, log_p = log_softmax(z0), log_softmax(z)
    return np.exp(log_p) * (log_p - log_p0 + 1)
