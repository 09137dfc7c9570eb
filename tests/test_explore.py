"""Steps 1 and 4: drawing a token, the sampling loop against a slow one, the pool it writes."""

import json
import math
import os

import numpy as np
import pytest
import torch
from conftest import (
    SENTENCES,
    K,
    V,
    one_sentence,
    read_rows,
    stage,
    started,
    write_jsonl,
    write_reward,
)

import explore
from explore import draw, sample, uniforms
from plumbing.pool import BadInput
from rewards import hash_reward

TEXTS = [
    "The film was long",
    "",
    " then the",
    "I'd see it 1999 times!!",
    "naïve — 日本語 \U0001f600",
    "a\n\n b\t  c   ",
    "they'll've",
]


def ids_of(policy, *texts):
    return [policy.encode(t) for t in texts]


# ---------------------------------------------------------------------------------- drawing a token


def logits_of(*p):
    """(1, V) logits of these probabilities."""
    return torch.tensor([[math.log(x) if x else -math.inf for x in p]])


def drawn(logits, u, top_p=1.0, top_k=0):
    """`draw` for many u at once, with the same logits in each row."""
    u = torch.tensor(u, dtype=torch.float64)
    return draw(logits.expand(len(u), -1).clone(), u, top_p, top_k).tolist()


def test_draw_by_hand():
    """p = .1 .2 .3 .4 has the cumulative sums .1 .3 .6 1. The first one above u gives the token.

    So u below .1 gives token 0, u from .1 to .3 token 1, from .3 to .6 token 2, from .6 on token 3.
    """
    u = [0.05, 0.15, 0.29, 0.31, 0.59, 0.61, 0.99]
    assert drawn(logits_of(0.1, 0.2, 0.3, 0.4), u) == [0, 1, 1, 2, 2, 3, 3]


def test_draw_at_the_ends():
    """u = 0 and u just below 1 give the first and the last token of any probability, never others.

    Apple's GPUs have only float32, in which u may be rounded to exactly 1.
    """
    ends = [0.0, 1 - 2**-53]
    assert drawn(logits_of(0, 0, 0.5, 0.5, 0), ends) == [2, 3]
    assert drawn(logits_of(0.3, 0.7), ends) == [0, 1]
    assert drawn(logits_of(0, 1, 0), ends) == [1, 1]
    assert drawn(logits_of(0, 0.5, 0.2, 0.3, 0), ends, top_p=0.7) == [1, 3]  # the nucleus: .5 + .3
    rounded = torch.tensor([1 - 1e-9]).float()
    assert rounded == 1
    assert draw(logits_of(0.3, 0.7, 0), rounded).tolist() == [1]
    assert draw(logits_of(0.3, 0.7, 0), rounded, 0.5).tolist() == [1]


def test_top_p_by_hand():
    """p = .1 .4 .2 .3, cumulative .1 .5 .7 1. Likeliest first: tokens 1 (.4), 3 (.3), 2 (.2), 0.

    top_p = .6: .4 is not enough, .4 + .3 is, so the nucleus is {1, 3}. Within it token 1 has
    .4 / .7 = .571. If u falls to a token of the nucleus, that is the token: u in [.1, .5) gives 1,
    u from .7 on gives 3. Otherwise u's place within that token's stretch draws again from the
    nucleus. Below .1 the place is u / .1: .05 -> .5 -> 1 and .058 -> .58 -> 3. In [.5, .7) it is
    (u - .5) / .2: .613 -> .565 -> 1 and .615 -> .575 -> 3.

    top_p = .3: the nucleus is {1}. top_p = .8: it is {1, 3, 2}, and the borders for token 0's
    stretch are .4 / .9 = .444 and .7 / .9 = .778.
    """
    p = logits_of(0.1, 0.4, 0.2, 0.3)
    assert drawn(p, [0.2, 0.8], 0.6) == [1, 3]
    assert drawn(p, [0.05, 0.056, 0.058, 0.09], 0.6) == [1, 1, 3, 3]
    assert drawn(p, [0.51, 0.613, 0.615, 0.69], 0.6) == [1, 1, 3, 3]
    assert drawn(p, [0.01, 0.3, 0.6, 0.99], 0.3) == [1, 1, 1, 1]
    assert drawn(p, [0.2, 0.6, 0.8, 0.043, 0.046, 0.077, 0.079], 0.8) == [1, 2, 3, 1, 3, 3, 2]
    assert set(drawn(p, np.linspace(0, 0.999, 50).tolist(), 1.0)) == {0, 1, 2, 3}


def test_a_nucleus_that_holds_top_p_exactly():
    """p = 1/2 1/4 1/8 1/8, exact in binary: the first two hold 3/4, so no third token is in it.

    u = .2 and .6 give 0 and 1. Those of 2 and 3 are drawn again, with 0 below 2/3: .8 is at .4 of
    the stretch of 2, and .99 at .92 of that of 3. Drawn from the nucleus at once, u below 2/3 is 0.
    """
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).expand(4, -1)
    u = torch.tensor([0.2, 0.6, 0.8, 0.99], dtype=torch.float64)
    cdf, ids = explore._inverse_cdf(p, u)
    assert ids.tolist() == [0, 1, 2, 3]
    explore._redraw_outside_nucleus(p, cdf, ids, u, 0.75)
    assert ids.tolist() == [0, 1, 0, 1]
    assert explore._draw_from_nucleus(p, u, 0.75).tolist() == [0, 0, 1, 1]


