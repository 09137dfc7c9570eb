"""Exercise 7, a solution."""

import numpy as np


def normalised(weights):
    return weights / weights.sum()


def dexperts(log_p0, log_plus, log_minus, alpha, top_p):
    p0 = np.exp(log_p0)
    order = np.argsort(-p0)
    before = np.cumsum(p0[order]) - p0[order]
    inside = np.zeros(len(p0), dtype=bool)
    inside[order[before < top_p]] = True
    weights = np.exp(log_p0 + alpha * (log_plus - log_minus))
    return normalised(np.where(inside, weights, 0))


def posterior(read_plus, read_minus, log_plus, log_minus, scale):
    t = len(read_plus) + 1
    odds = np.sum(read_plus) - np.sum(read_minus) + log_plus - log_minus
    return 1 / (1 + np.exp(-scale * odds / t))


def gedi(log_p0, p_good, omega, filter_mass, tau):
    p_w = normalised(np.exp(log_p0) * p_good**omega)
    order = np.argsort(p_good)
    so_far = np.cumsum(p_w[order])
    gone = order[(so_far < filter_mass) & (p_good[order] < tau)]
    p_w[gone] = 0
    return normalised(p_w)


def effective_alpha(p_good, omega, scale, t):
    return omega * scale / (t + 1) * (1 - p_good)
