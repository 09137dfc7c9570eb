"""Whatever is wrong with the input: one sentence with the place and a remedy, a non-zero exit, and nothing written or lost."""

import json
import os
import re
import shutil
from functools import partial

import pytest
from conftest import CONTEXT, ROOT, V, learn_merges, one_sentence, read_rows, stage, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

import quantize
from plumbing.policy import build_encoding
from learn import load_quantized
from plumbing.pool import BadInput
from plumbing.pool import read_pool
from plumbing.pool import read_prompts

ROW = {"prompt": "The film", "completion": " was good", "reward": 0.5, "iteration": 0, "quantile": 1}


def line(**changes):
    return json.dumps({**ROW, **changes}).encode() + b"\n"


GOOD = line() + line(reward=0.7)

# ------------------------------------------------------------------------- a file of rows, as each stage reads it
# what is in the file, what the message says; {} stands for the file's name. All stages that read such a file are tried.

LINES = [
    (b"", "{}"),
    (b"\n \n", "{}"),
    (GOOD + b"not json\n", "{}:3: not valid JSON"),
    (GOOD + b'{"prompt": "x", "compl', "{}:3: not valid JSON: .*the file ends within this line"),
    (GOOD + b"[1, 2]\n", "{}:3: is [1, 2], not an object"),
    (GOOD + b"\xff\xfe\n", "{}:3: byte 0 is not UTF-8"),
    (GOOD + '{"prompt": "a'.encode("utf-16") + b"\n", "{}:3: byte 0 is not UTF-8"),
    (GOOD + b'{"prompt": "\\udc00", "completion": "a", "reward": 1, "quantile": 1}\n', '{}:3: half a surrogate pair'),
    (GOOD + b'{"prompt": "b", "completion": "a", "reward": 1, "quantile": 1, "group": "x", "note": "\\ud83d"}\n', "{}:3: half a surrogate pair"),
    (GOOD + b'{"prompt": {"text": 3}, "completion": 3, "reward": 1, "quantile": 1}\n', "{}:3: "),
    (GOOD + b'{"completion": "a", "reward": 1, "quantile": 1}\n', '{}:3: "prompt" is missing'),
    (GOOD + b"[" * 10**6 + b"\n", "{}:3: not valid JSON"),
    (GOOD + b'{"prompt": ' + b"9" * 10**6 + b"}\n", "{}:3: "),
    (GOOD + b"x" * 10**7, "{}:3: not valid JSON"),
]  # fmt: skip
POOL_LINES = [
    (GOOD + line(reward=None), '{}:3: "reward" is null'),
    (GOOD + line(reward="1"), '{}:3: "reward" is "1", not a number'),
    (GOOD + line(reward=float("nan")), '{}:3: "reward" is NaN'),
    (GOOD + line(reward=float("inf")), '{}:3: "reward" is Infinity'),
    (GOOD + line(reward=10**400), '{}:3: "reward" is 1000'),
    (GOOD + line(iteration="1"), '{}:3: "iteration" is "1"'),
    (GOOD + line(quantile=2.5), '{}:3: "quantile" is 2.5'),
    (GOOD + line(completion=None), '{}:3: "completion" is null'),
    (GOOD + line(prompt_ids=[0.5]), '{}:3: "prompt_ids" is [0.5]'),
    (GOOD + line(completion_ids={"a": 1}), '{}:3: "completion_ids" is'),
    (GOOD + line(prompt_ids=[-1]), '{}:3: "prompt_ids" is [-1]'),
    (GOOD + line(prompt_ids=[10**30]), "{}:3: "),
]  # fmt: skip
LEARN_LINES = [
    (line(quantile=None), "{}:1: "),
    (json.dumps({k: v for k, v in ROW.items() if k != "quantile"}).encode(), '{}:1: "quantile" is missing; run quantize.py'),
    (GOOD + line(quantile=3), "no row has quantile 2 of 3"),
    (GOOD + line(prompt_ids=[V]), f'{{}}:3: "prompt_ids" holds {V}, but the model has {V} tokens'),
    (GOOD + line(completion_ids=[70, 71]), '{}:3: "completion_ids" do not spell'),
    (GOOD + line(completion="a" * CONTEXT), "{}:3: the completion has"),
    (line(completion=""), "no rows to learn from"),
]  # fmt: skip
ROWS_CASES = (
    [("quantize.py", *case) for case in LINES + POOL_LINES]
    + [("learn.py", *case) for case in LINES + POOL_LINES + LEARN_LINES]
    + [("explore.py", *case) for case in LINES] + [("evaluate.py", *case) for case in LINES]
    + [("rewards.py", *case) for case in LINES if b'"text"' not in case[0]] + [("generations", *case) for case in LINES]
)  # fmt: skip


