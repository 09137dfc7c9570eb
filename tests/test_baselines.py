"""baselines/: each update or distribution against a slow version or hand-worked numbers."""

import dataclasses
import itertools
import json
import math
import shutil
import sys
import threading
import time
from types import SimpleNamespace

import best_of_n
import common
import contrastive
import dexperts
import gedi
import gedi_guide
import numpy as np
import page
import pplm
import pplm_classifier
import ppo
import pytest
import qrpo
import rloo
import running
import simctg
import table
import torch
import unlikelihood
import weights
from conftest import ROOT, learn_merges, write_jsonl, write_vocabulary

from explore import sample
from learn import add_reward_tokens
from plumbing.pool import BadInput, read_jsonl
from rewards import load_reward

PROMPTS = ["The film", "I was there and the story was thin"]


def logits_after(policy, ids):
    """(V,) next-token logits after a whole text, without a cache."""
    with torch.no_grad():
        return policy.model(torch.tensor([ids])).logits[0, -1, : policy.vocab_size]


def states_of(policy, ids):
    """(T, d) last hidden states of a text."""
    with torch.no_grad():
        return policy.model.base_model(torch.tensor([ids])).last_hidden_state[0]


def driven(network, policy, steps=3):
    """Two prompts of different lengths, three samples of the first and one of the second.

    Yields (texts as ids, the network's logits) at each step; the next token is the likeliest one,
    or the second likeliest in row 1. After the first step the second row is finished.
    """
    prompts = [policy.encode(text) for text in PROMPTS]
    longest = max(map(len, prompts))
    padding = [longest - len(ids) for ids in prompts]
    tokens = torch.tensor([[policy.eos_id] * n + ids for n, ids in zip(padding, prompts)])
    network.start(torch.tensor(padding))
    texts = [list(ids) for ids in prompts]
    logits = network.next_logits(tokens)
    yield texts, logits
    rows = torch.tensor([0, 0, 0, 1])
    network.keep(rows)
    logits, texts = logits[rows], [list(texts[i]) for i in rows]
    for step in range(steps):
        order = logits.argsort(-1, descending=True)
        drawn = [order[i, min(i, 1)].item() for i in range(len(texts))]
        for text, token in zip(texts, drawn):
            text.append(token)
        tokens = torch.tensor(drawn)[:, None]
        if step == 0:
            going = torch.tensor([0, 2, 3])
            network.keep(going)
            texts, tokens = [texts[i] for i in going], tokens[going]
        logits = network.next_logits(tokens)
        yield texts, logits


@pytest.fixture
def losses(monkeypatch):
    """The loss of each update, in place of the update."""
    found = []
    monkeypatch.setattr(common, "update", lambda optimiser, loss, *rest: found.append(loss.item()))
    return found


def make_the_end_likely(*policies):
    """So that it matters where <|endoftext|> is impossible."""
    for policy in policies:
        policy.model.lm_head.weight.data[policy.eos_id] *= 8


def close(a, b, tolerance=1e-4):
    finite = torch.isfinite(b)
    assert torch.equal(torch.isfinite(a), finite)
    torch.testing.assert_close(a[finite], b[finite], atol=tolerance, rtol=tolerance)


# ----------------------------------------------------------------------------------- what is shared


def test_log_probabilities_of_tokens(p0):
    """log p(y_t | x, y_<t) by one forward pass for each; <|endoftext|> is impossible at first."""
    pairs = [(p0.encode(PROMPTS[0]), p0.encode(" was thin") + [p0.eos_id]), ([], p0.encode("Old"))]
    log_p, rows = common.token_log_probs(p0, pairs, min_new_tokens=2)
    expected, owner = [], []
    for row, (x, y) in enumerate(pairs):
        for t, token in enumerate(y):
            logits = logits_after(p0, (list(x) or [p0.eos_id]) + y[:t])
            if t < 2:
                logits[p0.eos_id] = -torch.inf
            expected.append(logits.log_softmax(-1)[token])
            owner.append(row)
    torch.testing.assert_close(log_p, torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert rows.tolist() == owner
    sums = common.sum_by_row(log_p, rows, 2)
    assert sums[1].item() == pytest.approx(sum(e for e, o in zip(expected, owner) if o == 1).item())


def test_prompts_come_in_random_order_and_none_twice_before_all():
    drawn = [common.prompts_of_step(10, 4, step, seed=3) for step in range(5)]
    flat = list(itertools.chain(*drawn))
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:] and flat[:10] != list(range(10))
    assert drawn != [common.prompts_of_step(10, 4, step, seed=4) for step in range(5)]


def rollout_options(**more):
    settings = {"samples_per_prompt": 2, "batch_size": 4, "max_new_tokens": 6}
    settings |= {"min_new_tokens": 2, "seed": 0} | more
    return SimpleNamespace(**settings)


def test_a_rollout_is_the_samples_of_the_policy(p0):
    """k of each prompt next to each other; no two alike; scored as texts of their own prompt."""
    prompts = [{"prompt": text} for text in PROMPTS]
    seen, read = [], []

    def reward(prompts, completions, completion_ids, **kwargs):
        seen.extend(zip(prompts, completions))
        read.extend(completion_ids)
        return [float(len(x)) for x in prompts]

    pairs, r = common.rollout(p0, prompts, reward, rollout_options(), step=1)
    texts = [p0.decode(x) for x, _ in pairs]
    assert texts[0] == texts[1] != texts[2] == texts[3] and sorted({*texts}) == sorted(PROMPTS)
    assert r.tolist() == [float(len(x)) for x in texts]
    assert len({tuple(y) for _, y in pairs}) == 4
    assert {x for x, _ in seen} == {*PROMPTS}
    assert sorted(read) == sorted(y for _, y in pairs)
    with pytest.raises(BadInput, match="no multiple of k"):
        common.rollout(p0, prompts, reward, rollout_options(batch_size=3), step=0)
    with pytest.raises(BadInput, match="no score"):
        common.rollout(p0, prompts, lambda **texts: [None] * 4, rollout_options(), step=0)
    ids = [p0.encode(text) for text in texts]  # the likeliest tokens only would be another policy
    keys = [(PROMPTS.index(text), j) for text, j in zip(texts, (0, 1, 0, 1))]
    settings = {"max_new_tokens": 6, "min_new_tokens": 2, "seed": 0, "iteration": 1, "keys": keys}
    assert [y for _, y in pairs] == sample(p0, ids, **settings)


def test_a_prompt_that_is_too_long_is_cut_from_the_left(p0):
    text = " was" * 60
    pairs, _ = common.rollout(p0, [{"prompt": text}] * 2, load_reward("hash"), rollout_options(), 0)
    assert {len(x) for x, _ in pairs} == {p0.context - 6}
    assert pairs[0][0] == p0.encode(text)[-(p0.context - 6) :]


@pytest.mark.parametrize("k", [1, 2])
def test_a_prompt_that_comes_twice_in_a_step_gets_other_samples(p0, k):
    options = rollout_options(batch_size=4 * k, samples_per_prompt=k)
    prompts = [{"prompt": text} for text in PROMPTS]
    pairs, _ = common.rollout(p0, prompts, load_reward("hash"), options, step=0)
    assert len({(tuple(x), tuple(y)) for x, y in pairs}) == 4 * k


def test_a_gradient_is_clipped_before_the_step():
    """The gradient is 5 long, the largest is 2, the rate 0.5: the step is 1 long.

    The rate's peak is 1; of the 4 steps after 2 of warm-up, half are done. And the nucleus of .5 of
    p = .5, .25, .25 is its first token alone.
    """
    weight = torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    args = SimpleNamespace(clip=2.0, lr=1.0, warmup=2)
    norm = common.update(optimiser, (weight * torch.tensor([3.0, 4.0])).sum(), 4, 6, args)
    assert norm == pytest.approx(5) and weight.grad is None
    assert weight.tolist() == pytest.approx([-0.6, -0.8], rel=1e-4)
    outside = common.outside_nucleus(torch.tensor([[0.5, 0.25, 0.25]]).log(), 0.5)
    assert outside.tolist() == [[False, True, True]]


def test_adam_is_that_of_quark(p0):
    """eps is 1e-5: where the gradient is as small, the first step is half of the rate.

    beta_2 is .999: the second moment is then a thousandth of the gradient's square.
    """
    optimiser, weight = common.adam(p0), p0.model.transformer.h[0].mlp.c_fc.weight
    before = weight.detach().clone()
    weight.grad = torch.full_like(weight, 1e-5)
    optimiser.param_groups[0]["lr"] = 0.1
    optimiser.step()
    torch.testing.assert_close(before - weight, torch.full_like(weight, 0.05), rtol=1e-3, atol=0)
    second = optimiser.state[weight]["exp_avg_sq"]
    torch.testing.assert_close(second, torch.full_like(weight, 1e-13), rtol=1e-3, atol=0)


def test_rows_that_do_not_fit_are_named(p0, tmp_path):
    long = {"prompt": "The film", "completion": " was" * 70, "reward": 1}
    path = write_jsonl(tmp_path / "pool.jsonl", [long])
    with pytest.raises(BadInput, match="leaves no room"):
        common.read_samples(path, p0)
    with pytest.raises(BadInput, match="ends after 1 tokens, before --min-new-tokens 2"):
        common.token_log_probs(p0, [([1], [2, 3]), ([1], [p0.eos_id])], min_new_tokens=2)
    rows = [{"prompt": " was" * 60, "completion": " was", "reward": 0.5}]
    ((_, x, y, r),) = common.read_samples(write_jsonl(tmp_path / "pool.jsonl", rows), p0)
    assert len(x) + len(y) <= p0.context and r == 0.5
    rows.append({"prompt": "The film", "completion": "", "reward": 0.1})  # nothing to learn
    assert len(common.read_samples(write_jsonl(tmp_path / "pool.jsonl", rows), p0)) == 1


# ---------------------------------------------------------------------------------------- best-of-n


def test_the_best_of_n():
    assert best_of_n.best_of([0.1, 0.9, 0.9, None, 0.2, 0.3], 3) == [1, 5]
    assert best_of_n.best_of([None, None, 0.5, 0.4], 2) == [0, 2]
    assert best_of_n.best_of([None, -0.5, -0.1, -0.2], 2) == [1, 2]


@pytest.mark.parametrize("n", [1, 8])
def test_the_bound_is_the_kl_where_no_two_rewards_are_equal(n):
    """The best quantile has the density n q^(n-1), so KL = integral n q^(n-1) log(n q^(n-1))."""
    q = (np.arange(100_000) + 0.5) / 100_000
    density = n * q ** (n - 1)
    assert best_of_n.kl_bound(n) == pytest.approx(np.mean(density * np.log(density)), abs=1e-4)


# ------------------------------------------------------------------------------- DExperts, weights


def test_the_nucleus_is_cut_before_the_contrast():
    """p0 .5 .3 .15 .05: the first three hold .9. The expert loves the fourth: it stays outside."""
    z_0 = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    plus, minus = torch.tensor([[0.0, 1.0, 0.0, 50.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    method = dexperts.DExperts.__new__(dexperts.DExperts)
    method.alpha, method.top_p = 2.0, 0.9
    z = method.combine(z_0, plus, minus)
    expected = z_0 + 2 * torch.tensor([[-1.0, 1.0, 0.0, 0.0]])
    expected[0, 3] = -torch.inf
    close(z, expected)


def test_dexperts_reads_three_models(p0, quark):
    """At every step, also where rows are repeated and leave; experts may have reward tokens."""
    network = dexperts.DExperts([p0, quark, p0], alpha=1.5, top_p=0.8, min_new_tokens=1)
    quark.model.transformer.h[0].attn.c_attn.weight.data *= 0.5  # another model than p0
    for step, (texts, logits) in enumerate(driven(network, p0)):
        for text, z in zip(texts, logits):
            z_0, plus = logits_after(p0, text), logits_after(quark, text)
            if step == 0:
                z_0[p0.eos_id] = -torch.inf
            p, order = z_0.softmax(-1).sort(descending=True)
            inside = order[: (p.cumsum(-1) < 0.8).sum() + 1]
            expected = torch.full_like(z_0, -torch.inf)
            expected[inside] = (
                z_0 + 1.5 * (plus - z_0 if step else plus - logits_after(p0, text))
            )[inside]
            close(z, expected)


def test_without_an_expert_p0_takes_its_place():
    z_0, minus = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]])
    method = dexperts.DExperts.__new__(dexperts.DExperts)
    method.alpha, method.top_p = 2.0, 1.0
    assert method.combine(z_0, minus).tolist() == [[3.0, 0.0]]


