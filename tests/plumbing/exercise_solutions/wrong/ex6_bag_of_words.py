"""Wrong: counts words of praise and of blame, and does not see how they are meant."""

from exercise_solutions.reference.ex6_judge import *


def held_out(texts):
    words = [set(re.findall("[a-z]+", text.lower())) for text in texts]
    return [float(np.clip(0.5 + 0.25 * (len(w & GOOD) - len(w & BAD)), 0, 1)) for w in words]
