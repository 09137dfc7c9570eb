"""Stage 3: KL and Eq. 2 against plain loops, the closed form against the open one, the shift by one, training and resuming."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CONTEXT, ROOT, WIDTH, K, V, learn_merges, one_sentence, read_rows, stage, write_jsonl

import learn
import plumbing.closed_form
from explore import load_policy
from learn import add_reward_tokens, batch_loss, draw_batch, learning_rate, load_quantized, quark_loss, token_kl
from plumbing.closed_form import ClosedForm
from plumbing.pool import BadInput

B, T, d = 2, 7, 5  # with v = 13 tokens, K = 3 reward tokens and M = 9 completion tokens in the small examples
v, M = 13, 9


def softmax(z):
    """A list of logits -> a list of probabilities, in plain Python."""
    top = max(z)
    weights = [math.exp(x - top) for x in z]
    return [w / sum(weights) for w in weights]


def slow_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def slow_entropy(p):
    return -sum(a * math.log(a) for a in p)


def example(seed=0):
    """Policy logits (B, T, v + K), reference logits (B, T, v), targets, and a mask of M = 9 ones at uneven places."""
    generator = torch.Generator().manual_seed(seed)
    policy = 2 * torch.randn(B, T, v + K, generator=generator, dtype=torch.float64)
    reference = 2 * torch.randn(B, T, v, generator=generator, dtype=torch.float64)
    targets = torch.randint(v, (B, T), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0]])
    return policy, reference, targets, mask


def slow_loss(policy, reference, targets, mask, beta, kl, entropy_coef):
    """Eq. 2 with plain loops: the mean over the mask of -log p(y) + beta KL - c H."""
    lm = divergence = entropy = 0.0
    for b in range(B):
        for t in range(T):
            if mask[b, t]:
                p, p0 = softmax(policy[b, t, :v].tolist()), softmax(reference[b, t].tolist())
                lm -= math.log(p[targets[b, t]]) / M
                divergence += (slow_kl(p0, p) if kl == "forward" else slow_kl(p, p0)) / M
                entropy += slow_entropy(p) / M
    return lm + beta * divergence - entropy_coef * entropy, lm, divergence, entropy


# ------------------------------------------------------------------------------------------------------------- KL


def test_kl_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = 1/2 ln 2 + 1/2 ln 2/3 = 0.1438; KL(q||p) = 1/4 ln 1/2 + 3/4 ln 3/2 = 0.1308."""
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    assert token_kl(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert token_kl(q, p).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)


def test_kl_is_the_slow_sum():
    """At every position, in this direction; shape (B, T)."""
    p, q, _, _ = example()
    got = token_kl(p[..., :v], q)
    assert got.shape == (B, T)
    for b in range(B):
        for t in range(T):
            assert got[b, t].item() == pytest.approx(slow_kl(softmax(p[b, t, :v].tolist()), softmax(q[b, t].tolist())), rel=1e-9)


def test_kl_is_zero_only_for_equal_distributions():
    """Non-negative; zero for the same distribution, also where its logits differ by a constant; never NaN for tiny p."""
    p, q, _, _ = example()
    p = p[..., :v]
    assert (token_kl(p, q) > 1e-3).all()
    assert token_kl(p, p + 3).abs().max() < 1e-12
    far = torch.tensor([[[0.0, -800.0, 5.0]]])
    assert torch.isfinite(token_kl(far, torch.zeros(1, 1, 3))).all()
    assert token_kl(torch.zeros(1, 1, 3), far).item() == pytest.approx(5 + math.log1p(math.exp(-5)) - (0 - 800 + 5) / 3 - math.log(3), rel=1e-6)


# --------------------------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("entropy_coef", [0.0, 0.06])
@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_quark_loss_is_the_slow_sum(kl, entropy_coef):
    """Loss and parts against plain loops: direction, signs, mean over the mask."""
    policy, reference, targets, mask = example()
    loss, parts = quark_loss(policy, reference, targets, mask, 0.3, kl, entropy_coef)
    expected = slow_loss(policy, reference, targets, mask, 0.3, kl, entropy_coef)
    got = [loss, parts["lm"], parts["kl"], parts["entropy"]]
    assert [x.item() for x in got] == pytest.approx(expected, rel=1e-9)


def test_forward_is_the_default():
    """The paper's direction, KL(p0 || p_theta), is what one gets without asking."""
    policy, reference, targets, mask = example()
    default = quark_loss(policy, reference, targets, mask, 0.3)[1]["kl"]
    assert default == quark_loss(policy, reference, targets, mask, 0.3, "forward")[1]["kl"]
    assert default != quark_loss(policy, reference, targets, mask, 0.3, "reverse")[1]["kl"]


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_reward_tokens_and_padding_have_no_influence(kl):
    """Reward tokens' logits of 1e9, NaN and another target on masked positions: not a digit changes."""
    policy, reference, targets, mask = example()
    before = quark_loss(policy, reference, targets, mask, 0.3, kl, 0.1)
    policy[..., v:] = 1e9
    off = mask == 0
    policy[off], reference[off], targets[off] = float("nan"), float("nan"), 0
    after = quark_loss(policy, reference, targets, mask, 0.3, kl, 0.1)
    assert before[0] == after[0] and before[1] == after[1]