def test_without_a_difference_dexperts_is_p0(p0, p0_folder, tmp_path):
    """alpha 0 draws what p0 draws from all tokens, through the command."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": x} for x in PROMPTS])
    out = tmp_path / "out.jsonl"
    command = ["--model", p0_folder, "--anti-expert", p0_folder, "--alpha", 0, "--prompts", prompts]
    command += ["--num-samples", 3, "--max-new-tokens", 5, "--top-p", 1, "--out", out]
    dexperts.main([str(word) for word in command])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    ids = [p0.encode(x) for x in PROMPTS for _ in range(3)]
    keys = [(i, j) for i in range(2) for j in range(3)]
    settings = {"max_new_tokens": 5, "min_new_tokens": 3, "keys": keys}
    assert [row["completion_ids"] for row in rows] == sample(p0, ids, **settings)
    assert [row["prompt_number"] for row in rows] == [0, 0, 0, 1, 1, 1]


def test_with_p0_as_anti_expert_dexperts_is_the_expert(p0, p0_folder, moved, tmp_path):
    """z_0 + 1 (z_plus - z_0), through the command: which folder is which."""
    moved.save(tmp_path / "expert")
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": x} for x in PROMPTS])
    command = ["--model", p0_folder, "--expert", tmp_path / "expert", "--anti-expert", p0_folder]
    command += ["--alpha", 1, "--prompts", prompts, "--num-samples", 1, "--max-new-tokens", 5]
    dexperts.main([str(word) for word in [*command, "--top-p", 1, "--out", tmp_path / "o.jsonl"]])
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    ids = [p0.encode(x) for x in PROMPTS]
    settings = {"max_new_tokens": 5, "min_new_tokens": 3}
    assert [row["completion_ids"] for row in rows] == sample(moved, ids, **settings)
    assert sample(moved, ids, **settings) != sample(p0, ids, **settings)


def test_the_nucleus_is_cut_once(p0, p0_folder, tmp_path):
    """alpha 0 draws from p0's nucleus of 0.5, and half of it is not in the nucleus of that."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": PROMPTS[0]}])
    out = tmp_path / "out.jsonl"
    command = ["--model", p0_folder, "--anti-expert", p0_folder, "--alpha", 0, "--prompts", prompts]
    command += ["--num-samples", 400, "--max-new-tokens", 1, "--min-new-tokens", 0]
    dexperts.main([str(word) for word in [*command, "--top-p", 0.5, "--out", out]])
    drawn = [json.loads(line)["completion_ids"][0] for line in out.read_text().splitlines()]
    with torch.no_grad():
        states = p0.hidden_states([p0.start_of(p0.encode(PROMPTS[0]))])
        logits = p0.model.lm_head(states[:, -1])[:, : p0.vocab_size]
    for top_p, least, most in ((0.5, 0, 0), (0.25, 0.4, 0.6)):
        outside = common.outside_nucleus(logits, top_p)[0, drawn].float().mean()
        assert least <= outside <= most


def test_weights_are_added_to_p0():
    zero, plus, minus = ({"w": torch.tensor([x, 1.0])} for x in (1.0, 3.0, 4.0))
    assert weights.add_weights(zero, plus, minus, 2.0)["w"].tolist() == [-1.0, 1.0]
    assert weights.add_weights(zero, zero, minus, 2.0)["w"].tolist() == [-5.0, 1.0]  # 1 - 2 (4 - 1)
    with pytest.raises(BadInput, match="other weights"):
        weights.add_weights(zero, {"w": torch.zeros(3)}, minus, 1.0)


def test_weights_make_an_ordinary_model(p0, p0_folder, tmp_path):
    command = ["--model", p0_folder, "--expert", p0_folder, "--anti-expert", p0_folder]
    weights.main([*map(str, command), "--out", str(tmp_path / "same")])
    same = common.load_policy(tmp_path / "same")
    for a, b in zip(p0.model.parameters(), same.model.parameters()):
        assert torch.equal(a, b)


def test_with_p0_as_anti_expert_weights_go_beyond_the_expert(p0, p0_folder, moved, tmp_path):
    """theta_0 + 2 (theta_plus - theta_0), through the command: which folder is which."""
    moved.save(tmp_path / "expert")
    command = ["--model", p0_folder, "--expert", tmp_path / "expert", "--anti-expert", p0_folder]
    weights.main([*map(str, command), "--scale", "2", "--out", str(tmp_path / "sum")])
    found = common.load_policy(tmp_path / "sum")
    for a, b, c in zip(*(policy.model.parameters() for policy in (p0, moved, found))):
        torch.testing.assert_close(c, 2 * b - a)


# --------------------------------------------------------------------------------------------- GeDi


def test_the_posterior_by_hand():
    """Bayes' rule on 3 tokens: log odds (a / t) (-2 - -5) + b = 2 / 3 * 3 + 0.5 = 2.5."""
    sums = torch.tensor([-5.0, -2.0])
    found = gedi.class_log_probs(sums, torch.tensor(3), 2.0, torch.tensor([0.0, 0.5]))
    assert found[1].exp().item() == pytest.approx(1 / (1 + math.exp(-2.5)))


def test_the_filter_deletes_unlikely_classes_while_there_is_mass():
    """omega 0: p_w is p0, .1 .2 .3 .4. In ascending order of P the masses before and with a token

    are .1, .3, .6, 1. With 1 - rho = .5, tokens go while the sum is below .5: the first two; but
    the second one stays if its class is likelier than tau. With .25 only the first one goes.
    """
    z = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    log_p = torch.tensor([[0.2, 0.6, 0.8, 0.9]]).log()
    assert torch.isfinite(gedi.reweighted(z, log_p, 0.0, 0.5, 0.7)).tolist()[0] == [0, 0, 1, 1]
    assert torch.isfinite(gedi.reweighted(z, log_p, 0.0, 0.5, 0.5)).tolist()[0] == [0, 1, 1, 1]
    assert torch.isfinite(gedi.reweighted(z, log_p, 0.0, 0.25, 0.7)).tolist()[0] == [0, 1, 1, 1]
    assert torch.isfinite(gedi.reweighted(z, log_p, 0.0, 0.0, 0.7)).all()
    kept = gedi.reweighted(z, log_p, 2.0, 0.0, 0.7).softmax(-1)[0]
    weight = torch.tensor([0.1 * 0.2**2, 0.2 * 0.6**2, 0.3 * 0.8**2, 0.4 * 0.9**2])
    torch.testing.assert_close(kept, weight / weight.sum())
    # omega 2: the masses are .007 .122 .324 .547 (without the division by their sum .004 .072 ...)
    assert torch.isfinite(gedi.reweighted(z, log_p, 2.0, 0.1, 1.0)).tolist()[0] == [0, 1, 1, 1]
    z[0, 3] = -torch.inf  # <|endoftext|> where it is not allowed, and of the best class
    assert torch.isfinite(gedi.reweighted(z, log_p, 0.0, 1.0, 1.0)).tolist()[0] == [0, 0, 1, 0]


@pytest.mark.parametrize("allowed", [True, False])
def test_the_filter_leaves_a_token_that_can_be_drawn(allowed):
    """Also if rounding leaves the sum of all masses below 1, and if the best is impossible."""
    generator = torch.Generator().manual_seed(0)
    z, log_p = torch.rand(2, 200, 50, generator=generator).log()
    best = log_p.argmax(1)
    if not allowed:
        z[torch.arange(200), best] = -torch.inf
    kept = torch.isfinite(gedi.reweighted(z, log_p, 0.0, 1.0, 2.0))
    assert kept.any(1).all()
    assert kept[torch.arange(200), best].all() == allowed


def test_gedi_reads_every_text_under_both_codes(p0, quark):
    """Each possible next token by two whole passes of the guide, the prompt included."""
    quark.model.config.gedi_scale = 1.7
    network = gedi.GeDi(p0, quark, omega=3.0, mass=0.6, tau=0.6, bias=0.3)
    for texts, logits in driven(network, p0):
        for text, z in zip(texts, logits):
            of_text = []
            for k in (gedi.BAD, gedi.GOOD):
                total = 0.0
                for t in range(len(text) + 1):
                    front = [quark.reward_token_id(k), *text[:t]]
                    log_p = logits_after(quark, front).log_softmax(-1)
                    total = total + (log_p[text[t]] if t < len(text) else log_p)
                of_text.append(total)
            odds = 1.7 / (len(text) + 1) * (of_text[1] - of_text[0]) + 0.3
            log_good = torch.nn.functional.logsigmoid(odds)
            expected = gedi.reweighted(logits_after(p0, text)[None], log_good[None], 3.0, 0.6, 0.6)
            close(z, expected[0], 1e-3)


def test_the_loss_of_the_guide(quark):
    texts = ((1, PROMPTS[0], " bad"), (2, PROMPTS[0], " sings"), (2, "", "The story"))
    batch = [(k, quark.encode(x), quark.encode(y)) for k, x, y in texts]
    loss, right = gedi_guide.guide_loss(quark, torch.tensor(1.5), batch, lam=0.8)
    lm, tokens, entropy, hits = 0.0, 0, 0.0, 0
    for k, x, y in batch:
        text = (x or [quark.eos_id]) + y  # as the model reads an empty prompt
        sums = []
        for code in (1, 2):
            steps = [
                logits_after(quark, [quark.reward_token_id(code), *text[:t]]).log_softmax(-1)[token]
                for t, token in enumerate(text)
            ]
            sums.append(sum(steps).item())
        lm -= sums[k - 1]
        tokens += len(text)
        odds = 1.5 / len(text) * (sums[k - 1] - sums[2 - k])
        entropy += math.log1p(math.exp(-odds)) / 3
        hits += odds > 0
    assert loss.item() == pytest.approx(0.8 * lm / tokens + 0.2 * entropy, rel=1e-4)
    assert right.item() == pytest.approx(hits / 3)


def test_the_scale_learns_a_hundred_times_as_fast(quark):
    """Adam's first step is as long as its rate, whatever the gradient is."""
    before = quark.model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    ys = [quark.encode(y) for y in (" bad", " sings")]
    parts = [[(k, quark.encode(PROMPTS[0]), y)] for k, y in enumerate(ys, start=1)]
    settings = {"steps": 1, "batch_size": 2, "seed": 0, "lam": 0.8, "lr": 1e-3, "warmup": 0}
    args = SimpleNamespace(**settings, clip=1e3)
    of_both, _ = gedi_guide.guide_loss(quark, torch.ones(()), [*parts[0], *parts[1]], 0.8)
    (line,) = gedi_guide.updates(quark, parts, args)
    assert line["loss"] == pytest.approx(of_both.item(), rel=1e-4)  # a half of each class
    moved = (quark.model.transformer.h[0].mlp.c_fc.weight - before).abs().max().item()
    assert moved == pytest.approx(1e-3, rel=0.1)
    assert abs(line["scale"] - 1) == pytest.approx(0.1, rel=0.1)


# --------------------------------------------------------------------------------------------- PPLM


@pytest.fixture
def precise(p0):
    p0.model.double()
    return p0


def pplm_network(policy, **more):
    settings = {"m": 1, "eta": 0.2, "gamma": 1.0, "kl_scale": 0.3, "gm_scale": 0.9} | more
    weight = torch.linspace(-2, 1, policy.model.config.n_embd, dtype=policy.model.dtype)
    return pplm.Pplm(policy, weight, 0.1, **settings)


