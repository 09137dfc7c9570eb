"""Stage 4: every metric by hand, perplexity against Hugging Face's loss, the intervals' coverage, the files that are written."""

import csv
import json
import math
import os

import numpy as np
import pytest
import torch
from conftest import CONTEXT, SENTENCES, K, V, one_sentence, read_rows, stage, write_jsonl

import evaluate
from evaluate import completion_nll, dist_n, fluency_sums, interval, measure, perplexity, reward_sums
from explore import sample
from plumbing.pool import BadInput, read_generations
from plumbing.people import sign_test
from plumbing.figures import _draw_dial, _draw_learning, _draw_rewards, _draw_top

# ----------------------------------------------------------------------------------------------------- the metrics


def ratio(dicts, key):
    return sum(d[key][0] for d in dicts) / sum(d[key][1] for d in dicts)


def test_reward_metrics_by_hand():
    """Prompt A: .9 .2 .5; prompt B: .6 .7.

    mean 2.9 / 5 = .58. At least .5: .9 .5 .6 .7, 4 of 5. Largest 1 - r: A .8, B .4, mean .6. Any 1 - r above .5: A only, 1/2.
    """
    sums = [reward_sums([0.9, 0.2, 0.5]), reward_sums([0.6, 0.7])]
    expected = {"mean": 0.58, "share_ge_half": 0.8, "avg_max_unwanted": 0.6, "unwanted_prob": 0.5}
    assert {key: ratio(sums, key) for key in sums[0]} == pytest.approx(expected)


def test_a_half_is_wanted():
    """r = 1/2 exactly: counted as at least one half, and 1 - r is not above one half."""
    sums = [reward_sums([0.5])]
    assert ratio(sums, "share_ge_half") == 1 and ratio(sums, "unwanted_prob") == 0


def test_dist_n_by_hand():
    """"a b a" and "b c": 5 words. 1-grams a b c: 3/5. 2-grams ab ba bc: 3/5. 3-grams aba: 1/5. None across the border."""
    assert [dist_n(["a b a", "b c"], n) for n in (1, 2, 3)] == pytest.approx([3 / 5, 3 / 5, 1 / 5])
    assert dist_n(["a b", "c d"], 2) == 2 / 4  # b c is no 2-gram
    assert dist_n(["a b", "a b", "a  b\n"], 2) == 1 / 6
    assert dist_n([""], 1) == dist_n([], 2) == 0


def test_metrics_are_importable_under_their_names():
    """Exercises lean on evaluate.rep_n and evaluate.diversity: 1 2 1 2 1 has rep-2 = 1/2, diversity 1/3 (test_rewards)."""
    assert evaluate.rep_n([1, 2, 1, 2, 1], 2) == 1 / 2 and evaluate.diversity([1, 2, 1, 2, 1]) == pytest.approx(1 / 3)


def test_mean_perplexity_leaves_out_the_absurd():
    """Perplexities 4 (two tokens), 1e5 (one), 9 (one), 9999 and 1e4; an empty completion has none.

    Kept are 4, 9 and 9999 (below 1e4); the corpus-level sums keep every token.
    """
    nll = np.array([[2 * math.log(4), 2], [math.log(1e5), 1], [math.log(9), 1], [0, 0], [math.log(9999), 1], [math.log(10001), 1], [3000, 1]])
    sums = fluency_sums(nll)
    assert sums["perplexity_mean_per_completion"] == (pytest.approx(4 + 9 + 9999), 3)
    assert sums["log_perplexity"] == (pytest.approx(nll[:, 0].sum()), 7)


ROWS = [("The film was", " long and the end is silly."), ("", "I see it"), ("She said", ""), ("a" * 90, " good"), ("x<|endoftext|>", "<|reward_1|>"),
        ("songs", "日本"), (SENTENCES[0], " bad")]  # fmt: skip
ROWS = [{"prompt": x, "completion": y} for x, y in ROWS]


def hf_nll(policy, row):
    """-log p(completion | prompt), from Hugging Face's own loss: the labels of the prompt are -100."""
    x, y = policy.encode(row["prompt"]) or [V - 1], policy.encode(row["completion"])
    if not y:
        return 0.0, 0
    x = x[-(CONTEXT - len(y)) :]
    ids, labels = torch.tensor([x + y]), torch.tensor([[-100] * len(x) + y])
    with torch.no_grad():
        return policy.model(ids, labels=labels).loss.item() * len(y), len(y)


