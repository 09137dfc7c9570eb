"""Wrong: the nucleus is cut after the mixing, so a token that p0 would never write comes in."""

from exercise_solutions.reference.ex7_gedi import *


def dexperts(log_p0, log_plus, log_minus, alpha, top_p):
    p = normalised(np.exp(log_p0 + alpha * (log_plus - log_minus)))
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    return normalised(p)