def test_pplm_follows_the_gradient_of_its_loss(precise):
    """A step is -eta g / |g| in each layer and row; g by finite differences of a slow loss.

    In the slow loss h'_t is a constant, h_ahead reads the unperturbed past, and the KL is to p0.
    The step is one from a perturbed past, for at Delta = 0 the KL has no gradient.
    """
    network = pplm_network(precise, kl_scale=3.0)
    prompts = [precise.encode(text)[:4] for text in PROMPTS]
    tokens = torch.tensor(prompts)
    with torch.no_grad():
        network.start(torch.zeros(2, dtype=torch.long))
        states, plain = network.forward(None, tokens[:, :-1])
        hidden, longer = network.forward(plain, tokens[:, -1:])
        network.plain, network.total = longer, states.sum(1)
        log_p = network.logits(hidden[:, -1]).log_softmax(-1)
        noise = torch.Generator().manual_seed(1)
        start = [
            tuple(x + 0.5 * torch.randn(x.shape, generator=noise, dtype=x.dtype) for x in pair)
            for pair in plain
        ]
        constant = network.forward(start, tokens[:, -1:])[0][:, -1]
    read = torch.tensor([4, 4])

    layer, row = 1, 1

    def slow_loss(past, row):
        with torch.no_grad():
            moved = network.logits(network.forward(past, tokens[:, -1:])[0][:, -1]).softmax(-1)
            embedded = moved @ precise.model.get_input_embeddings().weight[: network.V]
            ahead = network.forward(longer, embedded=embedded[:, None])[0][:, -1]
        mean = (states.sum(1) + constant + ahead)[row] / 5
        loss = math.log1p(math.exp(-(mean @ network.weight + 0.1).item()))
        return loss + 3.0 * (moved * (moved.log() - log_p)).sum(-1)[row].item()

    with torch.no_grad():
        loss = network.losses(start, tokens[:, -1:], log_p, read)[row].item()
    assert loss == pytest.approx(slow_loss(start, row), rel=1e-6)
    moved = network.moved(start, tokens[:, -1:], log_p, read)
    step = torch.cat([(a - b)[row].flatten() for a, b in zip(moved[layer], start[layer])])
    assert step.norm().item() == pytest.approx(0.2, rel=1e-4)
    gradient = torch.zeros_like(step)
    size, eps = start[layer][0][row].numel(), 1e-4
    places = torch.randperm(len(step), generator=torch.Generator().manual_seed(0))[:25].tolist()
    for place in places:
        values = []
        for sign in (1, -1):
            past = [(k.clone(), v.clone()) for k, v in start]
            past[layer][place // size][row].view(-1)[place % size] += sign * eps
            values.append(slow_loss(past, row))
        gradient[place] = (values[0] - values[1]) / (2 * eps)
    ratio = step[places] / gradient[places]
    assert (ratio < 0).all() and ratio.std() / ratio.mean().abs() < 0.01
    network.gamma = 0.0  # then it is -eta g itself
    moved = network.moved(start, tokens[:, -1:], log_p, read)
    step = torch.cat([(a - b)[row].flatten() for a, b in zip(moved[layer], start[layer])])
    torch.testing.assert_close(step[places], -0.2 * gradient[places], rtol=0.05, atol=1e-6)


def test_bfloat16_does_not_round_a_step_of_pplm_away(p0):
    """In each layer and row the step is eta long, though it is smaller than that rounding."""
    network = pplm_network(p0, eta=0.01)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        network.start(torch.zeros(2, dtype=torch.long))
        tokens = torch.tensor([p0.encode(text)[:4] for text in PROMPTS])
        assert network.next_logits(tokens).dtype == torch.float32
    for moved, plain in zip(network.past, network.plain):
        step = torch.cat([(a[:, :, :3] - b[:, :, :3]).flatten(1) for a, b in zip(moved, plain)], 1)
        assert step.norm(dim=1).tolist() == pytest.approx([0.01, 0.01], rel=1e-3)


def test_pplm_of_no_size_is_p0(precise):
    """At every step, with prompts of different lengths."""
    with torch.no_grad():
        for texts, logits in driven(pplm_network(precise, eta=0.0), precise):
            for text, z in zip(texts, logits):
                close(z.softmax(-1), logits_after(precise, text).softmax(-1), 1e-6)


def test_pplm_neither_writes_reward_tokens_nor_looks_ahead_along_them(quark):
    """e is the mean embedding over V tokens; with the K others their probability would count."""
    tokens = torch.tensor([quark.encode(PROMPTS[0])])
    found = []
    for moved_by in (0.0, 5.0):
        quark.model.get_input_embeddings().weight.data[quark.vocab_size :] += moved_by
        network = pplm_network(quark, eta=0.5)
        network.start(torch.tensor([0]))
        with torch.no_grad():
            found.append(network.next_logits(tokens))
    assert found[0].shape == (1, quark.vocab_size)
    close(found[1], found[0])


def test_pplm_mixes_and_carries_its_past_on(precise):
    """y_t ~ p~^.9 p^.1, and the next token reads the moved past, not p0's."""
    with torch.no_grad():
        found = list(driven(pplm_network(precise, m=2, eta=0.5), precise))
        pure = list(driven(pplm_network(precise, m=2, eta=0.5, gm_scale=1.0), precise))
        text = found[0][0][0]
        log_p = logits_after(precise, text).log_softmax(-1)
        expected = 0.9 * pure[0][1][0].log_softmax(-1) + 0.1 * log_p
        close(found[0][1][0].log_softmax(-1), expected.log_softmax(-1), 1e-6)
        network, made, move = pplm_network(precise, m=2, eta=0.5), [], pplm.Pplm.moved
        network.moved = lambda *given: made.append(1) or move(network, *given)
        steps = driven(network, precise)
        next(steps)
        assert len(made) == 2 and not torch.allclose(network.past[0][0], network.plain[0][0])
        before = network.past[0][0][:1].clone()
        network.eta = 0.0
        next(steps)
        torch.testing.assert_close(network.past[0][0][:1, :, :-1], before)


def test_pplm_sums_the_states_that_were_read(precise):
    """At each token the unperturbed states up to x_t, also beside longer rows.

    While steps are made, those before x_t, and t counts x_t. The second of the m = 2 steps goes on
    from where the first one ended.
    """
    network, given, ends = pplm_network(precise, m=2, eta=0.5), [], []

    def moved(past, last, log_p, read):
        given.append((past, read, network.total))
        ends.append(pplm.Pplm.moved(network, past, last, log_p, read))
        return ends[-1]

    network.moved = moved
    with torch.no_grad():
        for texts, _ in driven(network, precise):
            assert given[-1][0] is ends[-2]
            _, read, before = given[-2]
            assert read.tolist() == list(map(len, texts))
            for row, text in enumerate(texts):
                for total, states in ((before, text[:-1]), (network.total, text)):
                    expected = states_of(precise, states).sum(0)
                    torch.testing.assert_close(total[row], expected, atol=1e-8, rtol=1e-6)


def test_a_row_of_pplm_does_not_depend_on_its_neighbours(precise):
    """The first prompt is padded beside the longer one; alone it is not."""
    tokens = torch.tensor([precise.encode(PROMPTS[0])])
    alone = pplm_network(precise, eta=0.5, m=2)
    alone.start(torch.tensor([0]))
    with torch.no_grad():
        _, beside = next(driven(pplm_network(precise, eta=0.5, m=2), precise))
        close(beside[0].log_softmax(-1), alone.next_logits(tokens)[0].log_softmax(-1), 1e-6)


def test_mean_states_and_auc(p0):
    texts = [p0.encode(text) for text in PROMPTS]
    expected = torch.stack([states_of(p0, ids).mean(0) for ids in texts])
    torch.testing.assert_close(
        pplm_classifier.mean_states(p0, texts), expected, atol=1e-5, rtol=1e-4
    )
    scores, labels = np.array([0.1, 0.5, 0.5, 0.9]), np.array([0, 0, 1, 1])
    assert pplm_classifier.auc(scores, labels) == 0.875  # (.5 > .1) + (.5 = .5) / 2 + 1 + 1, of 4


def test_the_classifier_of_pplm_finds_the_direction():
    generator = torch.Generator().manual_seed(0)
    means, direction = torch.randn(400, 6, generator=generator), torch.arange(6.0) - 2.5
    labels = (means @ direction + 1 > 0).float()
    weight, bias = pplm_classifier.fit(means, labels, seed=0, epochs=50, lr=1e-2)
    assert torch.nn.functional.cosine_similarity(torch.tensor(weight), direction, dim=0) > 0.98
    assert 0.5 < bias / torch.tensor(weight).norm() * direction.norm() < 1.5


# ---------------------------------------------------------------------------------------------- PPO


def test_whitening_divides_by_the_standard_deviation():
    """Of 1, 3: mean 2, standard deviation 1 (its square root would be 1 as well, so of 0, 8: 4)."""
    assert ppo.whiten(torch.tensor([0.0, 8.0])).tolist() == pytest.approx([-1, 1])
    assert ppo.whiten(torch.tensor([0.0, 8.0]), shift_mean=False).tolist() == pytest.approx([3, 5])


def test_the_reward_stands_on_the_last_token():
    """Rows of 2 and 1 tokens: -beta (log p_old - log p0) at each, r at the row's own last one."""
    log_old, log_p0 = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -1.0, -3.0])
    r = ppo.token_rewards(log_old, log_p0, torch.tensor([1, 2]), torch.tensor([10.0, 20.0]), 0.1)
    assert r.tolist() == pytest.approx([-0.05, 10.1, 20.0])


def test_advantages_by_the_double_sum():
    """A_t = sum_l (gamma lambda)^l delta_{t+l} within a row; after its last token V = 0."""
    R, V = torch.tensor([0.1, -0.2, 1.0, 0.5, 2.0]), torch.tensor([0.3, 0.4, -0.1, 0.2, 0.7])
    gamma, lam = 0.9, 0.8
    expected = []
    for row in ((0, 3), (3, 5)):
        for t in range(*row):
            A = 0.0
            for s in range(t, row[1]):
                V_next = V[s + 1] if s + 1 < row[1] else 0.0
                A += (gamma * lam) ** (s - t) * (R[s] + gamma * V_next - V[s])
            expected.append(float(A))
    assert ppo.advantages(R, V, [3, 2], gamma, lam).tolist() == pytest.approx(expected)


def test_clipping_by_hand():
    """A = 1: rho 1.5 pays only 1.2, rho .5 costs .5. A = -1: rho 1.5 costs 1.5, rho .5 pays .8."""
    for rho, A, loss in ((1.5, 1, -1.2), (0.5, 1, -0.5), (1.5, -1, 1.5), (0.5, -1, 0.8)):
        found = ppo.policy_loss(torch.tensor([rho]).log(), torch.zeros(1), torch.tensor([A]), 0.2)
        assert found.item() == pytest.approx(loss)


def test_the_value_is_clipped_around_the_old_one():
    """V 1, V_old 0, G 2, eps .2: the worse of (1 - 2)^2 and (.2 - 2)^2, halved: 1.62.

    V -1, V_old 0, G -2 costs the same: V is clipped from below, too.
    """
    for sign in (1, -1):
        found = ppo.value_loss(*(torch.tensor([sign * x]) for x in (1.0, 0.0, 2.0)), 0.2)
        assert found.item() == pytest.approx(1.62)
    assert ppo.value_loss(*(torch.tensor([x]) for x in (1.0, 0.9, 0.5)), 0.2).item() == 0.125


def test_beta_follows_the_kl():
    """KL 6 of target 3 is clipped to +.2: beta (1 + .2 * 128 / 2500).

    Below the target it falls: for 2.7 by .1, for .3, which is far below, by .2 and not by .9.
    """
    assert ppo.adapted(0.05, 6.0, 3.0, 128, 2500) == pytest.approx(0.05 * (1 + 0.2 * 0.0512))
    assert ppo.adapted(0.05, 2.7, 3.0, 128, 2500) == pytest.approx(0.05 * (1 - 0.1 * 0.0512))
    assert ppo.adapted(0.05, 0.3, 3.0, 128, 2500) == pytest.approx(0.05 * (1 - 0.2 * 0.0512))


