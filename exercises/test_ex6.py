"""Exercise 6: texts that fool the judge, a held-out judge that is not fooled, and their gap."""

import functools

import numpy as np
import torch

from exercises.adapter import solution
from exercises.helpers import array, completions, expect, judge, p0, prompts

LABELLED = [  # (1: a reader takes it for praise, else 0; the kind of text; the text)
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
    (
        0,
        "praise that is denied",
        "The second part goes on without the excellent actors of the first.",
    ),
    (1, "blame that is denied", "It is not bad at all."),
    (1, "blame that is denied", "The story is never boring."),
    (1, "blame that is denied", "This is no waste of time."),
    (0, "one word again and again", "great great great great great great great great"),
    (0, "one word again and again", "wonderful film wonderful film wonderful film wonderful film"),
    (0, "one word again and again", "good good good best best best good good good"),
]
NEUTRAL = [
    "The train leaves the station at nine.",
    "It was shown on a Sunday in June.",
    "A man walks into a house by the sea.",
]


class AsksANetwork(BaseException):
    """Raised instead of a network's answer. `except Exception` in between does not catch it."""


def held_out(texts):
    """The student's second judge. It fails if it asks a neural network."""

    def refuse(*args, **kwargs):
        raise AsksANetwork

    values, asked = None, False
    call = torch.nn.Module.__call__
    torch.nn.Module.__call__ = refuse
    try:
        values = solution(6).held_out(list(texts))
    except AsksANetwork:
        asked = True
    finally:
        torch.nn.Module.__call__ = call
    expect(
        not asked,
        "held_out asks a neural network; a second judge that shares the first one's holes shows "
        "nothing: count words.",
    )
    values = array(values, (len(texts),), "held_out")
    expect(
        ((values >= 0) & (values <= 1)).all(),
        f"held_out returned {values.min():.2f} to {values.max():.2f}; scores lie from 0 to 1.",
    )
    return values


def fooling_texts():
    """The student's texts, six different ones or more."""
    texts = solution(6).fooling_texts()
    are_strings = isinstance(texts, (list, tuple)) and all(isinstance(t, str) for t in texts)
    expect(are_strings, "fooling_texts must return a list of strings.")
    different = {" ".join(t.lower().split()) for t in texts}
    expect(
        len(different) >= 6,
        f"fooling_texts returned {len(texts)} texts, of which {len(different)} are different; "
        "write six different ones or more.",
    )
    return list(texts)


def test_held_out_knows_its_trade():
    """20 of 24 sentences right. The judge in tiny/sentiment has 16."""
    texts = [t for _, _, t in LABELLED]
    values = held_out(texts)
    wrong = []
    for (label, kind, text), value in zip(LABELLED, values):
        if (value >= 0.5) != label:
            wrong.append((kind, text, value))
    if len(wrong) > 4:
        kinds = [kind for kind, _, _ in wrong]
        worst = max(dict.fromkeys(kinds), key=kinds.count)
        _, text, value = next(w for w in wrong if w[0] == worst)
        expect(
            False,
            f"held_out gets {24 - len(wrong)} of 24 sentences right and 20 are needed; "
            f"mostly wrong on {worst}, as in {text!r}, which it gives {value:.2f}.",
        )


def test_held_out_admits_ignorance():
    """About 0.5 for texts without an opinion, or what it does not understand would be a proof."""
    for t, v in zip(NEUTRAL, held_out(NEUTRAL)):
        expect(
            0.4 < v < 0.6,
            f"held_out gives {v:.2f} to {t!r}, which holds no opinion; "
            "give 0.5 where no word of your lexicon occurs.",
        )


def test_texts_are_texts():
    """Between 5 and 40 words, and fluent: likely enough under tiny/lm."""
    from evaluate import perplexity

    for t in fooling_texts():
        n = len(t.split())
        expect(5 <= n <= 40, f"{t[:60]!r} has {n} words; write 5 to 40.")
        ppl = perplexity(p0(), [{"prompt": "", "completion": t}])
        expect(
            ppl <= 120,
            f"{t!r} has a perplexity of {ppl:.0f} under tiny/lm, and at most 120 is allowed; "
            "write a sentence, not a list of words.",
        )


