"""The whole method on a random model: two rounds and an evaluation, twice, byte for byte."""

import json
from pathlib import Path

from conftest import read_rows, write_jsonl

import evaluate
import explore
import learn
import quantize
from explore import load_policy

PROMPTS = ["The film was", "I was", "There is nothing", "songs", "", "She said that it's"]

SAMPLE = ["--num-samples", 3, "--max-new-tokens", 8, "--device", "cpu"]
EXPLORE = ["--reward", "length", "--decode", "mixed", "--top-p", 0.9, *SAMPLE]
LEARN = ["--steps", 5, "--total-steps", 10, "--batch-size", 7, "--grad-accum", 2]
LEARN += ["--lr", 0.003, "--warmup", 3, "--clip", 1, "--device", "cpu"]
EVALUATE = ["--reward", "length", "hash", *SAMPLE]


def run(stage, *argv):
    stage.main([str(a) for a in argv])


def two_rounds(folder, p0_folder, monkeypatch):
    """Explore, quantize, learn; explore, quantize, learn; evaluate p0 and the result.

    Returns {path: bytes} of all files. Paths are relative to `folder`.
    """
    folder.mkdir()
    monkeypatch.chdir(folder)
    rows = [{"prompt": x, "group": "odd" if i % 2 else "even"} for i, x in enumerate(PROMPTS)]
    prompts = ["--prompts", write_jsonl(Path("prompts.jsonl"), rows)]
    reference = ["--reference", p0_folder]
    model = p0_folder
    for t in range(2):
        pool, quantized, learned = f"pool/0{t}.jsonl", f"quantized/0{t}.jsonl", f"model/0{t + 1}"
        by = ["--model", model]
        run(explore, *by, *prompts, "--iteration", t, "--out", pool, *EXPLORE)
        run(quantize, "pool", "--quantiles", 4, "--out", quantized)
        run(learn, *by, *reference, "--pool", quantized, "--out", learned, *LEARN)
        model = learned
    for name, by in (("base", p0_folder), ("quark", model)):
        inputs = ["--model", by, *reference, *prompts]
        run(evaluate, *inputs, "--out", f"eval/{name}", *EVALUATE)
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


def test_two_rounds_twice(p0_folder, tmp_path, monkeypatch):
    """The same inputs and the same seed give the same bytes in every file.

    Only metrics.jsonl differs: it holds tokens per second. Within a run, each round adds 6 prompts
    x 3 samples to the pool, old pool files stay, and K and the number of the step go on.
    """
    first = two_rounds(tmp_path / "a", p0_folder, monkeypatch)
    second = two_rounds(tmp_path / "b", p0_folder, monkeypatch)
    assert first.keys() == second.keys()
    different = {name for name in first if first[name] != second[name]}
    assert all(name.endswith("metrics.jsonl") for name in different)
    names = {Path(name).name for name in first}
    assert {"00.jsonl", "01.jsonl", "model.safetensors", "optimizer.pt"} <= names
    assert {"base.json", "quark.json", "quark.jsonl"} <= names
    assert not [name for name in first if "unfinished" in name]

    pool = read_rows("pool/00.jsonl") + read_rows("pool/01.jsonl")
    assert len(read_rows("quantized/00.jsonl")) == 18
    quantized = read_rows("quantized/01.jsonl")
    assert [row["iteration"] for row in quantized] == [0] * 18 + [1] * 18
    assert {row.pop("quantile") for row in quantized} == {1, 2, 3, 4}
    assert quantized == pool
    metrics = read_rows("model/01/metrics.jsonl") + read_rows("model/02/metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(10))
    assert load_policy("model/02").n_quantiles == 4
    assert json.loads(first["eval/base.json"])["n_prompts"] == 6
    assert first["eval/base.jsonl"] != first["eval/quark.jsonl"]
