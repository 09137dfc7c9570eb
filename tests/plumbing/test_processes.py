"""explore.py and learn.py under torchrun (gloo, on loopback): N processes write what one writes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SENTENCES, execute, read_rows, write_jsonl
from safetensors.torch import load_file

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TORCHRUN = ["-m", "torch.distributed.run", "--master_port", 0, "--rdzv_backend", "c10d"]
TORCHRUN += ["--rdzv_endpoint", "localhost:0", "--nproc_per_node"]


def launch(n, *command, **environment):
    """Starts `python command` as n processes under torchrun, or as one without it."""
    torchrun = [] if n == 1 else [*TORCHRUN, n]
    return subprocess.Popen(
        [sys.executable, *map(str, [*torchrun, *command])],
        env={**ENVIRONMENT, **environment},
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(n, *command, **environment):
    """The same, to its end. Returns what was printed."""
    process = launch(n, *command, **environment)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    return said


def workers(process):
    """The process ids of torchrun's children."""
    listed = execute("ps", "-o", "pid=", "--ppid", process.pid).stdout
    return [int(pid) for pid in listed.split()]


# --------------------------------------------------------------------------------------- explore.py


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    words = " ".join(SENTENCES).split()
    rows = [{"prompt": " ".join(words[i : i + 1 + i % 5])} for i in range(40)]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def explore(model, prompts, out, reward="hash"):
    command = [ROOT / "explore.py", "--model", model, "--prompts", prompts, "--reward", reward]
    return [*command, "--num-samples", 2, "--batch-size", 8, "--max-new-tokens", 12, "--out", out]


@pytest.mark.slow
def test_the_pool_does_not_depend_on_the_number_of_processes(quark_folder, prompts, tmp_path):
    """1, 2 and 3 processes: the same bytes, and nothing else is left in the folder."""
    pools = []
    for n in (1, 2, 3):
        folder = tmp_path / str(n)
        said = run(n, *explore(quark_folder, prompts, folder / "00.jsonl"))
        assert said.count("80 samples") == 1  # process 0 alone reports
        assert sorted(os.listdir(folder)) == ["00.args.json", "00.jsonl"]
        pools.append((folder / "00.jsonl").read_bytes())
    assert pools[0] == pools[1] == pools[2]
    assert len(pools[0].splitlines()) == 80


SLOW_REWARD = """
import os, time
def slow(prompts, completions, **kwargs):
    with open(os.environ["ASKED"], "a") as file:
        for x, y in zip(prompts, completions):
            file.write(x + "\\t" + repr(y) + "\\n")
    time.sleep(0.3)
    return [len(y) / 100 for y in completions]
"""


@pytest.mark.slow
def test_a_killed_exploration_goes_on_at_another_number(quark_folder, prompts, tmp_path):
    """3 processes are killed in the middle, and 2 finish: the bytes of an undisturbed run.

    No sample that was kept is scored again.
    """
    (tmp_path / "my.py").write_text(SLOW_REWARD)
    reward = tmp_path / "my.py:slow"
    one, many, asked = tmp_path / "one", tmp_path / "many", tmp_path / "asked"
    run(1, *explore(quark_folder, prompts, one / "00.jsonl", reward), ASKED=os.devnull)
    command = explore(quark_folder, prompts, many / "00.jsonl", reward)

    def rows_kept():
        return [row for part in many.glob("*.part*") for row in read_rows(part)]

    process = launch(3, *command, ASKED=str(asked))
    while len(rows_kept()) < 24:
        time.sleep(0.02)
    for pid in [process.pid, *workers(process)]:  # the workers have sessions of their own
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    kept = {(row["prompt"], row["completion"]) for row in rows_kept()}
    before = asked.read_text()
    assert "going on: " in run(2, *command, ASKED=str(asked))
    asked_again = asked.read_text()[len(before) :].splitlines()
    assert len(asked_again) <= 80 - len(kept)
    assert sorted(os.listdir(many)) == ["00.args.json", "00.jsonl"]
    assert (many / "00.jsonl").read_bytes() == (one / "00.jsonl").read_bytes()


FAILS_IN_ONE = """
import os
def f(prompts, completions, **kwargs):
    assert os.environ["RANK"] != "1", "out of luck"
    return [0.0] * len(prompts)
"""


@pytest.mark.slow
def test_one_failure_ends_all_with_its_message(quark_folder, prompts, tmp_path):
    """A reward that fails in process 1 only: all end, the reason is printed, no pool appears."""
    (tmp_path / "my.py").write_text(FAILS_IN_ONE)
    out = tmp_path / "pool" / "00.jsonl"
    start = time.monotonic()
    process = launch(2, *explore(quark_folder, prompts, out, tmp_path / "my.py:f"))
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "out of luck" in said
    assert time.monotonic() - start < 40
    assert not out.exists()


# ----------------------------------------------------------------------------------------- learn.py