def test_the_value_starts_at_zero_and_reads_the_state_before_the_token(p0):
    value = ppo.Value(p0)
    pairs = [(p0.encode(PROMPTS[0]), p0.encode(" was thin"))]
    assert value(pairs).tolist() == [0.0] * len(pairs[0][1])
    torch.nn.init.ones_(value.head.weight)
    x, y = pairs[0]
    expected = states_of(p0, x + y)[len(x) - 1 : -1].sum(-1)
    torch.testing.assert_close(value(pairs).detach(), expected, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------------- RLOO, GRPO


def test_leave_one_out_by_hand():
    """3 minus the mean of 1 and 2, and so on."""
    found = rloo.leave_one_out(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    assert found.tolist() == [[-1.5, 0.0, 1.5], [0.0, 0.0, 0.0]]


def test_group_normalised_by_hand():
    """Each row by itself. Of 1, 3: mean 2, std with n - 1: sqrt 2. Of 10, 14: 12 and sqrt 8."""
    found = rloo.group_normalised(torch.tensor([[1.0, 3.0], [10.0, 14.0]]))
    assert found[0].tolist() == pytest.approx([-1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4)])
    assert found[1].tolist() == pytest.approx([-2 / (8**0.5 + 1e-4), 2 / (8**0.5 + 1e-4)])


def test_losses_of_a_sequence_and_of_a_token():
    """Two rows of 2 and 1 tokens: -(2 (-1 - 3) + -1 (-5)) / 2 and -(2 (-4) + 5) / 3."""
    log_p, rows = torch.tensor([-1.0, -3.0, -5.0]), torch.tensor([0, 0, 1])
    A = torch.tensor([2.0, -1.0])
    assert rloo.sequence_loss(log_p, rows, A).item() == pytest.approx(1.5)
    assert rloo.token_loss(log_p, rows, A).item() == pytest.approx(1.0)


def two_pairs(policy):
    """Two samples of each of two prompts, of different lengths."""
    texts = (
        (PROMPTS[0], " was"),
        (PROMPTS[0], " was thin"),
        (PROMPTS[1], " good"),
        (PROMPTS[1], "x"),
    )
    return [(policy.encode(x), policy.encode(y)) for x, y in texts]


def log_probs(policy, x, y, least=0):
    """log p(y_t | x, y_<t), a token at a time; the first `least` cannot be <|endoftext|>."""
    found = []
    for t, token in enumerate(y):
        logits = logits_after(policy, x + y[:t])
        if t < least:
            logits[policy.eos_id] = -torch.inf
        found.append(logits.log_softmax(-1)[token].item())
    return found


def log_prob(policy, x, y, least=0):
    return sum(log_probs(policy, x, y, least))


@pytest.fixture
def moved(p0_folder):
    """p0 with other weights: a policy that has learned something."""
    policy = common.load_policy(p0_folder)
    policy.model.transformer.h[1].mlp.c_proj.weight.data *= 0.7
    return policy


@pytest.mark.parametrize("least", [0, 1])
def test_the_loss_of_a_batch(p0, moved, least):
    """r = R - beta sum log p / p0, three samples of each of two prompts; no gradient through r."""
    a, b, c, d = two_pairs(p0)
    pairs = [a, b, (a[0], c[1]), c, d, (d[0], b[1])]
    R, beta = [0.1, 0.9, 0.5, 0.3, 0.2, 0.8], 0.4
    make_the_end_likely(p0, moved)
    log_p = [log_prob(moved, x, y, least) for x, y in pairs]
    ratio = [a - log_prob(p0, x, y, least) for a, (x, y) in zip(log_p, pairs)]
    r = np.subtract(R, np.multiply(beta, ratio))
    A = [r[i] - (sum(r[:3] if i < 3 else r[3:]) - r[i]) / 2 for i in range(6)]
    expected = -sum(a * b for a, b in zip(A, log_p)) / 6
    loss, found = rloo.batch_loss(moved, p0, pairs, torch.tensor(R), 3, "rloo", beta, least)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert found.tolist() == pytest.approx(ratio, abs=1e-3) and max(map(abs, ratio)) > 0.1
    weight = moved.model.transformer.h[0].mlp.c_fc.weight
    (gradient,) = torch.autograd.grad(loss, weight)
    of_token, rows = common.token_log_probs(moved, pairs, least)
    same = -(torch.tensor(A, dtype=torch.float32)[rows] * of_token).sum() / 6
    expected = torch.autograd.grad(same, weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    A = rloo.group_normalised(torch.tensor(R).view(2, 3)).flatten().tolist()
    n_tokens = sum(len(y) for _, y in pairs)
    expected = -sum(a * b for a, b in zip(A, log_p)) / n_tokens
    loss, _ = rloo.batch_loss(moved, p0, pairs, torch.tensor(R), 3, "grpo", beta, least)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_an_update_is_of_the_kind_that_was_asked_for(p0, moved, kind, losses, monkeypatch):
    pairs, R = two_pairs(p0), torch.tensor([0.1, 0.9, 0.3, 0.2])
    monkeypatch.setattr(common, "rollout", lambda *given: (pairs, R))
    settings = {"samples_per_prompt": 2, "kind": kind, "beta": 0.4, "min_new_tokens": 0, "steps": 1}
    (line,) = rloo.updates(moved, p0, None, None, SimpleNamespace(**settings))
    expected, ratio = rloo.batch_loss(moved, p0, pairs, R, 2, kind, 0.4)
    assert losses == pytest.approx([expected.item()]) and line["calls"] == 4
    assert line["kl"] == pytest.approx(ratio.mean().item())


@pytest.mark.parametrize("whitened", [False, True])
def test_the_targets_of_ppo(p0, moved, whitened):
    """A and G of each token by hand: the KL at each, r at the last; G from A before whitening."""
    pairs, r, beta = two_pairs(p0), torch.tensor([0.1, 0.9, 0.3, 0.2]), 0.4
    make_the_end_likely(p0, moved)
    args = SimpleNamespace(min_new_tokens=1, gamma=0.9, lam=0.8, whiten_rewards=whitened)
    value = ppo.Value(common.load_policy(p0.model.name_or_path))
    torch.nn.init.normal_(value.head.weight, std=0.1)
    log_old, V_old, A, G, kl = ppo.at_sampling(moved, p0, value, pairs, r, beta, args)
    rewards, lengths = [], [len(y) for _, y in pairs]
    for (x, y), r_i in zip(pairs, r.tolist()):
        of_each = [log_probs(policy, x, y, 1) for policy in (moved, p0)]
        for t, (a, b) in enumerate(zip(*of_each)):
            rewards.append(-beta * (a - b) + (r_i if t == len(y) - 1 else 0))
    rewards = torch.tensor(rewards)
    rewards = ppo.whiten(rewards, shift_mean=False) if whitened else rewards
    raw = ppo.advantages(rewards, V_old, lengths, 0.9, 0.8)
    torch.testing.assert_close(G, raw + V_old, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(A, ppo.whiten(raw), atol=1e-3, rtol=1e-3)
    expected = np.mean([log_prob(moved, x, y, 1) - log_prob(p0, x, y, 1) for x, y in pairs])
    assert kl == pytest.approx(expected, abs=1e-3) and V_old.std() > 0.01
    assert log_old.sum().item() == pytest.approx(
        sum(log_prob(moved, x, y, 1) for x, y in pairs), rel=1e-4
    )


def test_the_first_update_of_ppo(p0, p0_folder, losses, monkeypatch):
    """Before it every ratio is 1, and V the mean reward, .375.

    So the loss is -mean A + c_v mean (G - .375)^2 / 2 over its own tokens.
    """
    policy = common.load_policy(p0_folder)
    pairs, r = two_pairs(p0), torch.tensor([0.1, 0.9, 0.3, 0.2])
    settings = {"seed": 3, "steps": 1, "epochs": 1, "batch_size": 4, "minibatch": 2, "eps": 0.2}
    settings |= {"beta": 0.1, "gamma": 1.0, "lam": 0.95, "c_v": 0.3, "min_new_tokens": 0}
    args = SimpleNamespace(**settings, target_kl=None, whiten_rewards=False)
    value = ppo.Value(common.load_policy(p0_folder))
    value.start_at(0.375)
    _, _, A, G, _ = ppo.at_sampling(policy, p0, value, pairs, r, 0.1, args)
    monkeypatch.setattr(common, "rollout", lambda *given: (pairs, r))
    value.start_at(5.0)  # updates() brings it back
    list(ppo.updates(policy, p0, value, None, None, args))
    row = [i for i, (_, y) in enumerate(pairs) for _ in y]
    order = np.random.default_rng([3, 0, 0]).permutation(4)
    for members, loss in zip((order[:2], order[2:]), losses, strict=True):
        own = torch.tensor([i in members for i in row])
        expected = -A[own].mean() + 0.3 * 0.5 * ((G[own] - 0.375) ** 2).mean()
        assert loss == pytest.approx(expected.item(), rel=1e-3)


def test_the_second_pass_of_ppo(p0, p0_folder, monkeypatch):
    """The ratios are to the policy that sampled; A, V_old and G are as they were then.

    Both networks have learned from the first pass, and each pass has an order of its own.
    """
    policy, value = common.load_policy(p0_folder), ppo.Value(common.load_policy(p0_folder))
    pairs, r = two_pairs(p0), torch.tensor([0.1, 0.9, 0.3, 0.2])
    settings = {"seed": 3, "steps": 1, "epochs": 2, "batch_size": 4, "minibatch": 2, "eps": 0.01}
    settings |= {"beta": 0.1, "gamma": 1.0, "lam": 0.95, "c_v": 0.3, "min_new_tokens": 0}
    settings |= {"lr": 0.1, "warmup": 0, "clip": 1e3, "target_kl": None, "whiten_rewards": False}
    value.start_at(0.375)
    log_old, V_old, A, G, _ = ppo.at_sampling(
        policy, p0, value, pairs, r, 0.1, SimpleNamespace(**settings)
    )
    found, expected, update = [], [], common.update

    def recorded(optimiser, loss, *more):
        found.append(loss.item())
        epoch, half = divmod(len(expected), 2)
        order = np.random.default_rng([3, 0, epoch]).permutation(4)[2 * half :][:2]
        of_row = torch.tensor([i for i, (_, y) in enumerate(pairs) for _ in y])
        at = torch.cat([(of_row == i).nonzero()[:, 0] for i in order])
        with torch.no_grad():
            log_p = common.token_log_probs(policy, pairs)[0][at]
            V = value(pairs)[at]
        own = ppo.value_loss(V, V_old[at], G[at], 0.01)
        expected.append((ppo.policy_loss(log_p, log_old[at], A[at], 0.01) + 0.3 * own).item())
        return update(optimiser, loss, *more)

    monkeypatch.setattr(common, "rollout", lambda *given: (pairs, r))
    monkeypatch.setattr(common, "update", recorded)
    list(ppo.updates(policy, p0, value, None, None, SimpleNamespace(**settings)))
    assert found == pytest.approx(expected, rel=1e-3)
    assert abs(found[2] - found[0]) > 0.01 and value.head.bias.item() != 0.375


def test_ppo_goes_from_batch_to_batch(p0, p0_folder, losses, monkeypatch):
    """beta adapts, and V starts at the mean reward of the first batch only, here .375.

    No update is made, so the KL is 0, far below its target: each batch of 4 samples, of the 8 of
    the horizon, makes beta smaller by .2 * 4 / 8 = .1 of itself.
    """
    policy, value = common.load_policy(p0_folder), ppo.Value(common.load_policy(p0_folder))
    pairs, r = two_pairs(p0), torch.tensor([0.1, 0.9, 0.3, 0.2])
    settings = {"seed": 3, "steps": 3, "epochs": 1, "batch_size": 4, "minibatch": 4, "eps": 0.2}
    settings |= {"beta": 0.1, "gamma": 1.0, "lam": 0.95, "c_v": 0.3, "min_new_tokens": 0}
    settings |= {"target_kl": 1.0, "horizon": 8, "whiten_rewards": False}
    betas, at_sampling = [], ppo.at_sampling
    monkeypatch.setattr(common, "rollout", lambda *given: (pairs, r + given[-1]))  # the step
    monkeypatch.setattr(
        ppo, "at_sampling", lambda *given: betas.append(given[5]) or at_sampling(*given)
    )
    lines = list(ppo.updates(policy, p0, value, None, None, SimpleNamespace(**settings)))
    assert [line["reward"] for line in lines] == pytest.approx([0.375, 1.375, 2.375])
    assert betas == pytest.approx([0.1, 0.09, 0.081])
    assert value.head.bias.item() == pytest.approx(0.375)


def test_rloo_is_that_of_trl(p0_folder, tmp_path):
    """Two updates of TRL's trainer: on its samples, our advantages and our gradient are its own.

    In the second one the policy has left p0, so the KL term counts.
    """
    reason = 'TRL is not installed: pip install "trl==1.16.0" "datasets<5" "pyarrow<24"'
    trl = pytest.importorskip("trl", reason=reason)
    from datasets import Dataset
    from transformers import AutoTokenizer, GPT2LMHeadModel

    common.load_policy(p0_folder).save(tmp_path / "p0")  # with a tokenizer that TRL can open
    p0, beta = common.load_policy(tmp_path / "p0"), 0.3
    texts = ["The film", "The jokes", "The songs", "The story"]
    length = len(p0.encode(texts[0]))  # TRL gives a padded row of a GPT-2 other positions
    texts = [text for text in texts if len(p0.encode(text)) == length]

    def reward_of(completion_ids, **others):
        return [sum(ids) % 7 / 7 for ids in completion_ids]

    kls = []

    class Trainer(trl.RLOOTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            rows = []
            for i in range(len(inputs["prompt_ids"])):
                x = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()].tolist()
                y = inputs["completion_ids"][i][inputs["completion_mask"][i].bool()].tolist()
                rows.append((x, y, inputs["advantages"][i].item()))
            rows.sort(key=lambda row: row[0])  # the samples of a prompt together
            pairs = [(x, y) for x, y, _ in rows]
            policy = dataclasses.replace(p0, model=model)
            R = torch.tensor(reward_of([y for _, y in pairs]))
            own, log_ratio = rloo.batch_loss(policy, p0, pairs, R, 2, "rloo", beta)
            kls.append(log_ratio.abs().sum().item())
            A = rloo.leave_one_out((R - beta * log_ratio).view(-1, 2)).flatten()
            theirs = [advantage for _, _, advantage in rows]
            assert A.tolist() == pytest.approx(theirs, abs=1e-5) and A.abs().sum() > 0
            weights = list(model.parameters())
            ours = torch.autograd.grad(own, weights)
            for a, b in zip(ours, torch.autograd.grad(loss, weights, retain_graph=True)):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
            return loss

    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "beta": beta}
    settings |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "max_steps": 2}
    settings |= {"per_device_train_batch_size": 4, "num_generations": 2, "learning_rate": 1e-2}
    settings |= {"max_completion_length": 6, "steps_per_generation": 1, "temperature": 1.0}
    settings |= {"gradient_checkpointing": False, "disable_dropout": True, "warmup_steps": 0}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "p0", padding_side="left")
    trainer = Trainer(
        model=GPT2LMHeadModel.from_pretrained(tmp_path / "p0", dtype=torch.float32),
        reward_funcs=reward_of,
        args=trl.RLOOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
    )
    trainer.train()
    assert len(kls) == 2 and kls[0] < 1e-3 < kls[1]


