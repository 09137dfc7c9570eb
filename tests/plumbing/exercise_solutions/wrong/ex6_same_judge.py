"""Wrong: the second judge is the first one."""

from exercise_solutions.reference.ex6_judge import *


def held_out(texts):
    from rewards import load_reward

    return load_reward("sentiment")(prompts=[""] * len(texts), completions=texts)
