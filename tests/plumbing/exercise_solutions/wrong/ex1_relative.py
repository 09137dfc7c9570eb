"""Wrong: it divides by the most commas of the batch, so that a text's reward depends on its neighbours."""

from exercise_solutions.reference.ex1_reward import UNWANTED, WANTED


def reward(prompts, completions, **kwargs):
    commas = [y.count(",") for y in completions]
    return [1 - c / max(1, *commas, 0) if len(y) > 3 else 0.0 for c, y in zip(commas, completions)]