# --------------------------------------------------------------------------------------------- QRPO


def test_quantiles_leave_the_sample_out_and_share_ties():
    """.1 .5 .5 .9: 0 of 3 are below .1; of .5 one below and one equal; below .9 all three."""
    assert qrpo.quantiles_of([0.1, 0.5, 0.5, 0.9]).tolist() == pytest.approx([0, 0.5, 0.5, 1])


@pytest.mark.parametrize("beta", [0.03, 0.3, 2.0])
def test_the_partition_is_the_integral(beta):
    q = (np.arange(200_000) + 0.5) / 200_000
    expected = np.log(np.mean(np.exp((q - 1) / beta))) + 1 / beta
    assert qrpo.log_partition(beta) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_zero_for_the_optimal_policy():
    """There log p / p0 = q / beta - log Z; one row off by .5 costs (beta .5)^2 / 2."""
    q, beta = torch.tensor([0.2, 0.9]), 0.3
    best = q / beta - qrpo.log_partition(beta)
    assert qrpo.qrpo_loss(best, q, beta).item() == pytest.approx(0, abs=1e-10)
    off = best + torch.tensor([0.5, 0.0])
    assert qrpo.qrpo_loss(off, q, beta).item() == pytest.approx(0.15**2 / 2, rel=1e-4)


def test_the_log_ratio_is_that_of_the_policy_to_p0(p0, moved):
    """Its sign: where p_theta is p0 it is 0, so the loss is that of q alone."""
    pairs, q, beta = two_pairs(p0), torch.tensor([0.1, 0.9, 0.3, 0.2]), 0.4
    examples = [(x, y, 0.0) for x, y in pairs]
    of_p0 = qrpo.log_probs_of_p0(p0, examples, 0, batch_size=3)
    loss, ratio = qrpo.batch_loss(moved, pairs, q, of_p0, beta, 0)
    expected = [log_prob(moved, x, y) - log_prob(p0, x, y) for x, y in pairs]
    assert ratio.tolist() == pytest.approx(expected, abs=1e-3)
    assert loss.item() == pytest.approx(
        qrpo.qrpo_loss(torch.tensor(expected), q, beta).item(), rel=1e-3
    )
    same, _ = qrpo.batch_loss(p0, pairs, q, of_p0, beta, 0)
    assert same.item() == pytest.approx(qrpo.qrpo_loss(torch.zeros(4), q, beta).item(), rel=1e-4)


def test_a_sample_is_ranked_within_its_prompt():
    samples = [("a", [1], [2], 0.9), ("b", [1], [3], 0.1), ("a", [1], [4], 0.8), ("b", [1], [5], 0)]
    assert {(y[0], q) for _, y, q in qrpo.examples_of(samples)} == {(2, 1), (4, 0), (3, 1), (5, 0)}
    with pytest.raises(BadInput, match="one sample"):
        qrpo.examples_of(samples[:3])


# ------------------------------------------------------------------------------------ unlikelihood


def test_candidates_are_what_stood_before():
    """x = 7 8, y = 8 9 8: never the token itself, never a token of another text."""
    found = unlikelihood.previous_tokens([([7, 8], [8, 9, 8]), ([1], [2])])
    assert found == [{7}, {7, 8}, {7, 9}, {1}]


def test_the_unlikelihood_of_candidates():
    """p = .5 .3 .2: candidates 1 and 2 cost -log .7 - log .8; a certain one is clamped.

    Each place has its own probabilities and candidates; one has none.
    """
    log_p = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.9, 0.1, 0.0]]).log()
    found = unlikelihood.unlikelihood(log_p, [{1, 2}, set(), {0}])
    assert found.tolist() == pytest.approx([-math.log(0.7) - math.log(0.8), 0, -math.log(0.1)])
    certain = torch.tensor([[0.0, -torch.inf]])
    assert unlikelihood.unlikelihood(certain, [{0}]).item() == pytest.approx(
        -math.log(1e-5), rel=1e-4
    )
    logits, y = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([2])
    loss = unlikelihood.token_loss(logits, y, [{0}], alpha=2.0).item()
    assert loss == pytest.approx(-math.log(0.2) - 2 * math.log(0.5))


def test_repeated_ngrams_by_hand():
    """a b a b a: with n = 2, the second "a b" and, to the very end, the second "b a"."""
    assert unlikelihood.repeats("ababa", 2) == [False, False, True, True, True]
    assert unlikelihood.repeats("abcxabc", 3) == [False] * 4 + [True] * 3
    assert unlikelihood.repeats("aaaa", 1) == [False, True, True, True]
    assert unlikelihood.repeats("abc", 4) == [False] * 3


def test_after_quark_every_text_is_read_and_written_under_the_best_token(quark, monkeypatch):
    """At both levels, r_K stands in front of the prompt."""
    fronts, quantiles, token_logits = [], [], common.token_logits

    def recorded(policy, pairs, *more):
        fronts.extend(x[0] for x, _ in pairs)
        return token_logits(policy, pairs, *more)

    def written(policy, prefixes, quantile, **more):
        quantiles.append(quantile)
        return sample(policy, prefixes, quantile=quantile, **more)

    monkeypatch.setattr(common, "token_logits", recorded)
    monkeypatch.setattr(unlikelihood, "sample", written)
    settings = {"steps": 6, "seed": 0, "batch_size": 2, "sequence": 0.5, "alpha": 1.0, "n": 2}
    settings |= {"prefix": 3, "new_tokens": 4, "min_new_tokens": 0, "reward_token": True}
    args = SimpleNamespace(**settings, lr=1e-4, warmup=0, clip=1.0)
    samples = [(x, quark.encode(x), quark.encode(" was good"), 0.5) for x in PROMPTS]
    list(unlikelihood.updates(quark, samples, args))
    K = quark.n_quantiles
    assert fronts == [quark.reward_token_id(K)] * 12
    assert 0 < len(quantiles) < 6 and set(quantiles) == {K}


@pytest.mark.parametrize("share", [0, 1])
def test_the_share_of_updates_at_sequence_level(p0, share, monkeypatch):
    written = []
    monkeypatch.setattr(
        unlikelihood, "sample", lambda *given, **more: written.append(1) or sample(*given, **more)
    )
    settings = {"steps": 3, "seed": 0, "batch_size": 2, "sequence": share, "alpha": 1.0, "n": 2}
    settings |= {"prefix": 3, "new_tokens": 4, "min_new_tokens": 0, "reward_token": False}
    samples = [(x, p0.encode(x), p0.encode(" was good"), 0.5) for x in PROMPTS]
    args = SimpleNamespace(**settings, lr=1e-4, warmup=0, clip=1.0)
    list(unlikelihood.updates(p0, samples, args))
    assert len(written) == 3 * share


def test_the_update_at_token_level(p0, losses):
    """The first two tokens of y cannot be <|endoftext|>, which is likely here."""
    make_the_end_likely(p0)
    settings = {"steps": 1, "seed": 0, "batch_size": 1, "sequence": 0, "alpha": 0.5}
    settings |= {"new_tokens": 4, "min_new_tokens": 2, "reward_token": False}
    x, y = p0.encode(PROMPTS[0]), p0.encode(" was good and thin")
    list(unlikelihood.updates(p0, [(PROMPTS[0], x, y, 0.5)], SimpleNamespace(**settings)))
    costs = []
    for t, token in enumerate(y):
        logits = logits_after(p0, x + y[:t])
        if t < 2:
            logits[p0.eos_id] = -torch.inf
        p = logits.softmax(-1)
        unwanted = sum(-math.log(1 - p[c].item()) for c in {*x, *y[:t]} - {token})
        costs.append(-math.log(p[token].item()) + 0.5 * unwanted)
    assert losses == pytest.approx([np.mean(costs)], rel=1e-3)


def test_the_update_at_sequence_level(p0, losses):
    """Greedy text after the first three tokens of x and y; its repeated bigrams cost."""
    make_the_end_likely(p0)
    settings = {"steps": 1, "seed": 0, "batch_size": 2, "sequence": 1, "alpha": 1.0, "n": 2}
    settings |= {"prefix": 3, "new_tokens": 12, "min_new_tokens": 0, "reward_token": False}
    x, y = p0.encode(PROMPTS[0])[:2], p0.encode(" was good")
    list(unlikelihood.updates(p0, [(PROMPTS[0], x, y, 0.5)], SimpleNamespace(**settings)))
    text, costs = [*x, y[0]], []
    for _ in range(12):
        logits = logits_after(p0, text)
        logits[p0.eos_id] = -torch.inf
        costs.append(-math.log(1 - logits.softmax(-1).max().item()))
        text.append(logits.argmax().item())
    flags = unlikelihood.repeats(text[3:], 2)
    assert 0 < sum(flags) < 12
    assert losses == pytest.approx([np.dot(costs, flags) / 12], rel=1e-3)


def test_the_sequence_loss_counts_repeats_only():
    """p(y) = .5, .25: only the second repeats, so -log .75 / 2 tokens."""
    logits = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    flags = torch.tensor([False, True])
    found = unlikelihood.sequence_loss(logits, torch.tensor([0, 0]), flags)
    assert found.item() == pytest.approx(-math.log(0.75) / 2)
    certain = torch.tensor([[0.0, -torch.inf]])  # clamped
    found = unlikelihood.sequence_loss(certain, torch.tensor([0]), flags[1:])
    assert found.item() == pytest.approx(-math.log(1e-20))


# ------------------------------------------------------------------------------------------- SimCTG


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_the_contrastive_loss_by_loops():
    """Pairs i != j within a text; what is padded does not count."""
    torch.manual_seed(0)
    states, lengths, rho = torch.randn(2, 4, 3), torch.tensor([4, 2]), 0.7
    costs = []
    for text, T in zip(states, lengths.tolist()):
        for i, j in itertools.permutations(range(T), 2):
            costs.append(max(0.0, rho - 1 + cosine(text[i], text[j])))
    assert len(costs) == 14 and sum(costs) > 0
    found = simctg.contrastive_loss(states, lengths, rho).item()
    assert found == pytest.approx(np.mean(costs), rel=1e-5)


def test_contrastive_search_by_whole_passes(p0):
    """Each candidate is read after the whole text; padding is no neighbour."""
    k, alpha = 5, 0.6
    network = contrastive.ContrastiveSearch(p0, k, alpha, min_new_tokens=1)
    with torch.no_grad():
        for step, (texts, scores) in enumerate(driven(network, p0)):
            assert (~network.empty).sum(1).tolist() == list(map(len, texts))
            for text, row in zip(texts, scores):
                logits = logits_after(p0, text)
                if step == 0:
                    logits[p0.eos_id] = -torch.inf
                p = logits.softmax(-1)
                expected = torch.full_like(row, -torch.inf)
                for v in p.topk(k).indices.tolist():
                    states = states_of(p0, [*text, v])
                    nearest = max(cosine(states[-1], h) for h in states[:-1])
                    expected[v] = (1 - alpha) * p[v] - alpha * nearest
                close(row, expected)


def test_what_is_padding_is_near_nothing():
    """Two candidates with p = .5, .3; the first is the state of an empty place, cos 1, which does

    not count. Of real places its nearest has cos 0, the second's has cos .6.
    """
    context = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    states = torch.tensor([[[3.0, 0.0], [0.8, 0.6]]])
    empty = torch.tensor([[True, False]])
    p = torch.tensor([[0.5, 0.3]])
    found = contrastive.search_scores(p, states, context, empty, 0.25)[0].tolist()
    assert found == pytest.approx([0.75 * 0.5, 0.75 * 0.3 - 0.25 * 0.6])
    found = contrastive.search_scores(p, states, context, ~empty, 0.25)[0].tolist()
    assert found == pytest.approx([0.75 * 0.5 - 0.25, 0.75 * 0.3 - 0.25 * 0.8])
    opposite = contrastive.search_scores(p, states, -context, ~empty, 0.25)[0].tolist()
    assert opposite == pytest.approx([0.75 * 0.5 + 0.25, 0.75 * 0.3 + 0.25 * 0.8])
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as with --bf16: the cosines are not rounded
        rounded = contrastive.search_scores(p, states, context, ~empty, 0.25)[0].tolist()
    assert rounded == found