def test_top_k_by_hand():
    """p = .1 .4 .2 .3: the two likeliest are 1 (.4) and 3 (.3), so the border is .4 / .7 = .571.

    A nucleus of .5 within those two is token 1 alone. top_k = 0, or all tokens: nothing is cut.
    p = .1 .4 .25 .25: the second likeliest has an equal, which stays as well. The borders are
    .4 / .9 = .444 and .65 / .9 = .722.
    """
    p = logits_of(0.1, 0.4, 0.2, 0.3)
    assert drawn(p, [0.0, 0.57, 0.572, 0.99], top_k=2) == [1, 1, 3, 3]
    assert drawn(p, [0.0, 0.57, 0.58, 0.99], 0.5, 2) == [1, 1, 1, 1]
    for k in (0, 4, 9):
        assert drawn(p, [0.05, 0.15, 0.6, 0.8], top_k=k) == [0, 1, 2, 3]
    tied = logits_of(0.1, 0.4, 0.25, 0.25)
    assert drawn(tied, [0.0, 0.44, 0.45, 0.72, 0.73, 0.99], top_k=2) == [1, 1, 2, 2, 3, 3]


def inverse_cdf(p, tokens, u):
    """The token at u among `tokens`, in their order, and u's place within its stretch in [0, 1)."""
    u = u * sum(p[v] for v in tokens)
    below = 0.0
    for v in tokens:
        if below + p[v] > u:
            return v, (u - below) / p[v]
        below += p[v]


def nucleus_of(p, top_p):
    """The fewest of the likeliest tokens that hold at least top_p, likeliest first."""
    nucleus, mass = [], 0.0
    for v in sorted(range(len(p)), key=lambda v: -p[v]):
        if mass < top_p:
            nucleus.append(v)
            mass += p[v]
    return nucleus


def slow_draw(p, u, top_p):
    """The inverse CDF over all tokens. If that token is outside the nucleus: over the nucleus."""
    nucleus = nucleus_of(p, top_p)
    token, place = inverse_cdf(p, range(len(p)), u)
    if token not in nucleus:
        token, _ = inverse_cdf(p, nucleus, place)
    return token


@pytest.mark.parametrize("top_p", [1.0, 0.75])
def test_draw_is_the_softmax(top_p):
    """100,000 evenly spaced u draw each token as often as it is likely, to the width of the grid.

    With a nucleus, tokens outside it are never drawn, and the others share the mass. Rows of a
    batch do not mix.
    """
    torch.manual_seed(2)
    logits = 2 * torch.randn(2, 7)
    grid = [(j + 0.5) / 100_000 for j in range(100_000)]
    for row in logits:
        weights = [math.exp(z) for z in row.tolist()]
        p = [w / sum(weights) for w in weights]
        nucleus = nucleus_of(p, top_p)
        mass = sum(p[v] for v in nucleus)
        shares = np.bincount(drawn(row[None], grid, top_p), minlength=7) / 100_000
        for v in range(7):
            expected = p[v] / mass if v in nucleus else 0
            assert shares[v] == pytest.approx(expected, abs=2e-4)
    both = draw(logits, torch.tensor([0.3, 0.3], dtype=torch.float64), top_p).tolist()
    assert both == [drawn(row[None], [0.3], top_p)[0] for row in logits]


