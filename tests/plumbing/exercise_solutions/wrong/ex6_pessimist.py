"""Wrong: what it does not know is negative."""

from exercise_solutions.reference.ex6_judge import *
from exercise_solutions.reference.ex6_judge import held_out as right


def held_out(texts):
    return [0.2 if score == 0.5 else score for score in right(texts)]
