"""Exercise 2: quantiles, and what happens to them when most rewards are equal.

Use NumPy only: import numpy as np.
"""


def assign_quantiles(rewards, K, seed=0):
    """(N,) rewards -> (N,) integers in 1 ... K, K for the highest rewards.

    The sizes of the parts differ by at most one. Equal rewards are ordered at random; the same seed
    gives the same order.
    """
    raise NotImplementedError


def best_part(rewards, iterations, K, ties, seed=0):
    """How many rows of each iteration are in D^K.

    (N,) rewards and (N,) iterations 0 ... R - 1, rows in any order -> (R,) counts. D^K is the best
    N / K rows; N is a multiple of K here. ties: "age" ranks the older of two equal rewards higher,
    as the authors' code does; "random" draws the order by `seed`.
    """
    raise NotImplementedError


def mean_reward_by_token(share_of_ones, K):
    """What each token means if the reward is 0 or 1: the mean rewards of D^1 ... D^K, a list.

    share_of_ones: the share of the pool that has reward 1. The pool is so large that no part needs
    rounding.
    """
    raise NotImplementedError
