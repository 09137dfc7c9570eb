"""Rewards of 0 or 1 for the study of ties: REWARD=experiments/labels.py:sentiment or :toxicity."""

import functools

from rewards import load_reward

judge = functools.cache(load_reward)


def sentiment(prompts, completions, **kwargs):
    """1 where the judge's probability of positive is at least 1/2."""
    return [float(r >= 0.5) for r in judge("sentiment")(prompts=prompts, completions=completions)]


def toxicity(prompts, completions, **kwargs):
    """1 where the judge's reward is at least 0.85, which half of p0's samples are."""
    return [float(r >= 0.85) for r in judge("toxicity")(prompts=prompts, completions=completions)]