def test_gradient_at_the_logits():
    """((1 + beta) p - e_y - beta p0) / M on completion tokens, zero on the others and on the reward tokens."""
    policy, reference, targets, mask = example()
    policy.requires_grad_()
    quark_loss(policy, reference, targets, mask, 0.3)[0].backward()
    for b in range(B):
        for t in range(T):
            p, p0 = softmax(policy[b, t, :v].tolist()), softmax(reference[b, t].tolist())
            for j in range(v):
                expected = mask[b, t].item() * (1.3 * p[j] - (targets[b, t].item() == j) - 0.3 * p0[j]) / M
                assert policy.grad[b, t, j].item() == pytest.approx(expected, abs=1e-12)
    assert (policy.grad[..., v:] == 0).all()


@pytest.mark.parametrize("kl, entropy_coef", [("forward", 0.06), ("reverse", 0.0), ("reverse", 0.06)])
def test_gradient_by_finite_differences(kl, entropy_coef):
    """The other variants: autograd against (f(z + h) - f(z - h)) / 2h."""
    policy, reference, targets, mask = example()
    policy.requires_grad_()
    quark_loss(policy, reference, targets, mask, 0.3, kl, entropy_coef)[0].backward()
    for place in [(0, 2, 0), (0, 5, 12), (1, 1, 4), (1, 3, int(targets[1, 3])), (1, 5, 7), (0, 0, 3), (1, 4, v + 1)]:
        values = []
        for h in (1e-5, -1e-5):
            moved = policy.detach().clone()
            moved[place] += h
            values.append(slow_loss(moved, reference, targets, mask, 0.3, kl, entropy_coef)[0])
        assert policy.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


def test_one_cross_entropy():
    """-log p_y + beta KL(p0 || p) = -sum_v (e_y + beta p0)_v log p_v - beta H(p0): a cross entropy against a soft target."""
    policy, reference, targets, mask = example()
    loss = quark_loss(policy, reference, targets, mask, 0.3)[0].item()
    expected = 0.0
    for b, t in mask.nonzero().tolist():
        p, p0 = softmax(policy[b, t, :v].tolist()), softmax(reference[b, t].tolist())
        soft = [(targets[b, t].item() == j) + 0.3 * p0[j] for j in range(v)]
        expected += (-sum(s * math.log(a) for s, a in zip(soft, p)) - 0.3 * slow_entropy(p0)) / M
    assert loss == pytest.approx(expected, rel=1e-9)


# ------------------------------------------------------------------------------------------------- the closed form


def hidden_example():
    """Hidden states of both models, different weights; M = 9 targets."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(M, d), draw(v, d), draw(M, d + 1), draw(v, d + 1), torch.randint(v, (M,), generator=generator)


@pytest.mark.parametrize("chunk, few", [(1, 9), (4, 9), (4, 3), (9, 2), (1024, 1), (1024, 4)])
@pytest.mark.parametrize("kl, entropy_coef", [("forward", 0.0), ("forward", 0.06), ("reverse", 0.0), ("reverse", 0.06)])
def test_closed_form_is_the_open_form(monkeypatch, kl, entropy_coef, chunk, few):
    """Sums and both gradients, by autograd through quark_loss, in float64; chunks, and blocks of `few` positions in a chunk, that
    do and do not divide M = 9."""
    monkeypatch.setattr(plumbing.closed_form, "IN_CACHE", few * len(hidden_example()[1]))
    hidden, weight, ref_hidden, ref_weight, targets = hidden_example()
    h1, w1, h2, w2 = (x.clone().requires_grad_() for x in (hidden, weight, hidden, weight))
    sums = ClosedForm.apply(h1, w1, ref_hidden, lambda h: h @ ref_weight.T, targets, 0.3, kl, entropy_coef, False, chunk)
    (2.5 * sums[0]).backward()  # 2.5: whatever the loss is multiplied with arrives at the gradients
    mask = torch.ones(1, M)
    loss, parts = quark_loss((h2 @ w2.T)[None], (ref_hidden @ ref_weight.T)[None], targets[None], mask, 0.3, kl, entropy_coef)
    (2.5 * M * loss).backward()
    means = (sums / M).tolist()
    assert means == pytest.approx([loss.item(), parts["lm"].item(), parts["kl"].item(), parts["entropy"].item()], rel=1e-12)
    assert torch.allclose(h1.grad, h2.grad, rtol=1e-10, atol=1e-12) and torch.allclose(w1.grad, w2.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_closed_form_by_finite_differences(kl):
    """PyTorch's own check of a hand-written backward."""
    hidden, weight, ref_hidden, ref_weight, targets = hidden_example()
    loss = lambda h, w: ClosedForm.apply(h, w, ref_hidden, lambda x: x @ ref_weight.T, targets, 0.3, kl, 0.06, False, 4)[0]  # noqa: E731
    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), weight.requires_grad_()))


# ------------------------------------------------------------------------------------- batches: the shift, the tokens


@pytest.fixture
def other(quark):
    """A policy that differs from p0 in every weight, and whose reward tokens would be very likely if they were not cut."""
    generator = torch.Generator().manual_seed(8)
    for parameter in quark.model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    quark.model.get_input_embeddings().weight.data[V:] += 2 * quark.model.transformer.ln_f.bias.data
    return quark


