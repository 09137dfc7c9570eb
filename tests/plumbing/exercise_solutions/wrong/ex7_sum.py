"""Wrong: the sum over the tokens, as Bayes' rule has it, where GeDi takes the mean."""

from exercise_solutions.reference.ex7_gedi import *


def posterior(read_plus, read_minus, log_plus, log_minus, scale):
    odds = np.sum(read_plus) - np.sum(read_minus) + log_plus - log_minus
    return 1 / (1 + np.exp(-scale * odds))