def command(reader, file, p0, out):
    """The stage's command line with `file` where it reads rows, and `out` to write to."""
    common = ["--device", "cpu", "--max-new-tokens", "6"]
    return {
        "quantize.py": ["quantize.py", file, "--quantiles", "1", "--out", out],
        "learn.py": ["learn.py", "--pool", file, "--model", p0, "--reference", p0, "--steps", "1", "--batch-size", "2", "--device", "cpu", "--out", f"{out}-model"],
        "explore.py": ["explore.py", "--model", p0, "--prompts", file, "--reward", "hash", "--out", out, *common],
        "evaluate.py": ["evaluate.py", "--model", p0, "--reference", p0, "--prompts", file, "--reward", "hash", "--num-samples", "1", "--out", out, *common],
        "generations": ["evaluate.py", "--generations", file, "--reference", p0, "--reward", "hash", "--out", out, "--device", "cpu"],
        "rewards.py": ["rewards.py", "--reward", "hash", "--pool", file, "--out", out],
    }[reader]  # fmt: skip


@pytest.mark.parametrize(("reader", "content", "message"), ROWS_CASES, ids=[f"{r}-{m[:40]}-{i}" for i, (r, _, m) in enumerate(ROWS_CASES)])
def test_rows(reader, content, message, p0_folder, tmp_path, monkeypatch):
    """Each file in each stage that reads it: the sentence, and outputs that are as they were."""
    (tmp_path / "rows.jsonl").write_bytes(content)
    (tmp_path / "out").write_text("before\n")
    if reader in ("explore.py", "evaluate.py") and '"completion"' in message:
        pytest.skip("a prompt file has no completions")
    exit = stage(monkeypatch, *command(reader, tmp_path / "rows.jsonl", p0_folder, tmp_path / "out"))
    assert one_sentence(exit) and len(exit) < 600, exit
    assert pattern(message.format(tmp_path / "rows.jsonl")).search(exit), exit
    assert sorted(os.listdir(tmp_path)) == ["out", "rows.jsonl"] and (tmp_path / "out").read_text() == "before\n"


def pattern(text):
    """`text` as a regular expression in which ".*" alone is special."""
    return re.compile(".*".join(map(re.escape, text.split(".*"))))


FINE = {
    "byte-order mark": b"\xef\xbb\xbf" + GOOD,
    "CRLF": GOOD.replace(b"\n", b"\r\n"),
    "blank lines": b"\n\n" + GOOD + b"\n  \n",
    "no newline at the end": GOOD[:-1],
    "U+2028 in a string": GOOD + json.dumps({**ROW, "prompt": "a\u2028b\u0085c"}, ensure_ascii=False).encode() + b"\n",
    "duplicate rows": GOOD * 3,
    "an empty prompt": GOOD + line(prompt=""),
    "an empty completion": GOOD + line(completion=""),
    "control tokens as text": GOOD + line(prompt="<|reward_3|><|endoftext|>", completion="<|reward_1|><|endoftext|>"),
    "a prompt longer than the context": GOOD + line(prompt="word " * 500),
    "a line of 10 MB": GOOD + line(note="x" * 10**7),
    "unknown fields": GOOD + line(more={"a": [1, None]}),
    "a huge whole number as reward": GOOD + line(reward=10**300),
}


@pytest.mark.parametrize("case", FINE)
@pytest.mark.parametrize("reader", ["quantize.py", "learn.py", "explore.py", "evaluate.py", "rewards.py", "generations"])
def test_rows_that_are_fine(reader, case, p0_folder, tmp_path, monkeypatch):
    """What is unusual but no fault is handled: every stage ends well, no row is lost, no text becomes a control token."""
    (tmp_path / "rows.jsonl").write_bytes(FINE[case])
    n = sum(bool(part.strip()) for part in FINE[case].split(b"\n"))
    assert stage(monkeypatch, *command(reader, tmp_path / "rows.jsonl", p0_folder, tmp_path / "out")) is None
    if reader == "learn.py":
        assert (tmp_path / "out-model" / "model.safetensors").exists()
    else:
        rows = read_rows(tmp_path / ("out.jsonl" if reader in ("evaluate.py", "generations") else "out"))
        assert len(rows) == n
        assert all(i < V for row in rows for i in row.get("prompt_ids", [])) and not any(V - 1 in row.get("prompt_ids", []) for row in rows)


