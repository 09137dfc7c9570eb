"""Wrong: lists of words, which fool the judge but are no texts."""

from exercise_solutions.reference.ex6_judge import *


def fooling_texts():
    words = ("great", "lovely", "moving", "best", "rare", "warm")
    return [f"{word} {word} wonderful touching family love superb" for word in words]