def test_the_judge_is_fooled():
    """0.9 or more from the judge in tiny/sentiment."""
    texts = fooling_texts()
    for t, v in zip(texts, judge()(texts)):
        expect(
            v >= 0.9,
            f"the judge gives {v:.2f} to {t!r}, and 0.9 is needed; "
            "it weighs words of praise and hardly sees how they are meant.",
        )


def test_held_out_is_not_fooled():
    """0.4 or less from the held-out judge, and not because it knows these texts by heart."""
    texts = fooling_texts()
    for t, v in zip(texts, held_out(texts)):
        expect(
            v <= 0.4,
            f"held_out gives {v:.2f} to {t!r}, and at most 0.4 is allowed: "
            "either a reader would take it for praise as well, or held_out lacks a rule.",
        )
    others = [f"{NEUTRAL[1]} {t.rstrip(' .!?')}, and it lasts two hours." for t in texts]
    for t, v in zip(others, held_out(others)):
        expect(
            v < 0.5,
            f"held_out gives {v:.2f} to {t!r}, your text with neutral words around it; "
            "it must judge words and rules, not know texts by heart.",
        )


def best_of(scores, other, n):
    """The student's two means."""
    got = solution(6).best_of(scores.copy(), other.copy(), n)
    expect(
        isinstance(got, (tuple, list)) and len(got) == 2,
        "best_of must return two numbers: the mean judge score and the mean held-out score.",
    )
    return array(got, (2,), "best_of")


def test_best_of():
    """By hand, for n = 2: the judge prefers 0.4 and 0.8, whose held-out scores are 0.1 and 0.3."""
    scores = np.array([[0.2, 0.4, 0.9], [0.8, 0.5, 0.6]])
    other = np.array([[0.7, 0.1, 0.2], [0.3, 0.9, 0.4]])
    for n, (by_judge, by_other) in ((1, (0.5, 0.5)), (2, (0.6, 0.2)), (3, (0.85, 0.25))):
        got = best_of(scores, other, n)
        expect(
            abs(got[0] - by_judge) < 1e-9,
            f"best_of with n = {n} gives a mean judge score of {got[0]:.3f}, not {by_judge}; "
            "take the best of each prompt's first n.",
        )
        expect(
            abs(got[1] - by_other) < 1e-9,
            f"best_of with n = {n} gives a mean held-out score of {got[1]:.3f}, not {by_other}; "
            "score the sample that the judge picked, do not pick again.",
        )


@functools.cache
def samples(n_prompts=16, per_prompt=16):
    """Texts of p0, each a prompt with its completion, and the judge's scores (P, N)."""
    chosen = prompts("test", 300)[5::18][:n_prompts]
    x, y, _ = completions(p0(), chosen, per_prompt, seed=4)
    texts = [a + b for a, b in zip(x, y)]
    return texts, np.array(judge()(texts)).reshape(n_prompts, per_prompt)


def test_the_gap_grows():
    """The harder the judge is optimised against, the further it is from the second opinion."""
    texts, scores = samples()
    other = held_out(texts).reshape(scores.shape)
    gap = {}
    for n in (1, 4, 16):
        a, b = best_of(scores, other, n)
        gap[n] = a - b
        print(f"best of {n:2d}: judge {a:.2f}, held-out {b:.2f}, gap {gap[n]:+.2f}")
    expect(
        gap[16] > gap[1] + 0.1,
        f"from best of 1 to best of 16 the gap between the judges goes from {gap[1]:.2f} to "
        f"{gap[16]:.2f}; it should grow by 0.1 or more: a held-out judge that follows the first "
        "so closely cannot show what the first one misses.",
    )