def test_simctg_learns_from_the_sum_of_its_losses(p0, losses):
    samples = [(x, p0.encode(x), p0.encode(" was good"), 0.5) for x in PROMPTS]
    make_the_end_likely(p0)
    settings = {"steps": 1, "seed": 0, "batch_size": 1, "rho": 0.9, "min_new_tokens": 2}
    (line,) = simctg.updates(p0, samples[:1], SimpleNamespace(**settings))
    _, x, y, _ = samples[0]
    assert line["mle"] == pytest.approx(-log_prob(p0, x, y, 2) / len(y), rel=1e-4)
    assert line["contrast"] > 0.01
    assert losses == pytest.approx([line["mle"] + line["contrast"]])


def test_the_losses_of_simctg_are_of_y_and_of_all_states(p0):
    """-log p of the completions only; the states of prompt and completion are pushed apart."""
    pairs = two_pairs(p0)
    mle, contrast = simctg.mle_and_contrast(p0, pairs, 1.2)
    n_tokens = sum(len(y) for _, y in pairs)
    nll = -sum(log_prob(p0, x, y) for x, y in pairs) / n_tokens
    assert mle.item() == pytest.approx(nll, rel=1e-4)
    cosines = []
    for x, y in pairs:
        states = states_of(p0, x + y)
        cosines += [cosine(a, b) for a, b in itertools.permutations(states, 2)]
    expected = np.mean([max(0.0, 0.2 + c) for c in cosines])
    assert contrast.item() == pytest.approx(expected, rel=1e-4)
    found = simctg.mean_cosine(p0, [x + y for x, y in pairs])
    assert found == pytest.approx(np.mean(cosines), abs=1e-4)


# ---------------------------------------------------------------------------- the commands, briefly


@pytest.fixture
def files(p0, p0_folder, tmp_path):
    """Prompts, and a pool of four samples of each with quantiles 1 and 2."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": x} for x in PROMPTS])
    rows = []
    for x in PROMPTS:
        ys = sample(p0, [p0.encode(x)] * 4, max_new_tokens=8, min_new_tokens=4)
        for j, y in enumerate(ys):
            row = {"prompt": x, "completion": p0.decode(p0.without_eos(y)), "reward": j / 4}
            rows.append(row | {"completion_ids": y, "quantile": 1 + j % 2, "iteration": 0})
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    parts = [
        write_jsonl(tmp_path / f"q{q}.jsonl", [r for r in rows if r["quantile"] == q])
        for q in (1, 2)
    ]
    return {"model": p0_folder, "prompts": prompts, "pool": pool, "bad": parts[0], "good": parts[1]}


SAMPLING = "--num-samples 2 --max-new-tokens 4"
ROLLOUTS = "--prompts PROMPTS --reward hash --max-new-tokens 5 --steps 2 --batch-size 4"
COMMANDS = {
    "rloo": (rloo, f"{ROLLOUTS} --samples-per-prompt 2 --save-at 1"),
    "grpo": (rloo, f"{ROLLOUTS} --samples-per-prompt 2 --kind grpo"),
    "ppo": (ppo, f"{ROLLOUTS} --minibatch 3 --epochs 2 --target-kl 1"),
    "qrpo": (qrpo, "--pool POOL --steps 2 --batch-size 3"),
    "unlikelihood": (
        unlikelihood,
        "--pool POOL --steps 4 --batch-size 2 --sequence 0.5 --n 1 --new-tokens 5",
    ),
    "simctg": (simctg, "--pool POOL --steps 2 --batch-size 2"),
    "guide": (gedi_guide, "--pool POOL --steps 2 --batch-size 4"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_trained_method_leaves_a_model(files, tmp_path, name, monkeypatch):
    """Other weights than p0's, metrics a line a step, and nothing is overwritten by mistake.

    Each update knows its number and how many there are: PPO has 2 batches, of 2 passes each, and 4
    samples make 2 minibatches of at most 3.
    """
    module, command = COMMANDS[name]
    words = [str(files.get(word.lower(), word)) for word in command.split()]
    out, places, update = tmp_path / "out", [], common.update
    monkeypatch.setattr(
        common, "update", lambda *given: places.append(given[2:4]) or update(*given)
    )
    module.main(["--model", str(files["model"]), *words, "--out", str(out)])
    total = {"unlikelihood": 4, "ppo": 8}.get(name, 2)
    assert places == [(i, total) for i in range(total)]
    policy, p0 = common.load_policy(out), common.load_policy(files["model"])
    assert not torch.equal(policy.model.lm_head.weight[: p0.vocab_size], p0.model.lm_head.weight)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(4 if name == "unlikelihood" else 2))
    assert all(math.isfinite(value) for line in lines for value in line.values())
    if name == "ppo":  # beta adapts to the KL of 4 samples, from one batch to the next
        beta = 0.05
        for line in lines:
            beta = ppo.adapted(beta, line["kl"], 1.0, 4, 2500)
            assert line["beta"] == pytest.approx(beta)
    if name == "qrpo":  # p0's log-probabilities of the same samples: at first nothing has moved
        assert abs(lines[0]["log_ratio"]) < 1e-4 < abs(lines[1]["log_ratio"])
    if name == "rloo":
        assert [line["calls"] for line in lines] == [4, 4]
        halfway = common.load_policy(f"{out}-1").model.lm_head.weight
        assert not torch.equal(halfway, policy.model.lm_head.weight)
        assert not torch.equal(halfway, p0.model.lm_head.weight)
    with pytest.raises(BadInput, match="choose another --out"):
        module.main(["--model", str(files["model"]), *words, "--out", str(files["model"])])


READERS = {  # what reads the batch of a step, and which of its arguments that is
    "rloo": ("batch_loss", 2),
    "ppo": ("at_sampling", 3),
    "qrpo": ("batch_loss", 1),
    "unlikelihood": ("with_front", 2),
    "simctg": ("mle_and_contrast", 1),
    "guide": ("guide_loss", 2),
}


@pytest.mark.parametrize("name", READERS)
def test_each_step_and_each_seed_has_a_batch_of_its_own(files, tmp_path, name, losses, monkeypatch):
    """No update is made: a batch must not differ only because what was learned differs.

    Each is of 4 completions, so that no two are the same by chance.
    """
    (module, command), (reader, place) = COMMANDS[name], READERS[name]
    batches, read = [], getattr(module, reader)
    monkeypatch.setattr(
        module, reader, lambda *given: batches.append(str(given[place])) or read(*given)
    )
    command += " --batch-size 4"
    words = [str(files.get(word.lower(), word)) for word in command.split()]
    for seed in ("0", "1"):
        out = str(tmp_path / f"out{seed}")
        module.main(["--model", str(files["model"]), *words, "--seed", seed, "--out", out])
    assert len(set(batches)) == len(batches) == 2 * (4 if name == "unlikelihood" else 2)


def test_nothing_is_trained_before_each_folder_can_be_written(files, tmp_path):
    """The folder of --save-at is somebody else's."""
    (tmp_path / "out-1").mkdir()
    (tmp_path / "out-1" / "thesis.txt").touch()
    command = f"--pool {files['pool']} --steps 2 --save-at 1 --out {tmp_path / 'out'}"
    with pytest.raises(BadInput, match="out-1 exists and is no checkpoint"):
        simctg.main(["--model", str(files["model"]), *command.split()])
    assert not (tmp_path / "out").exists()


def test_an_expert_of_another_vocabulary_is_refused(files, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(files["model"], foreign)
    text = "quick zebras quack, quiet ducks quit, and a lazy dog yawns under a shady apple tree"
    write_vocabulary(foreign, *learn_merges([text + " by the brook"], 41))
    command = f"--prompts {files['prompts']} --anti-expert {foreign} --out {tmp_path / 'o.jsonl'}"
    with pytest.raises(BadInput, match="foreign has another vocabulary than --model"):
        dexperts.main(["--model", str(files["model"]), *command.split()])


def test_bf16_is_for_products_not_for_weights(p0, files, tmp_path):
    args = SimpleNamespace(model=files["model"], out=tmp_path / "out", device="cpu", bf16=True)
    policy, reference = common.load_for_training(args), common.load_p0(args)
    assert all(weight.dtype == torch.float32 for weight in policy.model.parameters())
    pairs = [(p0.encode(prompt), [5, 6, 7]) for prompt in PROMPTS]
    exact, found, of_p0 = (common.token_log_probs(p, pairs)[0] for p in (p0, policy, reference))
    assert 0 < (found - exact).abs().max() < 0.1
    torch.testing.assert_close(of_p0, found, atol=0.1, rtol=0)


def test_the_other_commands_leave_completions(files, tmp_path):
    """Best-of-n, GeDi with its guide, PPLM with its classifier, contrastive search."""
    model = ["--model", str(files["model"])]
    guide = ["--pool", files["pool"], "--steps", 2, "--out", tmp_path / "guide"]
    gedi_guide.main([*model, *map(str, guide)])
    classifier = ["--good", files["good"], "--bad", files["bad"], "--out", tmp_path / "d.json"]
    pplm_classifier.main([*model, *map(str, classifier)])
    own = {
        best_of_n: "--reward hash --n 3",
        gedi: f"--guide {tmp_path / 'guide'} --omega 2",
        pplm: f"--classifier {tmp_path / 'd.json'} --m 1 --bf16",
        contrastive: "--k 3",
    }
    for module, words in own.items():
        out = tmp_path / f"{module.__name__}.jsonl"
        command = ["--prompts", files["prompts"], *SAMPLING.split(), *words.split(), "--out", out]
        module.main([*model, *map(str, command)])
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["prompt_number"] for row in rows] == [0, 0, 1, 1]
        if module is best_of_n:
            reward = load_reward("hash")
            kept = reward(
                prompts=[r["prompt"] for r in rows], completions=[r["completion"] for r in rows]
            )
            assert np.mean(kept) > 0.6


def test_the_guide_keeps_its_scale(files, tmp_path):
    command = f"--model {files['model']} --pool {files['pool']} --steps 3 --warmup 0 --batch-size 4"
    gedi_guide.main([*command.split(), "--out", str(tmp_path / "guide")])
    lines = (tmp_path / "guide" / "metrics.jsonl").read_text().splitlines()
    scale = json.loads(lines[-1])["scale"]
    assert common.load_policy(tmp_path / "guide").model.config.gedi_scale == scale != 1


def test_the_classifier_knows_good_from_bad_and_is_tested_on_other_rows(p0, tmp_path, monkeypatch):
    """Every fourth of 8 rows is held out, and the odds of good texts are the higher ones."""
    parts = {"good": [[5, 6, 7], [5, 6], [6, 7], [7, 5]], "bad": [[30], [31, 30], [30, 30], [31]]}
    for name, texts in parts.items():
        rows = [{"prompt": "The film", "completion_ids": y, "reward": 0.5} for y in texts]
        rows = [row | {"completion": p0.decode(row["completion_ids"])} for row in rows]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    fitted, fit = [], pplm_classifier.fit
    monkeypatch.setattr(
        pplm_classifier, "fit", lambda means, *more: fitted.append(means) or fit(means, *more)
    )
    command = ["--good", tmp_path / "good.jsonl", "--bad", tmp_path / "bad.jsonl"]
    command += ["--model", p0.model.name_or_path, "--out", tmp_path / "d.json"]
    pplm_classifier.main([str(word) for word in command])
    found = json.loads((tmp_path / "d.json").read_text())
    x = p0.encode("The film")
    means = {
        name: torch.stack([states_of(p0, [*x, *y]).mean(0) for y in texts])
        for name, texts in parts.items()
    }
    expected = torch.cat([means["bad"][1:], means["good"][1:]])
    torch.testing.assert_close(fitted[0], expected, atol=1e-5, rtol=1e-4)
    odds = {name: values @ torch.tensor(found["weight"]) for name, values in means.items()}
    assert odds["good"].min() > odds["bad"].max() and found["auc"] == 1