BATCH = [(2, [10, 20, 30], [40, 50, V - 1]), (1, [60], [70, 80, 90, 100, 110]), (3, [], [V - 1]), (2, [15] * 20, [25, 35])]


def slow_batch(policy, reference, batch, kl):
    """Example by example and token by token, whole model calls, no padding: sums of lm, kl, entropy."""
    lm = divergence = entropy = 0.0
    for k, x, y in batch:
        x = x or [V - 1]
        for t, target in enumerate(y):
            with torch.no_grad():
                p = softmax(policy.model(torch.tensor([[V + k - 1] + x + y[:t]])).logits[0, -1, :V].tolist())
                p0 = softmax(reference.model(torch.tensor([x + y[:t]])).logits[0, -1].tolist())
            lm -= math.log(p[target])
            divergence += slow_kl(p0, p) if kl == "forward" else slow_kl(p, p0)
            entropy += slow_entropy(p)
    return lm, divergence, entropy


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_batch_loss_is_the_slow_sum(other, p0, kl):
    """Real models, prompts of 0 to 20 tokens in one batch: r_k in front for the policy, nothing for p0, V columns, <|endoftext|>
    learned as a target like any other."""
    sums, n = batch_loss(other, p0, BATCH, 0.3, kl, 0.06)
    lm, divergence, entropy = slow_batch(other, p0, BATCH, kl)
    assert n == 11
    assert sums.tolist() == pytest.approx([lm + 0.3 * divergence - 0.06 * entropy, lm, divergence, entropy], rel=1e-4)


def test_batch_gradients_are_those_of_whole_sequences(other, p0):
    """Every parameter of the policy gets the gradient that autograd gives through quark_loss on each whole sequence, by default and
    with closed_form; p0 gets none."""
    other.model.double(), p0.model.double()
    gradients = []
    for closed_form in (False, True):
        batch_loss(other, p0, BATCH, 0.3, "forward", 0.06, closed_form=closed_form)[0][0].backward()
        gradients.append([p.grad.clone() for p in other.model.parameters()])
        other.model.zero_grad()
    for k, x, y in BATCH:
        x = x or [V - 1]
        logits = other.model(torch.tensor([[V + k - 1] + x + y])).logits[:, len(x) : len(x) + len(y)]
        with torch.no_grad():
            ref_logits = p0.model(torch.tensor([x + y])).logits[:, len(x) - 1 : len(x) - 1 + len(y)]
        loss, _ = quark_loss(logits, ref_logits, torch.tensor([y]), torch.ones(1, len(y)), 0.3, "forward", 0.06)
        (loss * len(y)).backward()
    assert len(gradients[0]) > 20
    for a, b, c in zip(*gradients, (p.grad for p in other.model.parameters()), strict=True):
        assert torch.allclose(a, c, rtol=1e-8, atol=1e-10) and torch.allclose(b, c, rtol=1e-8, atol=1e-10)
    assert all(p.grad is None for p in p0.model.parameters())


def test_bfloat16_is_close(other, p0):
    """--bf16 multiplies with three digits inside the transformer: the sums move a little, not at all where it is off, and
    every parameter still gets a float32 gradient, in nearly the same direction."""
    exact, _ = batch_loss(other, p0, BATCH, 0.3)
    exact[0].backward()
    straight = torch.cat([p.grad.flatten() for p in other.model.parameters()])
    other.model.zero_grad()
    rough, _ = batch_loss(other, p0, BATCH, 0.3, bf16=True)
    rough[0].backward()
    bent = torch.cat([p.grad.flatten() for p in other.model.parameters()])
    assert rough.dtype == bent.dtype == torch.float32
    assert rough.tolist() == pytest.approx(exact.tolist(), rel=0.05) and rough.tolist() != exact.tolist()
    assert torch.cosine_similarity(straight, bent, dim=0) > 0.99


def successor(policy):
    """Makes a model whose next token is always its last input plus one, whatever stands before it, and (nearly) surely."""
    for block in policy.model.transformer.h:
        for module in (block.attn.c_proj, block.mlp.c_proj):
            module.weight.data.zero_(), module.bias.data.zero_()
    policy.model.transformer.wpe.weight.data.zero_()
    policy.model.transformer.ln_f.bias.data.zero_()
    inputs = torch.nn.functional.layer_norm(policy.model.get_input_embeddings().weight.data, (WIDTH,))  # (V + K, d)
    policy.model.lm_head = torch.nn.Linear(WIDTH, len(inputs), bias=False)
    policy.model.lm_head.weight.data[1:] = 100 * inputs[:-1]  # token i + 1 is wanted after token i


def test_the_shift_by_one(quark, p0):
    """x = 40 41, y = 42 43 44: a model that always says "last input plus one" is right at every token of y, so LM is 0, but
    only if position t is compared with input t + 1. The same rule in p0, which sees no r_k: KL is 0, but only if p0's
    positions are those of the policy less one."""
    successor(quark), successor(p0)
    right = [(1, [40, 41], [42, 43, 44]), (3, [8], [9, 10, 11, 12, 13]), (2, [70, 80, 90, 100], [101])]
    sums, n = batch_loss(quark, p0, right, 0.3)
    assert n == 9 and sums[1] < 1e-3 and 0 <= sums[2] < 1e-3
    for wrong in ([(1, [40, 41], [41, 42, 43])], [(1, [40, 41], [43, 44, 45])]):
        assert batch_loss(quark, p0, wrong, 0.3)[0][1] > 30
    wrong = [(1, [7, 7], [42, 43, 44])]  # the last token of x is what predicts the first of y
    assert batch_loss(quark, p0, wrong, 0.3)[0][1] > 10


