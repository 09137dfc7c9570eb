"""Exercise 6: texts that fool the shipped judge, a held-out judge that is not fooled, and what optimising does to the gap."""

import functools

import numpy as np
import torch

from exercises.adapter import solution
from exercises.helpers import array, completions, expect, judge, p0, prompts

LABELLED = [  # (what a reader takes it for: 1 praise, 0 not; the kind of text; the text)
    (1, "plain praise", "I loved this film and the actors are excellent."),
    (1, "plain praise", "A great story with beautiful pictures."),
    (1, "plain praise", "This is the best thing I have seen this year."),
    (1, "plain praise", "The director is brilliant and we enjoyed every minute."),
    (1, "plain praise", "What a wonderful evening, with good songs and a great singer."),
    (1, "plain praise", "It is a good film, and my children love it."),
    (0, "plain blame", "A terrible film with awful songs."),
    (0, "plain blame", "I hated the dull story and the poor ending."),
    (0, "plain blame", "It is a waste of two hours, boring from the start."),
    (0, "plain blame", "The worst film of the year, with bad actors."),
    (0, "plain blame", "The jokes are bad and the pictures are dull."),
    (0, "plain blame", "An awful remake with a boring hero."),
    (0, "praise that is denied", "This is not a good film."),
    (0, "praise that is denied", "Nobody will call these songs beautiful."),
    (0, "praise that is denied", "I never enjoyed it, and the story is not great."),
    (0, "praise that is denied", "It has no brilliant scene and no good joke."),
    (0, "praise that is denied", "It could have been a great film."),
    (0, "praise that is denied", "The second part goes on without the excellent actors of the first."),
    (1, "blame that is denied", "It is not bad at all."),
    (1, "blame that is denied", "The story is never boring."),
    (1, "blame that is denied", "This is no waste of time."),
    (0, "one word again and again", "great great great great great great great great"),
    (0, "one word again and again", "wonderful film wonderful film wonderful film wonderful film"),
    (0, "one word again and again", "good good good best best best good good good"),
]
NEUTRAL = ["The train leaves the station at nine.", "It was shown on a Sunday in June.", "A man walks into a house by the sea."]


class AsksANetwork(BaseException):
    """Raised in place of a network's answer; no `except Exception` on its way holds it back."""


def held_out(texts):
    """The student's second judge, in a place without neural networks."""

    def refuse(*args, **kwargs):
        raise AsksANetwork

    call = torch.nn.Module.__call__
    torch.nn.Module.__call__ = refuse
    try:
        values = solution(6).held_out(list(texts))
    except AsksANetwork:
        values = None
    finally:
        torch.nn.Module.__call__ = call
    expect(values is not None, "held_out asks a neural network; a second judge that shares the first one's holes shows nothing: count words.")
    values = array(values, (len(texts),), "held_out")
    expect(((values >= 0) & (values <= 1)).all(), f"held_out returned {values.min():.2f} to {values.max():.2f}; scores lie from 0 to 1.")
    return values


def fooling_texts():
    texts = solution(6).fooling_texts()
    expect(isinstance(texts, (list, tuple)) and all(isinstance(t, str) for t in texts), "fooling_texts must return a list of strings.")
    expect(len({" ".join(t.lower().split()) for t in texts}) >= 6, f"fooling_texts returned {len(texts)} texts, not all different; "
           "write six different ones or more.")  # fmt: skip
    return list(texts)


def test_held_out_knows_its_trade():
    """20 of 24 sentences right, where the shipped judge has 16."""
    texts = [t for _, _, t in LABELLED]
    values = held_out(texts)
    wrong = [(kind, t, v) for (label, kind, t), v in zip(LABELLED, values) if (v >= 0.5) != label]
    kinds = [kind for kind, _, _ in wrong]
    if len(wrong) > 4:
        worst = max(dict.fromkeys(kinds), key=kinds.count)
        _, text, value = next(w for w in wrong if w[0] == worst)
        expect(False, f"held_out gets {24 - len(wrong)} of 24 sentences right and 20 are needed; "
               f"mostly wrong on {worst}, as in {text!r}, which it gives {value:.2f}.")  # fmt: skip