def test_top_p_of_a_large_vocabulary():
    """1,500 tokens: the same as slowly drawn, whether or not 1,024 of them hold the nucleus."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(8, 1500, generator=generator)
    peaked = 4 * torch.randn(8, 1500, generator=generator)
    assert (flat.softmax(-1).topk(1024).values.sum(-1) < 0.95).all()
    assert (peaked.softmax(-1).topk(1024).values.sum(-1) > 0.95).all()
    u = torch.rand(8, generator=generator, dtype=torch.float64)
    for logits in (flat, peaked, torch.cat([flat[:4], peaked[:4]])):
        for top_p in (0.95, 0.5, 0.05):
            p = logits.double().softmax(-1)
            expected = [slow_draw(p[i].tolist(), u[i].item(), top_p) for i in range(8)]
            assert draw(logits, u, top_p).tolist() == expected


def test_draw_from_many_and_from_rare_tokens():
    """50,000 equal tokens: u = (j + 0.5) / 50,000 gives token j.

    Then one token of nearly 1 before 20 of 2e-8 each. Token j of those has the 2e-8 of u that begin
    at 1 - (21 - j) 2e-8. Sums in float32, whose steps are 6e-8 there, would lose most of them.
    """
    n = 50_000
    tokens = list(range(0, n, 997))
    assert drawn(torch.zeros(1, n), [(j + 0.5) / n for j in tokens]) == tokens
    rare = logits_of(1 - 20 * 2e-8, *[2e-8] * 20)
    u = [1 - (20 - j + 0.5) * 2e-8 for j in range(1, 21)]
    assert drawn(rare, u) == list(range(1, 21))


# -------------------------------------------------------------------------------- the sampling loop


def slow_sample(
    policy,
    ids,
    key,
    *,
    n,
    quantile=None,
    temperature=1.0,
    top_p=1.0,
    seed=0,
    iteration=0,
    min_new=0,
    greedy=False,
):
    """One prompt alone: no batch, no padding, no cache, and the inverse CDF in plain Python."""
    front = [] if quantile is None else [V + quantile - 1]
    x = front + (list(ids) or [V - 1])
    counter = np.random.Philox(key=[seed, iteration], counter=[0, 0, *key])
    u = np.random.Generator(counter).random(n)
    y = []
    for step in range(n):
        with torch.no_grad():
            logits = policy.model(torch.tensor([x + y])).logits[0, -1, :V].double().tolist()
        if step < min_new:
            logits[V - 1] = -math.inf
        if greedy:
            token = max(range(V), key=lambda v: logits[v])
        else:
            top = max(logits)
            weights = [math.exp((z - top) / temperature) for z in logits]
            p = [w / sum(weights) for w in weights]
            token = slow_draw(p, u[step], top_p)
        y.append(token)
        if token == V - 1:
            break
    return y


SETTINGS = [
    {},
    {"quantile": 2},
    {"quantile": 3, "temperature": 0.6, "top_p": 0.8},
    {"greedy": True, "quantile": 1},
    {"seed": 4, "iteration": 2, "top_p": 0.5},
    {"temperature": 1.7},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_sample_is_the_slow_sampler(quark, setting):
    """Every option against the slow reference, in one batch.

    The prompts have different lengths, and some completions end early, so rows leave the batch.
    """
    prompts = ids_of(quark, *TEXTS, SENTENCES[2][:40])
    keys = [(5 * i, i % 3) for i in range(len(prompts))]
    slow = []
    for ids, key in zip(prompts, keys):
        slow.append(slow_sample(quark, ids, key, n=11, min_new=2, **setting))
    fast = sample(quark, prompts, keys=keys, max_new_tokens=11, min_new_tokens=2, **setting)
    assert fast == slow
    if not setting.get("greedy"):
        assert len({len(y) for y in fast}) > 1


def test_sampling_in_bfloat16_is_close(quark):
    """--bf16 moves the logits a little. They are float32 all the same.

    In `sample` a layer's products are in bfloat16 if that is asked for, and only then.
    """
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        exact = started(quark.model, [0]).next_logits(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = started(quark.model, [0]).next_logits(tokens)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert torch.allclose(rough, exact, atol=0.05 * exact.std().item())
    prompts = ids_of(quark, *SENTENCES)
    seen = []
    layer = quark.model.transformer.h[0].mlp.c_fc
    layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    for bf16, expected in ((False, torch.float32), (True, torch.bfloat16)):
        seen.clear()
        sample(quark, prompts, max_new_tokens=4, bf16=bf16)
        assert set(seen) == {expected}


def test_batch_size_and_padding_change_no_sample(quark):
    """One at a time, in fours, all at once: the same completions, in the order given.

    Completions of several lengths: rows leave their batch at different times.
    """
    prompts = ids_of(quark, *[s[: 3 + 7 * i] for i, s in enumerate(SENTENCES * 3)])
    options = {"quantile": 2, "max_new_tokens": 13, "seed": 1}
    runs = [sample(quark, prompts, batch_size=size, **options) for size in (1, 4, 64)]
    assert runs[0] == runs[1] == runs[2]
    assert len({len(y) for y in runs[0]}) > 2


def test_random_numbers_belong_to_the_key(quark):
    """Prompts in another order, or fewer of them: each key keeps its completion.

    Another seed, round, prompt number or sample number gives another one. Without keys, row i is
    sample 0 of prompt i.
    """
    prompts = ids_of(quark, "The", "A good", "I see the", "Then it was")
    keys = [(i, 1) for i in range(4)]
    options = {"max_new_tokens": 8, "quantile": 1}
    first = sample(quark, prompts, keys=keys, **options)
    assert sample(quark, prompts[::-1], keys=keys[::-1], **options) == first[::-1]
    assert sample(quark, prompts[2:3], keys=keys[2:3], **options) == first[2:3]
    other_samples = {"keys": [(i, 2) for i in range(4)]}
    other_prompts = {"keys": [(i + 4, 1) for i in range(4)]}
    for change in ({"seed": 1}, {"iteration": 1}, other_samples, other_prompts):
        other = sample(quark, prompts, **{"keys": keys, **options, **change})
        assert all(a != b for a, b in zip(first, other))
    same = sample(quark, prompts[:1] * 3, keys=[(0, 0), (0, 1), (0, 0)], **options)
    assert same[0] == same[2] != same[1]
    numbered = sample(quark, prompts, keys=[(i, 0) for i in range(4)], **options)
    assert sample(quark, prompts, **options) == numbered


def test_uniforms():
    """A function of its four numbers, none of which can be exchanged for another.

    A longer row begins with the shorter one. No row is another one shifted, so all 35 numbers
    differ. 3,000 numbers lie in [0, 1), are all different and have a mean near 1/2.
    """
    base = uniforms(3, 1, 7, 2, 5)
    assert base.shape == (5,)
    assert (uniforms(3, 1, 7, 2, 9)[:5] == base).all()
    keys = [(1, 3, 7, 2), (3, 1, 2, 7), (4, 1, 7, 2), (3, 2, 7, 2), (3, 1, 8, 2), (3, 1, 7, 3)]
    numbers = np.concatenate([base, *(uniforms(*key, 5) for key in keys)])
    assert len(set(numbers.tolist())) == 35
    many = np.concatenate([uniforms(0, 0, i, j, 25) for i in range(40) for j in range(3)])
    assert 0 <= many.min() and many.max() < 1
    assert abs(many.mean() - 0.5) < 0.03
    assert len(set(many.tolist())) == len(many)


@pytest.mark.parametrize("quantile", [None, 2])
def test_greedy_is_generate(quark, quark_folder, quantile):
    """Greedy decoding is Hugging Face's generate, with and without a reward token in front."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(quark_folder, dtype=torch.float32)
    prompts = ids_of(quark, "The", "I was bored by", "She said that it's")
    options = {"max_new_tokens": 12, "min_new_tokens": 7}
    ours = sample(quark, prompts, quantile=quantile, greedy=True, **options)
    front = [] if quantile is None else [V + quantile - 1]
    for ids, y in zip(prompts, ours):
        x = torch.tensor([front + ids])
        theirs = model.generate(
            x,
            attention_mask=torch.ones_like(x),
            do_sample=False,
            suppress_tokens=list(range(V, V + K)),
            **options,
        )
        assert theirs[0, x.shape[1] :].tolist() == y
    assert len({tuple(y) for y in ours}) > 1


