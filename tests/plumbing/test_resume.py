"""Going on after a stop: which samples are used again, and which state of the optimiser."""

import json
import os
import shutil
import sys

import pytest
import torch
from conftest import (
    ROOT,
    V,
    execute,
    make_classifier,
    one_sentence,
    quantized_rows,
    read_rows,
    stage,
    write_jsonl,
)
from safetensors.torch import load_file, save_file

from plumbing.append_log import AppendLog
from plumbing.policy import load_policy
from plumbing.pool import BadInput

# Fails in its third batch of two, unless the file `mended` exists.
FAILS = """
import os
def f(prompts, completions, **kwargs):
    with open(r"FOLDER/asked", "a") as file:
        file.write("x" * len(prompts))
    assert os.path.getsize(r"FOLDER/asked") < 5 or os.path.exists(r"FOLDER/mended"), "out of money"
    return [0.5] * len(prompts)
"""


def test_kept_samples_are_used_by_the_same_settings_only(quark_folder, tmp_path, monkeypatch):
    """A reward that fails in its third batch leaves two batches behind, four samples of six.

    The same settings go on from there, and score only the other two. Another seed, another nucleus
    or an edited reward file starts afresh.
    """
    my_reward, asked = tmp_path / "my.py", tmp_path / "asked"
    my_reward.write_text(FAILS.replace("FOLDER", str(tmp_path)))
    words = ["The", "film", "was", "good", "it", "is"]
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": word} for word in words])
    out = tmp_path / "pool" / "00.jsonl"

    def explore(*more):
        argv = ["--model", quark_folder, "--prompts", prompts, "--reward", f"{my_reward}:f"]
        argv += ["--batch-size", 2, "--max-new-tokens", 5, "--device", "cpu", "--out", out]
        return stage(monkeypatch, "explore.py", *argv, *more)

    def number_scored(*more):
        """Explores with success. How many samples were scored for it?"""
        asked.unlink()
        assert explore(*more) is None
        assert len(read_rows(out)) == 6
        return len(asked.read_text())

    assert "out of money" in explore()
    (part,) = (tmp_path / "pool").iterdir()
    kept = part.read_bytes()
    assert [json.loads(line)["reward"] for line in kept.splitlines()] == [0.5] * 4
    (tmp_path / "mended").touch()
    for other in (["--seed", 1], ["--top-p", 0.5]):
        assert number_scored(*other) == 6
        part.write_bytes(kept)
    assert number_scored() == 2
    assert sorted(os.listdir(out.parent)) == ["00.args.json", "00.jsonl"]
    assert [row["prompt"] for row in read_rows(out)] == words
    part.write_bytes(kept)
    my_reward.write_text(my_reward.read_text() + "# edited\n")
    assert number_scored() == 6


def change_one_weight(folder, name):
    """Another model under the same name: one number of one tensor is another."""
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


OF_THE_MODEL = ["transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.bias"]
OF_THE_MODEL += ["transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_proj.bias"]


@pytest.mark.parametrize("name", [*OF_THE_MODEL, "the judge"])
def test_samples_of_another_model_are_not_used(name, quark_folder, tmp_path, monkeypatch):
    """The model or the judge is replaced between stop and start: all is sampled and scored anew."""
    shutil.copytree(quark_folder, tmp_path / "m")
    make_classifier(tmp_path / "judge", ["toxic"], 3)
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": word} for word in ("a", "b", "c")])
    argv = ["--model", tmp_path / "m", "--prompts", prompts, "--reward", "toxicity"]
    argv += ["--reward-model", tmp_path / "judge", "--batch-size", 1, "--max-new-tokens", 5]
    argv += ["--device", "cpu", "--out", tmp_path / "o.jsonl"]

    def logs():
        return sorted(f for f in os.listdir(tmp_path) if f.startswith("o.jsonl."))

    def interrupted_write(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("plumbing.summaries.print_pool", None)
        patch.setattr("os.replace", interrupted_write)  # killed at the very end
        assert stage(patch, "explore.py", *argv) == 130
    (log,) = logs()
    if name == "the judge":
        change_one_weight(tmp_path / "judge", "classifier.bias")
    else:
        change_one_weight(tmp_path / "m", name)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupted_write)
        assert stage(patch, "explore.py", *argv) == 130
    assert len(logs()) == 2
    assert log in logs()


@pytest.fixture
def pool_and_models(p0, p0_folder, tmp_path):
    return write_jsonl(tmp_path / "q.jsonl", quantized_rows(p0)), p0_folder, tmp_path


# ------------------------------------------------------------------------- the state of learn.py


def learn_command(pool, model, reference, out, *more):
    argv = ["learn.py", "--pool", pool, "--model", model, "--reference", reference, "--out", out]
    return [*argv, "--steps", 2, "--batch-size", 2, "--warmup", 1, "--device", "cpu", *more]