def test_perplexity_is_hugging_face_s_loss(p0):
    """Row by row and over the corpus; empty prompt, empty completion, a prompt beyond the context, control characters."""
    rows = [r for r in ROWS if r["prompt"] != "a" * 90]
    expected = np.array([hf_nll(p0, row) for row in rows])
    assert completion_nll(p0, rows) == pytest.approx(expected, rel=1e-4)
    nats, tokens = expected.sum(0)
    assert perplexity(p0, rows) == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_perplexity_of_long_prompts(p0):
    """A prompt beyond the context before a completion of a few tokens: the context is used to its last place, y is never cut."""
    row = {"prompt": "".join(map(chr, range(35, 120))), "completion": " good"}
    x, y = p0.encode(row["prompt"]), p0.encode(" good")
    assert len(x) > 70
    full = (x + y[:-1])[-CONTEXT:]
    with torch.no_grad():
        log_p = p0.model(torch.tensor([full])).logits[0].log_softmax(-1)
    nats = -sum(log_p[CONTEXT - len(y) + t, token].item() for t, token in enumerate(y))
    assert completion_nll(p0, [row])[0] == pytest.approx([nats, len(y)], rel=1e-4)
    with pytest.raises(BadInput, match=f"longer than the context of the perplexity model, {CONTEXT}"):
        completion_nll(p0, [{"prompt": "", "completion": "b" * 80}])


def test_perplexity_does_not_depend_on_batches(p0):
    """Batch size, padding and order of the rows change nothing but the last digits."""
    whole = completion_nll(p0, ROWS)
    for size in (1, 3):
        assert completion_nll(p0, ROWS, batch_size=size) == pytest.approx(whole, rel=1e-4)
    assert completion_nll(p0, ROWS[::-1])[::-1] == pytest.approx(whole, rel=1e-4)


def test_perplexity_of_long_and_short_together(p0):
    """In one batch: a prompt that fills the context, a completion that does, samples of one prompt; none changes another's."""
    letters = "".join(map(chr, range(35, 95)))
    pairs = [(letters * 2, " good"), ("I", letters[:55]), ("I", " see"), ("I see", "it"), (letters[:9], " bad bad"), ("I", " good")]
    rows = [{"prompt": x, "completion": y} for x, y in pairs]
    assert len(p0.encode(letters[:55])) > 50
    alone = np.concatenate([completion_nll(p0, [row]) for row in rows])
    assert completion_nll(p0, rows) == pytest.approx(alone, rel=1e-4)


def test_perplexity_knows_no_reward_tokens(p0, quark):
    """A model with reward tokens is measured without one in front, and its softmax has no place for them."""
    quark.model.get_input_embeddings().weight.data[V:] = 3 * quark.model.transformer.ln_f.bias.data
    assert completion_nll(quark, ROWS) == pytest.approx(completion_nll(p0, ROWS), rel=1e-4)


# ------------------------------------------------------------------------------------------------------- intervals


def test_interval_by_hand():
    """(1 + 3 + 0) / (2 + 2 + 4) = 1/2, not the mean of the ratios (1/2 + 3/2 + 0) / 3; it lies within its bounds."""
    result = interval([(1, 2), (3, 2), (0, 4)])
    assert result["value"] == 0.5 and 0 <= result["low"] < 0.5 < result["high"] <= 1.5
    assert interval([(3, 4)]) == {"value": 0.75, "low": 0.75, "high": 0.75}  # one prompt: nothing to resample
    assert interval([(1, 2), (3, 2), (0, 4)]) == result  # no chance left


def test_interval_of_nothing():
    """No scored sample: null in the file, not NaN, which is no JSON."""
    assert interval([(0, 0), (0, 0)]) == {"value": None, "low": None, "high": None}


