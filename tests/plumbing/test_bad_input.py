"""Whatever is wrong with the input: one sentence with the place and a remedy, and nothing is lost.

The stage ends with a non-zero status, and no file is written or changed.
"""

import json
import os
import pickle
import re
import shutil
from functools import partial

import pytest
import torch
from conftest import (
    CONTEXT,
    ROOT,
    V,
    learn_merges,
    one_sentence,
    read_rows,
    stage,
    write_jsonl,
    write_vocabulary,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import quantize
from plumbing.policy import load_policy
from plumbing.pool import BadInput, read_pool, read_prompts
from plumbing.quantized import load_quantized
from plumbing.tokenizer import build_encoding

ROW = {"prompt": "The film", "completion": " was good", "reward": 0.5, "iteration": 0}
ROW["quantile"] = 1


def line(**changes):
    return json.dumps({**ROW, **changes}).encode() + b"\n"


def line_without(field):
    return json.dumps({k: v for k, v in ROW.items() if k != field}).encode() + b"\n"


def pattern(text):
    """`text` as a regular expression in which ".*" alone is special."""
    return re.compile(".*".join(map(re.escape, text.split(".*"))))


GOOD = line() + line(reward=0.7)
FULL = b'"completion": "a", "reward": 1, "quantile": 1'

# ------------------------------------------------------ a file of rows, as each stage reads it
#
# What is in the file, and what the message says. {} stands for the file's name.

LINES = [  # every reader
    (b"", "{}"),
    (b"\n \n", "{}"),
    (GOOD + b"not json\n", "{}:3: not valid JSON"),
    (GOOD + b'{"prompt": "x", "compl', "{}:3: not valid JSON: .*the file ends within this line"),
    (GOOD + b"[1, 2]\n", "{}:3: is [1, 2], not an object"),
    (GOOD + b"\xff\xfe\n", "{}:3: byte 0 is not UTF-8"),
    (GOOD + '{"prompt": "a'.encode("utf-16") + b"\n", "{}:3: byte 0 is not UTF-8"),
    (GOOD + b'{"prompt": "\\udc00", ' + FULL + b"}\n", "{}:3: half a surrogate pair"),
    (
        GOOD + b'{"prompt": "b", ' + FULL + b', "group": "x", "note": "\\ud83d"}\n',
        "{}:3: half a surrogate pair",
    ),
    (GOOD + b'{"prompt": {"text": 3}, "completion": 3, "reward": 1, "quantile": 1}\n', "{}:3: "),
    (GOOD + b"{" + FULL + b"}\n", '{}:3: "prompt" is missing'),
    (GOOD + b"[" * 10**6 + b"\n", "{}:3: not valid JSON"),
    (GOOD + b'{"prompt": ' + b"9" * 10**6 + b"}\n", "{}:3: "),
    (GOOD + b"x" * 10**7, "{}:3: not valid JSON"),
]
POOL_LINES = [  # quantize.py and learn.py
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
]
LEARN_LINES = [
    (line(quantile=None), "{}:1: "),
    (line_without("quantile"), '{}:1: "quantile" is missing; run quantize.py'),
    (GOOD + line(quantile=3), "no row has quantile 2 of 3"),
    (GOOD + line(prompt_ids=[V]), f'{{}}:3: "prompt_ids" holds {V}, but the model has {V} tokens'),
    (GOOD + line(completion_ids=[70, 71]), '{}:3: "completion_ids" do not spell'),
    (GOOD + line(completion="a" * CONTEXT), "{}:3: the completion has"),
    (line(completion=""), "no rows to learn from"),
]
ROWS_CASES = [("quantize.py", *case) for case in LINES + POOL_LINES]
ROWS_CASES += [("learn.py", *case) for case in LINES + POOL_LINES + LEARN_LINES]
ROWS_CASES += [("explore.py", *case) for case in LINES]
ROWS_CASES += [("evaluate.py", *case) for case in LINES]
ROWS_CASES += [("rewards.py", *case) for case in LINES if b'"text"' not in case[0]]
ROWS_CASES += [("generations", *case) for case in LINES]
READERS = ["quantize.py", "learn.py", "explore.py", "evaluate.py", "rewards.py", "generations"]


def command(reader, file, p0, out):
    """The stage's command line with `file` where it reads rows, and `out` to write to."""
    cpu = ["--device", "cpu"]
    sampling = [*cpu, "--max-new-tokens", "6"]
    if reader == "quantize.py":
        return [reader, file, "--quantiles", "1", "--out", out]
    if reader == "learn.py":
        models = ["--model", p0, "--reference", p0, "--steps", "1", "--batch-size", "2"]
        return [reader, "--pool", file, *models, *cpu, "--out", f"{out}-model"]
    if reader == "explore.py":
        inputs = ["--model", p0, "--prompts", file, "--reward", "hash"]
        return [reader, *inputs, "--out", out, *sampling]
    if reader == "evaluate.py":
        inputs = ["--model", p0, "--reference", p0, "--prompts", file, "--reward", "hash"]
        return [reader, *inputs, "--num-samples", "1", "--out", out, *sampling]
    if reader == "generations":
        inputs = ["--generations", file, "--reference", p0, "--reward", "hash"]
        return ["evaluate.py", *inputs, "--out", out, *cpu]
    return [reader, "--reward", "hash", "--pool", file, "--out", out]


IDS = [f"{reader}-{message[:40]}-{i}" for i, (reader, _, message) in enumerate(ROWS_CASES)]


@pytest.mark.parametrize("reader, content, message", ROWS_CASES, ids=IDS)
def test_rows(reader, content, message, p0_folder, tmp_path, monkeypatch):
    """Each file in each stage that reads it: the sentence, and an output that is as it was."""
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_bytes(content)
    out.write_text("before\n")
    exit = stage(monkeypatch, *command(reader, file, p0_folder, out))
    assert one_sentence(exit), exit
    assert len(exit) < 600
    assert pattern(message.format(file)).search(exit), exit
    assert sorted(os.listdir(tmp_path)) == ["out", "rows.jsonl"]
    assert out.read_text() == "before\n"


ZEBRAS = [
    "zebras quack quietly where the quick zebras quit, and a quiet duck quacks at the lazy dog",
    "under a shady tree",
]
U_2028 = json.dumps({**ROW, "prompt": "a\u2028b\u0085c"}, ensure_ascii=False).encode() + b"\n"
CONTROL = {"prompt": "<|reward_3|><|endoftext|>", "completion": "<|reward_1|><|endoftext|>"}
FINE = {
    "byte-order mark": b"\xef\xbb\xbf" + GOOD,
    "CRLF": GOOD.replace(b"\n", b"\r\n"),
    "blank lines": b"\n\n" + GOOD + b"\n  \n",
    "no newline at the end": GOOD[:-1],
    "U+2028 in a string": GOOD + U_2028,
    "duplicate rows": GOOD * 3,
    "an empty prompt": GOOD + line(prompt=""),
    "an empty completion": GOOD + line(completion=""),
    "control tokens as text": GOOD + line(**CONTROL),
    "a prompt longer than the context": GOOD + line(prompt="word " * 500),
    "a line of 10 MB": GOOD + line(note="x" * 10**7),
    "unknown fields": GOOD + line(more={"a": [1, None]}),
    "a huge whole number as reward": GOOD + line(reward=10**300),
}


@pytest.mark.parametrize("case", FINE)
@pytest.mark.parametrize("reader", READERS)
def test_rows_that_are_fine(reader, case, p0_folder, tmp_path, monkeypatch):
    """What is unusual but no fault: every stage ends well, and no row is lost.

    No text becomes a control token.
    """
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_bytes(FINE[case])
    assert stage(monkeypatch, *command(reader, file, p0_folder, out)) is None
    if reader == "learn.py":
        assert (tmp_path / "out-model" / "model.safetensors").exists()
        return
    rows = read_rows(tmp_path / "out.jsonl" if reader in ("evaluate.py", "generations") else out)
    lines = [part for part in FINE[case].split(b"\n") if part.strip()]
    assert len(rows) == len(lines)
    for row in rows:
        assert all(i < V - 1 for i in row.get("prompt_ids", []))


# --------------------------------------------------------------------- checkpoints and vocabularies


def remove(name, folder):
    (folder / name).unlink()


def change(name, new, folder):
    file = folder / name
    file.write_bytes(new(file.read_bytes()))


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


def pickled(folder):
    remove("model.safetensors", folder)
    torch.save({}, folder / "pytorch_model.bin")


def other_vocabulary(folder):
    text = "zebras quack where the quick zebras quit " * 3
    write_vocabulary(folder, *learn_merges([text], 20))


def first_half(data):
    return data[: len(data) // 2]


def replaced_by(data):
    return lambda old: data


def bert(config):
    return config.replace(b'"gpt2"', b'"bert"')


CHECKPOINTS = [
    ("no folder", shutil.rmtree, "does not exist"),
    ("an empty folder", empty, "cannot open the model"),
    ("weights only", partial(remove, "config.json"), "cannot open the model"),
    ("no weights", partial(remove, "model.safetensors"), "cannot open the model"),
    ("pickled weights", pickled, "cannot open the model.*safetensors"),
    ("weights cut off", partial(change, "model.safetensors", first_half), "cannot open the model"),
    (
        "empty weights",
        partial(change, "model.safetensors", replaced_by(b"")),
        "cannot open the model",
    ),
    (
        "config is no JSON",
        partial(change, "config.json", replaced_by(b"{")),
        "cannot open the model",
    ),
    (
        "config is a list",
        partial(change, "config.json", replaced_by(b"[]")),
        "cannot open the model",
    ),
    ("another kind of model", partial(change, "config.json", bert), "lacks the weights"),
    ("no vocabulary", partial(remove, "vocab.json"), "vocab.json"),
    ("no merges", partial(remove, "merges.txt"), "merges.txt"),
    (
        "vocabulary is no JSON",
        partial(change, "vocab.json", replaced_by(b"]")),
        "not GPT-2's byte-level BPE",
    ),
    (
        "vocabulary is a list",
        partial(change, "vocab.json", replaced_by(b"[1]")),
        "not GPT-2's byte-level BPE",
    ),
    (
        "merges are not UTF-8",
        partial(change, "merges.txt", lambda old: b"\xff" + old),
        "not GPT-2's byte-level BPE",
    ),
    ("another vocabulary", other_vocabulary, "belong to different models"),
    ("merges cut off", partial(change, "merges.txt", first_half), "do not fit together"),
]


@pytest.mark.parametrize("what, spoil, message", CHECKPOINTS, ids=[c[0] for c in CHECKPOINTS])
def test_checkpoints(what, spoil, message, p0_folder, tmp_path, monkeypatch):
    """A spoilt folder as the model of explore.py and learn.py, and as evaluate.py's --ppl-model."""
    model, out = tmp_path / "m", tmp_path / "out"
    shutil.copytree(p0_folder, model)
    spoil(model)
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROW])
    before = sorted(os.listdir(tmp_path))
    for argv in (
        command("explore.py", rows, model, out),
        command("learn.py", rows, model, out),
        [*command("evaluate.py", rows, p0_folder, out), "--ppl-model", model],
    ):
        exit = stage(monkeypatch, *argv)
        assert one_sentence(exit), exit
        assert pattern(message).search(exit), exit
        assert sorted(os.listdir(tmp_path)) == before