class Script:
    """A network that reads nothing: row i of the batch says its own token, then <|endoftext|>."""

    def __init__(self, says):
        self.says = torch.tensor(says)
        self.step = 0

    def next_logits(self, tokens):
        said = self.says if self.step == 0 else torch.full_like(self.says, V - 1)
        self.step += 1
        return torch.nn.functional.one_hot(said, V) * 1e4

    def keep(self, rows):
        self.says = self.says[rows]


def test_another_network_in_the_policy_s_place(quark, monkeypatch):
    """`network` alone decides, and the policy's own model is not asked.

    It sees each different prompt once, sorted by length: [7], then [5, 6]. So "40" belongs to [7]
    and "50" to [5, 6]. It is told which rows go on.
    """
    monkeypatch.setattr(quark.model, "forward", None)
    prompts = [[5, 6], [7], [5, 6]]
    completions = sample(quark, prompts, max_new_tokens=4, network=Script([40, 50]))
    assert completions == [[50, V - 1], [40, V - 1], [50, V - 1]]


def test_greedy_row_by_row(quark):
    """greedy may be given for each row: in one batch some rows are greedy and others are drawn."""
    prompts = ids_of(quark, "The film", "A", "I see it")
    options = {"max_new_tokens": 7, "quantile": 1}
    mixed = sample(quark, prompts, greedy=[True, False, True], **options)
    greedy = sample(quark, prompts, greedy=True, **options)
    free = sample(quark, prompts, greedy=False, **options)
    assert mixed == [greedy[0], free[1], greedy[2]]
    assert greedy[1] != free[1]


def test_reward_tokens_are_never_generated(quark):
    """Even a model that gives them all its probability writes none, greedy or drawn.

    They are left out of the vocabulary, so what is written is the same as without that preference.
    """

    def completions(greedy, top_p):
        prompts = ids_of(quark, "The film", "A")
        options = {"quantile": 3, "max_new_tokens": 6}
        return sample(quark, prompts, greedy=greedy, top_p=top_p, **options)

    settings = [(True, 1.0), (False, 1.0), (True, 0.9), (False, 0.9)]
    plain = [completions(*setting) for setting in settings]
    calls = []

    def prefer_reward_tokens(module, args, output):
        output[..., V:] += 1e4
        calls.append(output.shape)

    quark.model.lm_head.register_forward_hook(prefer_reward_tokens)
    assert [completions(*setting) for setting in settings] == plain
    assert len(calls) > 6
    for both in plain:
        for y in both:
            assert y and max(y) < V


def bias_eos(policy, bias):
    """Adds `bias` to the logit of <|endoftext|> from now on."""

    def hook(module, args, output):
        output[..., V - 1] += bias

    policy.model.lm_head.register_forward_hook(hook)


def test_end_of_text_ends_and_is_kept(quark):
    """A model that only wants to stop writes nothing but <|endoftext|>.

    With min_new_tokens = 2 it writes two other tokens first.
    """
    bias_eos(quark, 1e4)
    prompts = ids_of(quark, "The film", "A")
    for greedy in (True, False):
        assert sample(quark, prompts, max_new_tokens=6, greedy=greedy) == [[V - 1], [V - 1]]
        for y in sample(quark, prompts, max_new_tokens=6, min_new_tokens=2, greedy=greedy):
            assert len(y) == 3
            assert y[2] == V - 1
            assert V - 1 not in y[:2]


