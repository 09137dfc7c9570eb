"""Step 5: the metrics by hand, perplexity against Hugging Face's loss, the intervals, the stage."""

import json
import math
import os

import numpy as np
import pytest
import torch
from conftest import (
    CONTEXT,
    EVALUATED,
    SENTENCES,
    K,
    V,
    make_model_folder,
    one_sentence,
    read_rows,
    run_evaluate,
    stage,
    write_jsonl,
    write_reward,
)

import evaluate
from evaluate import (
    completion_nll,
    dist_n,
    fluency_sums,
    interval,
    measure,
    perplexity,
    reward_sums,
)
from explore import sample
from plumbing.pool import BadInput

REWARD_METRICS = ["mean", "share_ge_half", "avg_max_unwanted", "unwanted_prob"]
TEXT_METRICS = ["perplexity", "perplexity_mean_per_completion", "dist_1", "dist_2", "dist_3"]
TEXT_METRICS += ["rep_2", "rep_3", "rep_4", "diversity"]

# -------------------------------------------------------------------------------------- the metrics


def ratio(sums, key):
    """The metric from the (a, b) of each prompt: sum a / sum b."""
    return sum(s[key][0] for s in sums) / sum(s[key][1] for s in sums)


def test_reward_metrics_by_hand():
    """Prompt A has the rewards .9 .2 .5, prompt B has .6 .7.

    mean reward               (.9 + .2 + .5 + .6 + .7) / 5 = 2.9 / 5 = .58
    at least .5               .9 .5 .6 .7, that is 4 of 5
    largest 1 - r             A .8, B .4, on average .6
    prompts with 1 - r > .5   A (its .2), that is 1 of 2
    """
    sums = [reward_sums([0.9, 0.2, 0.5]), reward_sums([0.6, 0.7])]
    assert ratio(sums, "mean") == pytest.approx(0.58)
    assert ratio(sums, "share_ge_half") == pytest.approx(0.8)
    assert ratio(sums, "avg_max_unwanted") == pytest.approx(0.6)
    assert ratio(sums, "unwanted_prob") == pytest.approx(0.5)
    assert list(sums[0]) == REWARD_METRICS


def test_a_half_is_wanted():
    """r = 1/2 exactly is at least one half, and 1 - r is not above one half."""
    sums = [reward_sums([0.5])]
    assert ratio(sums, "share_ge_half") == 1
    assert ratio(sums, "unwanted_prob") == 0


def test_dist_n_by_hand():
    """The completions "a b a" and "b c" have 5 words. No n-gram crosses the border between them.

    1-grams: a b c, 3 / 5. 2-grams: ab ba bc, 3 / 5. 3-grams: aba, 1 / 5.
    """
    assert dist_n(["a b a", "b c"], 1) == pytest.approx(3 / 5)
    assert dist_n(["a b a", "b c"], 2) == pytest.approx(3 / 5)
    assert dist_n(["a b a", "b c"], 3) == pytest.approx(1 / 5)
    assert dist_n(["a b", "c d"], 2) == 2 / 4  # b c is no 2-gram
    assert dist_n(["a b", "a b", "a  b\n"], 2) == 1 / 6  # words are split at any white space
    assert dist_n([""], 1) == dist_n([], 2) == 0


def test_metrics_are_importable_under_their_names():
    """Exercises use evaluate.rep_n and evaluate.diversity.

    1 2 1 2 1 has rep-2 = 1/2 and diversity 1/3; see test_rewards.py for the arithmetic.
    """
    assert evaluate.rep_n([1, 2, 1, 2, 1], 2) == 1 / 2
    assert evaluate.diversity([1, 2, 1, 2, 1]) == pytest.approx(1 / 3)


def test_mean_perplexity_leaves_out_the_absurd():
    """Perplexities 4 (of two tokens), 1e5, 9, 9999, 10001 and e^3000; an empty completion has none.

    The mean per completion is over those below 1e4: 4, 9 and 9999. The corpus-level sums keep every
    token.
    """
    nll = [
        [2 * math.log(4), 2],
        [math.log(1e5), 1],
        [math.log(9), 1],
        [0, 0],
        [math.log(9999), 1],
        [math.log(10001), 1],
        [3000, 1],
    ]
    sums = fluency_sums(np.array(nll))
    assert sums["perplexity_mean_per_completion"] == (pytest.approx(4 + 9 + 9999), 3)
    assert sums["log_perplexity"] == (pytest.approx(sum(nats for nats, _ in nll)), 7)


