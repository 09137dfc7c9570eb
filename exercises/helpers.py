"""What the checks share: one-sentence failures, and the small model and its judge, loaded once."""

import functools
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def expect(condition, sentence):
    """Fails with `sentence` alone unless `condition` holds."""
    if not condition:
        pytest.fail(sentence, pytrace=False)


def array(value, shape, what):
    """`value` as a float64 array of `shape`, all finite. `what` names it in a failure."""
    expect(value is not None, f"{what} returned None; is a return missing?")
    try:
        value = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        pytest.fail(
            f"{what} returned a {type(value).__name__} that is not made of numbers; "
            f"it should have shape {shape}.",
            pytrace=False,
        )
    expect(
        value.shape == shape,
        f"{what} returned the shape {value.shape}, not {shape}; "
        "is a sum over the wrong axis, or one missing?",
    )
    odd = value[~np.isfinite(value)].tolist()
    expect(
        not odd,
        f"{what} returned {odd[:1]}, which is no finite number; "
        "take no logarithm of 0 and do not divide by it.",
    )
    return value


@functools.cache
def p0():
    """The small language model in tiny/lm."""
    from explore import load_policy

    return load_policy(ROOT / "tiny" / "lm")


@functools.cache
def judge():
    """The sentiment judge in tiny/sentiment: texts -> list of P(positive)."""
    from rewards import load_reward

    reward = load_reward("sentiment", ROOT / "tiny" / "sentiment")
    return lambda texts: reward(prompts=[""] * len(texts), completions=list(texts))


def prompts(split, n):
    """The first n prompts of tiny/prompts; split is "train" or "test"."""
    from plumbing.pool import read_prompts

    rows = read_prompts(ROOT / "tiny" / "prompts" / f"{split}.jsonl")
    return [row["prompt"] for row in rows][:n]


def completions(policy, texts, per_prompt, seed, quantile=None, max_new_tokens=20):
    """`per_prompt` samples of every prompt, in order: (prompts, completions, token ids)."""
    from explore import sample

    texts = [x for x in texts for _ in range(per_prompt)]
    keys = [(i // per_prompt, i % per_prompt) for i in range(len(texts))]
    ids = sample(
        policy,
        [policy.encode(x) for x in texts],
        quantile=quantile,
        max_new_tokens=max_new_tokens,
        min_new_tokens=3,
        seed=seed,
        keys=keys,
    )
    return texts, [policy.decode(policy.without_eos(y)) for y in ids], ids