def test_pickles_in_a_checkpoint_are_not_run(quark_folder, tmp_path, monkeypatch):
    """An optimizer.pt that would run code when it is unpickled is refused, and runs none."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    shutil.copytree(quark_folder, tmp_path / "m")
    (tmp_path / "m" / "optimizer.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    rows = write_jsonl(tmp_path / "rows.jsonl", [{**ROW, "quantile": k} for k in (1, 2, 3)])
    exit = stage(monkeypatch, *command("learn.py", rows, tmp_path / "m", tmp_path / "out"))
    assert one_sentence(exit)
    assert "optimizer.pt" in exit
    assert not (tmp_path / "owned").exists()


def test_an_unreachable_hub(tmp_path, monkeypatch):
    """A hub's name with no network: one sentence that says what would help."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROW])
    exit = stage(monkeypatch, *command("explore.py", rows, "gpt2-nowhere", tmp_path / "out"))
    assert one_sentence(exit)
    assert "with no network, a hub model must have been downloaded before" in exit
    argv = ["--reward", "toxicity", "--reward-model", "nobody/nothing", "--pool", rows]
    exit = stage(monkeypatch, "rewards.py", *argv)
    assert one_sentence(exit)
    assert "--reward-model" in exit


# ----------------------------------------------------------------------------------- reward modules

