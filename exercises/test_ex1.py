"""Exercise 1: a reward of your own, and a short Quark run that must raise it."""

import argparse
import functools
from pathlib import Path

import numpy as np
import torch

from exercises import adapter
from exercises.helpers import ROOT, completions, expect, p0, prompts

K, PROMPTS, SAMPLES, LENGTH = 3, 40, 6, 14


def load():
    """The student's module, and the reward as explore.py would load it: checked, by keyword."""
    from rewards import load_reward

    work = adapter.solution(1)
    name = adapter.NAMES.get("reward", "reward")
    getattr(work, name)  # if it is missing, this says so
    return work, load_reward(f"{Path(work.__file__)}:{name}")


def scores(reward, texts, prompts=None):
    """The rewards of the texts, each a number from 0 to 1."""
    from plumbing.pool import BadInput

    values = complaint = None
    try:
        values = reward(prompts=prompts or ["The film"] * len(texts), completions=list(texts))
    except BadInput as error:
        if error.__cause__:
            raise error.__cause__ from None  # the student's own exception, with its line
        complaint = str(error).split(".py:")[-1]
    expect(complaint is None, f"{complaint}.")
    for value, text in zip(values, texts):
        expect(
            value is not None, f"reward gives None for {text!r}; here every text needs a number."
        )
        expect(
            0 <= value <= 1,
            f"reward gives {value:g} for {text!r}; it must lie from 0 to 1, "
            "or the paper's metrics mean nothing.",
        )
    return values


@functools.cache
def pool_of_p0():
    return completions(p0(), prompts("train", PROMPTS), SAMPLES, seed=1, max_new_tokens=LENGTH)


def test_examples():
    """The examples are there, and the reward tells them apart."""
    work, reward = load()
    for name in ("UNWANTED", "WANTED"):
        texts = getattr(work, name)
        are_strings = isinstance(texts, (list, tuple)) and all(isinstance(y, str) for y in texts)
        expect(are_strings, f"{name} must be a list of strings.")
        expect(
            len(set(texts)) >= 3,
            f"{name} holds {len(set(texts))} different texts; "
            "write three or more, so that the checks know what you mean.",
        )
    for y, value in zip(work.WANTED, scores(reward, work.WANTED)):
        expect(
            value >= 0.5,
            f"reward gives {value:.2f} to {y!r} of WANTED, which should get at least 0.5; "
            "higher is better: is it upside down?",
        )
    for y, value in zip(work.UNWANTED, scores(reward, work.UNWANTED)):
        expect(
            value < 0.5,
            f"reward gives {value:.2f} to {y!r} of UNWANTED, which should get less than 0.5; "
            "higher is better: is it upside down?",
        )


def test_each_text_alone():
    """The reward of a text depends on nothing but the text and its prompt."""
    work, reward = load()
    texts = [*work.WANTED, *work.UNWANTED, *pool_of_p0()[1][:40]]
    together = scores(reward, texts)
    again = scores(reward, texts[::-1])[::-1]
    for y, value, other in zip(texts, together, again):
        alone = scores(reward, [y])[0]
        expect(
            max(abs(value - alone), abs(value - other)) < 1e-4,
            f"reward gives {y!r} {value:.3f} among others, {other:.3f} in another order and "
            f"{alone:.3f} alone; it must depend on that text only, or old rewards in the pool "
            "mean something else than new ones.",
        )


def test_silence_is_no_way_out():
    """Completions without a word get less than 0.5."""
    _, reward = load()
    texts = ["", " ", ".", " ... !"]
    for y, value in zip(texts, scores(reward, texts)):
        expect(
            value < 0.5,
            f"reward gives {value:.2f} to {y!r}; the model would learn to say nothing, "
            "so give texts without words less than 0.5.",
        )


def test_p0_does_both():
    """The samples of p0 differ in the reward. Otherwise there is nothing to sort."""
    _, reward = load()
    x, y, _ = pool_of_p0()
    values = scores(reward, y, x)
    share = np.mean([v < 0.5 for v in values])
    expect(
        share >= 0.25,
        f"only {share:.1%} of {len(y)} samples of tiny/lm get less than 0.5; choose something that "
        "the model does more often, in a quarter of the samples at least.",
    )
    expect(
        share <= 0.95,
        f"{share:.1%} of {len(y)} samples of tiny/lm get less than 0.5; "
        "it never does what you want, so choose something easier.",
    )


def test_it_is_unlearned():
    """Two short rounds of Quark, 60 updates in all. The mean reward under r_3 is above p0's."""
    _, reward = load()
    before, after = short_run(lambda x, y: np.array(scores(reward, y, x)))
    gain = (after - before).mean()
    error = (after - before).std() / np.sqrt(len(after))
    means = f"p0 {before.mean():.3f}, after Quark {after.mean():.3f}"
    print(f"mean reward: {means} (+{gain:.3f}, standard error {error:.3f})")
    expect(
        gain > 0.02 and gain > 2 * error,
        f"after a short run the mean reward under r_{K} is {after.mean():.3f} and p0 has "
        f"{before.mean():.3f}; a reward that grows step by step with less of the unwanted is "
        "easier to learn than one that jumps.",
    )


def short_run(score, rounds=2, steps=30):
    """A short run of Algorithm 1: each test prompt's mean reward, (P,) of p0, (P,) under r_K."""
    from explore import load_policy
    from learn import add_reward_tokens, learn
    from quantize import assign_quantiles_per_prompt

    policy = load_policy(ROOT / "tiny" / "lm")
    texts = prompts("train", PROMPTS)
    add_reward_tokens(policy, K, seed=0, init="ordered")
    optimiser = torch.optim.Adam(policy.model.parameters(), eps=1e-5)
    args = argparse.Namespace(
        steps=steps,
        total_steps=rounds * steps,
        batch_size=16,
        grad_accum=1,
        beta=0.05,
        kl="forward",
        entropy_coef=0.0,
        bf16=False,
        lr=1.5e-3,
        warmup=8,
        clip=1.0,
        reward_token_lr=10.0,
        seed=0,
        closed_form=False,
    )
    prompt_of_row = np.repeat(np.arange(PROMPTS), SAMPLES)
    x, y, ids = pool_of_p0()
    for i in range(rounds):
        if i:
            length = {"max_new_tokens": LENGTH}
            x, y, ids = completions(policy, texts, SAMPLES, seed=1 + i, quantile=K, **length)
        quantiles = assign_quantiles_per_prompt(score(x, y), prompt_of_row, K, seed=i)
        parts = [[] for _ in range(K)]
        for k, prompt, completion in zip(quantiles, x, ids):
            parts[k - 1].append((int(k), policy.encode(prompt), completion))
        for _ in learn(policy, p0(), parts, args, optimiser, first_step=i * steps):
            pass
    before = mean_rewards(p0(), None, score)
    after = mean_rewards(policy, K, score)
    return before, after


def mean_rewards(policy, k, score):
    """The mean reward of four samples of every fourth test prompt, read with r_k: (P,)."""
    texts = prompts("test", 300)[::4]  # prompts of every group
    x, y, _ = completions(policy, texts, 4, seed=9, quantile=k, max_new_tokens=LENGTH)
    return score(x, y).reshape(-1, 4).mean(1)