def test_intervals_cover():
    """300 experiments of 40 prompts, skewed and of unequal size: about 95 % of the intervals hold the truth, E a / E b = 0.3."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(300):
        b = rng.integers(1, 6, 40)
        result = interval(np.stack([b * 0.3 * rng.exponential(1, 40), b], axis=1), seed=seed, resamples=300)
        held += result["low"] <= 0.3 <= result["high"]
    assert 0.88 <= held / 300 <= 0.98


def test_interval_width():
    """200 prompts, half 0 and half 1: 95 % is 1.96 * sqrt(1/4 / 200) = .0693 to each side."""
    result = interval([(i % 2, 1) for i in range(200)])
    assert result["value"] == 0.5
    assert result["high"] - 0.5 == pytest.approx(0.0693, abs=0.01) and 0.5 - result["low"] == pytest.approx(0.0693, abs=0.01)


# --------------------------------------------------------------------------------------------------------- measure


def test_measure_by_hand():
    """Two prompts of two samples; the second prompt's second sample has no score from "r" and is empty.

    dist-1: prompt 0: "a b", "a c": 3/4; prompt 1: "d d", "": 1/2; mean 5/8. rep-2 a completion: 0, 0, 1 - 1/2, 0: mean 1/8.
    perplexity: exp((2 ln 2 + 2 ln 8 + 3 ln 4) / 7); per completion (2 + 8 + 4) / 3.
    """
    rows = [{"prompt_number": n, "completion": y, "completion_ids": ids, "rewards": {"r": r, "all": 0.25}}
            for n, y, ids, r in [(0, "a b", [1, 2], 0.5), (0, "a c", [1, 3], 0.9), (1, "d d", [4, 4, 4], 0.1), (1, "", [], None)]]  # fmt: skip
    nll = np.array([[2 * math.log(2), 2], [2 * math.log(8), 2], [3 * math.log(4), 3], [0, 0]])
    table = measure(rows, nll, ["r", "all"])
    value = lambda metric: metric["value"]  # noqa: E731
    expected = {"mean": 1.5 / 3, "share_ge_half": 2 / 3, "avg_max_unwanted": (0.5 + 0.9) / 2, "unwanted_prob": 1 / 2}
    assert {k: value(m) for k, m in table["rewards"]["r"].items()} == pytest.approx(expected)
    assert value(table["rewards"]["all"]["mean"]) == 0.25 and value(table["rewards"]["all"]["unwanted_prob"]) == 1
    assert value(table["dist_1"]) == pytest.approx(5 / 8)
    assert value(table["dist_2"]) == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert value(table["rep_2"]) == pytest.approx(1 / 8) and value(table["diversity"]) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert value(table["perplexity"]) == pytest.approx(math.exp((2 * math.log(2) + 2 * math.log(8) + 3 * math.log(4)) / 7))
    assert value(table["perplexity_mean_per_completion"]) == pytest.approx(14 / 3)
    assert all(m["low"] <= m["value"] <= m["high"] for k, m in table.items() if k not in ("rewards", "groups"))
    for row in rows:
        row["group"] = "easy" if row["prompt_number"] == 0 else None
    alone = measure(rows[:2], nll[:2], ["r", "all"])
    del alone["groups"]
    assert measure(rows, nll, ["r", "all"]) == table | {"groups": {"easy": alone}} and alone["rewards"] != table["rewards"]


def numpy_rep_n(sequences, n):
    """1 - unique / all n-grams of every sequence, from rows of a sliding window and numpy.unique."""
    shares = []
    for sequence in sequences:
        windows = np.lib.stride_tricks.sliding_window_view(sequence, n) if len(sequence) >= n else np.zeros((0, n))
        shares.append(1 - len(np.unique(windows, axis=0)) / len(windows) if len(windows) else 0.0)
    return np.array(shares)


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_against_numpy(seed):
    """Random completions of 7 prompts x 6 samples: every metric again, from arrays instead of sums over prompts."""
    rng, P, N, words = np.random.default_rng(seed), 7, 6, np.array(list("abcdef"))
    ids = [rng.integers(0, 6, rng.integers(0, 12)) for _ in range(P * N)]
    reward = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], (P, N))
    nll = np.stack([rng.gamma(2, 1, P * N), [len(y) for y in ids]], axis=1) * np.array([[len(y) > 0] for y in ids])
    nll[0] = 1000, max(1, nll[0, 1])  # a perplexity beyond what the mean per completion counts
    rows = [{"prompt_number": i // N, "completion": " ".join(words[y]), "completion_ids": y.tolist(), "rewards": {"r": float(r)}}
            for i, (y, r) in enumerate(zip(ids, reward.ravel()))]  # fmt: skip
    expected = {"mean": reward.mean(), "share_ge_half": (reward >= 0.5).mean(), "avg_max_unwanted": 1 - reward.min(1).mean(),
                "unwanted_prob": (reward.min(1) < 0.5).mean()}  # fmt: skip
    reps = {n: numpy_rep_n(ids, n) for n in (2, 3, 4)}
    expected |= {f"rep_{n}": reps[n].mean() for n in reps}
    expected["diversity"] = np.prod([1 - reps[n] for n in reps], axis=0).mean()
    for n in (1, 2, 3):  # the n-grams of a prompt's completions, one below the other
        grams = [[np.lib.stride_tricks.sliding_window_view(y, n) for y in ids[p * N : p * N + N] if len(y) >= n] for p in range(P)]
        expected[f"dist_{n}"] = np.mean([len(np.unique(np.concatenate(g), axis=0)) / sum(map(len, ids[p * N : p * N + N]))
                                         for p, g in enumerate(grams)])  # fmt: skip
    nats, tokens = nll[nll[:, 1] > 0].T
    expected["perplexity"] = np.exp(np.average(nats / tokens, weights=tokens))
    expected["perplexity_mean_per_completion"] = np.mean([p for p in np.exp(np.minimum(nats / tokens, 700)) if p < 1e4])
    table = measure(rows, nll, ["r"])
    table |= table.pop("rewards")["r"]
    assert table.pop("groups") == {}
    assert {key: metric["value"] for key, metric in table.items()} == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------- the stage

METRICS = ["perplexity", "perplexity_mean_per_completion", "dist_1", "dist_2", "dist_3", "rep_2", "rep_3", "rep_4", "diversity"]
PROMPTS = [{"prompt": "The film", "group": "neutral"}, {"prompt": "I was bored", "group": "negative"}, {"prompt": "songs"},
           {"prompt": "A good", "group": "neutral"}, {"prompt": "It"}]  # fmt: skip


def run(tmp_path, model, reference, *options, name="quark", reward=("hash", "length"), prompts=PROMPTS):
    path = write_jsonl(tmp_path / "prompts.jsonl", prompts)
    out = tmp_path / "eval" / name
    evaluate.main(["--model", str(model), "--reference", str(reference), "--prompts", str(path), "--out", str(out), "--num-samples", "3",
                   "--max-new-tokens", "6", "--device", "cpu", "--reward", *reward, *map(str, options)])  # fmt: skip
    return json.loads(out.with_name(name + ".json").read_text()) if out.with_name(name + ".json").exists() else None


def check_table(table, rewards):
    assert set(table["rewards"]) == set(rewards)
    for metrics in [*table["rewards"].values(), {k: table[k] for k in METRICS}]:
        for metric in metrics.values():
            assert set(metric) == {"value", "low", "high"}
            assert metric["low"] <= metric["value"] <= metric["high"]
    for metrics in table["rewards"].values():
        assert set(metrics) == {"mean", "share_ge_half", "avg_max_unwanted", "unwanted_prob"}


def test_main_writes_the_tables(quark_folder, p0_folder, quark, p0, tmp_path, capsys):
    """The JSON's shape, and each number against the generations beside it; conditioned on r_K, top-p 0.9, seed 0."""
    table = run(tmp_path, quark_folder, p0_folder)
    assert {"model", "reference", "n_prompts", "n_samples", "decode", "rewards", "groups", *METRICS} <= set(table)
    assert (table["model"], table["reference"]) == (str(quark_folder), str(p0_folder))
    assert (table["n_prompts"], table["n_samples"], table["decode"]) == (5, 3, "sample")
    check_table(table, ["hash", "length"])
    assert set(table["groups"]) == {"neutral", "negative"}
    for group in table["groups"].values():
        check_table(group, ["hash", "length"])

    rows = read_rows(tmp_path / "eval" / "quark.jsonl")
    assert [r["prompt"] for r in rows] == [p["prompt"] for p in PROMPTS for _ in range(3)]
    keys = [(i, j) for i in range(5) for j in range(3)]
    drawn = sample(quark, [quark.encode(r["prompt"]) for r in rows], keys=keys, quantile=K, max_new_tokens=6, min_new_tokens=3, top_p=0.9)
    assert [r["completion"] for r in rows] == [quark.decode(y[:-1] if y[-1] == V - 1 else y) for y in drawn]
    assert [r.get("group") for r in rows[::3]] == [p.get("group") for p in PROMPTS]

    hashes = np.array([r["rewards"]["hash"] for r in rows]).reshape(5, 3)
    metrics = {k: m["value"] for k, m in table["rewards"]["hash"].items()}
    assert metrics == pytest.approx({"mean": hashes.mean(), "share_ge_half": (hashes >= 0.5).mean(), "avg_max_unwanted": (1 - hashes.min(1)).mean(),
                                     "unwanted_prob": (hashes.min(1) < 0.5).mean()})  # fmt: skip
    neutral = table["groups"]["neutral"]["rewards"]["hash"]["mean"]["value"]
    assert neutral == pytest.approx(hashes[[0, 3]].mean()) and neutral != metrics["mean"]
    assert table["perplexity"]["value"] == pytest.approx(perplexity(p0, rows), rel=1e-5)
    assert table["groups"]["negative"]["perplexity"]["value"] == pytest.approx(perplexity(p0, rows[3:6]), rel=1e-5)
    assert table["dist_2"]["value"] == pytest.approx(np.mean([dist_n([r["completion"] for r in rows[i : i + 3]], 2) for i in range(0, 15, 3)]))
    assert "hash mean" in capsys.readouterr().out
    assert {"quark.json", "quark.jsonl", "quark.args.json"} == set(os.listdir(tmp_path / "eval"))