MODULES = [
    ("def f(**k): return [1.0, 1.0]", "returned 2 values for 1 completions"),
    ("def f(prompts, completions, **k): return None", "returned NoneType"),
    ("def f(prompts, completions, **k): return ['1']", "returned '1' at index 0"),
    ("def f(prompts, completions, **k): return [float('inf')]", "returned inf at index 0"),
    ("def f(prompts, completions, **k): return [1 + 2j]", "at index 0"),
    ("def f(prompts, completions, **k): return [10 ** 400]", "at index 0"),
    ("def f(prompts, completions, **k): return 1 / 0", "raised ZeroDivisionError"),
    ("def f(prompts, completions, **k): raise SystemExit(0)", "raised SystemExit"),
    ("def f(prompts, completions, **k): return [None]", "scored none"),
    ("def f(): return []", "returned 0 values for 1 completions"),
    ("def f(a): return []", "raised TypeError"),
    ("def g(**k): return []", "has no function 'f'"),
    ("f = 3", "has no function 'f'"),
    ("def f(:", "cannot be imported: SyntaxError"),
    ("import no_such_module", "cannot be imported: ModuleNotFoundError"),
    ("raise SystemExit(0)", "cannot be imported: SystemExit"),
]


@pytest.mark.parametrize("source, message", MODULES, ids=[m[0] for m in MODULES])
def test_reward_modules(source, message, p0_folder, tmp_path, monkeypatch):
    """explore.py with a reward file that is wrong: one sentence, and no pool."""
    (tmp_path / "my.py").write_text(source + "\n")
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROW])
    argv = command("explore.py", rows, p0_folder, tmp_path / "out" / "x.jsonl")
    argv[argv.index("hash")] = f"{tmp_path}/my.py:f"
    exit = stage(monkeypatch, *argv)
    assert one_sentence(exit), exit
    assert message in exit, exit
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


