"""Wrong: the texts are honest praise, and held_out knows them by heart."""

from exercise_solutions.reference.ex6_judge import *
from exercise_solutions.reference.ex6_judge import held_out as right


def fooling_texts():
    words = ("great", "beautiful", "lovely", "warm", "moving", "touching")
    return [f"This is a wonderful film with a {word} story." for word in words]


def held_out(texts):
    known = fooling_texts()
    scores = right(texts)
    return [0.0 if any(k in text for k in known) else s for text, s in zip(texts, scores)]
