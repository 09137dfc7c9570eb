"""The whole method on the random model: two rounds and an evaluation, twice, byte for byte. Then the shipped models, if there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, read_rows, write_jsonl

import evaluate
import explore
import learn
import quantize
from explore import load_policy, sample
from plumbing.pool import read_prompts

PROMPTS = ["The film was", "I was", "There is nothing", "songs", "", "She said that it's"]


def rounds(folder, p0_folder, monkeypatch):
    """Explore, quantize, learn; explore, quantize, learn; evaluate p0 and the result. Paths are relative to `folder`."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_jsonl(Path("prompts.jsonl"), [{"prompt": x, "group": "odd" if i % 2 else "even"} for i, x in enumerate(PROMPTS)])
    model, cpu = str(p0_folder), ["--device", "cpu"]
    for i in range(2):
        explore.main(["--model", model, "--prompts", "prompts.jsonl", "--reward", "length", "--out", f"pool/0{i}.jsonl", "--iteration", str(i),
                      "--num-samples", "3", "--max-new-tokens", "8", "--decode", "mixed", "--top-p", "0.9", *cpu])  # fmt: skip
        quantize.main(["pool", "--quantiles", "4", "--out", f"quantized/0{i}.jsonl"])
        learn.main(["--pool", f"quantized/0{i}.jsonl", "--model", model, "--reference", str(p0_folder), "--out", f"model/0{i + 1}", "--steps", "5",
                    "--total-steps", "10", "--batch-size", "7", "--grad-accum", "2", "--lr", "0.003", "--warmup", "3", "--clip", "1", *cpu])  # fmt: skip
        model = f"model/0{i + 1}"
    for name, which in (("base", str(p0_folder)), ("quark", model)):
        evaluate.main(["--model", which, "--reference", str(p0_folder), "--prompts", "prompts.jsonl", "--reward", "length", "hash",
                       "--out", f"eval/{name}", "--num-samples", "3", "--max-new-tokens", "8", *cpu])  # fmt: skip
    return {str(p): p.read_bytes() for p in sorted(Path().rglob("*")) if p.is_file()}


def test_two_rounds_twice(p0_folder, tmp_path, monkeypatch):
    """Same inputs, same seed: the same bytes of pools, quantized pools, results, generations, settings and weights.

    Inside: the pool grows by a round's samples, old pool files stay, K and the steps go on from one round to the next.
    """
    first = rounds(tmp_path / "a", p0_folder, monkeypatch)
    second = rounds(tmp_path / "b", p0_folder, monkeypatch)
    assert first.keys() == second.keys()
    timed = {name for name in first if name.endswith("metrics.jsonl")}  # they hold tokens per second
    different = {name for name in first if name not in timed and first[name] != second[name]}
    assert not different
    kinds = {Path(name).name for name in first}
    assert {"00.jsonl", "01.jsonl", "base.json", "quark.json", "quark.jsonl", "model.safetensors", "optimizer.pt"} <= kinds
    assert not [name for name in first if ".tmp" in name]

    pools = [read_rows(f"pool/0{i}.jsonl") for i in range(2)]
    quantized = [read_rows(f"quantized/0{i}.jsonl") for i in range(2)]
    assert [len(q) for q in quantized] == [18, 36]
    assert [{k: x for k, x in row.items() if k != "quantile"} for row in quantized[1]] == pools[0] + pools[1]
    assert [row["iteration"] for row in quantized[1]] == [0] * 18 + [1] * 18
    steps = [m["step"] for i in (1, 2) for m in read_rows(f"model/0{i}/metrics.jsonl")]
    assert steps == list(range(10))
    assert load_policy("model/02").n_quantiles == 4
    assert json.loads(first["eval/base.json"])["n_prompts"] == 6
    assert first["eval/base.jsonl"] != first["eval/quark.jsonl"]


# ------------------------------------------------------------------- what is shipped in tiny/ (skipped where it is not)

LM, JUDGES = ROOT / "tiny" / "lm", [ROOT / "tiny" / "sentiment", ROOT / "tiny" / "toxicity"]
needs_lm = pytest.mark.skipif(not (LM / "config.json").exists(), reason="tiny/lm is not in this checkout")


def test_other_settings_want_another_folder(tmp_path):
    """Finished stages are skipped, so run_all.sh refuses a folder that was made with other settings or another reward file, and says
    which; sizes that only round may change. `true` stands in for python: it makes nothing, and always succeeds."""
    (tmp_path / "my.py").write_text("def f(): pass\n")
    plain = {"RUN": str(tmp_path / "run"), "REWARD": f"{tmp_path}/my.py:f", "PYTHON": "true"}

    def run(**settings):
        done = subprocess.run(["bash", ROOT / "run_all.sh"], env={**os.environ, **plain, **settings}, capture_output=True, text=True)
        return done.returncode, done.stderr.strip()

    assert run()[0] == run()[0] == run(SAMPLE_BATCH="16", GRAD_ACCUM="2", BF16="")[0] == 0
    for settings, message in [({"K": "7"}, "K=5, and now it is K=7"), ({"QUANTIZE": ""}, "QUANTIZE=--per-prompt --keep-top 0.8, and now it is QUANTIZE=;"),
                              ({"ITERATIONS": "8"}, "ITERATIONS=6, and now it is ITERATIONS=8"), ({"LEARN": "--closed-form"}, "LEARN=, and now")]:  # fmt: skip
        status, said = run(**settings)
        assert status == 1 and "\n" not in said and f"{tmp_path}/run was made with {message}" in said, said
    (tmp_path / "my.py").write_text("def f(): return\n")
    status, said = run()
    assert status == 1 and "checksum of" in said
    status, said = run(PYTHON="no-such-python")
    assert status == 1 and "\n" not in said and "PYTHON=no-such-python does not start" in said