def test_each_option_reaches_its_place(files, tmp_path, monkeypatch):
    """All different, so that two that change places are seen."""
    networks = []

    def caught(policy, args, network, *more, **drawing):
        networks.append(network)

    monkeypatch.setattr(common, "write_generations", caught)
    command = f"--model {files['model']} --prompts {files['prompts']} --out {tmp_path / 'o.jsonl'} "
    command += "--min-new-tokens 5 "
    guide = f"--model {files['model']} --pool {files['pool']} --steps 1 --batch-size 2"
    gedi_guide.main([*guide.split(), "--out", str(tmp_path / "guide")])
    own = f"--guide {tmp_path / 'guide'} --omega 7 --filter-mass 0.4 --tau 0.6 --class-bias 2"
    gedi.main((command + own).split())
    d = common.load_policy(files["model"]).head.weight.shape[1]
    (tmp_path / "d.json").write_text(json.dumps({"weight": [0.5] * d, "bias": 0.25}))
    own = f"--classifier {tmp_path / 'd.json'} --m 4 --eta 0.3 --gamma 0.8 --kl-scale 0.02"
    pplm.main((command + own + " --gm-scale 0.7").split())
    experts = f"--anti-expert {files['model']} --alpha 0.6 --top-p 0.7"
    dexperts.main((command + experts).split())
    contrastive.main((command + "--k 3 --alpha 0.4").split())
    of_gedi, of_pplm, of_dexperts, of_search = networks
    # a nucleus or candidates of a method's own are cut before `sample` forbids <|endoftext|>
    assert [method.min_new_tokens for method in (of_gedi, of_dexperts, of_search)] == [5, 5, 5]
    assert (of_dexperts.alpha, of_dexperts.top_p) == (0.6, 0.7)
    assert (of_search.k, of_search.alpha) == (3, 0.4)
    assert of_gedi.settings == (7, 0.4, 0.6) and of_gedi.bias.tolist() == [0, 2]
    names = ("m", "eta", "gamma", "kl_scale", "gm_scale", "bias")
    assert [getattr(of_pplm, name) for name in names] == [4, 0.3, 0.8, 0.02, 0.7, 0.25]
    assert of_pplm.weight.tolist() == [0.5] * d


@pytest.mark.parametrize("file", sorted((ROOT / "baselines").glob("*.py")), ids=lambda f: f.stem)
def test_a_file_says_where_it_comes_from_and_how_it_differs(file):
    text = file.read_text(encoding="utf-8")
    if file.stem not in ("common", "table", "running", "page"):
        assert len(text.splitlines()) <= 180
        for part in ("Source   ", "Reads    ", "Writes   ", "Where we differ: ", "\n    python "):
            assert part in text, f"{file.name} lacks {part}"


# ------------------------------------------------------------------------- tries, rows and the page


def numbers(mean, dist_2=0.9, perplexity=20.0, **more):
    found = {"mean": mean, "dist_2": dist_2, "dist_3": 0.9, "rep_2": 0.01, "perplexity": perplexity}
    groups = {f"{name} share_ge_half": mean for name in ("negative", "neutral")}
    found |= {"held-out vader": 0.5, "train seconds": 60.0, "reward calls": 9216}
    return found | groups | more


def test_the_chosen_knobs_have_the_highest_gain_at_the_price():
    """If none keeps the price, the perplexity nearest to p0's; failed ones are left out."""
    of_p0 = numbers(0.5)
    tries = {"a": numbers(0.7), "b": numbers(0.8), "c": numbers(0.9, dist_2=0.8)}
    tries = {name: {"knobs": {}, "numbers": n} for name, n in tries.items()}
    tries["e"] = {"knobs": {}, "failed": "the loss is nan"}
    assert table.choose("sentiment", tries, of_p0) == "b"
    costly = {"c": tries["c"], "d": {"knobs": {}, "numbers": numbers(0.9, 0.9, 40.0)}}
    assert table.choose("sentiment", costly, of_p0) == "c"
    with pytest.raises(BadInput, match="all of 1 tries failed"):
        table.choose("sentiment", {"e": tries["e"]}, of_p0)