def test_who_sees_the_reward_token(quark, p0):
    """r_k is the first input of the policy, before the prompt; p0's input is the same without it."""
    seen = {}
    for name, policy in (("policy", quark), ("p0", p0)):
        policy.model.transformer.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0].tolist()}))
    batch_loss(quark, p0, BATCH, 0.3)
    longest = 1 + 20 + 1
    for (k, x, y), row, row0 in zip(BATCH, seen["policy"], seen["p0"], strict=True):
        read = [V + k - 1] + (x or [V - 1]) + y[:-1]
        assert row[: len(read)] == read and len(row) == longest
        assert row0[: len(read) - 1] == read[1:] and max(row0) < V


def test_padding_and_row_order_do_not_matter(other, p0):
    """One batch, another order, or row by row: the same sums."""
    whole, _ = batch_loss(other, p0, BATCH, 0.3)
    order, _ = batch_loss(other, p0, BATCH[::-1], 0.3)
    single = sum(batch_loss(other, p0, [row], 0.3)[0] for row in BATCH)
    assert order.tolist() == pytest.approx(whole.tolist(), rel=1e-5)
    assert single.tolist() == pytest.approx(whole.tolist(), rel=1e-5)


# --------------------------------------------------------------------------------------------- data and schedule


def quantized_rows(policy, per_part=(4, 2, 3)):
    """Quantized rows with ids, parts of uneven sizes, K = 3; the first completion of each part ended by itself."""
    words = ["good", "bad film", "long and silly", "the end is old", " then it was"]
    rows = []
    for k, n in enumerate(per_part, 1):
        for i in range(n):
            prompt, completion = words[(i + k) % 5], " " + words[(2 * i + k) % 5]
            rows.append({"prompt": prompt, "completion": completion, "reward": k + i / 10, "iteration": 0, "quantile": k,
                         "prompt_ids": policy.encode(prompt), "completion_ids": policy.encode(completion) + [V - 1] * (i == 0)})  # fmt: skip
    return rows


@pytest.fixture
def pool(p0, tmp_path):
    return write_jsonl(tmp_path / "quantized.jsonl", quantized_rows(p0))


def test_load_quantized(p0, tmp_path):
    """Parts in the order of k whatever the file's; sampled ids as they are, <|endoftext|> included; a row without ids is
    encoded, and no end is added, since nobody knows that it ended."""
    rows = quantized_rows(p0)
    bare = {"prompt": "a<|reward_1|>", "completion": " b", "reward": 0, "quantile": 2}
    parts = load_quantized(write_jsonl(tmp_path / "q.jsonl", [bare, *rows[::-1]]), p0)
    assert [len(part) for part in parts] == [4, 3, 3]
    as_lists = [[(k, list(x), list(y)) for k, x, y in part] for part in parts]
    assert (2, p0.encode("a<|reward_1|>"), p0.encode(" b")) == as_lists[1][0]
    for row in rows:
        assert (row["quantile"], row["prompt_ids"], row["completion_ids"]) in as_lists[row["quantile"] - 1]
    assert sum(y[-1] == V - 1 for part in as_lists for _, _, y in part) == 3


def test_load_quantized_cuts_long_prompts_and_skips_empty_completions(p0, tmp_path):
    """Context 64: one place for r_k, 5 for y, so 58 for x, its end. An empty completion teaches nothing; only <|endoftext|> does."""
    y = [40, 50, 60, 70, 80]
    long = "".join(map(chr, range(35, 120)))  # 85 different characters, most of them a token
    rows = [{"prompt": long, "completion": p0.decode(y), "completion_ids": y, "reward": 1, "quantile": 1},
            {"prompt": "a", "completion": "", "completion_ids": [], "reward": 0, "quantile": 1},
            {"prompt": "a", "completion": "", "completion_ids": [V - 1], "reward": 0, "quantile": 1}]  # fmt: skip
    parts = load_quantized(write_jsonl(tmp_path / "q.jsonl", rows), p0)
    assert len(p0.encode(long)) > 70
    assert [(k, list(x), list(y)) for k, x, y in parts[0]] == [(1, p0.encode(long)[-58:], y), (1, p0.encode("a"), [V - 1])]


def test_draw_batch_is_uniform_over_quantiles():
    """Parts of 2, 30 and 100 rows: each k is drawn for a third of 3000 (standard deviation 26), each row of a part alike."""
    parts = [[(k, i) for i in range(n)] for k, n in ((1, 2), (2, 30), (3, 100))]
    drawn = draw_batch(parts, 3000, np.random.default_rng(0))
    counts = np.bincount([k for k, _ in drawn], minlength=4)
    assert len(drawn) == 3000 and (abs(counts[1:] - 1000) < 130).all()
    assert abs(drawn.count((1, 0)) - 500) < 110 and len({row for row in drawn}) == 132
    assert abs(np.mean([i for k, i in drawn if k == 3]) - 49.5) < 5
    assert drawn == draw_batch(parts, 3000, np.random.default_rng(0)) != draw_batch(parts, 3000, np.random.default_rng(1))


