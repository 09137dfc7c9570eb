"""Exercise 5, a solution."""

import math

import numpy as np


def bounded(rewards, iterations, last=None, keep_top=None, seed=0):
    rewards, iterations = np.asarray(rewards), np.asarray(iterations)
    keep = np.ones(len(rewards), dtype=bool)
    if last is not None:
        keep = iterations > iterations.max() - last
    if keep_top is not None:
        rows = np.flatnonzero(keep)
        tie_break = np.random.default_rng(seed).random(len(rows))
        worst_first = rows[np.lexsort((tie_break, rewards[rows]))]
        n_kept = math.ceil(keep_top * len(rows))
        keep[worst_first[: len(rows) - n_kept]] = False
    return keep


def bounded_per_prompt(rewards, prompts, keep_top):
    rewards, prompts = np.asarray(rewards), np.asarray(prompts)
    keep = np.zeros(len(rewards), dtype=bool)
    for prompt in np.unique(prompts):
        rows = np.flatnonzero(prompts == prompt)
        best_first = rows[np.argsort(-rewards[rows])]
        keep[best_first[: math.ceil(keep_top * len(rows))]] = True
    return keep


def newest_share(rounds, last=None):
    return [1 / min(r, last or r) for r in range(1, rounds + 1)]


def lost_prompts(prompts, keep):
    return sorted({int(p) for p in prompts} - {int(p) for p in np.asarray(prompts)[keep]})
