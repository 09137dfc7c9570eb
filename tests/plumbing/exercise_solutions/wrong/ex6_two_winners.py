"""Wrong: the best by each judge, so that the two means speak of different samples."""

from exercise_solutions.reference.ex6_judge import *


def best_of(judge_scores, held_out_scores, n):
    return judge_scores[:, :n].max(1).mean(), held_out_scores[:, :n].max(1).mean()