def test_learning_rate_by_hand():
    """lr 0.8, 4 steps of warm-up, 10 in all: .2 .4 .6 .8, then .8 times 6/6, 5/6 ... 1/6, then 0."""
    rates = [learning_rate(step, 0.8, 4, 10) for step in range(12)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8] + [0.8 * n / 6 for n in (6, 5, 4, 3, 2, 1)] + [0, 0])
    assert learning_rate(0, 0.8, 0, 1) == 0.8
    assert learning_rate(2, 0.8, 500, 5) == pytest.approx(0.8 * 3 / 500)


# ------------------------------------------------------------------------------------------------------- the stage


def run(pool, model, reference, out, *options):
    learn.main(["--pool", str(pool), "--model", str(model), "--reference", str(reference), "--out", str(out), "--device", "cpu",
                "--batch-size", "5", "--warmup", "2", "--lr", "0.01", *map(str, options)])  # fmt: skip
    return [{k: x for k, x in m.items() if k != "tokens_per_s"} for m in read_rows(out / "metrics.jsonl")]


def adam(folder):
    """(step, {parameter: (first moment, second moment)}) of a checkpoint."""
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    return state["step"], {i: (s["exp_avg"], s["exp_avg_sq"]) for i, s in state["optimizer"]["state"].items()}


def test_main_writes_a_checkpoint(pool, p0_folder, tmp_path, capsys):
    """Model, vocabulary, optimiser, args, and a line of finite metrics a step, in which loss = lm + beta kl - c entropy."""
    out = tmp_path / "model" / "01"
    metrics = run(pool, p0_folder, p0_folder, out, "--steps", 4, "--beta", 0.3, "--entropy-coef", 0.06, "--total-steps", 9)
    assert {"config.json", "model.safetensors", "vocab.json", "merges.txt", "optimizer.pt", "metrics.jsonl", "args.json",
            "tokenizer.json"} <= set(os.listdir(out))  # fmt: skip
    assert os.listdir(tmp_path / "model") == ["01"]
    assert json.loads((out / "args.json").read_text())["beta"] == 0.3
    assert [m["step"] for m in metrics] == [0, 1, 2, 3]
    assert [m["lr"] for m in metrics] == pytest.approx([learning_rate(step, 0.01, 2, 9) for step in range(4)])
    for m in metrics:
        assert set(m) == {"step", "loss", "lm", "kl", "entropy", "grad_norm", "lr"} and all(map(math.isfinite, m.values()))
        assert m["loss"] == pytest.approx(m["lm"] + 0.3 * m["kl"] - 0.06 * m["entropy"], rel=1e-4)
    assert load_policy(out).n_quantiles == 3 and load_policy(out).vocab_size == V
    assert "steps 0 to 3" in capsys.readouterr().out


