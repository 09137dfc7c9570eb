"""Exercise 5: bound the pool. What to throw away, and what is lost with it.

Use NumPy only: import numpy as np.
"""


def bounded(rewards, iterations, last=None, keep_top=None, seed=0):
    """Which rows stay: (N,) rewards and (N,) iterations -> (N,) bool.

    last: keep only the newest `last` iterations. keep_top: then, of those, keep the best fraction,
    rounded up to whole rows. `seed`, not age, decides which of several equal rewards is dropped.
    None means no such bound.
    """
    raise NotImplementedError


def bounded_per_prompt(rewards, prompts, keep_top):
    """Within each prompt, keep the best fraction of its rows, rounded up.

    (N,) rewards and (N,) integers, equal for the same prompt -> (N,) bool.
    """
    raise NotImplementedError


def newest_share(rounds, last=None):
    """The share of the newest iteration in the pool after round 1, 2, ...: a list of `rounds`.

    Every round adds the same number of rows. `last` is as above.
    """
    raise NotImplementedError


def lost_prompts(prompts, keep):
    """The prompts of which no row stays: (N,) integers and (N,) bool -> a list, ascending."""
    raise NotImplementedError