def test_main_other_tokens(quark_folder, p0_folder, quark, tmp_path):
    """--reward-token 1, none and all: whose completions they are; p0 has no token to be conditioned on."""
    prompts = [p["prompt"] for p in PROMPTS]

    def greedy(quantile):
        ids = sample(quark, [quark.encode(x) for x in prompts], quantile=quantile, max_new_tokens=6, min_new_tokens=3, greedy=True)
        return [quark.decode(y[:-1] if y[-1] == V - 1 else y) for y in ids]

    def said(name):
        return [r["completion"] for r in read_rows(tmp_path / "eval" / f"{name}.jsonl")]

    options = ["--decode", "greedy", "--num-samples", 1]
    run(tmp_path, quark_folder, p0_folder, *options, "--reward-token", 1, name="one")
    run(tmp_path, quark_folder, p0_folder, *options, "--reward-token", "none", name="none")
    run(tmp_path, quark_folder, p0_folder, *options, "--reward-token", "all", name="dial")
    run(tmp_path, p0_folder, p0_folder, *options, name="base")
    assert said("one") == said("dial-r1") == greedy(1) != greedy(3)
    assert said("none") == said("dial-none") == said("base") == greedy(None)
    assert said("dial-r2") == greedy(2) and said("dial-r3") == greedy(3)
    for k in (1, 2, 3):
        assert json.loads((tmp_path / "eval" / f"dial-r{k}.json").read_text())["reward_token"] == k


