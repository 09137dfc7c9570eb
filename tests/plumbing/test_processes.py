"""explore.py and learn.py under torchrun (gloo, on loopback): what N processes write is what one writes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SENTENCES, read_rows, write_jsonl

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(n, *command, **more):
    """Starts `python command` as n processes under torchrun, as one without it."""
    torchrun = [] if n == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", n, "--master_port", "0", "--rdzv_backend", "c10d",
                                  "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    return subprocess.Popen([sys.executable, *map(str, [*torchrun, *command])], env=ENVIRONMENT, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)  # fmt: skip


def run(n, *command, **more):
    process = launch(n, *command, **more)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    words = " ".join(SENTENCES).split()
    rows = [{"prompt": " ".join(words[i : i + 1 + i % 5])} for i in range(40)]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def explore(n, model, prompts, out, *more):
    return [n, ROOT / "explore.py", "--model", model, "--prompts", prompts, "--reward", "hash", "--num-samples", "2",
            "--batch-size", "8", "--max-new-tokens", "12", "--out", out, *more]  # fmt: skip


@pytest.mark.slow
def test_the_pool_does_not_depend_on_the_number_of_processes(quark_folder, prompts, tmp_path):
    """1, 2 and 3 processes: the same bytes, and nothing else left in the folder."""
    pools = []
    for n in (1, 2, 3):
        said = run(*explore(n, quark_folder, prompts, tmp_path / str(n) / "00.jsonl"))
        assert said.count("80 samples") == 1  # process 0 alone reports
        assert sorted(os.listdir(tmp_path / str(n))) == ["00.args.json", "00.jsonl"]
        pools.append((tmp_path / str(n) / "00.jsonl").read_bytes())
    assert pools[0] == pools[1] == pools[2] and len(pools[0].splitlines()) == 80


SLOW_REWARD = """
import os, time
def slow(prompts, completions, **kwargs):
    with open(os.environ["ASKED"], "a") as file:
        file.writelines(x + "\\t" + repr(y) + "\\n" for x, y in zip(prompts, completions))
    time.sleep(0.3)
    return [len(y) / 100 for y in completions]
"""


@pytest.mark.slow
def test_a_killed_exploration_goes_on_at_another_number(quark_folder, prompts, tmp_path):
    """3 processes are killed in the middle, 2 finish: the bytes of an undisturbed run, and no kept sample is scored again."""
    (tmp_path / "my.py").write_text(SLOW_REWARD)
    reward = ["--reward", tmp_path / "my.py:slow"]
    ENVIRONMENT["ASKED"] = str(tmp_path / "one.txt")
    run(*explore(1, quark_folder, prompts, tmp_path / "one" / "00.jsonl", *reward))
    ENVIRONMENT["ASKED"] = str(tmp_path / "many.txt")
    command = explore(3, quark_folder, prompts, tmp_path / "many" / "00.jsonl", *reward)
    process = launch(*command)
    parts = lambda: [row for part in (tmp_path / "many").glob("*.part*") for row in read_rows(part)]
    while not (tmp_path / "many").exists() or len(parts()) < 24:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(["pkill", "-9", "-f", str(tmp_path / "many")])  # torchrun gives its workers sessions of their own
    process.communicate()
    kept = {(row["prompt"], row["completion"]) for row in parts()}
    asked = (tmp_path / "many.txt").read_text()
    said = run(2, *command[1:])
    assert "going on: " in said
    again = (tmp_path / "many.txt").read_text()[len(asked) :].splitlines()
    assert len(again) <= 80 - len(kept) and sorted(os.listdir(tmp_path / "many")) == ["00.args.json", "00.jsonl"]
    assert (tmp_path / "many" / "00.jsonl").read_bytes() == (tmp_path / "one" / "00.jsonl").read_bytes()


LOSSES = """
import json, sys
from types import SimpleNamespace
import numpy as np, torch
from explore import load_policy
from plumbing.processes import finish, processes
from learn import add_reward_tokens, learn
settings = dict(steps=20, total_steps=20, batch_size=7, grad_accum=2, beta=0.3, kl="forward", entropy_coef=0.01, clip=1.0, lr=3e-3,
                warmup=2, reward_token_lr=2.0, seed=0, bf16=False, closed_form=False)
rng, out = np.random.default_rng(0), {}
parts = [[(k, rng.integers(0, 200, rng.integers(1, 9)), rng.integers(0, 200, rng.integers(1, 9))) for _ in range(5)] for k in (1, 2, 3)]
for dtype in (torch.float32, torch.float64):
    policy, reference = load_policy(sys.argv[1]), load_policy(sys.argv[1])
    add_reward_tokens(policy, 3)
    policy.model.to(dtype), reference.model.to(dtype)
    optimiser = torch.optim.Adam(policy.model.parameters(), eps=1e-5)
    out[str(dtype)] = [[m[key] for key in ("loss", "lm", "kl", "entropy", "grad_norm")]
                       for m in learn(policy, reference, parts, SimpleNamespace(**settings), optimiser, 0)]