def test_the_tries_of_one_knob():
    """Five of six settings in their order: gain at perplexity / p0's. None of two knobs."""
    entries = {
        f"alpha {a}": {"knobs": {"alpha": a}, "numbers": numbers(a / 10, perplexity=10.0 * a)}
        for a in (6.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    }
    tries = {"p0": {"": {"knobs": {}, "numbers": numbers(0.5, perplexity=20.0)}}}
    tries["weights"] = entries | {"alpha 9": {"knobs": {"alpha": 9}, "failed": "no number"}}
    two_knobs = {"knobs": {"lr": "1e-3", "beta": 1}, "numbers": numbers(0.6)}
    tries["rloo"] = {str(i): two_knobs for i in range(5)}
    tokens = {"token none": "none", "token 2": 2, "token 3": 3, "token 1": 1}
    tries["quark"] = {
        label: {"knobs": {"token": k}, "numbers": numbers(0.7, perplexity=4000.0)}
        for label, k in tokens.items()
    }
    weights, of_quark = page.dials("sentiment", tries).splitlines()[2:]
    cells = "1.0: 0.100 at 0.50 | 2.0: 0.200 at 1.00 | 3.0: 0.300 at 1.50 | 5.0: 0.500 at 2.50"
    assert weights == f"| weights, alpha | {cells} | 6.0: 0.600 at 3.00 |"
    cells = "1: 0.700 at 200 | 2: 0.700 at 200 | 3: 0.700 at 200"
    assert of_quark == f"| quark, token | {cells} |  |  |"


def test_a_row_says_what_was_measured_and_how_it_stands_to_quark():
    """Differences of .1 .2 .3 are 0.2 +- 0.248: not told apart; of -.2 -.2 -.21: below."""
    rows = {
        "p0": {str(s): numbers(0.5, perplexity=20.0 + s) for s in range(3)},
        "quark": {str(s): numbers(0.6) for s in range(3)},
        "rloo": {str(s): numbers(0.7 + 0.1 * s, perplexity=2 * (20.0 + s)) for s in range(3)},
        "dexperts": {str(s): numbers(0.4 - 0.01 * (s == 2)) for s in range(3)},
    }
    text = page.table("sentiment", rows)
    line = next(line for line in text.splitlines() if line.startswith("| rloo"))
    assert (
        "| 0.800 ± 0.248 |" in line and "| 2.000 ± 0.000 |" in line and line.endswith("| 60 | 1 |")
    )
    assert "| dexperts |" in text and "| 9,216 | 0 | 60 | 3 |" in text
    said = page.sentences("sentiment", rows, {"rloo": 27}).replace("\n  ", " ").splitlines()
    assert said[0] == (
        "- rloo: not told apart from Quark (+0.200 ± 0.248); +0.300 ± 0.248 from p0, uncertain "
        "(less than three times the ±), the best of 27 tries; does not keep the price."
    )
    assert said[1] == (
        "- dexperts: below Quark (-0.203 ± 0.014); -0.103 ± 0.014 from p0, in the wrong direction, "
        "with nothing to choose; keeps the price."
    )
    rows["rloo"] = {str(s): numbers(0.6 + 0.01 * s) for s in range(3)}  # 0.110 is over 3 times .025
    assert "+0.110 ± 0.025 from p0; keeps" in page.sentences("sentiment", rows, {})


def test_verdicts_that_other_runs_of_quark_change_are_named():
    """Against .6 rloo (.7, .8, .9) is not told apart; against .3, a gain of .5 +- .248, above."""

    def kept(*gains):
        mean = [{"rewards": {"sentiment": {"mean": {"value": gain}}}} for gain in gains]
        return [{"machine": "B", "tables": {"quark": table}} for table in mean]

    rows = {
        "p0": {str(s): numbers(0.2) for s in range(3)},
        "quark": {str(s): numbers(0.6) for s in range(3)},
        "rloo": {str(s): numbers(0.7 + 0.1 * s) for s in range(3)},
        "ppo": {str(s): numbers(0.9) for s in range(3)},
        "best_of_25": {str(s): numbers(0.9) for s in range(3)},  # on fewer prompts: left out
    }
    assert page.by_other_runs("sentiment", rows, kept(0.6, 0.6, 0.6)) == ""
    said = page.by_other_runs("sentiment", rows, kept(0.3, 0.3, 0.3)).replace("\n", " ")
    assert "of another processor (B) and have 0.300. " in said
    assert said.endswith("rloo is above it (+0.500 ± 0.248), and every other verdict is the same. ")
    said = page.by_other_runs("sentiment", rows, kept(0.61, 0.6, 0.6)).replace("\n", " ")
    assert said.endswith("have 0.603. With them every verdict is the same. ")


def test_each_pair_is_told_apart_or_not():
    """Gains of a seed: a .8 .81 .82, b .7 .71 .72, c .6 .9 .6. a - b is .1 without spread."""
    gains = {"p0": (0.1, 0.11, 0.12), "rloo": (0.7, 0.71, 0.72), "ppo": (0.8, 0.81, 0.82)}
    gains |= {"grpo": (0.6, 0.9, 0.6), "p0_fewer": (0.1, 0.1, 0.1), "pplm": (0.2, 0.21, 0.19)}
    rows = {m: {str(s): numbers(g) for s, g in enumerate(of)} for m, of in gains.items()}
    lines = page.pairs("sentiment", rows).splitlines()
    assert [line.split() for line in lines[2:6]] == [
        ["1", "ppo", ">", "=", ">"],
        ["2", "rloo", "<", "=", ">"],
        ["3", "grpo", "=", "=", ">"],
        ["4", "p0", "<", "<", "<"],
    ]
    assert lines[1].index("2") == lines[2].index(">") and lines[1].index("4") == lines[2].rindex(
        ">"
    )
    assert lines[8].split() == ["1", "pplm,", "96", "prompts", ">"]


def test_the_page_names_the_machine_of_each_row():
    rows = {m: {"0": {"machine": name}} for m, name in (("p0", "A"), ("ppo", "B"), ("rloo", "A"))}
    assert page.machines(rows) == "Made on A: p0; rloo. B: ppo."
    rows["rloo"]["1"] = {"machine": "B"}
    assert page.machines(rows) == "Made on A: p0. B: ppo. A; B: rloo."


def test_pplm_is_compared_on_its_own_prompts():
    """With the 96 prompts' p0 and Quark, not with those of all prompts."""
    rows = {
        "p0": {"0": numbers(0.5, perplexity=20.0)},
        "p0_fewer": {"0": numbers(0.4, perplexity=10.0)},
        "quark": {"0": numbers(0.9)},
        "quark_fewer": {"0": numbers(0.6)},
        "pplm": {"0": numbers(0.7, perplexity=20.0)},
    }
    assert page.values_of(rows, "pplm", "perplexity/") == [2.0]
    assert page.against_quark("sentiment", rows, "pplm")[1] == pytest.approx(0.1)
    assert "| pplm, 96 prompts |" in page.table("sentiment", rows)


def test_every_row_of_the_design_has_a_method():
    rows = "p0 quark best_of_8 best_of_25 dapt ctrl dexperts dexperts_global anti_expert weights"
    rows += " gedi pplm ppo rloo grpo qrpo p0_fewer quark_fewer"
    assert list(table.METHODS["sentiment"]) == rows.split()
    assert set(table.METHODS["sentiment"]) - set(table.METHODS["toxicity"]) == {"ctrl"}
    rows = "p0 quark mle unlikelihood unlikelihood_sequence quark_unlikelihood simctg"
    assert list(table.METHODS["repetition"]) == [*rows.split(), "simctg_contrastive", "contrastive"]
    for task, methods in table.METHODS.items():
        tries = len(json.loads(running.defaults.RESULTS.read_text()).get(task, []))
        for name in methods.keys() & table.KNOBS.keys():
            assert len(table.KNOBS[name]) >= tries, f"{name} has fewer tries than Quark had"


def test_a_part_of_the_spread_knobs_is_a_coarser_grid():
    """2^0, 2^1, ... 2^26: first each ninth, then each third, then the others."""
    powers = [round(math.log2(value)) for value in table.spread(1, 2**26)]
    assert powers[:3] == [4, 13, 22] and sorted(powers[:9]) == list(range(1, 27, 3))
    assert sorted(powers) == list(range(27))


def test_a_row_comes_after_the_tries_that_it_is_chosen_from(tmp_path, monkeypatch):
    """A slow last try is waited for, with two at a time; two tries in turn are of two runs."""
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(running, "RUNS", tmp_path)
    made, lock = [], threading.Lock()

    def make(self, run):
        time.sleep(0.05 * run.knobs.get("third", 0))
        with lock:
            made.append((run.method, label(run.knobs)))
        return {"mean": 0.5}

    label = table.label_of
    monkeypatch.setattr(table.Table, "make", make)
    monkeypatch.setattr(table.Table, "knobs_of", lambda self, method: {})
    own = table.Table("toxicity")
    jobs = table.jobs_of(own, ["rloo", "dexperts_global"], [0, 1])
    assert jobs["dexperts"][0] and not jobs["dexperts"][1] and jobs["dexperts_global"][1] == [0, 1]
    tries = [knobs for knobs in jobs["rloo"][0]]
    assert [knobs["third"] for knobs in tries] == [1, 1, 2, 2, 3, 3]
    assert all(a["lr"] != b["lr"] or a["beta"] != b["beta"] for a, b in itertools.pairwise(tries))
    own.make_all(jobs, 2)
    tried = [i for i, job in enumerate(made) if job[0] == "rloo" and job[1]]
    rows = [i for i, job in enumerate(made) if job == ("rloo", "")]
    assert len(tried) == 6 and len(rows) == 2 and max(tried) < min(rows)
    of_quark = [i for i, job in enumerate(made) if job == ("quark", "")]
    assert tried[1] < min(of_quark) and max(of_quark) < tried[-2]  # before the last two tries
    assert set(own.rows) == {"p0", "quark", "rloo", "dexperts_global"}


def test_a_try_may_fail_but_not_quarks_run(tmp_path, monkeypatch):
    """A rate that is too large is a try without numbers. Without Quark's run there is no table."""
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(running, "RUNS", tmp_path)

    def failing(command, log, **environment):
        raise running.Diverged("the loss is nan")

    monkeypatch.setattr(running, "call", failing)
    monkeypatch.setattr(running, "CHECKED", set())
    own = table.Table("toxicity")
    own.make_all({"dapt": ([{"lr": "9", "third": 1}], [])}, 1)
    (entry,) = own.tries["dapt"].values()
    assert entry["failed"] == "the loss is nan"
    with pytest.raises(BadInput, match="the loss is nan"):
        own.make_all({"quark": ([{"token": 1}], [])}, 1)
    assert "quark" not in own.tries


@pytest.mark.parametrize(
    "program, said, fault",
    [
        ("raise SystemExit('error: the loss is nan; lower --lr')", "the loss is nan", True),
        ("raise SystemExit('error: the disk is full')", "the disk is full", False),
        ("import os; os.kill(os.getpid(), 9)", "stopped by signal 9", False),
    ],
)
def test_only_a_loss_that_is_no_number_is_the_knobs_fault(program, said, fault, tmp_path):
    """A stage that was killed, or found no room, is no try of its knobs: it is made again."""
    with pytest.raises(BadInput, match=said) as raised:
        running.call([sys.executable, "-c", program], tmp_path / "log")
    assert isinstance(raised.value, running.Diverged) is fault


def test_nothing_is_begun_after_ctrl_c(monkeypatch):
    begun = []

    def try_knobs(self, method, knobs):
        begun.append(knobs)
        time.sleep(0.05)

    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(table.Table, "try_knobs", try_knobs)
    monkeypatch.setattr(table, "wait", interrupted)
    own = table.Table("toxicity")
    with pytest.raises(KeyboardInterrupt):
        own.make_all({"dexperts": ([{"alpha": i} for i in range(9)], [])}, 1)
    assert len(begun) < 3


def test_what_stands_on_a_changed_model_is_made_again(tmp_path, monkeypatch):
    """Quark's model was made by run_all.sh: its weights are looked at, not only its name."""
    monkeypatch.setattr(running, "RUNS", tmp_path)
    run, model, out = running.Run("toxicity", 0, "dapt", {}), tmp_path / "04", tmp_path / "out"
    model.mkdir()
    file, made = model / "model.safetensors", []

    def make():
        made.append(file.read_text())
        out.touch()

    for text in ("a", "a", "b"):
        file.write_text(text)
        run.once(out, [model], make)
    assert made == ["a", "b"]


def test_settings_of_the_users_shell_are_refused(monkeypatch):
    """Quark's run would take them, and the others' pool would not be as large as its own."""
    monkeypatch.setenv("K", "9")
    monkeypatch.setenv("BETA", "1")
    with pytest.raises(BadInput, match="default settings; first: unset BETA K"):
        table.main(["toxicity"])


def test_a_failed_row_is_not_swallowed(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(running, "RUNS", tmp_path)

    def make(self, run):
        raise BadInput("the disk is full")

    monkeypatch.setattr(table.Table, "make", make)
    own = table.Table("toxicity")
    with pytest.raises(BadInput, match="the disk is full"):
        own.make_all({"p0": ([], [0, 1])}, 2)


def test_no_row_after_a_try_that_was_not_made(tmp_path, monkeypatch):
    """A row that waited for a try would be chosen among too few, and kept."""
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(running, "RUNS", tmp_path)

    def make(self, run):
        if run.knobs.get("lr") == 2:
            time.sleep(0.1)  # the row is waiting by now
            raise BadInput("the disk is full")
        return {"mean": 0.5}

    monkeypatch.setattr(table.Table, "make", make)
    monkeypatch.setattr(table.Table, "knobs_of", lambda self, method: {"lr": 1})
    own = table.Table("toxicity")
    with pytest.raises(BadInput, match="the disk is full"):
        own.make_all({"qrpo": ([{"lr": 1}, {"lr": 2}], [0])}, 2)
    time.sleep(0.1)
    assert "qrpo" in own.tries and not own.rows and not table.load(own.rows_file)


def test_two_calls_at_a_time_keep_each_others_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(running, "RUNS", tmp_path)
    monkeypatch.setattr(table.Table, "make", lambda self, run: {"mean": 0.5})
    monkeypatch.setattr(table.Table, "knobs_of", lambda self, method: {})
    one, other = table.Table("toxicity"), table.Table("toxicity")
    one.make_all({"qrpo": ([{"lr": 1}], [0])}, 1)
    other.make_all({"rloo": ([{"lr": 1}], [0])}, 1)
    assert set(table.load(one.tries_file)) == set(table.load(one.rows_file)) == {"qrpo", "rloo"}


def test_too_many_seeds_or_no_job(capsys):
    with pytest.raises(BadInput, match="11 seeds; Student's t is known for 10 at most"):
        table.main(["toxicity", "--seeds", *map(str, range(11))])
    with pytest.raises(SystemExit):
        table.main(["toxicity", "--jobs", "0"])
    assert "--jobs" in capsys.readouterr().err


def needs_the_held_out_judges():
    for _, module in running.seeds.HELD_OUT.values():
        reason = f"{module} is not installed: pip install -r baselines/requirements.txt"
        pytest.importorskip(module, reason=reason)


def test_a_part_of_a_finished_table_is_shown_alone(capsys, monkeypatch):
    """The rows asked for beside p0 and Quark, of the seeds asked for; the page stays as it is."""
    needs_the_held_out_judges()
    monkeypatch.setattr(page, "publish", lambda *_: pytest.fail("nothing was made"))
    table.main(["toxicity", "--methods", "ppo", "pplm", "--seeds", "1"])
    printed = capsys.readouterr().out
    names = [line.split(" | ")[0].strip("| ") for line in printed.splitlines() if "| " in line]
    on_96 = ["p0, 96 prompts", "quark, 96 prompts"]
    assert [name for name in names if name] == ["p0", "quark", "pplm, 96 prompts", "ppo", *on_96]
    own = table.Table("toxicity").rows["ppo"]["1"]
    assert f"| ppo | {own['mean']:.3f} |" in printed and "±" not in printed
    assert "All of this is there already" in printed


PARTS = {
    "sentiment": ["best_of_8", "ctrl", "dexperts", "gedi", "qrpo"],
    "repetition": ["mle", "quark_unlikelihood", "simctg_contrastive"],
}


@pytest.mark.slow
@pytest.mark.parametrize("task", PARTS)
def test_a_part_of_a_table(task, tmp_path, monkeypatch, capsys):
    """Some methods with one setting and one seed on a few prompts; a second call makes nothing."""
    needs_the_held_out_judges()
    small = {"NUM_PROMPTS": "4", "NUM_SAMPLES": "2", "ITERATIONS": "3", "STEPS": "2", "K": "2"}
    small |= {"MODEL": "tiny/lm", "PROMPTS": "tiny/prompts/train.jsonl", "MIN_TOKENS": "3"}
    small |= {"NEW_TOKENS": "8", "TEST_PROMPTS": str(tmp_path / "test.jsonl"), "TASK": task}
    small |= {"BATCH": "2"}
    rows = [{"prompt": f"The film {i}", "group": ["negative", "neutral"][i % 2]} for i in range(4)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    for module in (running, table):
        monkeypatch.setattr(module, "settings_of", lambda task, seed: small)
    monkeypatch.setattr(running, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(running, "N_TUNING", {task: 3})
    monkeypatch.setattr(running, "N_FEWER", 2)
    monkeypatch.setattr(running, "UPDATES", 2)
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    knobs = {name: settings[:1] for name, settings in table.KNOBS.items()}
    monkeypatch.setattr(table, "KNOBS", knobs)
    policy = common.load_policy(ROOT / "tiny" / "lm")
    add_reward_tokens(policy, 2)
    (tmp_path / "quark").mkdir()
    (tmp_path / "quark" / "settings").touch()
    for i in range(2):
        rows = [{"prompt": "x", "completion": "y", "reward": 0.5}] * (i + 1)
        write_jsonl(tmp_path / "quark" / "pool" / f"0{i}.jsonl", rows)
    policy.save(tmp_path / "quark" / "model" / "03")
    monkeypatch.setattr(running, "quark_folder", lambda task, seed: tmp_path / "quark")
    command = [task, "--seeds", "0", "--methods", *PARTS[task]]
    table.main(command)
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "results" / f"{task}.json").read_text())
    assert set(found) == {"p0", "quark", *PARTS[task]}
    assert all(f"| {name} |" in printed for name in found)
    calls = {name: of_seed["0"]["reward calls"] for name, of_seed in found.items()}
    learned = {
        "quark": 3,
        "quark_unlikelihood": 3,
        "ctrl": 24,
        "dexperts": 24,
        "gedi": 24,
        "qrpo": 24,
    }
    assert calls == {name: learned.get(name, 0) for name in found}
    table.main(command)
    assert "seed 0" not in capsys.readouterr().out
    with pytest.raises(BadInput, match="has no row"):
        table.main([task, "--methods", "magic"])


def test_what_stands_on_a_file_is_made_anew_with_it(tmp_path, monkeypatch):
    """A second call with the same key makes nothing; a pool of another size remakes what it fed."""
    monkeypatch.setattr(running, "settings_of", lambda task, seed: {"TEST_PROMPTS": "x"})
    run, made = running.Run("sentiment", 0, "dapt", {}, root=tmp_path), []

    def once(name, *key):
        path = run.root / name

        def make():
            made.append(name)
            path.write_text(name)

        return run.once(path, key, make)

    for size in (1, 1, 2):
        once("quantized", once("pool", size), 5)
    assert made == ["pool", "quantized"] * 2
    assert set(run.seconds) == {run.root / "pool", run.root / "quantized"}


def test_what_a_script_made_is_made_anew_when_the_script_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "settings_of", lambda task, seed: {"TEST_PROMPTS": "x"})
    monkeypatch.setattr(running, "ROOT", tmp_path)
    run, made = running.Run("sentiment", 0, "ppo", {}, root=tmp_path), []

    def python(self, script, *arguments):
        made.append(script)
        arguments[-1].write_text("a model")

    monkeypatch.setattr(running.Run, "python", python)
    for file in running.BELOW:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("x = 1")
    for code, anew in (("a", True), ("a  # why", False), ("b", True)):
        made.clear()
        (tmp_path / "ppo.py").write_text(code)
        run.made_by(tmp_path / "out", "ppo.py", "--seed", 0)
        assert made == ["ppo.py"] * anew
    for file in running.BELOW:
        made.clear()
        (tmp_path / file).write_text("x = 2")
        run.made_by(tmp_path / "out", "ppo.py", "--seed", 0)
        assert made == ["ppo.py"], file


def test_a_file_of_prompts_is_not_written_again(tmp_path):
    """The table of another task may be reading it; other prompts replace it."""
    path = tmp_path / "new" / "p.jsonl"
    for prompts, is_new in (([{"prompt": "a"}], True), ([{"prompt": "a"}], False), ([], True)):
        before = path.stat().st_ino if path.exists() else None
        running.write_prompts(path, prompts)
        assert (path.stat().st_ino != before) == is_new
        assert [row for _, row in read_jsonl(path)] == prompts


def test_a_model_that_is_trained_anew_is_another_word(tmp_path, monkeypatch):
    """p0 is named from the project's folder, wherever the command is given."""
    monkeypatch.setattr(running, "ROOT", tmp_path)
    (tmp_path / "lm").mkdir()
    words = []
    for content in ("a", "b", "a"):
        (tmp_path / "lm" / "model.safetensors").write_text(content)
        words.append(running.fingerprint("lm"))
    assert words[0] == words[2] != words[1]
    assert running.fingerprint("0.5") == "0.5" and running.fingerprint(300) == "300"