def test_no_end_no_more_than_max_new_tokens(quark):
    """A model that never stops writes max_new_tokens tokens, and no <|endoftext|> is added."""
    bias_eos(quark, -1e4)
    for y in sample(quark, ids_of(quark, "The", "A film"), max_new_tokens=5):
        assert len(y) == 5
        assert V - 1 not in y


def test_long_prompts_are_cut_from_the_left(quark):
    """A context of 64 less 10 new tokens leaves 54 places, one of them for the reward token.

    The end of the prompt, which is next to y, stays.
    """
    long = quark.encode(" ".join(SENTENCES))
    assert len(long) > 100
    for quantile, room in ((None, 54), (2, 53)):
        options = {"quantile": quantile, "max_new_tokens": 10}
        cut = sample(quark, [long], **options)
        assert cut == sample(quark, [long[-room:]], **options)
        assert cut != sample(quark, [long[-room + 3 :]], **options)
        assert cut[0] == slow_sample(quark, long[-room:], (0, 0), n=10, quantile=quantile)


def test_an_empty_prompt_starts_with_end_of_text(quark):
    """A language model must read at least one token. No prompts give no completions."""
    options = {"quantile": 1, "max_new_tokens": 6}
    assert sample(quark, [[]], **options) == sample(quark, [[V - 1]], **options)
    assert sample(quark, [], **options) == []


def test_too_many_new_tokens(quark):
    """63 new tokens leave one place of 64: room for a prompt's last token, not for r_k as well."""
    assert len(sample(quark, [[5, 6]], max_new_tokens=63)[0]) <= 63
    for quantile, n in ((1, 63), (None, 64)):
        with pytest.raises(BadInput, match="no room for a prompt in a context of 64"):
            sample(quark, [[5, 6]], quantile=quantile, max_new_tokens=n)


# ---------------------------------------------------------------------------------------- the stage

PROMPTS = ("The film", "I was", "She said that")


def prompts_file(tmp_path, texts=PROMPTS):
    return write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": t} for t in texts])


def run(model, prompts, out, *options, reward="hash"):
    """explore.py with at most 6 new tokens. Returns the rows written."""
    argv = ["--model", model, "--prompts", prompts, "--reward", reward, "--out", out]
    argv += ["--max-new-tokens", 6, "--device", "cpu", *options]
    explore.main([str(a) for a in argv])
    return read_rows(out)


def ids_written(rows):
    return [row["completion_ids"] for row in rows]


def text_of(policy, y):
    """The text of a completion: <|endoftext|> at its end is no part of it."""
    return policy.decode(y[:-1] if y[-1] == V - 1 else y)


def test_main_writes_a_pool(quark_folder, quark, tmp_path, capsys):
    """One row a sample, prompt by prompt, each with its reward.

    The ids are those that `sample` gives for the key (prompt, sample) under r_K, with every option.
    """
    out = tmp_path / "pool" / "02.jsonl"
    options = ["--num-samples", 2, "--iteration", 2, "--seed", 7]
    options += ["--temperature", 0.7, "--top-p", 0.8, "--min-new-tokens", 1]
    rows = run(quark_folder, prompts_file(tmp_path), out, *options)
    keys = [(i, j) for i in range(3) for j in range(2)]
    ids = sample(
        quark,
        [quark.encode(PROMPTS[i]) for i, _ in keys],
        keys=keys,
        quantile=K,
        max_new_tokens=6,
        min_new_tokens=1,
        seed=7,
        iteration=2,
        temperature=0.7,
        top_p=0.8,
    )
    for row, (i, _), y in zip(rows, keys, ids, strict=True):
        text = text_of(quark, y)
        assert row == {
            "prompt": PROMPTS[i],
            "completion": text,
            "reward": hash_reward([PROMPTS[i]], [text])[0],
            "iteration": 2,
            "prompt_ids": quark.encode(PROMPTS[i]),
            "completion_ids": y,
        }
    assert json.loads((tmp_path / "pool" / "02.args.json").read_text())["seed"] == 7
    assert sorted(os.listdir(tmp_path / "pool")) == ["02.args.json", "02.jsonl"]
    mean = sum(row["reward"] for row in rows) / 6
    assert f"6 samples; reward mean {mean:.4f}" in capsys.readouterr().out


def test_main_uses_no_token_in_the_first_round(p0_folder, p0, tmp_path):
    """p0 has no reward tokens, so nothing is put in front, not even of an empty prompt.

    <|endoftext|> stands for an empty prompt when the model reads it; the pool keeps it empty.
    """
    rows = run(p0_folder, prompts_file(tmp_path, ["The film", ""]), tmp_path / "00.jsonl")
    x = [p0.encode("The film"), [V - 1]]
    assert ids_written(rows) == sample(p0, x, max_new_tokens=6, min_new_tokens=3)
    assert rows[1]["prompt"] == ""
    assert rows[1]["prompt_ids"] == []