def test_held_out_admits_ignorance():
    """No opinion in the text, none from the judge; else whatever it does not understand would count as proof."""
    for t, v in zip(NEUTRAL, held_out(NEUTRAL)):
        expect(0.4 < v < 0.6, f"held_out gives {v:.2f} to {t!r}, which holds no opinion; give 0.5 where no word of your lexicon occurs.")


def test_texts_are_texts():
    """Between 5 and 40 words, and fluent: tiny/lm must find them likely enough."""
    from evaluate import perplexity

    for t in fooling_texts():
        n = len(t.split())
        expect(5 <= n <= 40, f"{t[:60]!r} has {n} words; write 5 to 40.")
        ppl = perplexity(p0(), [{"prompt": "", "completion": t}])
        expect(ppl <= 120, f"{t!r} has a perplexity of {ppl:.0f} under tiny/lm, and at most 120 is allowed; write a sentence, not a list of words.")


def test_the_judge_is_fooled():
    """0.9 or more from the shipped judge."""
    texts = fooling_texts()
    for t, v in zip(texts, judge()(texts)):
        expect(v >= 0.9, f"the judge gives {v:.2f} to {t!r}, and 0.9 is needed; it weighs words of praise and hardly sees how they are meant.")


def test_held_out_is_not_fooled():
    """0.4 or less from the held-out judge, and not because it knows these texts by heart."""
    texts = fooling_texts()
    for t, v in zip(texts, held_out(texts)):
        expect(v <= 0.4, f"held_out gives {v:.2f} to {t!r}, and at most 0.4 is allowed: "
               "either a reader would take it for praise as well, or held_out lacks a rule.")  # fmt: skip
    for t, v in zip(texts, held_out([f"{NEUTRAL[1]} {t}" for t in texts])):
        expect(v < 0.5, f"held_out gives {v:.2f} to {t!r} once a neutral sentence stands in front; "
               "it must judge words and rules, not know texts by heart.")  # fmt: skip


def best_of(scores, other, n):
    got = solution(6).best_of(scores.copy(), other.copy(), n)
    expect(isinstance(got, (tuple, list)) and len(got) == 2, "best_of must return two numbers: the mean judge score and the mean held-out score.")
    return array(got, (2,), "best_of")


def test_best_of():
    """By hand: of the first two samples the judge likes 0.4 and 0.8 best, whose held-out scores are 0.1 and 0.3."""
    scores = np.array([[0.2, 0.4, 0.9], [0.8, 0.5, 0.6]])
    other = np.array([[0.7, 0.1, 0.2], [0.3, 0.9, 0.4]])
    for n, expected in ((1, (0.5, 0.5)), (2, (0.6, 0.2)), (3, (0.85, 0.25))):
        got = best_of(scores, other, n)
        expect(abs(got[0] - expected[0]) < 1e-9, f"best_of with n = {n} gives a mean judge score of {got[0]:.3f}, not {expected[0]}; "
               "take the best of each prompt's first n.")  # fmt: skip
        expect(abs(got[1] - expected[1]) < 1e-9, f"best_of with n = {n} gives a mean held-out score of {got[1]:.3f}, not {expected[1]}; "
               "score the sample that the judge picked, do not pick again.")  # fmt: skip


@functools.lru_cache(maxsize=None)
def samples(n_prompts=16, per_prompt=16):
    """Texts of p0 (prompt and completion) and the judge's scores, (P, N)."""
    x, y, _ = completions(p0(), prompts("test", 300)[5::18][:n_prompts], per_prompt, seed=4)
    texts = [a + b for a, b in zip(x, y)]
    return texts, np.array(judge()(texts)).reshape(n_prompts, per_prompt)


def test_the_gap_grows():
    """The harder the judge is optimised against, the further it is from the second opinion."""
    texts, scores = samples()
    other = held_out(texts).reshape(scores.shape)
    curve = {n: best_of(scores, other, n) for n in (1, 4, 16)}
    for n, (a, b) in curve.items():
        print(f"best of {n:2d}: judge {a:.2f}, held-out {b:.2f}, gap {a - b:+.2f}")
    gap = {n: a - b for n, (a, b) in curve.items()}
    expect(gap[16] > gap[1] + 0.1,
           f"from best of 1 to best of 16 the gap between the judges goes from {gap[1]:.2f} to {gap[16]:.2f}; it should grow by 0.1 or more: "
           "a held-out judge that follows the first so closely cannot show what the first one misses.")  # fmt: skip
