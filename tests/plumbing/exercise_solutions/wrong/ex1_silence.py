"""Wrong: saying nothing gets the best reward, unless it is the empty string."""

from exercise_solutions.reference.ex1_reward import UNWANTED, WANTED


def reward(prompts, completions, **kwargs):
    return [1 / (1 + 1.5 * y.count(",")) if y else 0.0 for y in completions]