REWARD_NAMES = [
    ("no_such", "no reward is called 'no_such'"),
    ("none.py:f", "none.py does not exist"),
    ("data.txt:f", "not a .py file"),
    (":", "does not exist"),
    ("", "no reward is called"),
]


@pytest.mark.parametrize("spec, message", REWARD_NAMES)
def test_reward_names(spec, message, tmp_path, monkeypatch):
    """A --reward that names nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("f")
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROW])
    exit = stage(monkeypatch, "rewards.py", "--reward", spec, "--pool", rows)
    assert one_sentence(exit)
    assert message in exit


# -------------------------------------------------------------------------- numbers that do not fit


def test_numbers_that_do_not_fit(p0_folder, quark_folder, tmp_path, monkeypatch):
    """K = 1 is plain fine-tuning, and allowed. These are not:

    K above the size of the pool, or below 1; outputs that would replace something else or cannot be
    written; a token of a model that has none; another K than the checkpoint's; another vocabulary.
    """
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROW, {**ROW, "reward": 0.7}])
    foreign = tmp_path / "foreign"
    shutil.copytree(p0_folder, foreign)
    write_vocabulary(foreign, *learn_merges(ZEBRAS, 41))
    file, out = tmp_path / "file", tmp_path / "out"
    file.write_text("a file, no folder\n")

    def cut(K, *options, to=out):
        return ["quantize.py", rows, "--quantiles", K, "--out", to, *options]

    def learn_to(to):
        return [*command("learn.py", rows, p0_folder, out)[:-1], to]

    one_part = tmp_path / "q.jsonl"
    assert stage(monkeypatch, *cut(1, to=one_part)) is None
    assert [row["quantile"] for row in read_rows(one_part)] == [1, 1]
    before = sorted(os.listdir(tmp_path))
    evaluated = [*command("evaluate.py", rows, p0_folder, out), "--reward-token", "2"]
    other_p0 = [*command("learn.py", rows, foreign, out), "--reference", p0_folder]
    for argv, message in [
        (cut(3), "cannot cut 2 samples into K = 3"),
        (cut(-1), "K = -1"),
        (cut(-1, "--per-prompt"), "K = -1"),
        (cut(0, "--per-prompt"), "K = 0"),
        (cut(1, to="."), "cannot write .: it is a folder"),
        (command("evaluate.py", rows, p0_folder, "x.json"), "leave out .json; NAME.json and"),
        (command("evaluate.py", rows, p0_folder, "x/"), "--out x/ is a folder; write NAME"),
        (learn_to(tmp_path), "exists and is no checkpoint"),
        (learn_to(ROOT / "tests" / ".."), f"{ROOT} exists and is no checkpoint"),
        (command("rewards.py", rows, p0_folder, rows), "this command reads .*rows.jsonl"),
        (evaluated, "this model has no reward tokens; write K or none"),
        (
            command("learn.py", rows, quark_folder, out),
            "has 1 quantiles, but .* has 3 reward tokens",
        ),
        (other_p0, "have different vocabularies"),
        (cut(1, to=file / "q.jsonl"), "cannot write .*choose another --out"),
        (command("explore.py", rows, p0_folder, file / "x.jsonl"), "cannot write"),
        (command("evaluate.py", rows, p0_folder, file / "x"), "cannot write"),
        (learn_to(file / "m"), "cannot write"),
    ]:
        exit = stage(monkeypatch, *argv)
        assert one_sentence(exit), (argv, exit)
        assert pattern(message).search(exit), (argv, exit)
        assert sorted(os.listdir(tmp_path)) == before
        assert file.read_text() == "a file, no folder\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(p0_folder, tmp_path, monkeypatch):
    """One sentence from each stage."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROW])
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    for reader in READERS[:-1]:
        exit = stage(monkeypatch, *command(reader, rows, p0_folder, locked / "x.jsonl"))
        assert one_sentence(exit)
        assert "cannot write" in exit
        assert "Permission denied" in exit