if processes()[0] == 0:
    json.dump(out, open(sys.argv[2], "w"))
finish()
"""


@pytest.mark.slow
def test_learning_does_not_depend_on_the_number_of_processes(p0_folder, tmp_path):
    """20 steps on 1, 2 and 3 processes: losses and gradient norms within 1e-5 in float32 and 1e-10 in float64, relative."""
    (tmp_path / "losses.py").write_text(LOSSES)
    curves = []
    for n in (1, 2, 3):
        run(n, tmp_path / "losses.py", p0_folder, tmp_path / f"{n}.json")
        curves.append(json.loads((tmp_path / f"{n}.json").read_text()))
    assert len({tuple(line) for line in curves[0]["torch.float64"]}) == 20  # the curve moves
    for dtype, tolerance in (("torch.float32", 1e-5), ("torch.float64", 1e-10)):
        one = [value for line in curves[0][dtype] for value in line]
        for other in curves[1:]:
            assert [value for line in other[dtype] for value in line] == pytest.approx(one, rel=tolerance)


@pytest.fixture(scope="module")
def pool(p0_folder, tmp_path_factory):
    rows = [{"prompt": s[:20], "completion": s[20:], "reward": 0.5, "quantile": 1 + i % 3} for i, s in enumerate(SENTENCES * 3)]
    return write_jsonl(tmp_path_factory.mktemp("pool") / "q.jsonl", rows)


def learn(n, pool, model, p0, out, *more):
    return [n, ROOT / "learn.py", "--pool", pool, "--model", model, "--reference", p0, "--batch-size", "5", "--lr", "1e-3",
            "--warmup", "2", "--total-steps", "12", "--steps", "6", "--out", out, *more]  # fmt: skip


@pytest.mark.slow
def test_a_checkpoint_goes_on_at_another_number_of_processes(p0_folder, pool, tmp_path):
    """6 steps on 2 processes and 6 on 3 are the 12 steps of one process; process 0 alone writes."""
    from safetensors.torch import load_file

    run(*learn(2, pool, p0_folder, p0_folder, tmp_path / "01"))
    said = run(*learn(3, pool, tmp_path / "01", p0_folder, tmp_path / "02"))
    assert said.count("steps 6 to 11") == 1
    run(*learn(1, pool, p0_folder, p0_folder, tmp_path / "one", "--steps", "12"))
    assert sorted(os.listdir(tmp_path)) == ["01", "02", "one"]
    one, many = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "02"))
    assert all((one[key] - many[key]).abs().max() < 1e-4 for key in one)  # Adam divides rounding by sqrt(v) + 1e-5
    losses = [m["loss"] for name in ("01", "02") for m in read_rows(tmp_path / name / "metrics.jsonl")]
    assert losses == pytest.approx([m["loss"] for m in read_rows(tmp_path / "one" / "metrics.jsonl")], rel=1e-5)


def workers(process):
    """The process ids of torchrun's children."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


@pytest.mark.slow
def test_a_killed_process_ends_them_all(p0_folder, pool, tmp_path):
    """One of two processes is killed in the middle of learning: all end within 30 seconds, with a message and no output."""
    process = launch(*learn(2, pool, p0_folder, p0_folder, tmp_path / "01", "--steps", "100000", "--total-steps", "100000"))
    while len(workers(process)) < 2:
        time.sleep(0.1)
    time.sleep(8)  # both are at work by now
    assert process.poll() is None
    start = time.monotonic()
    os.kill(workers(process)[1], signal.SIGKILL)
    said = process.communicate(timeout=60)[0]
    assert time.monotonic() - start < 30 and process.returncode != 0 and "Signal 9" in said and os.listdir(tmp_path) == []


@pytest.mark.slow
def test_one_failure_ends_all_with_its_message(quark_folder, prompts, tmp_path):
    """A reward that fails in process 1 only: everyone ends, the reason is on the screen, no pool appears."""
    (tmp_path / "my.py").write_text("import os\ndef f(prompts, completions, **kwargs):\n    assert os.environ['RANK'] != '1', 'out of luck'\n    return [0.0] * len(prompts)\n")
    start = time.monotonic()
    process = launch(*explore(2, quark_folder, prompts, tmp_path / "pool" / "00.jsonl", "--reward", tmp_path / "my.py:f"))
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and "out of luck" in said and time.monotonic() - start < 40
    assert not (tmp_path / "pool" / "00.jsonl").exists()
