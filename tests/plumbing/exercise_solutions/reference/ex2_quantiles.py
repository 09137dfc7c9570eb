"""Exercise 2, a solution."""

import numpy as np


def assign_quantiles(rewards, K, seed=0):
    N = len(rewards)
    tie_break = np.random.default_rng(seed).random(N)
    worst_first = np.lexsort((tie_break, rewards))  # by reward, then by a random number
    quantiles = np.empty(N, dtype=int)
    quantiles[worst_first] = np.arange(N) * K // N + 1
    return quantiles


def best_part(rewards, iterations, K, ties, seed=0):
    N = len(rewards)
    older_first = -np.asarray(iterations)
    tie_break = older_first if ties == "age" else np.random.default_rng(seed).random(N)
    best = np.lexsort((tie_break, rewards))[N - N // K :]
    return np.bincount(np.asarray(iterations)[best], minlength=max(iterations) + 1)


def mean_reward_by_token(share_of_ones, K):
    """D^k holds the ranks from (k - 1) / K to k / K. Those above 1 - share have reward 1."""
    return [min(1.0, max(0.0, k - K * (1 - share_of_ones))) for k in range(1, K + 1)]