def test_a_tuned_p0_gets_a_new_optimiser(p0, p0_folder, tmp_path):
    """learn.py --no-reward-token makes a p0. Its optimiser has V rows, and the new model V + K.

    In a process of its own, in which glibc aborts at the first write past the end of a block.
    """
    pool = write_jsonl(tmp_path / "q.jsonl", quantized_rows(p0))
    mle, out = tmp_path / "mle", tmp_path / "m"
    first = learn_command(pool, p0_folder, p0_folder, mle, "--no-reward-token")
    for command in (first, learn_command(pool, mle, mle, out)):
        done = execute(sys.executable, ROOT / command[0], *command[1:], MALLOC_CHECK_="3")
        assert done.returncode == 0, done.stderr
    assert "a new optimiser" in done.stdout
    lines = read_rows(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1]  # the schedule begins again
    state = torch.load(out / "optimizer.pt", weights_only=True)
    assert state["step"] == 2
    assert state["optimizer"]["state"][0]["exp_avg"].shape == (V + 3, 32)
    assert state["optimizer"]["state"][0]["step"] == 2


def test_state_that_does_not_fit(p0, quark_folder, p0_folder, tmp_path, monkeypatch):
    """Moments of another shape, or missing ones: one sentence, before the first step."""
    pool = write_jsonl(tmp_path / "q.jsonl", quantized_rows(p0))
    model, out = tmp_path / "m", tmp_path / "out"
    assert stage(monkeypatch, *learn_command(pool, quark_folder, p0_folder, model)) is None
    state = torch.load(model / "optimizer.pt", weights_only=True)

    def moments(**changes):
        old = state["optimizer"]["state"]
        return {
            **state,
            "optimizer": {**state["optimizer"], "state": {**old, 0: {**old[0], **changes}}},
        }

    rows = torch.zeros(V, 32)
    bad = {
        "V rows": moments(exp_avg=rows, exp_avg_sq=rows),
        "one of them": moments(exp_avg_sq=rows),
        "transposed": moments(exp_avg=torch.zeros(32, V + 3)),
        "none": {**state, "optimizer": {**state["optimizer"], "state": {}}},
        "other parameters": {**state, "optimizer": torch.optim.Adam([rows]).state_dict()},
        "no step": {"optimizer": state["optimizer"]},
        "a list": [state],
    }
    for what, content in bad.items():
        torch.save(content, model / "optimizer.pt")
        exit = stage(monkeypatch, *learn_command(pool, model, p0_folder, out))
        assert one_sentence(exit), (what, exit)
        assert "optimizer.pt holds no state of this optimiser" in exit
        assert not out.exists()


def test_a_context_that_is_shorter(pool_and_models, monkeypatch):
    """p0 must read as many tokens as the model: otherwise one sentence instead of an IndexError."""
    pool, p0_folder, folder = pool_and_models
    short = load_policy(p0_folder)
    short.model.config.n_positions = 16
    short.model.transformer.wpe.weight.data = short.model.transformer.wpe.weight.data[:16]
    short.save(folder / "short")
    exit = stage(monkeypatch, *learn_command(pool, p0_folder, folder / "short", folder / "out"))
    assert one_sentence(exit)
    assert "reads 16 tokens" in exit


@pytest.mark.parametrize("kind", ["a folder", "an empty file", "a tensor", "a negative step"])
def test_an_optimiser_s_file_that_is_none(kind, pool_and_models, quark_folder, monkeypatch):
    """Whatever stands in the place of optimizer.pt: one sentence."""
    pool, p0_folder, folder = pool_and_models
    assert stage(monkeypatch, *learn_command(pool, quark_folder, p0_folder, folder / "m")) is None
    file = folder / "m" / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    file.unlink()
    if kind == "a folder":
        file.mkdir()
    elif kind == "an empty file":
        file.touch()
    else:
        torch.save(torch.zeros(3) if kind == "a tensor" else {**state, "step": -5}, file)
    exit = stage(monkeypatch, *learn_command(pool, folder / "m", p0_folder, folder / "out"))
    assert one_sentence(exit)
    assert "optimizer.pt holds no state of this optimiser" in exit


@pytest.mark.parametrize("line", ['{"a": 1}', "3", "[]", "{"])
def test_a_log_of_something_else(line, tmp_path):
    """Rows without the fields that a log has: its name, the line and the remedy."""
    (tmp_path / "log0").write_text(line + "\n")
    (tmp_path / "log0~").write_text("a backup\n")
    with pytest.raises(BadInput, match="log0:1: damaged; remove this line"):
        AppendLog(tmp_path / "log", ["number"])
    (tmp_path / "log0").unlink()
    assert AppendLog(tmp_path / "log", ["number"]).rows == []


def test_an_edited_helper_is_another_reward(quark_folder, tmp_path, monkeypatch):
    """The log's name depends on what the reward's file imports from its folder."""
    (tmp_path / "helper_of_mine.py").write_text("V = 1.0\n")
    body = (
        "import helper_of_mine\ndef f(completions): return [helper_of_mine.V] * len(completions)\n"
    )
    (tmp_path / "with_a_helper.py").write_text(body)
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}])
    argv = ["--model", quark_folder, "--prompts", prompts, "--out", tmp_path / "o.jsonl"]
    argv += ["--reward", f"{tmp_path / 'with_a_helper.py'}:f", "--max-new-tokens", 4]

    def interrupted(*_):
        raise KeyboardInterrupt

    for value in ("1.0", "2.0"):
        (tmp_path / "helper_of_mine.py").write_text(f"V = {value}\n")
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", interrupted)
            assert stage(patch, "explore.py", *argv, "--device", "cpu") == 130
    assert len([name for name in os.listdir(tmp_path) if name.startswith("o.jsonl.")]) == 2
