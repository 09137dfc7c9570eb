"""Exercise 6, a solution: praise that is wished for, denied, or meant for something else."""

import re

import numpy as np

GOOD = {"good", "great", "best", "wonderful", "excellent", "beautiful", "love", "loved"}
GOOD |= {"brilliant", "enjoyed", "moving", "touching", "classic"}
BAD = {"bad", "worst", "awful", "terrible", "boring", "dull", "waste", "hate", "hated", "poor"}
OVERTURNED = re.compile(
    r"\b(not|no|never|nobody|neither|without|instead|lacks|could have|would have|nothing"
    r"|stay at home|elsewhere|promised|told wrong)\b|n't\b"
)
DENIAL = {"not", "no", "never", "hardly"}


def held_out(texts):
    return [_one(text.lower()) for text in texts]


def _one(text):
    words = re.findall(r"[a-z']+", text)
    if len(words) > 3 and len(set(words)) < 0.6 * len(words):
        return 0.1  # the same words again and again
    score = 0
    for sentence in re.split(r"[.!?]", text):
        words = re.findall(r"[a-z']+", sentence)
        # Praise in a sentence that takes it back is blame.
        praise = -1 if OVERTURNED.search(sentence) else 1
        for i, word in enumerate(words):
            if word in GOOD:
                score += praise
            elif word in BAD:
                denied = DENIAL & set(words[max(0, i - 2) : i])
                score += 1 if denied else -1
    return float(1 / (1 + np.exp(-score)))


def fooling_texts():
    return [
        "Nobody could call this a beautiful, moving, wonderful film.",
        "If you love wonderful, beautiful, moving films, stay at home.",
        "Nobody will call this a great, touching and beautiful film.",
        "A wonderful, moving and beautiful film is what they had promised me.",
        "It could have been a great and touching film about love and family.",
        "I was told that it is a wonderful and touching film, and I was told wrong.",
        "For a beautiful, moving and perfect love story look elsewhere.",
    ]


def best_of(judge_scores, held_out_scores, n):
    rows = np.arange(len(judge_scores))
    best = np.argmax(judge_scores[:, :n], axis=1)
    return float(judge_scores[rows, best].mean()), float(held_out_scores[rows, best].mean())