# --------------------------------------------------------------------------------------- perplexity

ROWS = [
    {"prompt": "The film was", "completion": " long and the end is silly."},
    {"prompt": "", "completion": "I see it"},
    {"prompt": "She said", "completion": ""},
    {"prompt": "a" * 90, "completion": " good"},
    {"prompt": "x<|endoftext|>", "completion": "<|reward_1|>"},
    {"prompt": "songs", "completion": "日本"},
    {"prompt": SENTENCES[0], "completion": " bad"},
]


def hf_nll(policy, row):
    """-log p(completion | prompt) from Hugging Face's own loss, and the number of tokens.

    The labels of the prompt are -100, which that loss ignores.
    """
    x, y = policy.encode(row["prompt"]) or [V - 1], policy.encode(row["completion"])
    if not y:
        return 0.0, 0
    ids, labels = torch.tensor([x + y]), torch.tensor([[-100] * len(x) + y])
    with torch.no_grad():
        return policy.model(ids, labels=labels).loss.item() * len(y), len(y)


def test_perplexity_is_hugging_face_s_loss(p0):
    """Row by row and over the corpus.

    With an empty prompt, an empty completion and control tokens' names as text.
    """
    rows = [row for row in ROWS if row["prompt"] != "a" * 90]  # see the next test
    expected = np.array([hf_nll(p0, row) for row in rows])
    assert completion_nll(p0, rows) == pytest.approx(expected, rel=1e-4)
    nats, tokens = expected.sum(0)
    assert perplexity(p0, rows) == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_perplexity_of_long_prompts(p0):
    """A prompt beyond the context is cut from the left, and y never.

    The last token is predicted and not read, so 64 places hold all of x and y but that token. A
    completion that does not fit is refused.
    """
    row = {"prompt": "".join(map(chr, range(35, 120))), "completion": " good"}
    x, y = p0.encode(row["prompt"]), p0.encode(" good")
    assert len(x) > 70
    read = (x + y[:-1])[-CONTEXT:]
    with torch.no_grad():
        log_p = p0.model(torch.tensor([read])).logits[0].log_softmax(-1)
    nats = 0
    for t, token in enumerate(y):
        nats -= log_p[CONTEXT - len(y) + t, token].item()
    assert completion_nll(p0, [row])[0] == pytest.approx([nats, len(y)], rel=1e-4)
    message = f"does not fit the context of the perplexity model, {CONTEXT}"
    with pytest.raises(BadInput, match=message):
        completion_nll(p0, [{"prompt": "", "completion": "b" * 80}])


def test_perplexity_does_not_depend_on_batches(p0):
    """Batch size, padding and the order of the rows change only the last digits."""
    whole = completion_nll(p0, ROWS)
    for size in (1, 3):
        assert completion_nll(p0, ROWS, batch_size=size) == pytest.approx(whole, rel=1e-4)
    assert completion_nll(p0, ROWS[::-1])[::-1] == pytest.approx(whole, rel=1e-4)


def test_perplexity_of_long_and_short_together(p0):
    """A prompt that fills the context, a completion that does, and short ones, in one batch.

    Each has the value that it has alone.
    """
    letters = "".join(map(chr, range(35, 95)))
    assert len(p0.encode(letters[:55])) > 50
    pairs = [
        (letters * 2, " good"),
        ("I", letters[:55]),
        ("I", " see"),
        ("I see", "it"),
        (letters[:9], " bad bad"),
        ("I", " good"),
    ]
    rows = [{"prompt": x, "completion": y} for x, y in pairs]
    alone = np.concatenate([completion_nll(p0, [row]) for row in rows])
    assert completion_nll(p0, rows) == pytest.approx(alone, rel=1e-4)


def test_perplexity_knows_no_reward_tokens(p0, quark):
    """A model with reward tokens is measured without one in front.

    They have no place in its softmax, however likely they would be.
    """
    embedding = quark.model.get_input_embeddings().weight
    embedding.data[V:] = 3 * quark.model.transformer.ln_f.bias.data
    assert completion_nll(quark, ROWS) == pytest.approx(completion_nll(p0, ROWS), rel=1e-4)


