"""Exercise 6: fool the judge, and notice it with a second judge.

The judge is the sentiment classifier in tiny/sentiment. Ask it anything:

    python -c "from rewards import load_reward; judge = load_reward('sentiment'); \\
        print(judge(prompts=['', ''], completions=['I liked it.', 'A bore.']))"

Use NumPy only: import numpy as np.
"""

# The beginning of a lexicon; add what you need.
GOOD = {"good", "great", "best", "wonderful", "excellent", "beautiful", "love", "loved"}
GOOD |= {"brilliant", "enjoyed"}
BAD = {"bad", "worst", "awful", "terrible", "boring", "dull", "waste", "hate", "hated", "poor"}


def held_out(texts):
    """A second judge that shares no weights with the first.

    A list of N strings -> a list of N numbers from 0 (negative) to 1. Count words, with rules of
    your own, and use no network. Think of "not", "nobody", "far from", and of a text that is one
    word ten times. Less than 0.5 means: a reader takes this for blame, or for praise that is taken
    back. A text without an opinion gets about 0.5 (0.4 to 0.6).
    """
    raise NotImplementedError


def fooling_texts():
    """Six or more different texts that the judge takes for praise and a reader does not.

    Each has 5 to 40 words. The judge gives it 0.9 or more, and your held_out 0.4 or less. It is
    fluent, not a list of words: its perplexity under tiny/lm is at most 120.
    """
    raise NotImplementedError


def best_of(judge_scores, held_out_scores, n):
    """What optimising against a judge does: take the sample of n that the judge likes best.

    (P, N) scores by the judge and (P, N) by held_out, of the same samples. From each prompt's first
    n samples the judge takes one. Returns the mean judge score and the mean held-out score of the P
    samples taken.
    """
    raise NotImplementedError
