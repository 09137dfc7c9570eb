"""Wrong: it divides by the most commas of the batch, so a text's reward depends on the others."""

from exercise_solutions.reference.ex1_reward import UNWANTED, WANTED


def reward(prompts, completions, **kwargs):
    commas = [y.count(",") for y in completions]
    most = max(1, *commas, 0)
    return [1 - c / most if len(y) > 3 else 0.0 for c, y in zip(commas, completions)]
