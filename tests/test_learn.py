"""Step 3: the KL and Eq. 2 against plain loops, the shift by one, training and going on."""

import json
import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    WIDTH,
    K,
    V,
    files_of,
    learn_merges,
    one_sentence,
    quantized_rows,
    read_rows,
    stage,
    write_jsonl,
    write_vocabulary,
)

import learn
from explore import load_policy
from learn import add_reward_tokens, batch_loss, draw_batch, learning_rate, quark_loss, token_kl
from plumbing.pool import BadInput
from plumbing.quantized import load_quantized

B, T = 2, 7  # in the small examples, with v = 13 tokens and M = 9 completion tokens
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


def example():
    """Policy logits (B, T, v + K), reference logits (B, T, v), targets (B, T), and a mask.

    The mask is 1 at M = 9 places, four in one row and five in the other.
    """
    generator = torch.Generator().manual_seed(0)
    policy = 2 * torch.randn(B, T, v + K, generator=generator, dtype=torch.float64)
    reference = 2 * torch.randn(B, T, v, generator=generator, dtype=torch.float64)
    targets = torch.randint(v, (B, T), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0]])
    return policy, reference, targets, mask


def probabilities(policy, reference, b, t):
    """p_theta without the reward tokens, and p0, at one position, as lists."""
    return softmax(policy[b, t, :v].tolist()), softmax(reference[b, t].tolist())


def slow_loss(policy, reference, targets, mask, beta, kl, entropy_coef):
    """Eq. 2 with plain loops: the mean over the mask of -log p(y) + beta KL - c H."""
    lm = divergence = entropy = 0.0
    for b, t in mask.nonzero().tolist():
        p, p0 = probabilities(policy, reference, b, t)
        lm -= math.log(p[targets[b, t]]) / M
        divergence += (slow_kl(p0, p) if kl == "forward" else slow_kl(p, p0)) / M
        entropy += slow_entropy(p) / M
    return lm + beta * divergence - entropy_coef * entropy, lm, divergence, entropy


# ------------------------------------------------------------------------------------------- the KL


def test_kl_by_hand():
    """p = (1/2, 1/2) and q = (1/4, 3/4). The two directions are not the same.

    KL(p || q) = 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4) = 1/2 ln 2 + 1/2 ln 2/3 = 0.1438
    KL(q || p) = 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2) = 1/4 ln 1/2 + 3/4 ln 3/2 = 0.1308
    """
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    p_q = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    q_p = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert (round(p_q, 4), round(q_p, 4)) == (0.1438, 0.1308)
    assert token_kl(p, q).item() == pytest.approx(p_q, abs=1e-6)
    assert token_kl(q, p).item() == pytest.approx(q_p, abs=1e-6)


def test_kl_is_the_slow_sum():
    """At every position, in this direction, in the shape (B, T)."""
    policy, reference, _, _ = example()
    got = token_kl(policy[..., :v], reference)
    assert got.shape == (B, T)
    for b in range(B):
        for t in range(T):
            p, p0 = probabilities(policy, reference, b, t)
            assert got[b, t].item() == pytest.approx(slow_kl(p, p0), rel=1e-9)


def test_kl_is_zero_only_for_equal_distributions():
    """Positive for two distributions, zero for the same one, even if its logits differ by 3.

    Probabilities as small as e^-800 give no NaN. For q with the logits 0, -800, 5 and a uniform p
    over three tokens, KL(p || q) = sum 1/3 (ln 1/3 - z_v) + ln Z
    = -ln 3 - (0 - 800 + 5) / 3 + ln(1 + e^5), up to e^-800.
    """
    p, q, _, _ = example()
    p = p[..., :v]
    assert (token_kl(p, q) > 1e-3).all()
    assert token_kl(p, p + 3).abs().max() < 1e-12
    far, uniform = torch.tensor([[[0.0, -800.0, 5.0]]]), torch.zeros(1, 1, 3)
    assert torch.isfinite(token_kl(far, uniform)).all()
    expected = -math.log(3) - (0 - 800 + 5) / 3 + math.log(1 + math.exp(5))
    assert token_kl(uniform, far).item() == pytest.approx(expected, rel=1e-6)


# ----------------------------------------------------------------------------- the objective, Eq. 2


@pytest.mark.parametrize("entropy_coef", [0.0, 0.06])
@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_quark_loss_is_the_slow_sum(kl, entropy_coef):
    """The loss and its parts against plain loops: direction, signs, mean over the mask."""
    given = *example(), 0.3, kl, entropy_coef
    loss, parts = quark_loss(*given)
    got = [loss, parts["lm"], parts["kl"], parts["entropy"]]
    assert [x.item() for x in got] == pytest.approx(slow_loss(*given), rel=1e-9)


def test_forward_is_the_default():
    """The paper's direction, KL(p0 || p_theta), is what one gets without asking."""

    def kl(*direction):
        return quark_loss(*example(), 0.3, *direction)[1]["kl"]

    assert kl() == kl("forward") != kl("reverse")


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_reward_tokens_and_padding_have_no_influence(kl):
    """Logits of 1e9 for the reward tokens, NaN and other targets outside the mask: no change."""
    policy, reference, targets, mask = example()
    loss, parts = quark_loss(policy, reference, targets, mask, 0.3, kl, 0.1)
    policy[..., v:] = 1e9
    outside = mask == 0
    policy[outside] = float("nan")
    reference[outside] = float("nan")
    targets[outside] = 0
    same_loss, same_parts = quark_loss(policy, reference, targets, mask, 0.3, kl, 0.1)
    assert same_loss == loss
    assert same_parts == parts