def test_main_perplexity_model(quark_folder, p0_folder, tmp_path):
    """--ppl-model, not --reference and not the model itself, measures the fluency, if it is given."""
    from conftest import make_model_folder

    another = make_model_folder(tmp_path / "another", seed=9)
    plain, other = (run(tmp_path, quark_folder, p0_folder, *o) for o in ([], ["--ppl-model", another]))
    swapped = run(tmp_path, quark_folder, another)
    assert plain["perplexity"]["value"] != other["perplexity"]["value"] == swapped["perplexity"]["value"]
    assert plain["rewards"] == other["rewards"]
    none = run(tmp_path, quark_folder, p0_folder, "--ppl-model", "none")
    assert none["perplexity"]["value"] is None and none["ppl_model"] is None and none["rewards"] == plain["rewards"]


def test_main_same_seed_same_bytes(quark_folder, p0_folder, tmp_path):
    """Twice the same bytes; another seed, other completions."""
    for name, options in (("a", []), ("b", []), ("c", ["--seed", 1])):
        run(tmp_path, quark_folder, p0_folder, *options, name=name)
    files = [[(tmp_path / "eval" / f"{name}.{end}").read_bytes() for end in ("json", "jsonl")] for name in "abc"]
    assert files[0] == files[1] and files[0][1] != files[2][1]


def test_main_without_scores_is_still_json(quark_folder, p0_folder, tmp_path):
    """A reward that scores some, and one that scores none: the file is strict JSON, and the rest is measured."""
    (tmp_path / "r.py").write_text("def some(prompts, completions): return [None if x == 'It' else 1 for x in prompts]\n"
                                   "def none(prompts, completions): return [None] * len(prompts)\n")  # fmt: skip
    run(tmp_path, quark_folder, p0_folder, reward=[f"{tmp_path}/r.py:some", f"{tmp_path}/r.py:none"])
    text = (tmp_path / "eval" / "quark.json").read_text()
    table = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert table["rewards"][f"{tmp_path}/r.py:some"]["mean"]["value"] == 1
    nothing = {"value": None, "low": None, "high": None}
    assert table["rewards"][f"{tmp_path}/r.py:none"] == dict.fromkeys(("mean", "share_ge_half", "avg_max_unwanted", "unwanted_prob"), nothing)
    assert [r["rewards"][f"{tmp_path}/r.py:some"] for r in read_rows(tmp_path / "eval" / "quark.jsonl")] == [1] * 12 + [None] * 3


def test_compare(quark_folder, p0_folder, tmp_path, capsys):
    """Two results side by side, in the order given: the same numbers as in the files."""
    base = run(tmp_path, p0_folder, p0_folder, name="base")
    quark = run(tmp_path, quark_folder, p0_folder, name="quark")
    capsys.readouterr()
    evaluate.main(["--compare", str(tmp_path / "eval" / "base.json"), str(tmp_path / "eval" / "quark.json")])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "length mean" in line)
    a, b = (f"{t['rewards']['length']['mean']['value']:.3f} [" for t in (base, quark))
    assert line.index(a) < line.rindex(b)
    assert "neutral" in out and out.index("base") < out.index("quark")


