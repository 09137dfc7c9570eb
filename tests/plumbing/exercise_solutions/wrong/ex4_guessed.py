"""Wrong: repaired, but the diagnosis is a guess."""

from exercise_solutions.reference.ex4_loss import *

DIAGNOSIS = {"a": "vocabulary", "b": "mask", "c": "gradient"}