def test_gradient_at_the_logits():
    """((1 + beta) p - e_y - beta p0) / M on completion tokens.

    Zero at all other positions, and on the reward tokens.
    """
    policy, reference, targets, mask = example()
    policy.requires_grad_()
    quark_loss(policy, reference, targets, mask, 0.3)[0].backward()
    for b in range(B):
        for t in range(T):
            p, p0 = probabilities(policy, reference, b, t)
            for j in range(v):
                e_y = targets[b, t].item() == j
                expected = mask[b, t].item() * (1.3 * p[j] - e_y - 0.3 * p0[j]) / M
                assert policy.grad[b, t, j].item() == pytest.approx(expected, abs=1e-12)
    assert (policy.grad[..., v:] == 0).all()


@pytest.mark.parametrize(
    "kl, entropy_coef", [("forward", 0.06), ("reverse", 0.0), ("reverse", 0.06)]
)
def test_gradient_by_finite_differences(kl, entropy_coef):
    """The other variants: autograd against (f(z + h) - f(z - h)) / 2h.

    At five places in the mask, one of them a target; at one outside of it; at a reward token.
    """
    policy, reference, targets, mask = example()
    policy.requires_grad_()
    quark_loss(policy, reference, targets, mask, 0.3, kl, entropy_coef)[0].backward()
    places = [(0, 2, 0), (0, 5, 12), (1, 1, 4), (1, 3, int(targets[1, 3])), (1, 5, 7)]
    places += [(0, 0, 3), (1, 4, v + 1)]
    h = 1e-5
    for place in places:
        up, down = policy.detach().clone(), policy.detach().clone()
        up[place] += h
        down[place] -= h
        f_up, *_ = slow_loss(up, reference, targets, mask, 0.3, kl, entropy_coef)
        f_down, *_ = slow_loss(down, reference, targets, mask, 0.3, kl, entropy_coef)
        assert policy.grad[place].item() == pytest.approx((f_up - f_down) / (2 * h), abs=1e-8)


def test_one_cross_entropy():
    """LM term and KL are one cross entropy against the soft target s = e_y + beta p0.

    -log p_y + beta KL(p0 || p) = -sum_v s_v log p_v - beta H(p0)
    """
    policy, reference, targets, mask = example()
    loss = quark_loss(policy, reference, targets, mask, 0.3)[0].item()
    expected = 0.0
    for b, t in mask.nonzero().tolist():
        p, p0 = probabilities(policy, reference, b, t)
        soft = [0.3 * p0_v for p0_v in p0]
        soft[targets[b, t]] += 1
        cross_entropy = -sum(s * math.log(a) for s, a in zip(soft, p))
        expected += (cross_entropy - 0.3 * slow_entropy(p0)) / M
    assert loss == pytest.approx(expected, rel=1e-9)


# ---------------------------------------------------- a batch of rows: the shift, the reward tokens


@pytest.fixture
def other(quark):
    """A policy that differs from p0 in every weight.

    Its reward tokens would be very likely if they were not cut off.
    """
    generator = torch.Generator().manual_seed(8)
    for parameter in quark.model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    embedding = quark.model.get_input_embeddings().weight
    embedding.data[V:] += 2 * quark.model.transformer.ln_f.bias.data
    return quark


BATCH = [  # (k, x, y): 11 completion tokens, x of 0 to 20 tokens
    (2, [10, 20, 30], [40, 50, V - 1]),
    (1, [60], [70, 80, 90, 100, 110]),
    (3, [], [V - 1]),
    (2, [15] * 20, [25, 35]),
]


def slow_batch(policy, reference, batch, kl):
    """Sums of lm, kl and entropy: example by example and token by token, without padding."""
    lm = divergence = entropy = 0.0
    for k, x, y in batch:
        x = x or [V - 1]
        for t, target in enumerate(y):
            with torch.no_grad():
                logits = policy.model(torch.tensor([[V + k - 1, *x, *y[:t]]])).logits
                logits0 = reference.model(torch.tensor([[*x, *y[:t]]])).logits
            p, p0 = softmax(logits[0, -1, :V].tolist()), softmax(logits0[0, -1].tolist())
            lm -= math.log(p[target])
            divergence += slow_kl(p0, p) if kl == "forward" else slow_kl(p, p0)
            entropy += slow_entropy(p)
    return lm, divergence, entropy


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_batch_loss_is_the_slow_sum(other, p0, kl):
    """Real models, with prompts of 0 to 20 tokens in one batch.

    The policy reads r_k and p0 does not; the reward tokens' columns are cut off; <|endoftext|> is a
    target like any other.
    """
    sums, n = batch_loss(other, p0, BATCH, 0.3, kl, 0.06)
    lm, divergence, entropy = slow_batch(other, p0, BATCH, kl)
    loss = lm + 0.3 * divergence - 0.06 * entropy
    assert n == 11
    assert sums.tolist() == pytest.approx([loss, lm, divergence, entropy], rel=1e-4)


def test_batch_gradients_are_those_of_whole_sequences(other, p0):
    """Every weight of the policy has the gradient of quark_loss on each whole sequence, added up.

    By default and with closed_form, in float64. p0 has no gradient.
    """
    other.model.double()
    p0.model.double()
    gradients = []
    for closed_form in (False, True):
        sums, _ = batch_loss(other, p0, BATCH, 0.3, "forward", 0.06, closed_form=closed_form)
        sums[0].backward()
        gradients.append([p.grad.clone() for p in other.model.parameters()])
        other.model.zero_grad()
    for k, x, y in BATCH:
        x = x or [V - 1]
        logits = other.model(torch.tensor([[V + k - 1, *x, *y]])).logits
        with torch.no_grad():
            logits0 = p0.model(torch.tensor([[*x, *y]])).logits
        n = len(y)
        loss, _ = quark_loss(
            logits[:, len(x) : len(x) + n],
            logits0[:, len(x) - 1 : len(x) - 1 + n],
            torch.tensor([y]),
            torch.ones(1, n),
            0.3,
            "forward",
            0.06,
        )
        (loss * n).backward()
    parameters = list(other.model.parameters())
    assert len(parameters) > 20
    for default, closed, p in zip(*gradients, parameters, strict=True):
        assert torch.allclose(default, p.grad, rtol=1e-8, atol=1e-10)
        assert torch.allclose(closed, p.grad, rtol=1e-8, atol=1e-10)
    assert all(p.grad is None for p in p0.model.parameters())