def test_main_without_the_reward_token(quark_folder, quark, tmp_path):
    """--reward-token none: a model that has reward tokens reads none, and says something else.

    --top-k 1: the likeliest token each time, as in greedy decoding.
    """
    path = prompts_file(tmp_path)
    ids = ids_of(quark, *PROMPTS)
    lengths = {"max_new_tokens": 6, "min_new_tokens": 3}
    rows = run(quark_folder, path, tmp_path / "none.jsonl", "--reward-token", "none")
    assert ids_written(rows) == sample(quark, ids, **lengths)
    assert rows != run(quark_folder, path, tmp_path / "K.jsonl")
    rows = run(quark_folder, path, tmp_path / "top.jsonl", "--top-k", 1)
    assert ids_written(rows) == sample(quark, ids, quantile=K, greedy=True, **lengths)


def test_main_some_of_the_prompts(quark_folder, tmp_path):
    """--num-prompts 2 of 4: two prompts in the file's order, with both samples of each.

    The next round takes the same two; among five other seeds one takes others. A number larger than
    the file takes all.
    """
    words = ["The", "film", "was", "good"]
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": x} for x in words])

    def chosen(name, *options):
        out = tmp_path / f"{name}.jsonl"
        rows = run(quark_folder, path, out, "--num-prompts", 2, "--num-samples", 2, *options)
        return [row["prompt"] for row in rows]

    a, again, b, again_b = chosen("a")
    assert a == again and b == again_b
    assert words.index(a) < words.index(b)
    assert chosen("b", "--iteration", 1) == [a, a, b, b]
    assert any(chosen(f"s{seed}", "--seed", seed) != [a, a, b, b] for seed in range(1, 6))
    assert len(run(quark_folder, path, tmp_path / "all.jsonl", "--num-prompts", 9)) == 4


def test_main_mixed_decoding(quark_folder, quark, tmp_path):
    """--decode mixed: sample j of prompt i is greedy in round t if i + j + t is even."""
    options = ["--decode", "mixed", "--num-samples", 2]
    settings = {"quantile": K, "max_new_tokens": 6, "min_new_tokens": 3, "greedy": True}
    for t in (0, 1):
        path = prompts_file(tmp_path)
        rows = run(quark_folder, path, tmp_path / "m.jsonl", *options, "--iteration", t)
        for n, row in enumerate(rows):
            i, j = divmod(n, 2)
            greedy = sample(quark, [row["prompt_ids"]], **settings)[0]
            assert (row["completion_ids"] == greedy) == ((i + j + t) % 2 == 0)


def test_main_cuts_and_counts_long_prompts(quark_folder, p0_folder, quark, tmp_path, capsys):
    """A context of 64 less 6 new tokens and the place of r_k: 57 ids of a prompt are read and kept.

    The text stays whole, and the number of cut prompts is printed. Under p0, which reads no r_k, as
    many are kept: a prompt is the same in all rounds.
    """
    long = " ".join(SENTENCES)
    end = quark.encode(long)[-57:]
    rows = run(quark_folder, prompts_file(tmp_path, ["The film", long]), tmp_path / "c.jsonl")
    assert rows[1]["prompt"] == long
    assert rows[1]["prompt_ids"] == end
    settings = {"keys": [(1, 0)], "quantile": K, "max_new_tokens": 6, "min_new_tokens": 3}
    assert rows[1]["completion_ids"] == sample(quark, [end], **settings)[0]
    assert "1 of 2 prompts are longer than 57 tokens" in capsys.readouterr().out
    rows = run(p0_folder, prompts_file(tmp_path, ["The film", long]), tmp_path / "p0.jsonl")
    assert rows[1]["prompt_ids"] == end


def test_main_control_tokens_in_prompts(quark_folder, tmp_path):
    """<|reward_1|> in a prompt is text: no control token's id reaches the pool."""
    path = prompts_file(tmp_path, ["<|reward_1|>x<|endoftext|>"])
    rows = run(quark_folder, path, tmp_path / "c.jsonl")
    assert max(rows[0]["prompt_ids"]) < V - 1


SOME_SCORES = """
def half(prompts, completions, completion_ids, **kwargs):
    values = {"The film": lambda ids: 0, "I was": lambda ids: None, "She said that": sum}
    return [values[x](ids) for x, ids in zip(prompts, completion_ids)]

def none(prompts, completions):
    return [None] * len(prompts)
"""


def test_main_drops_what_has_no_score(quark_folder, tmp_path, capsys):
    """None drops a sample, and is counted; 0 does not. If nothing has a score, nothing is written.

    The reward receives the ids that the pool keeps.
    """
    reward = tmp_path / "r.py"
    reward.write_text(SOME_SCORES)
    path = prompts_file(tmp_path)
    rows = run(quark_folder, path, tmp_path / "d.jsonl", reward=f"{reward}:half")
    assert [row["prompt"] for row in rows] == ["The film", "She said that"]
    assert [row["reward"] for row in rows] == [0, sum(rows[1]["completion_ids"])]
    assert "2 samples, 1 without a score dropped" in capsys.readouterr().out
    with pytest.raises(BadInput, match="scored none of the 3"):
        run(quark_folder, path, tmp_path / "e.jsonl", reward=f"{reward}:none")
    assert not list(tmp_path.glob("e.*"))


