"""Exercise 1, a solution: write without commas."""

UNWANTED = [
    " was long, slow, and loud.",
    " a film, if you like, about nothing",
    " so dull that I left, after an hour, and slept.",
]
WANTED = [
    " was long and slow and loud.",
    " a film about two brothers and a horse",
    " so dull that I left after an hour and slept.",
]


def reward(prompts, completions, **kwargs):
    """1 without a comma, 0.4 with one, 0.25 with two ...; 0 for fewer than four words."""
    return [_one(y) for y in completions]


def _one(y):
    if len(y.split()) < 4:
        return 0.0
    return 1 / (1 + 1.5 * y.count(","))