@pytest.mark.parametrize("closed_form", [False, True])
def test_bfloat16_is_close(other, p0, closed_form):
    """--bf16 keeps three digits inside the transformer, so the sums move by a few percent at most.

    Every parameter still has a float32 gradient, in nearly the same direction. So it is in the
    closed form.
    """

    def sums_and_gradient(bf16):
        other.model.zero_grad()
        sums, _ = batch_loss(other, p0, BATCH, 0.3, bf16=bf16, closed_form=closed_form)
        sums[0].backward()
        return sums, torch.cat([p.grad.flatten() for p in other.model.parameters()])

    exact, gradient = sums_and_gradient(bf16=False)
    rough, rough_gradient = sums_and_gradient(bf16=True)
    assert rough.dtype == rough_gradient.dtype == torch.float32
    assert rough.tolist() == pytest.approx(exact.tolist(), rel=0.05)
    assert rough.tolist() != exact.tolist()
    assert torch.cosine_similarity(gradient, rough_gradient, dim=0) > 0.99


def always_one_more(policy):
    """Makes a model whose next token is (nearly) surely its last input plus one.

    What stands before the last input has no influence: attention and MLP add nothing, and the
    output layer looks for the token after the one that was read.
    """
    transformer = policy.model.transformer
    for block in transformer.h:
        for module in (block.attn.c_proj, block.mlp.c_proj):
            module.weight.data.zero_()
            module.bias.data.zero_()
    transformer.wpe.weight.data.zero_()
    transformer.ln_f.bias.data.zero_()
    table = policy.model.get_input_embeddings().weight.data
    inputs = torch.nn.functional.layer_norm(table, (WIDTH,))  # (V + K, d)
    policy.model.lm_head = torch.nn.Linear(WIDTH, len(inputs), bias=False)
    policy.model.lm_head.weight.data[1:] = 100 * inputs[:-1]  # token i + 1 is wanted after token i


def test_the_shift_by_one(quark, p0):
    """x = 40 41 and y = 42 43 44: a model that always says "last input plus one" is always right.

    So the LM term is 0, but only if position t is compared with input t + 1. p0 follows the same
    rule without r_k in front. So the KL is 0, but only if p0's positions are the policy's less one.
    """
    always_one_more(quark)
    always_one_more(p0)
    right = [
        (1, [40, 41], [42, 43, 44]),
        (3, [8], [9, 10, 11, 12, 13]),
        (2, [70, 80, 90, 100], [101]),  # only the last token of x leads to y
    ]
    sums, n = batch_loss(quark, p0, right, 0.3)
    _, lm, kl, _ = sums.tolist()
    assert n == 9
    assert lm < 1e-3
    assert 0 <= kl < 1e-3
    for one_too_early_or_late in ([41, 42, 43], [43, 44, 45]):
        sums, _ = batch_loss(quark, p0, [(1, [40, 41], one_too_early_or_late)], 0.3)
        assert sums[1] > 30
    sums, _ = batch_loss(quark, p0, [(1, [7, 7], [42, 43, 44])], 0.3)
    assert sums[1] > 10  # x ends with 7, which does not lead to 42


def test_who_sees_the_reward_token(quark, p0):
    """r_k is the policy's first input, before the prompt. p0's input is the same without it."""
    seen = {}

    def remember(name):
        return lambda module, args: seen.update({name: args[0].tolist()})

    quark.model.transformer.register_forward_pre_hook(remember("policy"))
    p0.model.transformer.register_forward_pre_hook(remember("p0"))
    batch_loss(quark, p0, BATCH, 0.3)
    longest = 1 + 20 + 1  # r_k, the longest x and the first of its two tokens y
    for (k, x, y), row, row0 in zip(BATCH, seen["policy"], seen["p0"], strict=True):
        read = [V + k - 1, *(x or [V - 1]), *y[:-1]]
        assert len(row) == longest
        assert row[: len(read)] == read
        assert row0[: len(read) - 1] == read[1:]
        assert max(row0) < V


def test_padding_and_row_order_do_not_matter(other, p0):
    """One batch, the batch in another order, and row by row: the same sums."""
    whole, _ = batch_loss(other, p0, BATCH, 0.3)
    backwards, _ = batch_loss(other, p0, BATCH[::-1], 0.3)
    single = sum(batch_loss(other, p0, [row], 0.3)[0] for row in BATCH)
    assert backwards.tolist() == pytest.approx(whole.tolist(), rel=1e-5)
    assert single.tolist() == pytest.approx(whole.tolist(), rel=1e-5)


# --------------------------------------------------------------- the reward tokens' first embedding


def embedding_of(policy):
    return policy.model.get_input_embeddings().weight.detach()


def test_new_rows_follow_the_old_rows_statistics(p0):
    """Dimension j of the old rows has the mean j and the standard deviation 1 + j / 8.

    So have 4000 new rows, to five standard errors and to 6 %, and no two dimensions are correlated.
    The old rows stay, and the embedding is still the output layer.
    """
    j = torch.arange(WIDTH)
    torch.manual_seed(0)
    old = torch.randn(V, WIDTH)
    old = (old - old.mean(0)) / old.std(0) * (1 + j / 8) + j
    p0.model.get_input_embeddings().weight.data.copy_(old)
    add_reward_tokens(p0, 4000, seed=3)
    table = embedding_of(p0)
    assert table.shape == (V + 4000, WIDTH)
    assert torch.equal(table[:V], old)
    new = table[V:]
    assert ((new.mean(0) - j).abs() < 5 * (1 + j / 8) / 4000**0.5).all()
    assert ((new.std(0) / (1 + j / 8) - 1).abs() < 0.06).all()
    assert (torch.corrcoef(new.T) - torch.eye(WIDTH)).abs().max() < 0.1
    assert p0.model.get_output_embeddings().weight is p0.model.get_input_embeddings().weight