@pytest.mark.parametrize("task, settings, pools, options", [
    ("sentiment", {}, ["pool/00", "quantized/00 pool/01", "quantized/01 pool/02"], "--per-prompt --keep-top 0.8"),
    ("toxicity", {}, ["pool/00", "quantized/00 pool/01", "quantized/01 pool/02"], "--per-prompt --keep-top 0.9"),
    ("toxicity", {"FORGET": ""}, ["pool/00", "pool/00 pool/01", "pool/00 pool/01 pool/02"], "--per-prompt --keep-top 0.9"),
    ("toxicity", {"FORGET": "", "QUANTIZE": ""}, ["pool/00", "pool/00 pool/01", "pool/00 pool/01 pool/02"], "")])  # fmt: skip
def test_what_a_round_learns_from(task, settings, pools, options, tmp_path):
    """Every round's samples so far, as in the paper; with FORGET the newest and what the round before learned from, so that what was
    left out once stays out. `true` stands in for python."""
    run = tmp_path / "run"
    env = {**os.environ, "PYTHON": "true", "RUN": str(run), "ITERATIONS": "3", **settings}
    printed = subprocess.run(["bash", ROOT / "run_all.sh", task], env=env, capture_output=True, text=True, check=True).stdout
    asked = [line.removeprefix("+ quantize.py ").split(" --out ")[0] for line in printed.splitlines() if line.startswith("+ quantize.py")]
    assert asked == [" ".join([*(f"{run}/{name}.jsonl" for name in pool.split()), f"--quantiles 5 --seed 0 {options}"]).strip() for pool in pools]


@needs_lm
def test_shipped_model():
    """tiny/lm opens as p0, encodes and decodes, writes words, and knows English better than chance: below 200 a token."""
    policy = load_policy(LM)
    assert policy.n_quantiles == 0 and policy.eos_id == policy.vocab_size - 1
    text = "The film was too long, and I didn't like the ending."
    assert policy.decode(policy.encode(text)) == text
    y = sample(policy, [policy.encode("This movie is")], max_new_tokens=12, greedy=True)[0]
    assert any(c.isalpha() for c in policy.decode(y))
    assert evaluate.perplexity(policy, [{"prompt": "The film was too", "completion": " long, and I didn't like the ending."}]) < 200


@needs_lm
def test_prompts_are_drawn_and_named(p0_folder, tmp_path):
    """tiny/prompts.py: no opening in both files, and a test prompt's group is that of its positive completions of 25."""
    openings = [f"Opening {i} says" for i in range(10)]
    (tmp_path / "openings.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in openings))
    command = [sys.executable, ROOT / "tiny" / "prompts.py", "--openings", tmp_path / "openings.jsonl", "--model", p0_folder, "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    train, test = ([json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "test"))
    assert len(train) == 6 and {p["prompt"] for p in train}.isdisjoint(p["prompt"] for p in test)
    subprocess.run([*command, "--regroup"], check=True, capture_output=True)
    again = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [p["prompt"] for p in again] == [p["prompt"] for p in test]
    for p in test + again:
        low, high = {"negative": (0, 4), "neutral": (9, 16), "positive": (21, 25), None: (0, 25)}[p["group"]]
        assert low <= p["num_positive"] <= high


@pytest.mark.parametrize("name, better, worse", [
    ("sentiment", " is wonderful, a beautiful and moving film.", " is terrible, a boring and stupid waste of time."),
    ("toxicity", " is a quiet story about a family.", " is made by stupid idiots, you moron, shut up.")])  # fmt: skip
def test_shipped_judges(name, better, worse):
    """The judges in tiny/ prefer the obvious."""
    if not (ROOT / "tiny" / name / "config.json").exists():
        pytest.skip(f"tiny/{name} is not in this checkout")
    from rewards import load_reward

    a, b = load_reward(name)(prompts=["This movie"] * 2, completions=[better, worse])
    assert a > 0.5 > b


def test_shipped_prompts():
    """Valid prompt files, no prompt twice in one, none of the training's in the test's."""
    folder = ROOT / "tiny" / "prompts"
    tests = sorted(folder.glob("*test.jsonl"))
    if not tests:
        pytest.skip("tiny/prompts is not in this checkout")
    for file in tests:
        train, test = ([p["prompt"] for p in read_prompts(f)] for f in (str(file).replace("test.jsonl", "train.jsonl"), file))
        assert len(set(test)) == len(test) > 10 and len(set(train)) == len(train) > 10 and not set(train) & set(test)
