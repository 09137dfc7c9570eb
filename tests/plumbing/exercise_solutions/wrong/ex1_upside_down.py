"""Wrong: it counts what is unwanted, so that more of it gets a higher reward."""

from exercise_solutions.reference.ex1_reward import UNWANTED, WANTED


def reward(prompts, completions, **kwargs):
    return [min(1.0, y.count(",") / 2) for y in completions]