def test_main_same_seed_same_bytes(quark_folder, tmp_path):
    """Twice the same pool, with another batch size too. Another seed gives another pool."""
    prompts = prompts_file(tmp_path)
    options = {"a": [], "b": [], "c": ["--batch-size", 1], "d": ["--seed", 1]}
    pools = []
    for name, more in options.items():
        run(quark_folder, prompts, tmp_path / f"{name}.jsonl", *more)
        pools.append((tmp_path / f"{name}.jsonl").read_bytes())
    assert pools[0] == pools[1] == pools[2] != pools[3]


# ------------------------------------------------------------------ the stage, with a single prompt


RELATIVE = """
calls = []
def reward(prompts, completions, **kwargs):
    '''The rank of a sample among those of its prompt: needs all of them in one call.'''
    calls.append(set(prompts))
    values = []
    for x, y in zip(prompts, completions):
        own = [len(z) for w, z in zip(prompts, completions) if w == x]
        values.append(sum(n < len(y) for n in own))
    return values
"""


def test_all_samples_of_a_prompt_are_scored_in_one_call(quark_folder, tmp_path):
    """A reward that compares a prompt's samples does not depend on the batch size.

    Also where a batch is smaller than a prompt has samples, and for a prompt that stands twice in
    the file: its samples are compared with those of its twin.
    """
    (tmp_path / "relative.py").write_text(RELATIVE)
    texts = ["The film", "I was", "It", "The film", "She said that"]
    prompts = prompts_file(tmp_path, texts)

    def pool(size):
        spec = f"{tmp_path / 'relative.py'}:reward"
        options = ["--num-samples", 4, "--batch-size", size]
        return run(quark_folder, prompts, tmp_path / f"{size}.jsonl", *options, reward=spec)

    whole = pool(100)
    for i, row in enumerate(whole):
        own = [len(other["completion"]) for other in whole if other["prompt"] == row["prompt"]]
        assert len(own) == (8 if row["prompt"] == "The film" else 4)
        assert row["reward"] == sum(n < len(row["completion"]) for n in own), i
    for size in (1, 3, 5, 8, 9):
        assert pool(size) == whole


def test_weights_that_are_not_finite(quark, p0_folder, tmp_path, monkeypatch):
    """NaN would make the drawing end at an id that is no token. One sentence instead."""
    for value in (math.nan, math.inf):
        quark.model.transformer.ln_f.bias.data[0] = value
        with pytest.raises(BadInput, match="logits are not finite"):
            sample(quark, [[1]], quantile=1, max_new_tokens=3)
    quark.save(tmp_path / "nan")
    for argv in (
        ["explore.py", "--model", tmp_path / "nan", "--out", tmp_path / "o.jsonl"],
        [
            "evaluate.py",
            "--model",
            p0_folder,
            "--reference",
            tmp_path / "nan",
            "--out",
            tmp_path / "e",
        ],
    ):
        more = ["--prompts", prompts_file(tmp_path), "--reward", "hash", "--max-new-tokens", 4]
        exit = stage(monkeypatch, *argv, *more, "--device", "cpu")
        assert one_sentence(exit)
        assert "logits are not finite" in exit


def test_batches_of_whole_prompts():
    """By length, and at most batch_size, unless one prompt alone has more samples."""
    prompts = [{"prompt": text} for text in ("long", "a", "mid", "b", "a")]
    encoded = [[1, 2, 3], [1], [1, 2], [2], [1]]
    batches = explore._batches_of_prompts(prompts, encoded, 2, 4)
    assert batches == [[2, 3, 8, 9], [6, 7, 4, 5], [0, 1]]
    assert explore._batches_of_prompts(prompts, encoded, 2, 1)[0] == [2, 3, 8, 9]
    assert explore._batches_of_prompts(prompts, encoded, 2, 100) == [[2, 3, 8, 9, 6, 7, 4, 5, 0, 1]]


def show(capsys, model, text, *options):
    """The lines that explore.py --prompt prints."""
    argv = ["--model", model, "--prompt", text, "--max-new-tokens", 8, "--device", "cpu", *options]
    explore.main([str(a) for a in argv])
    return capsys.readouterr().out.splitlines()


def expected_line(policy, prompt, k, reward="", **settings):
    """The name of the token, the reward, and the prompt with what `sample` gives under that token.

    The texts are shown as in JSON: in quotes, on one line, cut to 150 characters.
    """
    settings = {"max_new_tokens": 8, "min_new_tokens": 3, **settings}
    y = sample(policy, [policy.encode(prompt)], quantile=k, **settings)[0]
    text = json.dumps(f"{prompt} |{text_of(policy, y)}")
    name = "no token" if k is None else f"r_{k}"
    if reward:
        reward = f"{reward([prompt], [text_of(policy, y)])[0]:.3f}  "
    return f"{name:10s}{reward}" + (text if len(text) <= 150 else text[:147] + "...")


def test_prompt_prints_a_line_for_each_token(quark_folder, quark, tmp_path, capsys, monkeypatch):
    """--prompt TEXT: no token, then r_1, r_2, r_3, each line what `sample` gives for that quantile.

    The completions differ, and no file is written.
    """
    monkeypatch.chdir(tmp_path)
    lines = show(capsys, quark_folder, "The film was")
    assert lines == [expected_line(quark, "The film was", k) for k in (None, 1, 2, 3)]
    assert len({line[10:] for line in lines}) == 4
    assert os.listdir(tmp_path) == []


