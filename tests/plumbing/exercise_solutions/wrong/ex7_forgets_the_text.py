"""Wrong: the class of the next token alone, not that of the text with it."""

from exercise_solutions.reference.ex7_gedi import *


def posterior(read_plus, read_minus, log_plus, log_minus, scale):
    return 1 / (1 + np.exp(-scale * (log_plus - log_minus)))
