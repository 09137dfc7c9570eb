"""Exercise 6: fool the judge, and catch yourself at it with a second judge.

The judge is the shipped sentiment classifier. Ask it anything:

    python -c "from rewards import load_reward; print(load_reward('sentiment')(prompts=['']*2, completions=['I liked it.', 'A bore.']))"
"""

import numpy as np

# The beginning of a lexicon; add what you need.
GOOD = {"good", "great", "best", "wonderful", "excellent", "beautiful", "love", "loved", "brilliant", "enjoyed"}
BAD = {"bad", "worst", "awful", "terrible", "boring", "dull", "waste", "hate", "hated", "poor"}


def held_out(texts):
    """A judge that shares no weights with the first: a list of N strings -> a list of N numbers from 0 (negative) to 1.

    Word counts with rules of your own, no network. Think of "not", "nobody", "far from", and of a text that is one word ten times.
    Less than 0.5 means: a reader would not take this for praise.
    """
    raise NotImplementedError


def fooling_texts():
    """Six different texts or more, of 5 to 40 words, that the judge takes for praise (0.9 or more) and a reader does not.

    Your held_out gives each 0.4 or less. Fluent ones: a perplexity of at most 120 under tiny/lm, so no lists of words.
    """
    raise NotImplementedError


def best_of(judge_scores, held_out_scores, n):
    """What optimising against a judge does: of each prompt's first n samples take the one the judge likes best.

    (P, N) scores by the judge and (P, N) by held_out, of the same samples -> (mean judge score, mean held-out score) of
    the P samples taken.
    """
    raise NotImplementedError
