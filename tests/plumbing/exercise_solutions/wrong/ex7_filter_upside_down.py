"""Wrong: the filter begins with the likeliest class."""

from exercise_solutions.reference.ex7_gedi import *


def gedi(log_p0, p_good, omega, filter_mass, tau):
    p_w = normalised(np.exp(log_p0) * p_good**omega)
    order = np.argsort(-p_good)
    so_far = np.cumsum(p_w[order])
    p_w[order[(so_far < filter_mass) & (p_good[order] < tau)]] = 0
    return normalised(p_w)
