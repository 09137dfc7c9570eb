"""Exercise 3: the KL term in both directions, and its gradient. Use NumPy only, no autograd.

z0 are the logits of p0 and z those of p_theta, both (B, T, V). p0 = softmax(z0) and p = softmax(z),
over the last axis.
"""

import numpy as np


def log_softmax(z):
    """(..., V) logits -> log-probabilities. Subtracting the largest keeps exp from overflowing."""
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def forward_kl(z0, z):
    """KL(p0 || p) at each position, in nats: (B, T). The paper's."""
    raise NotImplementedError


def reverse_kl(z0, z):
    """KL(p || p0) at each position, in nats: (B, T). The one in the authors' code."""
    raise NotImplementedError


def forward_kl_gradient(z0, z):
    """d KL(p0 || p) / d z at each position: (B, T, V). z0 is fixed."""
    raise NotImplementedError


def reverse_kl_gradient(z0, z):
    """d KL(p || p0) / d z at each position: (B, T, V). z0 is fixed."""
    raise NotImplementedError


def bell_logits(x, mu, log_sigma):
    """A policy with only two parameters: (V,) logits over the points x of a bell around mu."""
    return -((x - mu) ** 2) / (2 * np.exp(2 * log_sigma))


def fit(z0, x, direction, mu, log_sigma, lr=0.05, steps=4000):
    """Gradient descent over mu and log_sigma. Returns (mu, log_sigma).

    It minimises KL(p0 || p) with direction "forward", KL(p || p0) with "reverse". z0 (V,) are the
    logits of p0 at the points x (V,), and p = softmax(bell_logits(x, mu, log_sigma)).

    The chain rule gives both derivatives: the sum over v of d KL / d z_v times d z_v / d mu, and
    the sum over v of d KL / d z_v times d z_v / d log_sigma.
    """
    raise NotImplementedError