def test_reward_tokens_depend_on_the_seed_alone(p0_folder):
    """The same seed gives the same rows, whatever was drawn before. Another seed gives others."""
    rows = []
    for seed in (1, 1, 2):
        policy = load_policy(p0_folder)
        torch.rand(seed + len(rows))
        add_reward_tokens(policy, K, seed=seed)
        rows.append(embedding_of(policy)[V:].clone())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_ordered_rows_lie_on_a_line(p0_folder):
    """ordered: r_k = mean + z_k std e with one e for all, and z = -3, -1.5, 0, 1.5, 3 for K = 5.

    Another seed gives another e, which is about a standard normal vector.
    """
    directions = []
    for seed in (1, 2):
        policy = load_policy(p0_folder)
        old = embedding_of(policy)
        add_reward_tokens(policy, 5, seed, init="ordered")
        z_e = (embedding_of(policy)[V:] - old.mean(0)) / old.std(0)
        e = z_e[4] / 3
        for k, z in enumerate((-3, -1.5, 0, 1.5, 3)):
            assert torch.allclose(z_e[k], z * e, atol=1e-5)
        directions.append(e)
    assert not torch.allclose(*directions)
    assert 0.3 < directions[0].std() < 2


def test_reward_tokens_do_not_change_p0(p0, quark):
    """Without a reward token in front, the enlarged model gives the same ordinary logits."""
    ids = torch.tensor([quark.encode("The film was long and the story was thin")])
    with torch.no_grad():
        ours, theirs = quark.model(ids).logits[..., :V], p0.model(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


# --------------------------------------------------------------------------- batches, learning rate


def test_draw_batch_is_uniform_over_quantiles():
    """Parts of 2, 30 and 100 rows: each is drawn about 1000 times of 3000 (standard deviation 26).

    Within a part the rows are drawn alike: one of the two about 500 times (standard deviation 20),
    every one of the 132 at some time, and the mean number in the part of 100 is near 49.5. The
    generator decides.
    """
    parts = [[(k, i) for i in range(n)] for k, n in ((1, 2), (2, 30), (3, 100))]
    drawn = draw_batch(parts, 3000, np.random.default_rng(0))
    assert len(drawn) == 3000
    counts = np.bincount([k for k, _ in drawn], minlength=4)
    assert (abs(counts[1:] - 1000) < 130).all()
    assert abs(drawn.count((1, 0)) - 500) < 110
    assert len(set(drawn)) == 132
    assert abs(np.mean([i for k, i in drawn if k == 3]) - 49.5) < 5
    assert drawn == draw_batch(parts, 3000, np.random.default_rng(0))
    assert drawn != draw_batch(parts, 3000, np.random.default_rng(1))


def test_learning_rate_by_hand():
    """lr 0.8, 4 steps of warm-up, 10 steps in all: .2 .4 .6 .8, then .8 times 6/6, 5/6 ... 1/6.

    After that 0. With no warm-up it begins at lr; a run of 5 steps never ends a warm-up of 500.
    """
    rates = [learning_rate(step, 0.8, 4, 10) for step in range(12)]
    falling = [0.8 * n / 6 for n in (6, 5, 4, 3, 2, 1)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, *falling, 0, 0])
    assert learning_rate(0, 0.8, 0, 1) == 0.8
    assert learning_rate(2, 0.8, 500, 5) == pytest.approx(0.8 * 3 / 500)


# ---------------------------------------------------------------------------------------- the stage


@pytest.fixture
def pool(p0, tmp_path):
    return write_jsonl(tmp_path / "quantized.jsonl", quantized_rows(p0))


def run(pool, model, reference, out, *options):
    """learn.py. Returns the metrics, without the tokens per second."""
    argv = ["--pool", pool, "--model", model, "--reference", reference, "--out", out]
    argv += ["--batch-size", 5, "--warmup", 2, "--lr", 0.01, "--device", "cpu", *options]
    learn.main([str(a) for a in argv])
    return read_metrics(out)


def read_metrics(folder):
    metrics = read_rows(folder / "metrics.jsonl")
    for line in metrics:
        del line["tokens_per_s"]
    return metrics


def adam(folder):
    """(step, {parameter: (first moment, second moment)}) of a checkpoint."""
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    moments = {}
    for i, s in state["optimizer"]["state"].items():
        moments[i] = s["exp_avg"], s["exp_avg_sq"]
    return state["step"], moments


def first_gradient(folder):
    """The gradients that Adam saw in its only step: ten times its first moments (beta_1 = .9)."""
    step, moments = adam(folder)
    assert step == 1
    return [10 * first for first, _ in moments.values()]


def norm_of(tensors):
    return math.sqrt(sum(t.square().sum().item() for t in tensors))