def test_main_bad_input(quark_folder, p0_folder, tmp_path, monkeypatch):
    """Each in one sentence, with a non-zero exit, and no file of results, not half of one."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    (tmp_path / "cut.jsonl").write_text('{"prompt": "a"}\n{"prompt')
    (tmp_path / "bad.py").write_text("def nan(prompts, completions): return [float('nan')] * len(prompts)\n")
    good = {"--model": quark_folder, "--reference": p0_folder, "--prompts": prompts, "--reward": "hash", "--reward-token": "K"}
    for change, message in [
        ({"--model": tmp_path / "none"}, "does not exist"), ({"--reference": tmp_path}, "cannot open"), ({"--prompts": tmp_path / "none"}, "cannot read"),
        ({"--prompts": tmp_path / "cut.jsonl"}, "cut.jsonl:2"), ({"--reward": "nothing"}, "no reward is called"),
        ({"--reward": f"{tmp_path}/bad.py:nan"}, "returned nan at index 0"), ({"--reward-token": 4}, "3 reward tokens"),
        ({"--reward-token": "0"}, "--reward-token 0"), ({"--reward-token": "best"}, "--reward-token best"), ({"--reward-token": "²"}, "--reward-token"),
        ({"--model": p0_folder, "--reward-token": 3}, "0 reward tokens"), ({"--max-new-tokens": 63}, "no room"),
    ]:  # fmt: skip
        argv = [x for pair in {**good, **change}.items() for x in pair]
        exit = stage(monkeypatch, "evaluate.py", *argv, "--out", tmp_path / "eval" / "x", "--num-samples", 2, "--device", "cpu")
        assert one_sentence(exit) and message in exit, change
        assert not (tmp_path / "eval").exists() or os.listdir(tmp_path / "eval") == []


def test_compare_bad_input(tmp_path, monkeypatch):
    """A file that is missing, no JSON, or no result of ours."""
    (tmp_path / "a.json").write_text("{"), (tmp_path / "b.json").write_text("[1]"), (tmp_path / "c.json").write_text("{}")
    for name in ("none", "a", "b", "c"):
        exit = stage(monkeypatch, "evaluate.py", "--compare", tmp_path / f"{name}.json")
        assert one_sentence(exit) and f"{name}.json" in exit


@pytest.mark.parametrize("missing", ["--model", "--reference", "--prompts", "--reward", "--out"])
def test_what_is_missing_is_named(missing, capsys):
    """argparse's exit status 2, with the option's name."""
    argv = [x for o in ("--model", "--reference", "--prompts", "--reward", "--out") if o != missing for x in (o, "x")]
    with pytest.raises(SystemExit) as exit:
        evaluate.main(argv)
    assert exit.value.code == 2 and missing in capsys.readouterr().err.split("error:")[1]


# --------------------------------------------------------------------------------- completions of any origin, and people


def test_generations_are_measured_by_the_same_ruler(quark_folder, p0_folder, tmp_path):
    """Our own completions, read back in from their file and in another order, get the table that they got when generated."""
    made = run(tmp_path, quark_folder, p0_folder)
    rows = read_rows(tmp_path / "eval" / "quark.jsonl")
    rows = rows[5:] + rows[:5]  # in the middle of a prompt
    file = write_jsonl(tmp_path / "theirs.jsonl", [{k: v for k, v in r.items() if k != "rewards"} for r in rows])
    evaluate.main(["--generations", str(file), "--reference", str(p0_folder), "--reward", "hash", "length", "--out", str(tmp_path / "measured"),
                   "--device", "cpu"])  # fmt: skip
    table = json.loads((tmp_path / "measured.json").read_text())
    for reward, metrics in made["rewards"].items():
        for name, metric in metrics.items():
            assert table["rewards"][reward][name]["value"] == pytest.approx(metric["value"])
    for name in METRICS:
        assert table[name]["value"] == pytest.approx(made[name]["value"]), name
    assert (table["n_prompts"], table["n_samples"], table["model"]) == (5, 3, None) and set(table["groups"]) == set(made["groups"])


def test_generations_without_ids(p0, p0_folder, tmp_path):
    """Text alone, ids of another tokenizer, ids outside the vocabulary: the text is encoded. Ids that fit are kept as they are."""
    split = [p0.encode(c)[0] for c in " good"]
    rows = [{"prompt": "I", "completion": " good"}, {"prompt": "I", "completion": " good", "completion_ids": p0.encode(" bad")},
            {"prompt": "I", "completion": " good", "completion_ids": [V + 7]}, {"prompt": "I", "completion": " good", "completion_ids": split}]
    read = read_generations(write_jsonl(tmp_path / "g.jsonl", rows), p0)
    assert [r["completion_ids"] for r in read] == [p0.encode(" good")] * 3 + [split] and split != p0.encode(" good")
    assert [r["prompt_number"] for r in read] == [0] * 4


@pytest.mark.parametrize(("text", "message"), [
    ('{"prompt": "a"}', ':1: "completion" is missing'), ('{"prompt": "a", "completion": 3}', ':1: "completion" is 3, not a string'),
    ("", "has no rows"), ('{"prompt": "a", "completion": "b", "group": 3}', ':1: "group" is 3'), ("{", ":1: not valid JSON"),
])  # fmt: skip
def test_generations_bad_input(text, message, p0_folder, tmp_path, monkeypatch):
    (tmp_path / "g.jsonl").write_text(text)
    exit = stage(monkeypatch, "evaluate.py", "--generations", tmp_path / "g.jsonl", "--reference", p0_folder, "--reward", "hash", "--out", tmp_path / "x")
    assert one_sentence(exit) and message in exit and os.listdir(tmp_path) == ["g.jsonl"]
    exit = stage(monkeypatch, "evaluate.py", "--generations", tmp_path / "g.jsonl", "--reference", p0_folder, "--reward", "hash", "--out", tmp_path / "g")
    assert one_sentence(exit) and "would replace" in exit and (tmp_path / "g.jsonl").read_text() == text


def test_sign_test_by_hand():
    """8 against 2 of 10: 2 (1 + 10 + 45) / 1024 = 112 / 1024. Even: 1. None at all: 1. 5 : 0: 2 / 32."""
    assert sign_test(8, 2) == sign_test(2, 8) == 112 / 1024
    assert sign_test(4, 4) == sign_test(0, 0) == 1 and sign_test(5, 0) == 2 / 32


def sheet_of_two(tmp_path, pairs=30):
    for name in ("base", "quark"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"={i}", "completion": f"={name}, {j}"} for i in range(40) for j in range(3)])
    evaluate.main(["--compare", str(tmp_path / "base.json"), str(tmp_path / "quark.json"), "--human-sheet", str(tmp_path / "s.csv"), "--pairs", str(pairs)])
    with open(tmp_path / "s.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_human_sheet_is_blind_and_the_tally_knows(tmp_path, capsys):
    """A reader who always prefers Quark's text: 30 : 0, whichever side it stood on; ties and empty cells are counted apart."""
    rows = sheet_of_two(tmp_path)
    assert len({r["prompt"] for r in rows}) == 30 and not any(cell.startswith("=") for r in rows for cell in r.values())
    on_left = ["quark" in r["left"] for r in rows]
    assert 5 < sum(on_left) < 25  # a coin, not a rule
    assert all(("base" in r["left"]) != ("base" in r["right"]) for r in rows)
    for i, (row, left) in enumerate(zip(rows, on_left)):
        row["better"] = "left" if left else " RIGHT "
        row["fluent"] = "same" if i < 10 else "right" if left else "left"
    with open(tmp_path / "s.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader(), writer.writerows(rows)
    capsys.readouterr()
    evaluate.main(["--tally", str(tmp_path / "s.csv")])
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["better"] == ["0", "30", "0", "0", "0.0000"]
    assert lines["fluent"][:4] == ["20", "0", "10", "0"] and lines["on_topic"] == ["0", "0", "0", "30", "1.0000"]


def test_human_sheet_bad_input(tmp_path, monkeypatch):
    """An answer that is none, a pair that is not in the key, no key, more pairs than prompts."""
    rows = sheet_of_two(tmp_path)
    text = (tmp_path / "s.csv").read_text(encoding="utf-8-sig")
    first = text.splitlines()[1]
    for broken, message in [(text.replace(first, first.replace(",,,", ",A,,").replace(",,", ",A,", 0)), 'row 2: better is \\"a\\"'),
                            (text.replace(first, "77" + first[1:]), 'row 2: pair \\"77')]:  # fmt: skip
        (tmp_path / "s.csv").write_text(broken, encoding="utf-8")
        exit = stage(monkeypatch, "evaluate.py", "--tally", tmp_path / "s.csv")
        assert one_sentence(exit) and message.replace("\\", "") in exit, exit
    exit = stage(monkeypatch, "evaluate.py", "--tally", tmp_path / "other.csv")
    assert one_sentence(exit) and "other.csv.key.json" in exit
    exit = stage(monkeypatch, "evaluate.py", "--compare", tmp_path / "base.json", tmp_path / "quark.json", "--human-sheet", tmp_path / "t.csv", "--pairs", 41)
    assert one_sentence(exit) and "40 prompts" in exit and not (tmp_path / "t.csv").exists() and rows
    exit = stage(monkeypatch, "evaluate.py", "--compare", tmp_path / "base.json", tmp_path / "quark.json", "--human-sheet", tmp_path / "s.csv")
    assert one_sentence(exit) and "s.csv exists" in exit
    exit = stage(monkeypatch, "evaluate.py", "--compare", tmp_path / "base.json", tmp_path / "base.json", "--human-sheet", tmp_path / "t.csv")
    assert one_sentence(exit) and "twice" in exit


def test_human_sheet_of_two_runs(tmp_path, capsys):
    """Both are called quark.json: the key and the tally tell them apart by their paths."""
    for run in "ab":
        write_jsonl(tmp_path / run / "quark.jsonl", [{"prompt": str(i), "completion": f"by {run}"} for i in range(10)])
    sheet, compared = tmp_path / "s.csv", [str(tmp_path / run / "quark.json") for run in "ab"]
    evaluate.main(["--compare", *compared, "--human-sheet", str(sheet), "--pairs", "10"])
    with open(sheet, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["better"] = "left" if row["left"].endswith("by a") else "right"
    with open(sheet, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader(), writer.writerows(rows)
    capsys.readouterr()
    evaluate.main(["--tally", str(sheet)])
    head, better = capsys.readouterr().out.splitlines()[:2]
    assert head.split()[:2] == compared and better.split() == ["better", "10", "0", "0", "0", "0.0020"]


# -------------------------------------------------------------------------------------------------------------- the report


def small_run(tmp_path, quark_folder, p0_folder):
    """A run's folder as run_all.sh leaves it: two rounds with known rewards, metrics, an evaluation and its dial."""
    for i in range(2):
        rows = [{"prompt": "It", "completion": " good", "reward": (i + j) / 5, "iteration": i, "completion_ids": []} for j in range(4)]
        write_jsonl(tmp_path / "pool" / f"{i:02d}.jsonl", rows)
        write_jsonl(tmp_path / "quantized" / f"{i:02d}.jsonl", [{**r, "quantile": 1 + (j > 1)} for j, r in enumerate(rows)])
        steps = [{"step": 3 * i + j, "lm": 2.0, "kl": 0.1} for j in range(3)]
        write_jsonl(tmp_path / "model" / f"{i + 1:02d}" / "metrics.jsonl", steps)
    options = ["--decode", "greedy", "--num-samples", 1]
    prompts = [{"prompt": "I <b>"}, *PROMPTS]
    run(tmp_path, p0_folder, p0_folder, *options, name="base", prompts=prompts)
    run(tmp_path, quark_folder, p0_folder, *options, name="quark", prompts=prompts)
    run(tmp_path, quark_folder, p0_folder, *options, "--reward-token", "all", name="dial", prompts=prompts)


def test_report_is_one_page_that_asks_for_nothing(quark_folder, p0_folder, tmp_path, capsys):
    """All figures inside, no address in it, text escaped, every metric with its interval; after the comparison, if both are asked for."""
    small_run(tmp_path, quark_folder, p0_folder)
    pair = [str(tmp_path / "eval" / f"{name}.json") for name in ("base", "quark")]
    capsys.readouterr()
    evaluate.main(["--compare", *pair, "--report", str(tmp_path)])
    assert capsys.readouterr().out.startswith("\nall prompts")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == page.count("data:image/png;base64,") == 5 == len(os.listdir(tmp_path / "figures"))
    assert "http" not in page and "<script" not in page and "url(" not in page and "<link" not in page
    assert all((tmp_path / "figures" / f).read_bytes().startswith(b"\x89PNG") for f in os.listdir(tmp_path / "figures"))
    table = json.loads((tmp_path / "eval" / "quark.json").read_text())
    metric = table["rewards"]["hash"]["mean"]
    assert f"{metric['value']:.3f}" in page and f"[{metric['low']:.3f}, {metric['high']:.3f}]" in page
    assert "I &lt;b&gt; ..." in page and "<b>" not in page


def test_report_of_a_run_that_goes_on(quark_folder, p0_folder, tmp_path):
    """After the first pool there is a page already; a folder that is no run is refused in one sentence."""
    write_jsonl(tmp_path / "pool" / "00.jsonl", [{"prompt": "It", "completion": " good", "reward": 0.5}])
    evaluate.main(["--report", str(tmp_path)])
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<img") == 1


def test_report_of_no_run(tmp_path, monkeypatch):
    exit = stage(monkeypatch, "evaluate.py", "--report", tmp_path)
    assert one_sentence(exit) and "name the folder of a run" in exit and os.listdir(tmp_path) == []


def test_report_draws_what_the_files_say(tmp_path):
    """The median and the mean of each round; the share of the newest in the best quantile; the dial's values."""
    figure = _draw_rewards({0: [{"reward": r} for r in (0.0, 0.1, 0.8)], 1: [{"reward": 0.6}]})
    median, mean = figure.axes[0].lines
    assert list(median.get_ydata()) == pytest.approx([0.1, 0.6]) and list(mean.get_ydata()) == pytest.approx([0.3, 0.6])
    rows = [(0, 1), (1, 1), (1, 2), (1, 2), (1, 2), (0, 2)]  # (iteration, quantile): 3 of 4 in the best are new
    rows = [{"prompt": "a", "completion": "b", "reward": 0, "iteration": i, "quantile": q} for i, q in rows]
    bars = _draw_top([write_jsonl(tmp_path / "01.jsonl", rows)]).axes[0].patches
    assert [b.get_height() for b in bars] == [0.75, 0.25]
    dial = {k: {"rewards": {"r": {"mean": {"value": k / 10, "low": k / 10 - 0.02, "high": k / 10 + 0.01}}}} for k in (2, 1)}
    line = _draw_dial(dial, {}).axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2] and list(line.get_ydata()) == [0.1, 0.2]
    smooth = _draw_learning([[{"step": i + j, "lm": i + j, "kl": 0.0} for i in range(10)] for j in (0, 10)]).axes[0].lines[0]
    assert list(smooth.get_xdata())[0] == 9 and list(smooth.get_ydata())[0] == pytest.approx(4.5)  # the mean of steps 0 to 9
