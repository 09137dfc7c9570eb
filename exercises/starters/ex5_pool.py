"""Exercise 5: bound the pool. What to throw away, and what goes with it. NumPy only."""

import numpy as np


def bounded(rewards, iterations, last=None, keep_top=None, seed=0):
    """Which rows stay: (N,) rewards and (N,) iterations -> (N,) bool.

    last: only the newest `last` iterations. keep_top: then, of those, the best fraction, rounded up to whole rows; which of
    several equal rewards falls out is drawn by `seed`, not by age. None: no such bound.
    """
    raise NotImplementedError


def bounded_per_prompt(rewards, prompts, keep_top):
    """The same within every prompt: of each prompt's rows the best fraction, rounded up. (N,), (N,) integers -> (N,) bool."""
    raise NotImplementedError


def newest_share(rounds, last=None):
    """How fresh the pool is: a list of `rounds` numbers, the share of the newest iteration after round 1, 2 ...

    Every round adds the same number of rows; `last` as above.
    """
    raise NotImplementedError


def lost_prompts(prompts, keep):
    """The prompts of which no row stays: (N,) integers and (N,) bool -> an ascending list of integers."""
    raise NotImplementedError