def test_main_writes_a_checkpoint(pool, p0_folder, tmp_path, capsys):
    """The model, its vocabulary, the optimiser, the settings and a line of metrics for each step.

    In every line loss = lm + beta kl - c entropy. The last quarter of four steps, which is printed,
    is the last one.
    """
    out = tmp_path / "model" / "01"
    options = ["--steps", 4, "--beta", 0.3, "--entropy-coef", 0.06, "--total-steps", 9]
    metrics = run(pool, p0_folder, p0_folder, out, *options)
    files = {"config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer.json"}
    files |= {"optimizer.pt", "metrics.jsonl", "args.json"}
    assert files <= set(os.listdir(out))
    assert os.listdir(tmp_path / "model") == ["01"]
    assert json.loads((out / "args.json").read_text())["beta"] == 0.3
    assert [m["step"] for m in metrics] == [0, 1, 2, 3]
    rates = [learning_rate(step, 0.01, 2, 9) for step in range(4)]
    assert [m["lr"] for m in metrics] == pytest.approx(rates)
    for m in metrics:
        assert set(m) == {"step", "loss", "lm", "kl", "entropy", "grad_norm", "lr"}
        assert all(map(math.isfinite, m.values()))
        loss = m["lm"] + 0.3 * m["kl"] - 0.06 * m["entropy"]
        assert m["loss"] == pytest.approx(loss, rel=1e-4)
    policy = load_policy(out)
    assert (policy.n_quantiles, policy.vocab_size) == (3, V)
    loss, lm, kl, entropy = (f"{metrics[3][key]:.3f}" for key in ("loss", "lm", "kl", "entropy"))
    printed = capsys.readouterr().out
    assert "steps 0 to 3" in printed
    assert f"loss {loss}, LM {lm}, KL {kl}, entropy {entropy};" in printed
    assert f"{metrics[0]['lm']:.3f}" != lm


def test_the_first_step_is_that_of_eq_2(pool, p0_folder, p0, tmp_path):
    """Step 0 by hand: the batch that (seed, step) draws, batch_loss on it, and its gradient.

    The metrics are the means over the batch's completion tokens. Adam saw the gradient of the mean,
    and the norm of that gradient is reported.
    """
    options = ["--steps", 1, "--beta", 0.3, "--seed", 4]
    (metrics,) = run(pool, p0_folder, p0_folder, tmp_path / "m", *options)
    batch = draw_batch(load_quantized(pool, p0), 5, np.random.default_rng([4, 0]))
    policy = load_policy(p0_folder)
    add_reward_tokens(policy, K, seed=4)
    sums, n = batch_loss(policy, p0, batch, 0.3)
    (sums[0] / n).backward()
    means = [metrics[key] for key in ("loss", "lm", "kl", "entropy")]
    assert means == pytest.approx((sums / n).tolist(), rel=1e-4)
    gradients = [p.grad for p in policy.model.parameters()]
    for seen, expected in zip(first_gradient(tmp_path / "m"), gradients, strict=True):
        assert torch.allclose(seen, expected, rtol=1e-3, atol=1e-6)
    assert metrics["grad_norm"] == pytest.approx(norm_of(gradients), rel=1e-4)


def test_each_step_draws_its_own_batch(pool, p0_folder, p0, tmp_path):
    """Step n draws from the generator of (seed, n).

    A learning rate of 1e-9 leaves the weights as they begin. So the LM terms of three steps are
    those of p0 with new reward tokens, each on its own batch, and no two are alike.
    """
    options = ["--steps", 3, "--lr", 1e-9, "--seed", 4]
    metrics = run(pool, p0_folder, p0_folder, tmp_path / "m", *options)
    policy, parts = load_policy(p0_folder), load_quantized(pool, p0)
    add_reward_tokens(policy, K, seed=4)
    for step, line in enumerate(metrics):
        batch = draw_batch(parts, 5, np.random.default_rng([4, step]))
        sums, n = batch_loss(policy, p0, batch, 0.05)
        assert line["lm"] == pytest.approx((sums[1] / n).item(), rel=1e-4)
    assert len({round(line["lm"], 2) for line in metrics}) == 3


def test_a_rate_that_is_never_reached_is_told(pool, p0_folder, tmp_path, capsys):
    """The warm-up's last step has --lr, so two steps of two reach it, and two of three do not."""
    for warmup, told in ((2, False), (3, True)):
        out = tmp_path / f"m{warmup}"
        run(pool, p0_folder, p0_folder, out, "--steps", 2, "--warmup", warmup)
        assert ("never reaches --lr" in capsys.readouterr().out) == told
        assert (read_metrics(out)[-1]["lr"] == 0.01) != told