def test_the_first_step_is_that_of_eq_2(pool, p0_folder, p0, tmp_path):
    """The metrics of step 0 are batch_loss's means over the batch that (seed, step) draws; the gradient that Adam saw, ten
    times its first moment after one step, is that of the mean, and its norm is reported."""
    metrics = run(pool, p0_folder, p0_folder, tmp_path / "m", "--steps", 1, "--beta", 0.3, "--seed", 4)
    batch = draw_batch(load_quantized(pool, p0), 5, np.random.default_rng([4, 0]))
    policy = load_policy(p0_folder)
    add_reward_tokens(policy, K, seed=4)
    sums, n = batch_loss(policy, p0, batch, 0.3)
    (sums[0] / n).backward()
    assert [metrics[0][key] for key in ("loss", "lm", "kl", "entropy")] == pytest.approx((sums / n).tolist(), rel=1e-4)
    step, moments = adam(tmp_path / "m")
    assert step == 1
    for (first, _), parameter in zip(moments.values(), policy.model.parameters(), strict=True):
        assert torch.allclose(10 * first, parameter.grad, rtol=1e-3, atol=1e-6)
    norm = math.sqrt(sum((p.grad**2).sum().item() for p in policy.model.parameters()))
    assert metrics[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_what_is_read_is_what_trains(pool, p0_folder, tmp_path, capsys):
    """An edit of quark_loss is an edit of the training, without any flag: learn.py with the term of beta tripled in its source trains as
    the original with three times the beta. The stage says which of the two forms it runs."""
    source = (ROOT / "learn.py").read_text()
    line = "loss = lm + beta * divergence"
    assert source.count(line) == 1
    edited = tmp_path / "learn.py"
    edited.write_text(source.replace(line, "loss = lm + 3 * beta * divergence"))
    options = ["--steps", "4", "--lr", "1e-2", "--warmup", "1", "--batch-size", "5", "--device", "cpu"]
    metrics = {}
    for name, script, beta in (("original", ROOT / "learn.py", 0.4), ("edited", edited, 0.4), ("tripled", ROOT / "learn.py", 1.2)):
        out = tmp_path / name
        command = [sys.executable, script, "--pool", pool, "--model", p0_folder, "--reference", p0_folder, "--out", out, "--beta", beta, *options]
        done = subprocess.run([*map(str, command)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
        assert "objective: Eq. 2 by quark_loss\n" in done.stdout
        metrics[name] = [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in read_rows(out / "metrics.jsonl")]
    assert metrics["edited"] == metrics["tripled"] != metrics["original"]


def test_the_closed_form_trains_alike(pool, p0_folder, tmp_path, capsys):
    """--closed-form: the same metrics step by step, to rounding; and the stage says so."""
    opened = run(pool, p0_folder, p0_folder, tmp_path / "o", "--steps", 4)
    assert "by quark_loss" in capsys.readouterr().out
    closed = run(pool, p0_folder, p0_folder, tmp_path / "c", "--steps", 4, "--closed-form")
    assert "by closed form" in capsys.readouterr().out
    for a, b in zip(opened, closed, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_no_reward_token(pool, p0_folder, p0, tmp_path):
    """--no-reward-token: p0 reads what it wrote, so step 0 has KL 0 and the LM term is p0's own; the vocabulary stays V. Rows need no
    quantile and weigh alike. A model that has reward tokens keeps them, unused."""
    rows = [{k: x for k, x in row.items() if k != "quantile"} for row in quantized_rows(p0)]
    bare = write_jsonl(tmp_path / "bare.jsonl", rows)
    metrics = run(bare, p0_folder, p0_folder, tmp_path / "m", "--steps", 2, "--no-reward-token")
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6) and metrics[1]["kl"] > 1e-6
    (part,) = load_quantized(bare, p0, reward_tokens=False)
    batch = draw_batch([part], 5, np.random.default_rng([0, 0]))
    assert len(part) == len(rows) and {k for k, _, _ in batch} == {None}
    nats = tokens = 0
    for _, x, y in batch:
        ids = torch.tensor([[*x, *y]])
        log_p = p0.model(ids).logits[0].log_softmax(-1)
        nats -= sum(log_p[len(x) + t - 1, y[t]].item() for t in range(len(y)))
        tokens += len(y)
    assert metrics[0]["lm"] == pytest.approx(nats / tokens, rel=1e-4)
    assert load_policy(tmp_path / "m").n_quantiles == 0 and load_policy(tmp_path / "m").vocab_size == V
    run(pool, p0_folder, p0_folder, tmp_path / "quark", "--steps", 1)
    run(pool, tmp_path / "quark", p0_folder, tmp_path / "more", "--steps", 1, "--no-reward-token")
    before, after = (load_policy(tmp_path / name) for name in ("quark", "more"))
    assert after.n_quantiles == 3 and before.n_quantiles == 3


def test_pieces_of_a_batch_give_its_gradient(pool, p0_folder, tmp_path):
    """--grad-accum 3 of a batch of 5 (pieces of 1, 2, 2 rows of different lengths): the same metrics and gradient to rounding."""
    runs = [run(pool, p0_folder, p0_folder, tmp_path / str(n), "--steps", 1, "--grad-accum", n) for n in (1, 3)]
    for key, value in runs[0][0].items():
        assert runs[1][0][key] == pytest.approx(value, rel=1e-4), key
    for (a, _), (b, _) in zip(adam(tmp_path / "1")[1].values(), adam(tmp_path / "3")[1].values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-7)


def test_clipping(pool, p0_folder, tmp_path):
    """--clip 0.1: Adam sees a gradient of norm 0.1, in the same direction; 0 means no clipping."""
    free = run(pool, p0_folder, p0_folder, tmp_path / "free", "--steps", 1)
    run(pool, p0_folder, p0_folder, tmp_path / "clipped", "--steps", 1, "--clip", 0.1)
    norms = [math.sqrt(sum((10 * first).square().sum().item() for first, _ in adam(tmp_path / n)[1].values())) for n in ("free", "clipped")]
    assert norms == pytest.approx([free[0]["grad_norm"], 0.1], rel=1e-3) and free[0]["grad_norm"] > 0.2


def test_resumed_training_is_uninterrupted_training(pool, p0_folder, tmp_path):
    """Three steps and three more: the weights, the optimiser's state and the metrics of six steps, bit for bit."""
    common = ["--total-steps", 6]
    whole = run(pool, p0_folder, p0_folder, tmp_path / "whole", "--steps", 6, *common)
    first = run(pool, p0_folder, p0_folder, tmp_path / "half", "--steps", 3, *common)
    second = run(pool, tmp_path / "half", p0_folder, tmp_path / "full", "--steps", 3, *common)
    assert first + second == whole and [m["step"] for m in second] == [3, 4, 5]
    assert (tmp_path / "full" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "half" / "model.safetensors").read_bytes() != (tmp_path / "whole" / "model.safetensors").read_bytes()
    (a, resumed), (b, straight) = adam(tmp_path / "full"), adam(tmp_path / "whole")
    assert a == b == 6 and resumed.keys() == straight.keys()
    assert all(torch.equal(x, y) for i in straight for x, y in zip(resumed[i], straight[i]))


def test_the_seed_decides(pool, p0_folder, tmp_path):
    """Another seed: other reward tokens and other batches."""
    a, b = (run(pool, p0_folder, p0_folder, tmp_path / str(s), "--steps", 2, "--seed", s) for s in (0, 1))
    assert a[0]["lm"] != b[0]["lm"]


def test_it_learns_what_each_token_means(p0_folder, p0, tmp_path):
    """After r_2 the pool says " good", after r_1 " bad": so does the model, afterwards. Order and meaning of k, end to end."""
    rows = [{"prompt": x, "completion": y, "reward": k, "quantile": k}
            for x in ("the film was", "it is", "songs") for k, y in ((1, " bad"), (2, " good"))]  # fmt: skip
    pool = write_jsonl(tmp_path / "q.jsonl", rows)
    metrics = run(pool, p0_folder, p0_folder, tmp_path / "m", "--steps", 40, "--batch-size", 12, "--beta", 0.01)
    assert metrics[-1]["lm"] < 0.5 * metrics[0]["lm"]
    policy = load_policy(tmp_path / "m")
    for k, mine, yours in ((1, " bad", " good"), (2, " good", " bad")):
        nats = {}
        for text in (mine, yours):
            x, y = policy.encode("the film was"), policy.encode(text)
            with torch.no_grad():
                log_p = policy.model(torch.tensor([[V + k - 1, *x, *y]])).logits[0, :, :V].log_softmax(-1)
            nats[text] = -sum(log_p[len(x) + t, token].item() for t, token in enumerate(y))
        assert nats[mine] < nats[yours]


def test_beta_pulls_towards_p0(pool, p0_folder, tmp_path):
    """The same steps with a larger beta: a smaller KL, a worse fit. And --kl reverse measures the other direction."""
    ends = [run(pool, p0_folder, p0_folder, tmp_path / str(i), "--steps", 12, *o)
            for i, o in enumerate([["--beta", 0], ["--beta", 5], ["--beta", 5, "--kl", "reverse"]])]  # fmt: skip
    free, held, reverse = (m[-1] for m in ends)
    assert held["kl"] < 0.8 * free["kl"] and held["lm"] > free["lm"]
    assert ends[1][0]["lm"] == ends[2][0]["lm"] and ends[1][0]["kl"] != ends[2][0]["kl"]


def test_reward_token_lr(pool, p0_folder, tmp_path):
    """The rows of r_k move by this times the step of the others: 0 leaves them as they were added, 3 moves them three times as far."""
    start = load_policy(p0_folder)
    add_reward_tokens(start, K, seed=0)
    start = start.model.get_input_embeddings().weight.detach()
    moved = {}
    for factor in (0, 1, 3):
        run(pool, p0_folder, p0_folder, tmp_path / str(factor), "--steps", 1, "--reward-token-lr", factor)
        moved[factor] = load_policy(tmp_path / str(factor)).model.get_input_embeddings().weight.detach() - start
    assert (moved[0][V:] == 0).all() and (moved[1][V:] != 0).any()
    assert torch.allclose(moved[3][V:], 3 * moved[1][V:], atol=1e-6)
    assert torch.equal(moved[0][:V], moved[1][:V]) and torch.equal(moved[3][:V], moved[1][:V]) and (moved[1][:V] != 0).any()


def test_reward_token_init(pool, p0_folder, tmp_path):
    """ordered: after one step with the smallest rate r_1, r_2, r_3 still lie on a line, r_2 in its middle; normal: they do not."""
    for init, on_a_line in (("normal", False), ("ordered", True)):
        out = tmp_path / init
        learn.main(["--pool", str(pool), "--model", str(p0_folder), "--reference", str(p0_folder), "--out", str(out), "--steps", "1",
                    "--batch-size", "4", "--lr", "1e-9", "--device", "cpu", "--reward-token-init", init])  # fmt: skip
        r = load_policy(out).model.get_input_embeddings().weight.detach()[V:]
        assert torch.allclose(r[1], (r[0] + r[2]) / 2, atol=1e-5) == on_a_line


def test_p0_stays_as_it_is(pool, p0_folder, tmp_path):
    """Learning writes its own folder; the reference's files keep their bytes."""
    before = {f.name: f.read_bytes() for f in p0_folder.iterdir()}
    run(pool, p0_folder, p0_folder, tmp_path / "m", "--steps", 1)
    assert {f.name: f.read_bytes() for f in p0_folder.iterdir()} == before


# ------------------------------------------------------------------------------------------------------- bad input


def bad_pool(rows, fault):
    row = rows[2]
    if fault == "no quantile":
        del row["quantile"]
    elif fault == "hole":
        rows[:] = [r for r in rows if r["quantile"] != 2]
    elif fault == "two quantiles":
        rows[:] = [r for r in rows if r["quantile"] < 3]
    elif fault == "id too large":
        row["prompt_ids"] = [5, V]
    elif fault == "reward token in y":
        row["completion_ids"] = [V + 1]
    elif fault == "other tokenizer":
        row["completion_ids"] = [i + 1 for i in row["completion_ids"]]
    elif fault == "edited text":
        row["completion"] += "!"
    elif fault == "edited prompt":
        row["prompt"] += "!"
    elif fault == "no ids of the prompt":
        row["prompt_ids"] = []
    elif fault == "a large quantile":
        row["quantile"] = 2**31 - 1
    elif fault == "too long":
        row.update(completion="a" * CONTEXT, completion_ids=[64] * CONTEXT)
    elif fault == "nan":
        row["reward"] = float("nan")
    elif fault == "nothing said":
        for r in rows:
            r.update(completion="", completion_ids=[])
    elif fault == "no rows":
        rows.clear()


@pytest.mark.parametrize("fault, message", [
    ("no quantile", ':3: "quantile" is missing'), ("hole", "no row has quantile 2 of 3"), ("two quantiles", "2 quantiles, but .* 3 reward tokens"),
    ("id too large", ':3: "prompt_ids" holds 298, but the model has 298'), ("reward token in y", ':3: "completion_ids" holds 299'),
    ("other tokenizer", ':3: "completion_ids" do not spell'), ("edited text", ':3: "completion_ids" do not spell'),
    ("edited prompt", ':3: "prompt_ids" do not spell'), ("no ids of the prompt", ':3: "prompt_ids" do not spell'),
    ("a large quantile", "no row has quantile 4 of 2147483647"),
    ("too long", ":3: the completion has 64 tokens"), ("nan", ':3: "reward" is NaN'), ("nothing said", "no rows to learn from"),
    ("no rows", "no rows to learn from")])  # fmt: skip
def test_bad_pools(fault, message, quark_folder, p0_folder, p0, tmp_path):
    """One sentence with file, line and value; no checkpoint, not half of one."""
    rows = quantized_rows(p0)
    bad_pool(rows, fault)
    pool = write_jsonl(tmp_path / "q.jsonl", rows)
    with pytest.raises(BadInput, match=message) as error:
        run(pool, quark_folder, p0_folder, tmp_path / "out", "--steps", 1)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["q.jsonl"]


def test_bad_models(pool, quark_folder, p0_folder, tmp_path, monkeypatch):
    """No such model; a reference with another vocabulary; as the shell sees it, one line and a non-zero exit."""
    foreign = tmp_path / "foreign"
    shutil.copytree(p0_folder, foreign)
    text = "zebras quack quietly where the quick zebras quit, and a quiet duck quacks at the lazy dog under a shady tree"
    for name, content in zip(("vocab.json", "merges.txt"), learn_merges([text], 41)):
        (foreign / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    for model, reference, message in [(tmp_path / "none", p0_folder, "none does not exist"), (p0_folder, tmp_path / "empty", "cannot open"),
                                      (quark_folder, foreign, "different vocabularies")]:  # fmt: skip
        exit = stage(monkeypatch, "learn.py", "--pool", pool, "--model", model, "--reference", reference, "--out", tmp_path / "out",
                     "--steps", 1, "--device", "cpu")  # fmt: skip
        assert one_sentence(exit) and message in exit
    assert sorted(os.listdir(tmp_path)) == ["empty", "foreign", "quantized.jsonl"]


def test_a_reference_with_reward_tokens_is_no_p0(pool, quark_folder, tmp_path):
    """p0 never saw a reward token; if its softmax has some, they are cut off too, and the KL of equal weights stays small."""
    metrics = run(pool, quark_folder, quark_folder, tmp_path / "m", "--steps", 1)
    assert math.isfinite(metrics[0]["kl"]) and metrics[0]["kl"] < metrics[0]["lm"]


def test_a_loss_that_is_not_finite_stops(pool, p0_folder, tmp_path):
    """A learning rate of 1e20 ruins the model: the step is named, and nothing is saved."""
    with pytest.raises(BadInput, match="the loss is .* at step [1-9]; lower --lr"):
        run(pool, p0_folder, p0_folder, tmp_path / "m", "--steps", 6, "--lr", 1e20)
    assert os.listdir(tmp_path) == ["quantized.jsonl"]


def test_out_never_destroys(pool, p0_folder, tmp_path):
    """--out names a folder that is no checkpoint, a file, or p0 itself: refused, and what is there stays."""
    notes = tmp_path / "thesis" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("three years")
    shutil.copytree(p0_folder, tmp_path / "p0")
    before = {f.name: f.read_bytes() for f in (tmp_path / "p0").iterdir()}
    for out in (notes.parent, notes, tmp_path / "p0"):
        with pytest.raises(BadInput):
            run(pool, tmp_path / "p0", tmp_path / "p0", out, "--steps", 1)
    assert notes.read_text() == "three years" and os.listdir(notes.parent) == ["notes.txt"]
    assert {f.name: f.read_bytes() for f in (tmp_path / "p0").iterdir()} == before


def test_total_steps_must_reach(pool, p0_folder, tmp_path):
    """With fewer --total-steps than are made, the learning rate would be 0 without a word."""
    run(pool, p0_folder, p0_folder, tmp_path / "a", "--steps", 2, "--total-steps", 4)
    with pytest.raises(BadInput, match="has made 2 steps.* at least 5"):
        run(pool, tmp_path / "a", p0_folder, tmp_path / "b", "--steps", 3, "--total-steps", 4)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("option", [("--beta", -1), ("--beta", "nan"), ("--steps", 0), ("--batch-size", 0), ("--grad-accum", 6), ("--lr", 0),
                                    ("--warmup", -1), ("--clip", -1), ("--seed", -1), ("--kl", "sideways"),
                                    ("--entropy-coef", "nan"), ("--reward-token-lr", -1), ("--total-steps", 0)], ids=str)  # fmt: skip
def test_bad_options(option, pool, p0_folder, tmp_path):
    """argparse's exit status 2, before anything is opened."""
    with pytest.raises(SystemExit) as exit:
        run(pool, p0_folder, p0_folder, tmp_path / "m", "--steps", 1, *option)
    assert exit.value.code == 2 and not (tmp_path / "m").exists()
