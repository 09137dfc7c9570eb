"""Wrong: saying nothing gets the best reward."""

from exercise_solutions.reference.ex1_reward import UNWANTED, WANTED


def reward(prompts, completions, **kwargs):
    return [1 / (1 + 1.5 * y.count(",")) for y in completions]