# ------------------------------------------------------------------------------------ the intervals


def test_interval_by_hand():
    """(1 + 3 + 0) / (2 + 2 + 4) = 1/2, which is not the mean of the ratios 1/2, 3/2 and 0.

    It lies within its bounds, and those within 0 and 3/2. With one prompt there is nothing to
    resample. The seed is fixed, so the same data give the same interval.
    """
    pairs = [(1, 2), (3, 2), (0, 4)]
    result = interval(pairs)
    assert result["value"] == 0.5
    assert 0 <= result["low"] < 0.5 < result["high"] <= 1.5
    assert interval(pairs) == result
    assert interval([(3, 4)]) == {"value": 0.75, "low": 0.75, "high": 0.75}


def test_interval_of_nothing():
    """No sample has a score: null in the file, and not NaN, which is no JSON.

    If one prompt of two has some, the resamples without that prompt are left out.
    """
    assert interval([(0, 0), (0, 0)]) == {"value": None, "low": None, "high": None}
    assert interval([(1, 1), (0, 0)]) == {"value": 1, "low": 1, "high": 1}


def test_the_level_of_the_interval_is_95_percent(monkeypatch):
    """1001 resamples draw a = 0 ... 1000 times and b once: 2.5 % are below 25, 2.5 % above 975."""
    weights = np.array([(i, 1.0) for i in range(1001)])
    monkeypatch.setattr(evaluate, "bootstrap_weights", lambda *given: weights)
    expected = {"value": 1, "low": 25, "high": 975}
    assert interval([(1, 0), (0, 1)]) == pytest.approx(expected)


def test_intervals_cover():
    """300 experiments of 40 skewed prompts of unequal sizes: about 95 % of the intervals are right.

    The truth is E a / E b = 0.3.
    """
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        b = rng.integers(1, 6, 40)
        a = b * 0.3 * rng.exponential(1, 40)
        result = interval(np.stack([a, b], axis=1), seed=seed, resamples=300)
        covered += result["low"] <= 0.3 <= result["high"]
    assert 0.88 <= covered / 300 <= 0.98


def test_interval_width():
    """200 prompts, half of them 0 and half 1: 95 % is 1.96 sqrt(1/4 / 200) = .0693 to each side."""
    result = interval([(i % 2, 1) for i in range(200)])
    assert result["value"] == 0.5
    assert result["high"] - 0.5 == pytest.approx(0.0693, abs=0.01)
    assert 0.5 - result["low"] == pytest.approx(0.0693, abs=0.01)


# ------------------------------------------------------------------------------ all of them at once


def test_measure_by_hand():
    """Two prompts with two samples each. The last sample is empty and has no score from "r".

        prompt  completion  ids    r     perplexity  tokens
        0       a b         1 2    .5    2           2
        0       a c         1 3    .9    8           2
        1       d d         4 4 4  .1    4           3
        1       (empty)                              0

    r: the mean is 1.5 / 3; two of three are at least .5; the largest 1 - r are .5 and .9; one of
    two prompts has a 1 - r above .5. dist-1 is 3/4 and 1/2, dist-2 2/4 and 1/2. rep-2 is 0, 0,
    1 - 1/2 and 0 for the completions, so the diversity is 1, 1, 1/2 and 1. Perplexity is
    exp((2 ln 2 + 2 ln 8 + 3 ln 4) / 7), and per completion (2 + 8 + 4) / 3.
    """
    samples = [(0, "a b", [1, 2], 0.5), (0, "a c", [1, 3], 0.9), (1, "d d", [4, 4, 4], 0.1)]
    samples.append((1, "", [], None))
    rows = []
    for number, y, ids, r in samples:
        row = {"prompt_number": number, "completion": y, "completion_ids": ids}
        rows.append({**row, "rewards": {"r": r, "all": 0.25}})
    nll = np.array([[2 * math.log(2), 2], [2 * math.log(8), 2], [3 * math.log(4), 3], [0, 0]])
    table = measure(rows, nll, ["r", "all"])

    nats = 2 * math.log(2) + 2 * math.log(8) + 3 * math.log(4)
    r, all_alike = table["rewards"]["r"], table["rewards"]["all"]
    for metric, expected in [
        (r["mean"], 1.5 / 3),
        (r["share_ge_half"], 2 / 3),
        (r["avg_max_unwanted"], (0.5 + 0.9) / 2),
        (r["unwanted_prob"], 1 / 2),
        (all_alike["mean"], 0.25),
        (all_alike["unwanted_prob"], 1),
        (table["dist_1"], (3 / 4 + 1 / 2) / 2),
        (table["dist_2"], (2 / 4 + 1 / 2) / 2),
        (table["rep_2"], (0 + 0 + 1 / 2 + 0) / 4),
        (table["diversity"], (1 + 1 + 1 / 2 + 1) / 4),
        (table["perplexity"], math.exp(nats / 7)),
        (table["perplexity_mean_per_completion"], (2 + 8 + 4) / 3),
    ]:
        assert metric["value"] == pytest.approx(expected)
    for name in TEXT_METRICS:
        assert table[name]["low"] <= table[name]["value"] <= table[name]["high"]