def test_processes_share_a_batch(pool, p0_folder, p0, monkeypatch):
    """The shares of two processes, as learn() hands them on, add up to the whole batch."""
    args = SimpleNamespace(seed=4, steps=1, batch_size=5, grad_accum=1, beta=0.3, kl="forward")
    args.entropy_coef, args.bf16, args.closed_form, args.clip = 0.0, False, False, 0.0
    args.lr, args.warmup, args.total_steps, args.reward_token_lr = 0.01, 2, 1, 1.0
    shares = {}
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        seen = shares[rank, world] = []

        def note(totals, parameters, seen=seen):
            seen += [totals.clone(), *(p.grad.clone() for p in parameters)]

        policy = load_policy(p0_folder)
        add_reward_tokens(policy, K, seed=4)
        monkeypatch.setattr(learn, "processes", lambda rank=rank, world=world: (rank, world))
        monkeypatch.setattr(learn, "sum_over_processes", note)
        optimiser = torch.optim.Adam(policy.model.parameters())
        next(learn.learn(policy, p0, load_quantized(pool, p0), args, optimiser, 0))
    assert shares[0, 1][0].shape == (4,)
    for whole, first, second in zip(shares[0, 1], shares[0, 2], shares[1, 2], strict=True):
        assert torch.allclose(first + second, whole, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(shares[0, 2][0], shares[1, 2][0])


def test_the_first_update_is_adam_s(pool, p0_folder, p0, tmp_path):
    """From zero moments: w - lr g / (|g| + eps) with eps = 1e-5, and no weight decay.

    The first step does not depend on beta_2 = .999, but what it leaves does: a thousandth of g^2.
    """
    run(pool, p0_folder, p0_folder, tmp_path / "m", "--steps", 1, "--reward-token-init", "ordered")
    policy = load_policy(p0_folder)
    add_reward_tokens(policy, K, seed=0, init="ordered")
    after = dict(load_policy(tmp_path / "m").model.named_parameters())
    lr = learning_rate(0, 0.01, 2, 1)
    parameters = list(policy.model.named_parameters())
    for (name, w), g in zip(parameters, first_gradient(tmp_path / "m"), strict=True):
        expected = w - lr * g / (g.abs() + 1e-5)
        assert torch.allclose(after[name], expected, rtol=0, atol=3e-6), name
    for first, second in adam(tmp_path / "m")[1].values():
        assert torch.allclose(second, 1e-3 * (10 * first) ** 2, rtol=1e-3, atol=1e-20)
    small = torch.cat([g.abs().flatten() for g in first_gradient(tmp_path / "m")])
    assert ((1e-7 < small) & (small < 1e-5)).any()  # where eps decides


def test_the_kl_is_to_the_reference(pool, p0_folder, p0, quark_folder, quark, tmp_path):
    """And not to --model, with which this round begins: then the first KL would be near 0."""
    (metrics,) = run(pool, quark_folder, p0_folder, tmp_path / "m", "--steps", 1)
    batch = draw_batch(load_quantized(pool, p0), 5, np.random.default_rng([0, 0]))
    sums, n = batch_loss(quark, p0, batch, 0.05)
    assert metrics["kl"] == pytest.approx((sums[2] / n).item(), rel=1e-4)
    quark.model.transformer.ln_f.weight.data *= 0.5
    quark.save(tmp_path / "moved")
    (moved,) = run(pool, tmp_path / "moved", p0_folder, tmp_path / "n", "--steps", 1)
    assert abs(moved["kl"] - metrics["kl"]) > 0.1
    assert min(moved["kl"], metrics["kl"]) > 0.1


def test_the_defaults_are_the_paper_s(tmp_path):
    """beta = 0.05, Adam's rate, warm-up, batch and steps a round; the paper's KL, no bonus."""
    argv = ["--pool", "q", "--model", "m", "--reference", "r", "--out", "o"]
    args = learn.parse_options(argv)
    assert (args.beta, args.kl, args.entropy_coef) == (0.05, "forward", 0)
    assert (args.lr, args.warmup, args.steps, args.batch_size) == (1e-5, 500, 500, 128)
    assert (args.clip, args.grad_accum, args.reward_token_lr) == (0, 1, 1)
    assert (args.reward_token_init, args.no_reward_token, args.closed_form) == (
        "normal",
        False,
        False,
    )
    assert args.total_steps is None


def test_what_is_read_is_what_trains(pool, p0_folder, tmp_path):
    """An edit of quark_loss changes the training, without any flag.

    learn.py with 3 * beta in its source trains as the original does with three times the beta. The
    stage says that it trains through quark_loss.
    """
    source = (ROOT / "learn.py").read_text()
    line = "loss = lm + beta * kl_term"
    assert source.count(line) == 1
    edited = tmp_path / "learn.py"
    edited.write_text(source.replace(line, "loss = lm + 3 * beta * kl_term"))

    def train(name, script, beta):
        command = [sys.executable, script, "--pool", pool, "--model", p0_folder]
        command += ["--reference", p0_folder, "--out", tmp_path / name, "--beta", beta]
        command += ["--steps", 4, "--lr", 0.01, "--warmup", 1, "--batch-size", 5, "--device", "cpu"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [str(c) for c in command]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert "by quark_loss\n" in done.stdout
        return read_metrics(tmp_path / name)

    original = train("original", ROOT / "learn.py", 0.4)
    assert train("edited", edited, 0.4) == train("tripled", ROOT / "learn.py", 1.2) != original


def test_main_in_bfloat16(pool, p0_folder, tmp_path):
    """--bf16 moves the LM term, which is the policy's alone, by a few percent at most."""
    (exact,) = run(pool, p0_folder, p0_folder, tmp_path / "exact", "--steps", 1)
    (rough,) = run(pool, p0_folder, p0_folder, tmp_path / "rough", "--steps", 1, "--bf16")
    assert rough["lm"] == pytest.approx(exact["lm"], rel=0.05)
    assert rough["lm"] != exact["lm"]


def test_the_closed_form_trains_alike(pool, p0_folder, tmp_path, capsys):
    """--closed-form: the same metrics step by step, to rounding. The stage says which one runs."""
    by_default = run(pool, p0_folder, p0_folder, tmp_path / "o", "--steps", 4)
    assert "by quark_loss" in capsys.readouterr().out
    closed = run(pool, p0_folder, p0_folder, tmp_path / "c", "--steps", 4, "--closed-form")
    assert "by its closed form" in capsys.readouterr().out
    for a, b in zip(by_default, closed, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_no_reward_token(pool, p0_folder, p0, tmp_path):
    """--no-reward-token: nothing stands in front, so at step 0 the policy is p0 and the KL is 0.

    The LM term is p0's own, computed here row by row. Rows need no quantile and all weigh alike.
    The vocabulary stays V.
    """
    rows = quantized_rows(p0)
    for row in rows:
        del row["quantile"]
    bare = write_jsonl(tmp_path / "bare.jsonl", rows)
    out = tmp_path / "m"
    metrics = run(bare, p0_folder, p0_folder, out, "--steps", 2, "--no-reward-token")
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[1]["kl"] > 1e-6
    (part,) = load_quantized(bare, p0, reward_tokens=False)
    batch = draw_batch([part], 5, np.random.default_rng([0, 0]))
    assert len(part) == len(rows)
    assert {k for k, _, _ in batch} == {None}
    nats = tokens = 0
    for _, x, y in batch:
        log_p = p0.model(torch.tensor([[*x, *y]])).logits[0].log_softmax(-1)
        for t, token in enumerate(y):
            nats -= log_p[len(x) + t - 1, token].item()
        tokens += len(y)
    assert metrics[0]["lm"] == pytest.approx(nats / tokens, rel=1e-4)
    assert (load_policy(out).n_quantiles, load_policy(out).vocab_size) == (0, V)


def test_no_reward_token_for_a_model_that_has_some(pool, p0_folder, quark_folder, tmp_path):
    """--no-reward-token: the model keeps its reward tokens, unused."""
    out = tmp_path / "m"
    run(pool, quark_folder, p0_folder, out, "--steps", 1, "--no-reward-token")
    assert load_policy(out).n_quantiles == 3


def test_pieces_of_a_batch_give_its_gradient(pool, p0_folder, tmp_path):
    """--grad-accum 3 of a batch of 5: pieces of 1, 2 and 2 rows, of different lengths.

    The metrics and the gradient are those of the whole batch, to rounding.
    """
    whole, pieces = tmp_path / "1", tmp_path / "3"
    (expected,) = run(pool, p0_folder, p0_folder, whole, "--steps", 1, "--grad-accum", 1)
    (got,) = run(pool, p0_folder, p0_folder, pieces, "--steps", 1, "--grad-accum", 3)
    assert got == pytest.approx(expected, rel=1e-4)
    for a, b in zip(first_gradient(whole), first_gradient(pieces), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-7)


def test_clipping(pool, p0_folder, tmp_path):
    """--clip 0.1: Adam sees a gradient of norm 0.1. By default it sees the whole one."""
    (free,) = run(pool, p0_folder, p0_folder, tmp_path / "free", "--steps", 1)
    run(pool, p0_folder, p0_folder, tmp_path / "clipped", "--steps", 1, "--clip", 0.1)
    whole, clipped = (first_gradient(tmp_path / name) for name in ("free", "clipped"))
    assert free["grad_norm"] > 0.2
    assert norm_of(whole) == pytest.approx(free["grad_norm"], rel=1e-3)
    assert norm_of(clipped) == pytest.approx(0.1, rel=1e-3)
    factor = 0.1 / free["grad_norm"]
    for a, b in zip(whole, clipped, strict=True):
        assert torch.allclose(factor * a, b, rtol=1e-3, atol=1e-7)  # the same direction


def test_resumed_training_is_uninterrupted_training(pool, p0_folder, tmp_path):
    """Three steps and three more are six steps: weights, optimiser and metrics, bit for bit."""
    whole, half, full = (tmp_path / name for name in ("whole", "half", "full"))
    total = ["--total-steps", 6]
    metrics = run(pool, p0_folder, p0_folder, whole, "--steps", 6, *total)
    first = run(pool, p0_folder, p0_folder, half, "--steps", 3, *total)
    second = run(pool, half, p0_folder, full, "--steps", 3, *total)
    assert first + second == metrics
    assert [m["step"] for m in second] == [3, 4, 5]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, half, full)]
    assert weights[0] == weights[2] != weights[1]
    (step, straight), (resumed_step, resumed) = adam(whole), adam(full)
    assert step == resumed_step == 6
    assert resumed.keys() == straight.keys()
    for i in straight:
        assert torch.equal(resumed[i][0], straight[i][0])
        assert torch.equal(resumed[i][1], straight[i][1])


def test_the_seed_decides(pool, p0_folder, tmp_path):
    """Another seed: other reward tokens and other batches."""
    a = run(pool, p0_folder, p0_folder, tmp_path / "0", "--steps", 2, "--seed", 0)
    b = run(pool, p0_folder, p0_folder, tmp_path / "1", "--steps", 2, "--seed", 1)
    assert a[0]["lm"] != b[0]["lm"]


def nats_of(policy, k, prompt, completion):
    """-log p_theta(y | x, r_k) in nats."""
    x, y = policy.encode(prompt), policy.encode(completion)
    with torch.no_grad():
        logits = policy.model(torch.tensor([[V + k - 1, *x, *y]])).logits
    log_p = logits[0, :, :V].log_softmax(-1)
    return -sum(log_p[len(x) + t, token].item() for t, token in enumerate(y))


def test_it_learns_what_each_token_means(p0_folder, tmp_path):
    """In the pool " bad" has quantile 1 and " good" has quantile 2.

    After learning, the model finds " bad" likelier under r_1, and " good" under r_2.
    """
    rows = []
    for prompt in ("the film was", "it is", "songs"):
        for k, completion in ((1, " bad"), (2, " good")):
            rows.append({"prompt": prompt, "completion": completion, "reward": k, "quantile": k})
    pool = write_jsonl(tmp_path / "q.jsonl", rows)
    options = ["--steps", 40, "--batch-size", 12, "--beta", 0.01]
    metrics = run(pool, p0_folder, p0_folder, tmp_path / "m", *options)
    assert metrics[-1]["lm"] < 0.5 * metrics[0]["lm"]
    policy = load_policy(tmp_path / "m")
    x = "the film was"
    assert nats_of(policy, 1, x, " bad") < nats_of(policy, 1, x, " good")
    assert nats_of(policy, 2, x, " good") < nats_of(policy, 2, x, " bad")


def test_beta_pulls_towards_p0(pool, p0_folder, tmp_path):
    """With a larger beta the same steps end with a smaller KL and a worse fit.

    --kl reverse starts from the same LM term and another KL.
    """

    def train(name, *options):
        return run(pool, p0_folder, p0_folder, tmp_path / name, "--steps", 12, *options)

    free, held = train("free", "--beta", 0), train("held", "--beta", 5)
    reverse = train("reverse", "--beta", 5, "--kl", "reverse")
    assert held[-1]["kl"] < 0.8 * free[-1]["kl"]
    assert held[-1]["lm"] > free[-1]["lm"]
    assert held[0]["lm"] == reverse[0]["lm"]
    assert held[0]["kl"] != reverse[0]["kl"]


def test_reward_token_lr(pool, p0_folder, tmp_path):
    """--reward-token-lr F: the rows of r_k move F times as far, and all others as before.

    0 leaves them as they were added, 3 moves them three times as far.
    """
    start = load_policy(p0_folder)
    add_reward_tokens(start, K, seed=0)
    moved = {}
    for factor in (0, 1, 3):
        out = tmp_path / str(factor)
        run(pool, p0_folder, p0_folder, out, "--steps", 1, "--reward-token-lr", factor)
        moved[factor] = embedding_of(load_policy(out)) - embedding_of(start)
    assert (moved[0][V:] == 0).all()
    assert (moved[1][V:] != 0).any()
    assert torch.allclose(moved[3][V:], 3 * moved[1][V:], atol=1e-6)
    assert (moved[1][:V] != 0).any()
    assert torch.equal(moved[0][:V], moved[1][:V])
    assert torch.equal(moved[3][:V], moved[1][:V])


def test_reward_token_init(pool, p0_folder, tmp_path):
    """After one step with a tiny lr: with "ordered", r_2 is midway between r_1 and r_3.

    With "normal" it is not.
    """
    for init, on_a_line in (("normal", False), ("ordered", True)):
        options = ["--steps", 1, "--lr", 1e-9, "--reward-token-init", init]
        run(pool, p0_folder, p0_folder, tmp_path / init, *options)
        r = embedding_of(load_policy(tmp_path / init))[V:]
        assert torch.allclose(r[1], (r[0] + r[2]) / 2, atol=1e-5) == on_a_line


def test_p0_stays_as_it_is(pool, p0_folder, tmp_path):
    """Learning writes its own folder. The reference's files keep their bytes."""
    before = files_of(p0_folder)
    run(pool, p0_folder, p0_folder, tmp_path / "m", "--steps", 1)
    assert files_of(p0_folder) == before


# --------------------------------------------- bad input; bad pools: see plumbing/test_quantized.py


def test_bad_models(pool, quark_folder, p0_folder, tmp_path, monkeypatch):
    """No such model, a folder without one, a reference with another vocabulary: one line each."""
    foreign = tmp_path / "foreign"
    shutil.copytree(p0_folder, foreign)
    text = (
        "zebras quack quietly where the quick zebras quit, and a quiet duck quacks at the lazy dog"
    )
    write_vocabulary(foreign, *learn_merges([text + " under a shady tree"], 41))
    (tmp_path / "empty").mkdir()
    for model, reference, message in [
        (tmp_path / "none", p0_folder, "none does not exist"),
        (p0_folder, tmp_path / "empty", "cannot open"),
        (quark_folder, foreign, "different vocabularies"),
    ]:
        argv = ["--pool", pool, "--model", model, "--reference", reference]
        argv += ["--out", tmp_path / "out", "--steps", 1, "--device", "cpu"]
        exit = stage(monkeypatch, "learn.py", *argv)
        assert one_sentence(exit)
        assert message in exit
    assert sorted(os.listdir(tmp_path)) == ["empty", "foreign", "quantized.jsonl"]


@pytest.mark.parametrize("form", [[], ["--closed-form"]], ids=str)
def test_a_reference_with_reward_tokens_is_no_p0(form, pool, p0_folder, quark, tmp_path):
    """p0 never saw a reward token. If the reference has some, they are cut off from it, too.

    Here they would be very likely. The other logits are p0's, and so are all metrics.
    """
    embedding_of(quark)[V:] += 2 * quark.model.transformer.ln_f.bias.detach()
    quark.save(tmp_path / "q")
    (expected,) = run(pool, tmp_path / "q", p0_folder, tmp_path / "a", "--steps", 1, *form)
    (got,) = run(pool, tmp_path / "q", tmp_path / "q", tmp_path / "b", "--steps", 1, *form)
    assert got == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_is_not_finite_stops(pool, p0_folder, tmp_path):
    """A learning rate of 1e20 ruins the model. The step is named, and nothing is saved."""
    with pytest.raises(BadInput, match="the loss is .* at step [1-9]; lower --lr"):
        run(pool, p0_folder, p0_folder, tmp_path / "m", "--steps", 6, "--lr", 1e20)
    assert os.listdir(tmp_path) == ["quantized.jsonl"]


def test_out_never_destroys(pool, p0_folder, tmp_path):
    """--out names a folder that is no checkpoint, a file, or p0 itself: nothing changes."""
    notes = tmp_path / "thesis" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("three years")
    own = tmp_path / "p0"
    shutil.copytree(p0_folder, own)
    before = files_of(own)
    for out in (notes.parent, notes, own):
        with pytest.raises(BadInput):
            run(pool, own, own, out, "--steps", 1)
    assert notes.read_text() == "three years"
    assert os.listdir(notes.parent) == ["notes.txt"]
    assert files_of(own) == before


def test_total_steps_must_reach(pool, p0_folder, tmp_path):
    """More steps than --total-steps would be made at a learning rate of 0, without a word."""
    run(pool, p0_folder, p0_folder, tmp_path / "a", "--steps", 2, "--total-steps", 4)
    with pytest.raises(BadInput, match="has made 2 steps.* at least 5"):
        options = ["--steps", 3, "--total-steps", 4]
        run(pool, tmp_path / "a", p0_folder, tmp_path / "b", *options)
    assert not (tmp_path / "b").exists()


BAD_OPTIONS = [
    ("--beta", -1),
    ("--beta", "nan"),
    ("--steps", 0),
    ("--batch-size", 0),
    ("--grad-accum", 6),
    ("--lr", 0),
    ("--warmup", -1),
    ("--clip", -1),
    ("--seed", -1),
    ("--kl", "sideways"),
    ("--entropy-coef", "nan"),
    ("--reward-token-lr", -1),
    ("--total-steps", 0),
]


@pytest.mark.parametrize("option", BAD_OPTIONS, ids=str)
def test_bad_options(option, pool, p0_folder, tmp_path):
    """argparse's exit status 2, before anything is opened."""
    with pytest.raises(SystemExit) as exit:
        run(pool, p0_folder, p0_folder, tmp_path / "m", "--steps", 1, *option)
    assert exit.value.code == 2
    assert not (tmp_path / "m").exists()
