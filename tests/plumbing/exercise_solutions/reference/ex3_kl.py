"""Exercise 3, a solution.

log p_v = z_v - log sum exp z, so d log p_v / d z_w = [v = w] - p_w.

Forward: KL = const - sum_v p0_v log p_v, so the derivative is -p0_w + p_w sum_v p0_v = p_w - p0_w.

Reverse: with g_v = log p_v - log p0_v,
d KL / d z_w = sum_v p_v ([v = w] - p_w) (g_v + 1) = p_w (g_w - KL).
"""

import numpy as np


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def forward_kl(z0, z):
    log_p0, log_p = log_softmax(z0), log_softmax(z)
    return (np.exp(log_p0) * (log_p0 - log_p)).sum(-1)


def reverse_kl(z0, z):
    return forward_kl(z, z0)


def forward_kl_gradient(z0, z):
    return np.exp(log_softmax(z)) - np.exp(log_softmax(z0))


def reverse_kl_gradient(z0, z):
    log_p0, log_p = log_softmax(z0), log_softmax(z)
    return np.exp(log_p) * (log_p - log_p0 - reverse_kl(z0, z)[..., None])


def bell_logits(x, mu, log_sigma):
    return -((x - mu) ** 2) / (2 * np.exp(2 * log_sigma))


def fit(z0, x, direction, mu, log_sigma, lr=0.05, steps=4000):
    gradient = forward_kl_gradient if direction == "forward" else reverse_kl_gradient
    for _ in range(steps):
        d_z = gradient(z0, bell_logits(x, mu, log_sigma))
        variance = np.exp(2 * log_sigma)
        d_mu = (d_z * (x - mu) / variance).sum()
        d_log_sigma = (d_z * (x - mu) ** 2 / variance).sum()
        mu = mu - lr * d_mu
        log_sigma = log_sigma - lr * d_log_sigma
    return mu, log_sigma