def test_prompt_prints_the_reward(quark_folder, quark, tmp_path, capsys, monkeypatch):
    """With --reward its value stands before each completion. Still no file is written."""
    monkeypatch.chdir(tmp_path)
    lines = show(capsys, quark_folder, "The film was", "--reward", "hash")
    expected = [expected_line(quark, "The film was", k, hash_reward) for k in (None, 1, 2, 3)]
    assert lines == expected
    assert len({line[10:15] for line in lines}) == 4  # the rewards
    assert os.listdir(tmp_path) == []


def test_prompt_without_a_score(quark_folder, tmp_path, capsys):
    """A reward that gives None is shown as "no score"."""
    reward = write_reward(tmp_path, "def reward(prompts, completions): return [None]\n")
    lines = show(capsys, quark_folder, "The film was", "--reward", reward)
    assert len(lines) == 4
    for line in lines:
        assert line[10:].startswith('no score  "The film was |')


def test_prompt_of_a_model_without_reward_tokens(p0_folder, p0, capsys):
    """p0 has no r_k: a single line. An empty prompt is a prompt, too."""
    assert show(capsys, p0_folder, "The film was") == [expected_line(p0, "The film was", None)]
    assert show(capsys, p0_folder, "") == [expected_line(p0, "", None)]


def test_prompt_takes_the_sampling_options(quark_folder, quark, capsys):
    """--decode greedy, --seed, --temperature, --top-p and --top-k arrive at `sample`."""
    greedy = [expected_line(quark, "I was", k, greedy=True) for k in (None, 1, 2, 3)]
    assert show(capsys, quark_folder, "I was", "--decode", "greedy") == greedy
    options = ["--seed", 5, "--temperature", 0.7, "--top-p", 0.8, "--top-k", 9]
    settings = {"seed": 5, "temperature": 0.7, "top_p": 0.8, "top_k": 9}
    drawn = [expected_line(quark, "I was", k, **settings) for k in (None, 1, 2, 3)]
    assert show(capsys, quark_folder, "I was", *options) == drawn != greedy


# ---------------------------------------------------------------------------------------- bad input


def test_main_bad_input(quark_folder, tmp_path, monkeypatch):
    """Missing prompts or model, a reward that fails, no room: one sentence, and nothing written."""
    nan = write_reward(tmp_path, "def reward(prompts, completions): return [float('nan')] * 3\n")
    short = write_reward(tmp_path, "def reward(prompts, completions): return []\n", "short.py")
    (tmp_path / "cut.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b')
    (tmp_path / "empty").mkdir()
    good = {"--model": quark_folder, "--prompts": prompts_file(tmp_path), "--reward": "hash"}
    good |= {"--max-new-tokens": 6, "--out": tmp_path / "out" / "o.jsonl", "--device": "cpu"}
    for option, value, message in [
        ("--prompts", tmp_path / "none.jsonl", "cannot read"),
        ("--prompts", tmp_path / "cut.jsonl", "cut.jsonl:2"),
        ("--model", tmp_path / "none", "does not exist"),
        ("--model", tmp_path / "empty", "cannot open"),
        ("--reward", "nothing", "no reward is called"),
        ("--reward", nan, "returned nan at index 0"),
        ("--reward", short, "returned 0 values for 3"),
        ("--max-new-tokens", 63, "no room for a prompt"),
    ]:
        argv = []
        for pair in {**good, option: value}.items():
            argv += pair
        exit = stage(monkeypatch, "explore.py", *argv)
        assert one_sentence(exit)
        assert message in exit
        assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


BAD_OPTIONS = [
    ("--num-samples", 0),
    ("--max-new-tokens", 0),
    ("--min-new-tokens", 7),
    ("--temperature", 0),
    ("--top-p", 0),
    ("--top-p", 1.5),
    ("--batch-size", 0),
    ("--seed", -1),
    ("--temperature", "nan"),
    ("--iteration", -1),
]


@pytest.mark.parametrize("option", BAD_OPTIONS, ids=str)
def test_bad_options(option, tmp_path, quark_folder):
    """argparse's exit status 2, before anything is opened."""
    with pytest.raises(SystemExit) as exit:
        run(quark_folder, prompts_file(tmp_path), tmp_path / "o.jsonl", *option)
    assert exit.value.code == 2
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--prompt", "x", "--prompts", "p.jsonl", "--reward", "hash", "--out", "o"], "either"),
        (["--reward", "hash", "--out", "o"], "either --prompts FILE or --prompt TEXT"),
        (["--prompts", ""], "needs --reward and --out"),
        (["--prompts", "p.jsonl", "--out", "o"], "needs --reward and --out"),
        (["--prompts", "p.jsonl", "--reward", "hash"], "needs --reward and --out"),
    ],
)
def test_prompt_or_prompts(options, message, capsys):
    """One of the two, not both and not neither; --prompts needs --reward and --out as well."""
    with pytest.raises(SystemExit) as exit:
        explore.main(["--model", "m", *options])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.split("error:")[1]
