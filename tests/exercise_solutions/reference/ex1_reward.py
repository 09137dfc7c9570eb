"""Exercise 1, a solution: write about the film, not about yourself."""

import re

UNWANTED = [" I thought it was fine.", " so boring that I left, and my wife slept.", " the best that I've seen in my life."]
WANTED = [" a fine film about a train robbery.", " so boring that people left before the end.", " the best part of the whole series."]

FIRST_PERSON = re.compile(r"\b(i|me|my|mine|myself)\b", re.IGNORECASE)


def reward(prompts, completions, **kwargs):
    """1 with no word of the first person, 0.4 with one, 0.2 with two ...; 0 for fewer than four words."""
    return [_one(y) for y in completions]


def _one(y):
    found = len(FIRST_PERSON.findall(y))
    if len(y.split()) < 4:
        return 0.0
    return 1.0 if found == 0 else 0.8 / 2**found