# --------------------------------------------------------------------------------------- checkpoints and vocabularies


def pickled(folder):
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def other_vocabulary(folder):
    for name, content in zip(("vocab.json", "merges.txt"), learn_merges(["zebras quack where the quick zebras quit " * 3], 20)):
        (folder / name).write_bytes(content)


def change(name, new, folder):
    file = folder / name
    file.write_bytes(new(file.read_bytes()))


CHECKPOINTS = [
    ("no folder", shutil.rmtree, "does not exist"),
    ("an empty folder", lambda f: [p.unlink() for p in f.iterdir()], "cannot open the model"),
    ("weights only", lambda f: (f / "config.json").unlink(), "cannot open the model"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "cannot open the model"),
    ("pickled weights", pickled, "cannot open the model.*safetensors"),
    ("weights cut off", partial(change, "model.safetensors", lambda b: b[: len(b) // 2]), "cannot open the model"),
    ("empty weights", partial(change, "model.safetensors", lambda b: b""), "cannot open the model"),
    ("config is no JSON", partial(change, "config.json", lambda b: b"{"), "cannot open the model"),
    ("config is a list", partial(change, "config.json", lambda b: b"[]"), "cannot open the model"),
    ("another kind of model", partial(change, "config.json", lambda b: b.replace(b'"gpt2"', b'"bert"')), "is a bert model"),
    ("no vocabulary", lambda f: (f / "vocab.json").unlink(), "vocab.json"),
    ("no merges", lambda f: (f / "merges.txt").unlink(), "merges.txt"),
    ("vocabulary is no JSON", partial(change, "vocab.json", lambda b: b"]"), "not GPT-2's byte-level BPE"),
    ("vocabulary is a list", partial(change, "vocab.json", lambda b: b"[1]"), "not GPT-2's byte-level BPE"),
    ("merges are not UTF-8", partial(change, "merges.txt", lambda b: b"\xff" + b), "not GPT-2's byte-level BPE"),
    ("another vocabulary", other_vocabulary, "belong to different models"),
    ("merges cut off", partial(change, "merges.txt", lambda b: b[: len(b) // 2]), "do not fit together"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "spoil", "message"), CHECKPOINTS, ids=[c[0] for c in CHECKPOINTS])
def test_checkpoints(what, spoil, message, p0_folder, tmp_path, monkeypatch):
    """explore.py and learn.py (as the policy) and evaluate.py (as the perplexity's model) on a spoilt folder."""
    shutil.copytree(p0_folder, tmp_path / "m")
    spoil(tmp_path / "m")
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROW])
    before = sorted(os.listdir(tmp_path))
    for argv in (command("explore.py", rows, tmp_path / "m", tmp_path / "out"), command("learn.py", rows, tmp_path / "m", tmp_path / "out"),
                 [*command("evaluate.py", rows, p0_folder, tmp_path / "out"), "--ppl-model", tmp_path / "m"]):  # fmt: skip
        exit = stage(monkeypatch, *argv)
        assert one_sentence(exit) and pattern(message).search(exit), exit
        assert sorted(os.listdir(tmp_path)) == before


def test_pickles_in_a_checkpoint_are_not_run(p0_folder, tmp_path, monkeypatch):
    """An optimizer.pt that would run code when unpickled is refused, and runs none."""
    import pickle

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    shutil.copytree(p0_folder, tmp_path / "m")
    (tmp_path / "m" / "optimizer.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    exit = stage(monkeypatch, *command("learn.py", write_jsonl(tmp_path / "rows.jsonl", [ROW]), tmp_path / "m", tmp_path / "out"))
    assert one_sentence(exit) and "optimizer.pt" in exit and not (tmp_path / "owned").exists()


def test_an_unreachable_hub(tmp_path, monkeypatch):
    """A hub's name with no network: one sentence that says what would help."""
    exit = stage(monkeypatch, *command("explore.py", write_jsonl(tmp_path / "rows.jsonl", [ROW]), "gpt2-nowhere", tmp_path / "out"))
    assert one_sentence(exit) and "with no network, a hub model must have been downloaded before" in exit
    exit = stage(monkeypatch, "rewards.py", "--reward", "toxicity", "--reward-model", "nobody/nothing", "--pool", tmp_path / "rows.jsonl")
    assert one_sentence(exit) and "--reward-model" in exit


# ----------------------------------------------------------------------------------------------------- reward modules

MODULES = [
    ("def f(prompts, completions, **k): return [1.0] * (len(completions) + 1)", "f", "returned 2 values for 1 completions"),
    ("def f(prompts, completions, **k): return None", "f", "returned NoneType"),
    ("def f(prompts, completions, **k): return ['1']", "f", "returned '1' at index 0"),
    ("def f(prompts, completions, **k): return [float('inf')]", "f", "returned inf at index 0"),
    ("def f(prompts, completions, **k): return [1 + 2j]", "f", "at index 0"),
    ("def f(prompts, completions, **k): return [10 ** 400]", "f", "at index 0"),
    ("def f(prompts, completions, **k): return 1 / 0", "f", "raised ZeroDivisionError"),
    ("def f(prompts, completions, **k): raise SystemExit(0)", "f", "raised SystemExit"),
    ("def f(prompts, completions, **k): return [None]", "f", "scored none"),
    ("def f(): return []", "f", "raised TypeError"),
    ("def g(**k): return []", "f", "has no function 'f'"),
    ("f = 3", "f", "has no function 'f'"),
    ("def f(:", "f", "cannot be imported: SyntaxError"),
    ("import no_such_module", "f", "cannot be imported: ModuleNotFoundError"),
    ("raise SystemExit(0)", "f", "cannot be imported: SystemExit"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "name", "message"), MODULES, ids=[m[0] for m in MODULES])
def test_reward_modules(source, name, message, p0_folder, tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text(source + "\n")
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROW])
    argv = command("explore.py", rows, p0_folder, tmp_path / "out" / "x.jsonl")
    argv[argv.index("hash")] = f"{tmp_path}/my.py:{name}"
    exit = stage(monkeypatch, *argv)
    assert one_sentence(exit) and message in exit, exit
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(("spec", "message"), [("no_such", "no reward is called 'no_such'"), ("none.py:f", "none.py does not exist"),
                                               ("data.txt:f", "not a .py file"), (":", "does not exist"), ("", "no reward is called")])  # fmt: skip
def test_reward_names(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("f")
    exit = stage(monkeypatch, "rewards.py", "--reward", spec, "--pool", write_jsonl(tmp_path / "rows.jsonl", [ROW]))
    assert one_sentence(exit) and message in exit


# ------------------------------------------------------------------------------------------- numbers that do not fit


def test_numbers_that_do_not_fit(p0_folder, quark_folder, tmp_path, monkeypatch):
    """K = 1 and K larger than the pool; a model without reward tokens; another K than the checkpoint's; a reference of another
    vocabulary; a folder that cannot be written to."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROW, {**ROW, "reward": 0.7}])
    foreign = tmp_path / "foreign"
    shutil.copytree(p0_folder, foreign)
    (foreign / "merges.txt").write_bytes((foreign / "merges.txt").read_bytes().replace(b"#version: 0.2", b"#version: 0.3"))
    (tmp_path / "file").write_text("a file, no folder\n")
    quantized = ["quantize.py", rows, "--quantiles", "1", "--out", tmp_path / "q.jsonl"]
    assert stage(monkeypatch, *quantized) is None and [r["quantile"] for r in read_rows(tmp_path / "q.jsonl")] == [1, 1]  # K = 1: plain fine-tuning
    before = sorted(os.listdir(tmp_path))
    out, learn = tmp_path / "out", partial(command, "learn.py", rows)
    for argv, message in [
        (["quantize.py", rows, "--quantiles", "3", "--out", out], "cannot cut 2 samples into K = 3"),
        (["quantize.py", rows, "--quantiles", "-1", "--out", out], "K = -1"),
        (["quantize.py", rows, "--quantiles", "-1", "--per-prompt", "--out", out], "K = -1"),
        (["quantize.py", rows, "--quantiles", "0", "--per-prompt", "--out", out], "K = 0"),
        (["quantize.py", rows, "--quantiles", "1", "--out", "."], "cannot write .: it is a folder"),
        ([*learn(p0_folder, out)[:-1], tmp_path], "exists and is no checkpoint"),
        ([*learn(p0_folder, out)[:-1], ROOT / "tests" / ".."], f"{ROOT} exists and is no checkpoint"),
        (["rewards.py", "--reward", "hash", "--pool", rows, "--out", rows], "is the pool itself"),
        ([*command("evaluate.py", rows, p0_folder, out), "--reward-token", "2"], "this model has 0 reward tokens"),
        (learn(quark_folder, out), "has 1 quantiles, but .* has 3 reward tokens"),
        ([*learn(foreign, out), "--reference", p0_folder], "have different vocabularies"),
        (["quantize.py", rows, "--quantiles", "1", "--out", tmp_path / "file" / "q.jsonl"], "cannot write .*choose another --out"),
        (command("explore.py", rows, p0_folder, tmp_path / "file" / "x.jsonl"), "cannot write"),
        (command("evaluate.py", rows, p0_folder, tmp_path / "file" / "x"), "cannot write"),
        ([*learn(p0_folder, out)[:-1], tmp_path / "file" / "m"], "cannot write"),
    ]:  # fmt: skip
        exit = stage(monkeypatch, *argv)
        assert one_sentence(exit) and pattern(message).search(exit), (argv, exit)
        assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "file").read_text() == "a file, no folder\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(p0_folder, tmp_path, monkeypatch):
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROW])
    (tmp_path / "locked").mkdir(mode=0o500)
    for reader in ("quantize.py", "learn.py", "explore.py", "evaluate.py", "rewards.py"):
        exit = stage(monkeypatch, *command(reader, rows, p0_folder, tmp_path / "locked" / "x.jsonl"))
        assert one_sentence(exit) and "cannot write" in exit and "Permission denied" in exit


# ------------------------------------------------------------------------------------------------- generated rubbish

SCALARS = st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | st.text(max_size=8) | st.sampled_from(["\ud800", "\u2028", "\x00", ""])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6)
FIELDS = {"prompt": VALUES, "completion": VALUES, "reward": VALUES, "iteration": VALUES, "quantile": VALUES, "prompt_ids": VALUES,
          "completion_ids": st.lists(st.integers(-2, 400), max_size=5) | VALUES, "group": VALUES}  # fmt: skip
NEARLY = st.fixed_dictionaries({k: st.just(v) for k, v in ROW.items()}).flatmap(
    lambda good: st.fixed_dictionaries({}, optional=FIELDS).map(lambda some: {**good, **some}))  # fmt: skip
LINE = (NEARLY | st.fixed_dictionaries({}, optional=FIELDS) | VALUES).map(lambda v: json.dumps(v).encode()) | st.binary(max_size=30)
FILES = st.lists(LINE, max_size=4).map(b"\n".join)


@settings(derandomize=True, deadline=None, max_examples=2000)
@given(content=FILES)
def test_rubbish(content, p0_module, rubbish_folder):
    """2,000 generated files: every reader either gives rows that keep what is promised, or raises BadInput in one line."""
    file = rubbish_folder / "rubbish.jsonl"
    file.write_bytes(content)
    for read in (lambda: list(read_pool([file])), lambda: read_prompts(file), lambda: load_quantized(file, p0_module),
                 lambda: quantize.main([str(file), "--quantiles", "1", "--out", str(rubbish_folder / "out" / "q.jsonl")])):  # fmt: skip
        try:
            read()
        except BadInput as error:
            assert "\n" not in str(error) and len(str(error)) < 600
    for _, row in valid(file):
        assert isinstance(row["prompt"], str) and abs(row["reward"]) < float("inf")
        json.dumps(row, ensure_ascii=False).encode()


def valid(file):
    try:
        return list(read_pool([file]))
    except BadInput:
        return []


@settings(derandomize=True, deadline=None, max_examples=300)
@given(vocab=VALUES.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=40), merges=st.binary(max_size=40))
def test_rubbish_vocabularies(vocab, merges):
    with pytest.raises(BadInput):
        build_encoding(vocab, merges)


@pytest.fixture(scope="module")
def p0_module(p0_folder):
    from explore import load_policy

    return load_policy(p0_folder)


@pytest.fixture(scope="module")
def rubbish_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rubbish")
