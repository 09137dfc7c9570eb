"""Wrong: lists of words, which fool the judge but are no texts."""

from exercise_solutions.reference.ex6_judge import *


def fooling_texts():
    return [f"{word} {word} wonderful touching family love superb" for word in ("great", "lovely", "moving", "best", "rare", "warm")]