LOSSES = """
import json, sys
from types import SimpleNamespace
import numpy as np, torch
from explore import load_policy
from plumbing.processes import finish, processes
from learn import add_reward_tokens, learn

args = SimpleNamespace(
    steps=20, total_steps=20, batch_size=7, grad_accum=2, beta=0.3, kl="forward",
    entropy_coef=0.01, clip=1.0, lr=3e-3, warmup=2, reward_token_lr=2.0, seed=0, bf16=False,
    closed_form=False,
)
rng = np.random.default_rng(0)
parts = []
for k in (1, 2, 3):
    part = []
    for _ in range(5):
        x, y = (rng.integers(0, 200, rng.integers(1, 9)) for _ in range(2))
        part.append((k, x, y))
    parts.append(part)
curves = {}
for dtype in (torch.float32, torch.float64):
    policy, reference = load_policy(sys.argv[1]), load_policy(sys.argv[1])
    add_reward_tokens(policy, 3)
    policy.model.to(dtype)
    reference.model.to(dtype)
    optimiser = torch.optim.Adam(policy.model.parameters(), eps=1e-5)
    curves[str(dtype)] = []
    for line in learn(policy, reference, parts, args, optimiser, 0):
        names = ("loss", "lm", "kl", "entropy", "grad_norm")
        curves[str(dtype)].append([line[name] for name in names])
if processes()[0] == 0:
    json.dump(curves, open(sys.argv[2], "w"))
finish()
"""


@pytest.mark.slow
def test_learning_does_not_depend_on_the_number_of_processes(p0_folder, tmp_path):
    """20 steps on 1, 2 and 3 processes: the same losses and gradient norms.

    Relative to 1e-5 in float32 and to 1e-10 in float64.
    """
    script = tmp_path / "losses.py"
    script.write_text(LOSSES)

    def curves(n):
        out = tmp_path / f"{n}.json"
        run(n, script, p0_folder, out)
        of_dtype = json.loads(out.read_text())
        assert len({tuple(line) for line in of_dtype["torch.float64"]}) == 20  # the curve moves
        return {dtype: np.ravel(lines) for dtype, lines in of_dtype.items()}

    one = curves(1)
    for n in (2, 3):
        several = curves(n)
        assert several["torch.float32"] == pytest.approx(one["torch.float32"], rel=1e-5)
        assert several["torch.float64"] == pytest.approx(one["torch.float64"], rel=1e-10)


@pytest.fixture(scope="module")
def pool(p0_folder, tmp_path_factory):
    rows = []
    for i, s in enumerate(SENTENCES * 3):
        row = {"prompt": s[:20], "completion": s[20:], "reward": 0.5}
        rows.append({**row, "quantile": 1 + i % 3})
    return write_jsonl(tmp_path_factory.mktemp("pool") / "q.jsonl", rows)


def learn(pool, model, p0, out, steps=6, total_steps=12):
    command = [ROOT / "learn.py", "--pool", pool, "--model", model, "--reference", p0]
    command += ["--batch-size", 5, "--lr", "1e-3", "--warmup", 2]
    return [*command, "--steps", steps, "--total-steps", total_steps, "--out", out]


@pytest.mark.slow
def test_a_checkpoint_goes_on_at_another_number_of_processes(p0_folder, pool, tmp_path):
    """6 steps on 2 processes and 6 on 3 are the 12 steps of one. Process 0 alone writes.

    Adam divides rounding errors by sqrt(v) + 1e-5, so the weights agree to 1e-4 only.
    """
    first, second, one = (tmp_path / name for name in ("01", "02", "one"))
    run(2, *learn(pool, p0_folder, p0_folder, first))
    said = run(3, *learn(pool, first, p0_folder, second))
    assert said.count("steps 6 to 11") == 1
    run(1, *learn(pool, p0_folder, p0_folder, one, steps=12))
    assert sorted(os.listdir(tmp_path)) == ["01", "02", "one"]
    weights, expected = (load_file(folder / "model.safetensors") for folder in (second, one))
    assert weights.keys() == expected.keys()
    for name in expected:
        assert (weights[name] - expected[name]).abs().max() < 1e-4

    def losses(folder):
        return [line["loss"] for line in read_rows(folder / "metrics.jsonl")]

    assert losses(first) + losses(second) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.slow
def test_a_killed_process_ends_them_all(p0_folder, pool, tmp_path):
    """One of two processes is killed while they learn: all end soon, and nothing is written."""
    out = tmp_path / "01"
    command = learn(pool, p0_folder, p0_folder, out, steps=100_000, total_steps=100_000)
    process = launch(2, *command)
    while len(workers(process)) < 2:
        time.sleep(0.1)
    time.sleep(8)  # by now both are at work
    assert process.poll() is None
    start = time.monotonic()
    os.kill(workers(process)[1], signal.SIGKILL)
    said = process.communicate(timeout=60)[0]
    assert time.monotonic() - start < 30
    assert process.returncode != 0
    assert "Signal 9" in said
    assert os.listdir(tmp_path) == []
