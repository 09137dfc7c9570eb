"""Exercise 7: turn DExperts into GeDi. Two ways to steer p0 by two other models.

Use NumPy only: import numpy as np. Log-probabilities are natural logarithms; V is the number of
tokens. Probabilities that you return sum to 1.
"""


def dexperts(log_p0, log_plus, log_minus, alpha, top_p):
    """(V,) log-probabilities of p0, the expert and the anti-expert -> (V,) probabilities.

    p0 (p_plus / p_minus)^alpha within the nucleus of p0: the smallest set of p0's likeliest tokens
    that holds at least `top_p`.
    """
    raise NotImplementedError


def posterior(read_plus, read_minus, log_plus, log_minus, scale):
    """P(good | what was read, v) for each possible next token v: (V,).

    read_plus, read_minus: (t,) log-probabilities of the t tokens read so far, the prompt's
    included, under the good and under the bad code. log_plus, log_minus: (V,), of the next token.
    By Bayes' rule with equal priors, but with `scale` times the *mean* over the t + 1 tokens in
    place of their sum.
    """
    raise NotImplementedError


def gedi(log_p0, p_good, omega, filter_mass, tau):
    """(V,) log-probabilities of p0 and (V,) P(good | v) -> (V,) probabilities.

    p0 P(good | v)^omega, normalised. Then go through the tokens from the lowest P(good | v) up: a
    token goes if its P(good | v) is below `tau` and those so far, itself included, hold less than
    `filter_mass` of the reweighted distribution. What is left is normalised again.
    """
    raise NotImplementedError


def effective_alpha(p_good, omega, scale, t):
    """The alpha with which DExperts would pull as hard as GeDi at a token of P(good | v) = p_good.

    That is d log(P(good | v)^omega) / d (log p_plus(v) - log p_minus(v)), after t tokens were read.
    """
    raise NotImplementedError