def test_measure_of_a_group():
    """A group's table is the table of its rows alone. Prompts without a group are in none.

    Groups change nothing in the table of all prompts.
    """
    rows = []
    for number, y, r in [(0, "a b", 0.5), (0, "a c", 0.9), (1, "d d", 0.1), (1, "e", 0.3)]:
        row = {"prompt_number": number, "completion": y, "completion_ids": [1, 2]}
        rows.append({**row, "rewards": {"r": r}, "group": "easy" if number == 0 else None})
    nll = np.array([[1.0, 2], [2.0, 2], [3.0, 2], [4.0, 2]])
    whole, alone = measure(rows, nll, ["r"]), measure(rows[:2], nll[:2], ["r"])
    assert list(whole["groups"]) == ["easy"]
    del alone["groups"]
    assert whole["groups"]["easy"] == alone
    assert whole["rewards"] != alone["rewards"]
    for row in rows:
        del row["group"]
    assert measure(rows, nll, ["r"]) == {**whole, "groups": {}}


def windows(sequence, n):
    """The n-grams of an array of ids, as the rows of an array."""
    if len(sequence) < n:
        return np.zeros((0, n), dtype=int)
    return np.lib.stride_tricks.sliding_window_view(sequence, n)


def numpy_rep_n(sequence, n):
    grams = windows(sequence, n)
    return 1 - len(np.unique(grams, axis=0)) / len(grams) if len(grams) else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_against_numpy(seed):
    """Random completions of 7 prompts, 6 each: every metric again, from arrays.

    One completion has a perplexity beyond what the mean per completion counts.
    """
    rng, P, N = np.random.default_rng(seed), 7, 6
    words = np.array(list("abcdef"))
    ids = [rng.integers(0, 6, rng.integers(0, 12)) for _ in range(P * N)]
    lengths = np.array([len(y) for y in ids])
    reward = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], (P, N))
    nats = rng.gamma(2, 1, P * N) * (lengths > 0)
    nats[0], lengths[0] = 1000, max(1, lengths[0])
    rows = []
    for i, y in enumerate(ids):
        row = {"prompt_number": i // N, "completion": " ".join(words[y])}
        row |= {"completion_ids": y.tolist(), "rewards": {"r": float(reward.ravel()[i])}}
        rows.append(row)

    worst = reward.min(1)
    expected = {"mean": reward.mean(), "share_ge_half": (reward >= 0.5).mean()}
    expected |= {"avg_max_unwanted": (1 - worst).mean(), "unwanted_prob": (worst < 0.5).mean()}
    diversity = 1.0
    for n in (2, 3, 4):
        rep = np.array([numpy_rep_n(y, n) for y in ids])
        expected[f"rep_{n}"] = rep.mean()
        diversity = diversity * (1 - rep)
    expected["diversity"] = diversity.mean()
    for n in (1, 2, 3):
        shares = []
        for p in range(P):
            own = ids[p * N : p * N + N]
            grams = np.concatenate([windows(y, n) for y in own])
            shares.append(len(np.unique(grams, axis=0)) / sum(map(len, own)))
        expected[f"dist_{n}"] = np.mean(shares)
    spoken = lengths > 0
    expected["perplexity"] = np.exp(nats[spoken].sum() / lengths[spoken].sum())
    each = np.exp(np.minimum(nats[spoken] / lengths[spoken], 700))
    expected["perplexity_mean_per_completion"] = each[each < 1e4].mean()
    assert each.max() > 1e4

    table = measure(rows, np.stack([nats, lengths], axis=1), ["r"])
    assert table.pop("groups") == {}
    table |= table.pop("rewards")["r"]
    values = {key: metric["value"] for key, metric in table.items()}
    assert values == pytest.approx(expected)


# ---------------------------------------------------------------------------------------- the stage


def check_table(table, rewards):
    """Every metric is there, with an interval around it."""
    assert set(table["rewards"]) == set(rewards)
    metrics = [table[name] for name in TEXT_METRICS]
    for of_reward in table["rewards"].values():
        assert set(of_reward) == set(REWARD_METRICS)
        metrics += of_reward.values()
    for metric in metrics:
        assert set(metric) == {"value", "low", "high"}
        assert metric["low"] <= metric["value"] <= metric["high"]


def texts_of(policy, completions):
    """The texts of completions, which <|endoftext|> at their end is no part of."""
    return [policy.decode(y[:-1] if y[-1] == V - 1 else y) for y in completions]


def test_main_writes_the_tables(quark_folder, p0_folder, quark, tmp_path, capsys):
    """What the result says about itself, its groups, and the files. Every table is complete.

    The completions are those of `sample` under r_K with top-p 0.9 and seed 0.
    """
    table = run_evaluate(tmp_path, quark_folder, p0_folder)
    assert (table["model"], table["reference"]) == (str(quark_folder), str(p0_folder))
    assert (table["n_prompts"], table["n_samples"], table["decode"]) == (5, 3, "sample")
    assert set(table["groups"]) == {"neutral", "negative"}
    for part in (table, *table["groups"].values()):
        check_table(part, ["hash", "length"])
    assert "hash mean" in capsys.readouterr().out
    assert set(os.listdir(tmp_path / "eval")) == {"quark.json", "quark.jsonl", "quark.args.json"}

    rows = read_rows(tmp_path / "eval" / "quark.jsonl")
    keys = [(i, j) for i in range(5) for j in range(3)]
    assert [row["prompt"] for row in rows] == [EVALUATED[i]["prompt"] for i, _ in keys]
    assert [row.get("group") for row in rows] == [EVALUATED[i].get("group") for i, _ in keys]
    x = [quark.encode(row["prompt"]) for row in rows]
    settings = {"max_new_tokens": 6, "min_new_tokens": 3, "top_p": 0.9}
    drawn = sample(quark, x, keys=keys, quantile=K, **settings)
    assert [row["completion"] for row in rows] == texts_of(quark, drawn)


def test_main_measures_what_it_writes(quark_folder, p0_folder, p0, tmp_path):
    """Each number of the table again, from the completions beside it; of groups, too."""
    table = run_evaluate(tmp_path, quark_folder, p0_folder)
    rows = read_rows(tmp_path / "eval" / "quark.jsonl")
    hashes = np.array([row["rewards"]["hash"] for row in rows]).reshape(5, 3)
    got = {name: metric["value"] for name, metric in table["rewards"]["hash"].items()}
    assert got == pytest.approx(
        {
            "mean": hashes.mean(),
            "share_ge_half": (hashes >= 0.5).mean(),
            "avg_max_unwanted": (1 - hashes.min(1)).mean(),
            "unwanted_prob": (hashes.min(1) < 0.5).mean(),
        }
    )
    neutral = table["groups"]["neutral"]["rewards"]["hash"]["mean"]["value"]
    assert neutral == pytest.approx(hashes[[0, 3]].mean())
    assert neutral != got["mean"]
    negative = table["groups"]["negative"]["perplexity"]["value"]
    assert negative == pytest.approx(perplexity(p0, rows[3:6]), rel=1e-5)
    assert table["perplexity"]["value"] == pytest.approx(perplexity(p0, rows), rel=1e-5)
    of_prompts = [rows[i : i + 3] for i in range(0, 15, 3)]
    shares = [dist_n([row["completion"] for row in own], 2) for own in of_prompts]
    assert table["dist_2"]["value"] == pytest.approx(np.mean(shares))


def test_main_other_tokens(quark_folder, p0_folder, quark, tmp_path):
    """--reward-token 1, none or all: under which token the completions are. p0 has none."""
    x = [quark.encode(prompt["prompt"]) for prompt in EVALUATED]

    def greedy(quantile):
        lengths = {"max_new_tokens": 6, "min_new_tokens": 3}
        return texts_of(quark, sample(quark, x, quantile=quantile, greedy=True, **lengths))

    def said(name):
        return [row["completion"] for row in read_rows(tmp_path / "eval" / f"{name}.jsonl")]

    def run(name, model, *options):
        options = ["--decode", "greedy", "--num-samples", 1, *options]
        run_evaluate(tmp_path, model, p0_folder, *options, name=name)

    run("one", quark_folder, "--reward-token", 1)
    run("none", quark_folder, "--reward-token", "none")
    run("dial", quark_folder, "--reward-token", "all")
    run("base", p0_folder)
    assert said("one") == said("dial-r1") == greedy(1) != greedy(3)
    assert said("none") == said("dial-none") == said("base") == greedy(None)
    assert said("dial-r2") == greedy(2)
    assert said("dial-r3") == greedy(3)
    for k in (1, 2, 3):
        table = json.loads((tmp_path / "eval" / f"dial-r{k}.json").read_text())
        assert table["reward_token"] == k


def test_main_perplexity_model(quark_folder, p0_folder, tmp_path):
    """--ppl-model measures the fluency, and --reference does if it is left out.

    "none": there is no perplexity. The rewards are always the same.
    """
    another = make_model_folder(tmp_path / "another", seed=9)
    plain = run_evaluate(tmp_path, quark_folder, p0_folder)
    other = run_evaluate(tmp_path, quark_folder, p0_folder, "--ppl-model", another)
    swapped = run_evaluate(tmp_path, quark_folder, another)
    none = run_evaluate(tmp_path, quark_folder, p0_folder, "--ppl-model", "none")
    assert plain["perplexity"]["value"] != other["perplexity"]["value"]
    assert other["perplexity"]["value"] == swapped["perplexity"]["value"]
    assert none["perplexity"]["value"] is None
    assert none["ppl_model"] is None
    assert plain["rewards"] == other["rewards"] == none["rewards"]


def test_main_same_seed_same_bytes(quark_folder, p0_folder, tmp_path):
    """Twice the same bytes. Another seed gives other completions."""

    def files(name, *options):
        run_evaluate(tmp_path, quark_folder, p0_folder, *options, name=name)
        folder = tmp_path / "eval"
        return (folder / f"{name}.json").read_bytes(), (folder / f"{name}.jsonl").read_bytes()

    a, b, c = files("a"), files("b"), files("c", "--seed", 1)
    assert a == b
    assert a[1] != c[1]


def test_main_without_scores_is_still_json(quark_folder, p0_folder, tmp_path):
    """A reward that scores some, and one that scores none: strict JSON, all else is measured."""
    body = "def reward(prompts, completions): return [None if x == 'It' else 1 for x in prompts]\n"
    some = write_reward(tmp_path, body, "some.py")
    body = "def reward(prompts, completions): return [None] * len(prompts)\n"
    none = write_reward(tmp_path, body, "none.py")
    run_evaluate(tmp_path, quark_folder, p0_folder, reward=[some, none])
    text = (tmp_path / "eval" / "quark.json").read_text()
    table = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert table["rewards"][some]["mean"]["value"] == 1
    nothing = {"value": None, "low": None, "high": None}
    assert table["rewards"][none] == dict.fromkeys(REWARD_METRICS, nothing)
    rows = read_rows(tmp_path / "eval" / "quark.jsonl")
    assert [row["rewards"][some] for row in rows] == [1] * 12 + [
        None
    ] * 3  # "It" is the last prompt


# ---------------------------------------------------------------- completions that others generated


def generations(file, p0_folder, out, *rewards):
    argv = ["--generations", file, "--reference", p0_folder, "--out", out, "--device", "cpu"]
    evaluate.main([str(a) for a in [*argv, "--reward", *rewards]])
    return json.loads(out.with_name(out.name + ".json").read_text())


def test_generations_are_measured_by_the_same_ruler(quark_folder, p0_folder, tmp_path):
    """Our own completions, read back in another order, get the table that they had when generated.

    The order begins in the middle of a prompt.
    """
    made = run_evaluate(tmp_path, quark_folder, p0_folder)
    rows = read_rows(tmp_path / "eval" / "quark.jsonl")
    for row in rows:
        del row["rewards"]
    file = write_jsonl(tmp_path / "theirs.jsonl", rows[5:] + rows[:5])
    table = generations(file, p0_folder, tmp_path / "measured", "hash", "length")
    for reward, metrics in made["rewards"].items():
        for name, metric in metrics.items():
            value = table["rewards"][reward][name]["value"]
            assert value == pytest.approx(metric["value"])
    for name in TEXT_METRICS:
        assert table[name]["value"] == pytest.approx(made[name]["value"]), name
    assert (table["n_prompts"], table["n_samples"], table["model"]) == (5, 3, None)
    assert set(table["groups"]) == set(made["groups"])


def test_equal_prompts_are_as_many_prompts(p0_folder, tmp_path):
    """Two lines with the same prompt are two prompts, also when the texts are read back."""
    prompts = [{"prompt": "It"}, {"prompt": "It"}, {"prompt": "songs"}]
    made = run_evaluate(tmp_path, p0_folder, p0_folder, prompts=prompts, reward=["hash"])
    rows = read_rows(tmp_path / "eval" / "quark.jsonl")
    assert [row["prompt_number"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    table = generations(tmp_path / "eval" / "quark.jsonl", p0_folder, tmp_path / "again", "hash")
    assert (made["n_prompts"], table["n_prompts"]) == (3, 3)
    assert table["rewards"] == made["rewards"]
    for row in rows:
        del row["prompt_number"]
    merged = generations(write_jsonl(tmp_path / "m.jsonl", rows), p0_folder, tmp_path / "n", "hash")
    assert merged["n_prompts"] == 2
    name = "avg_max_unwanted"  # the maximum of six samples, not of three twice
    worst = merged["rewards"]["hash"][name]["value"] - made["rewards"]["hash"][name]["value"]
    assert worst != 0


def test_a_table_says_what_it_depends_on(p0_folder, tmp_path):
    """Nucleus, lengths, the prompts' checksum; what greedy decoding does not use is null."""
    sampled = run_evaluate(tmp_path, p0_folder, p0_folder, "--top-k", 4, "--temperature", 0.5)
    settings = ("n_prompts", "n_samples", "decode", "top_p", "top_k", "temperature")
    assert [sampled[name] for name in settings] == [5, 3, "sample", 0.9, 4, 0.5]
    assert (sampled["max_new_tokens"], sampled["min_new_tokens"]) == (6, 3)
    greedy = run_evaluate(
        tmp_path, p0_folder, p0_folder, "--decode", "greedy", "--min-new-tokens", 1
    )
    assert [greedy[name] for name in settings] == [5, 3, "greedy", None, None, None]
    assert greedy["min_new_tokens"] == 1
    other = run_evaluate(tmp_path, p0_folder, p0_folder, prompts=[*EVALUATED[:4], {"prompt": "Is"}])
    assert greedy["prompts_sha256"] == sampled["prompts_sha256"] != other["prompts_sha256"]
    reordered = run_evaluate(tmp_path, p0_folder, p0_folder, prompts=EVALUATED[::-1])
    assert reordered["prompts_sha256"] == sampled["prompts_sha256"]
    table = generations(tmp_path / "eval" / "quark.jsonl", p0_folder, tmp_path / "g", "hash")
    assert table["prompts_sha256"] == sampled["prompts_sha256"]
    assert [table[name] for name in settings] == [5, 3, None, None, None, None]


def test_rewards_outside_of_0_and_1_are_told(p0_folder, tmp_path, capsys):
    """avg_max_unwanted and its kin are made for [0, 1]."""
    file = write_jsonl(tmp_path / "g.jsonl", [{"prompt": "a", "completion": " b"}])
    (tmp_path / "mine.py").write_text("def f(completions): return [1.5 for _ in completions]\n")
    generations(file, p0_folder, tmp_path / "i", f"{tmp_path / 'mine.py'}:f")
    assert "outside of [0, 1]" in capsys.readouterr().out
    generations(file, p0_folder, tmp_path / "h", "hash")
    assert "outside of [0, 1]" not in capsys.readouterr().out


BAD_GENERATIONS = [
    ('{"prompt": "a"}', ':1: "completion" is missing'),
    ('{"prompt": "a", "completion": 3}', ':1: "completion" is 3, not a string'),
    ("", "holds no rows"),
    ('{"prompt": "a", "completion": "b", "group": 3}', ':1: "group" is 3'),
    ("{", ":1: not valid JSON"),
]


@pytest.mark.parametrize("text, message", BAD_GENERATIONS)
def test_generations_bad_input(text, message, p0_folder, tmp_path, monkeypatch):
    """One sentence and no file. --out may not replace the file that is measured."""
    file = tmp_path / "g.jsonl"
    file.write_text(text)
    argv = ["--generations", file, "--reference", p0_folder, "--reward", "hash", "--out"]
    exit = stage(monkeypatch, "evaluate.py", *argv, tmp_path / "x")
    assert one_sentence(exit)
    assert message in exit
    assert os.listdir(tmp_path) == ["g.jsonl"]
    exit = stage(monkeypatch, "evaluate.py", *argv, tmp_path / "g")
    assert one_sentence(exit)
    assert "this command reads" in exit
    assert file.read_text() == text


# ---------------------------------------------------------------------------------------- bad input


def test_main_bad_input(quark_folder, p0_folder, tmp_path, monkeypatch):
    """Each in one sentence, and no file of results, not half of one."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", EVALUATED)
    (tmp_path / "cut.jsonl").write_text('{"prompt": "a"}\n{"prompt')
    body = "def reward(prompts, completions): return [float('nan')] * len(prompts)\n"
    nan = write_reward(tmp_path, body)
    good = {"--model": quark_folder, "--reference": p0_folder, "--prompts": prompts}
    good |= {"--reward": "hash", "--reward-token": "K", "--num-samples": 2, "--device": "cpu"}
    good["--out"] = tmp_path / "eval" / "x"
    for change, message in [
        ({"--model": tmp_path / "none"}, "does not exist"),
        ({"--reference": tmp_path}, "cannot open"),
        ({"--prompts": tmp_path / "none"}, "cannot read"),
        ({"--prompts": tmp_path / "cut.jsonl"}, "cut.jsonl:2"),
        ({"--reward": "nothing"}, "no reward is called"),
        ({"--reward": nan}, "returned nan at index 0"),
        ({"--reward-token": 4}, "3 reward tokens"),
        ({"--reward-token": "0"}, "--reward-token 0"),
        ({"--reward-token": "best"}, "--reward-token best"),
        ({"--reward-token": "²"}, "--reward-token"),
        ({"--model": p0_folder, "--reward-token": 3}, "this model has no reward tokens"),
        ({"--max-new-tokens": 63}, "no room"),
    ]:
        argv = []
        for pair in {**good, **change}.items():
            argv += pair
        exit = stage(monkeypatch, "evaluate.py", *argv)
        assert one_sentence(exit), change
        assert message in exit, change
        assert not (tmp_path / "eval").exists() or os.listdir(tmp_path / "eval") == []


NEEDED = ["--model", "--reference", "--prompts", "--reward", "--out"]


@pytest.mark.parametrize("missing", NEEDED)
def test_what_is_missing_is_named(missing, capsys):
    """argparse's exit status 2, with the option's name."""
    argv = []
    for option in NEEDED:
        if option != missing:
            argv += [option, "x"]
    with pytest.raises(SystemExit) as exit:
        evaluate.main(argv)
    assert exit.value.code == 2
    assert missing in capsys.readouterr().err.split("error:")[1]


def test_the_answers_of_a_service_are_kept_beside_the_output(p0_folder, tmp_path, monkeypatch):
    """eval/remote.cache serves all results of a folder."""
    caches, load = [], evaluate.load_reward

    def recording(name, *more, cache, **options):
        caches.append(cache)
        return load(name)

    monkeypatch.setattr(evaluate, "load_reward", recording)
    run_evaluate(tmp_path, p0_folder, p0_folder, reward=["hash"])
    assert caches == [tmp_path / "eval" / "remote.cache"]
