"""Wrong: counts words of praise and of blame, and does not see how they are meant."""

from exercise_solutions.reference.ex6_judge import *


def held_out(texts):
    return [_one(set(re.findall("[a-z]+", text.lower()))) for text in texts]


def _one(words):
    return float(np.clip(0.5 + 0.25 * (len(words & GOOD) - len(words & BAD)), 0, 1))
