"""Exercise 2: quantiles, and what becomes of them when most rewards are equal. NumPy only."""

import numpy as np


def assign_quantiles(rewards, K, seed=0):
    """(N,) rewards -> (N,) integers in 1 ... K, K for the highest rewards.

    The parts' sizes differ by at most one. Equal rewards are ordered at random: the same seed gives the same order.
    """
    raise NotImplementedError


def best_part(rewards, iterations, K, ties, seed=0):
    """Who fills D^K: (N,) rewards and (N,) iterations 0 ... R - 1, rows in any order -> (R,) counts, one an iteration.

    D^K is the best N / K rows (N is a multiple of K here). ties: "age" gives the better place to the older of two equal
    rewards, as the authors' code does; "random" draws it by `seed`.
    """
    raise NotImplementedError


def mean_reward_by_token(share_of_ones, K):
    """What each token means when the reward is 0 or 1: a list of K numbers, the mean reward of D^1 ... D^K.

    share_of_ones: the share of the pool that has reward 1. The pool is so large that no part needs rounding.
    """
    raise NotImplementedError