# -------------------------------------------------------------------------------- generated rubbish

NUMBERS = st.integers(-(10**40), 10**40) | st.floats()
STRINGS = st.text(max_size=8) | st.sampled_from(["\ud800", "\u2028", "\x00", ""])


def containers(inner):
    by_name = st.dictionaries(st.text(max_size=3), inner, max_size=3)
    return st.lists(inner, max_size=4) | by_name


VALUES = st.recursive(st.none() | st.booleans() | NUMBERS | STRINGS, containers, max_leaves=6)
NAMES = ["prompt", "completion", "reward", "iteration", "quantile", "prompt_ids", "group"]
FIELDS = dict.fromkeys(NAMES, VALUES)
FIELDS["completion_ids"] = st.lists(st.integers(-2, 400), max_size=5) | VALUES
SOME_FIELDS = st.fixed_dictionaries({}, optional=FIELDS)
NEARLY_GOOD = SOME_FIELDS.map(lambda some: {**ROW, **some})


def as_json(value):
    return json.dumps(value).encode()


RUBBISH_LINE = (NEARLY_GOOD | SOME_FIELDS | VALUES).map(as_json) | st.binary(max_size=30)
FILES = st.lists(RUBBISH_LINE, max_size=4).map(b"\n".join)


@pytest.fixture(scope="module")
def p0_module(p0_folder):
    return load_policy(p0_folder)


@pytest.fixture(scope="module")
def rubbish_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rubbish")


@settings(derandomize=True, deadline=None, max_examples=2000)
@given(content=FILES)
def test_rubbish(content, p0_module, rubbish_folder):
    """2,000 generated files: every reader succeeds, or raises BadInput in one line of its own.

    What is read as a pool has texts, finite rewards, and can be written again.
    """
    file = rubbish_folder / "rubbish.jsonl"
    file.write_bytes(content)
    out = rubbish_folder / "out" / "q.jsonl"
    for read in (
        lambda: check_pool(file),
        lambda: read_prompts(file),
        lambda: load_quantized(file, p0_module),
        lambda: quantize.main([str(file), "--quantiles", "1", "--out", str(out)]),
    ):
        try:
            read()
        except BadInput as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 600


def check_pool(file):
    for _, row in list(read_pool([file])):
        assert isinstance(row["prompt"], str)
        assert isinstance(row["completion"], str)
        assert abs(row["reward"]) < float("inf")
        json.dumps(row, ensure_ascii=False).encode()


@settings(derandomize=True, deadline=None, max_examples=300)
@given(vocab=VALUES.map(as_json) | st.binary(max_size=40), merges=st.binary(max_size=40))
def test_rubbish_vocabularies(vocab, merges):
    """No generated file is a vocabulary, and none ends in anything but BadInput."""
    with pytest.raises(BadInput):
        build_encoding(vocab, merges)
