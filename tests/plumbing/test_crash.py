"""Killed at any moment and started again, a run ends with the files of an undisturbed one."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SENTENCES, execute, files_of, read_rows, write_jsonl

from plumbing.files import check_replaceable, whole_folder
from plumbing.policy import load_policy

MY_REWARD = """
import time
def slow(prompts, completions, **kwargs):
    time.sleep(0.15)  # so that some of the kills fall between two batches
    return [sum(map(ord, y)) % 101 / 101 for y in completions]
"""


@contextlib.contextmanager
def ctrl_c_is_obeyed():
    """For processes that are started within: Ctrl-C is not ignored.

    A shell that starts the tests in the background has them, and all that they start, ignore it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def settings(p0_folder, tmp_path_factory):
    """run_all.sh on the random model of these tests: every stage, two rounds, a few seconds."""
    folder = tmp_path_factory.mktemp("run")
    words = " ".join(SENTENCES).split()
    rows = []
    for i in range(30):
        rows.append({"prompt": " ".join(words[i : i + 3]), "group": "ab"[i % 2]})
    prompts = write_jsonl(folder / "prompts.jsonl", rows)
    (folder / "my.py").write_text(MY_REWARD)
    given = {
        "MODEL": p0_folder,
        "PROMPTS": prompts,
        "TEST_PROMPTS": prompts,
        "REWARD": f"{folder}/my.py:slow",
        "K": 2,
        "ITERATIONS": 2,
        "STEPS": 4,
        "BATCH": 4,
        "LR": "1e-3",
        "WARMUP": 2,
        "NUM_SAMPLES": 3,
        "NEW_TOKENS": 8,
        "SAMPLE_BATCH": 16,
        "DIAL_SAMPLES": 1,
        "EVALUATE": "--decode sample --top-p 0.9 --num-samples 2",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": 1,
    }
    return {**os.environ, **{name: str(value) for name, value in given.items()}}


def start(settings, run, **more):
    with ctrl_c_is_obeyed():
        return subprocess.Popen(
            ["bash", ROOT / "run_all.sh", "sentiment"],
            env={**settings, "RUN": str(run), **more},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process):
    """Waits for a run that must succeed. Returns what it printed."""
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def optimiser_of(file):
    """The optimiser's numbers as text."""
    state = torch.load(file, weights_only=True)
    numbers = []
    for of_parameter in state["optimizer"]["state"].values():
        for name, value in of_parameter.items():
            numbers.append((name, value.tolist() if hasattr(value, "tolist") else value))
    return str(numbers)


def contents(run):
    """{file: what must be equal in two runs}: its bytes, without the run's own path.

    Of the optimiser it is the numbers, of the metrics all but the speed. The report is drawn anew
    and holds times: None.
    """
    found = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(file.relative_to(run))
        if name.endswith("optimizer.pt"):
            found[name] = optimiser_of(file)
        elif name.endswith("metrics.jsonl"):
            found[name] = read_rows(file)
            for row in found[name]:
                del row["tokens_per_s"]
        elif name.startswith("figures") or name == "report.html":
            found[name] = None
        else:
            found[name] = file.read_bytes().replace(str(run).encode(), b"RUN")
    return found


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    """The contents of an undisturbed run, and how long it took."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    began = time.monotonic()
    finish(start(settings, run))
    return contents(run), time.monotonic() - began


# ------------------------------------------------------------------------------------ the whole run


def stages_in(said):
    return set(re.findall(r"^  \S+ (\w+\.py) ", said, re.MULTILINE))


def in_a_main(said):
    """Whether a traceback in `said` goes through the main() of a stage.

    There Ctrl-C must be one line. In the first tenths of a second, while the imports run, a
    traceback is Python's own.
    """
    return re.search(rf'File "{re.escape(str(ROOT))}/\w+\.py", line \d+, in main\b', said)


@pytest.mark.slow
def test_thirty_kills(settings, undisturbed, tmp_path):
    """SIGKILL, SIGTERM and Ctrl-C at 30 random moments, some of them after each stage has begun.

    Each run that is finished in the end has the files of the undisturbed one, and no other.
    """
    chance, kills, runs, stages = random.Random(7), 0, 0, set()
    files, seconds = undisturbed
    while kills < 30 or runs == 0:
        run, done = tmp_path / f"run{runs}", False
        while not done:
            process = start(settings, run)
            patience = seconds * chance.uniform(0.01, 0.25) if kills < 30 else 300
            try:
                said = process.communicate(timeout=patience)[0]
                assert process.returncode == 0, said
                done = True
            except subprocess.TimeoutExpired:
                kinds = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
                os.killpg(process.pid, chance.choice(kinds))
                said = process.communicate(timeout=30)[0]
                kills += 1
                stages |= stages_in(said)
                assert process.returncode != 0, said
                assert not in_a_main(said), said
        assert contents(run) == files
        runs += 1
        shutil.rmtree(run)
    assert stages == {"explore.py", "quantize.py", "learn.py", "evaluate.py"}


def scored_so_far(run):
    """The bytes of the append log of the first pool."""
    return b"".join(part.read_bytes() for part in (run / "pool").glob("00.jsonl.*.part0"))


@pytest.mark.slow
def test_what_a_power_cut_leaves(settings, undisturbed, tmp_path):
    """Half-written files of every kind: the run ends with the same files, and those are gone."""
    run = tmp_path / "run"
    process = start(settings, run)
    while not scored_so_far(run):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (part,) = (run / "pool").glob("*.part0")
    part.write_bytes(part.read_bytes()[:-30])
    unfinished = ["pool/.00.jsonl.unfinished", "quantized/.00.jsonl.unfinished"]
    unfinished.append("eval/.base.json.unfinished")
    for name in [*unfinished, "model/.01.unfinished/model.safetensors"]:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text('{"prompt": "hal')
    assert "going on: " in finish(start(settings, run))
    assert contents(run) == undisturbed[0]


@pytest.mark.slow
def test_a_run_by_torchrun(settings, undisturbed, tmp_path):
    """LAUNCH="torchrun ...", two processes: the same files.

    The first pool is the same byte for byte, and the losses are the same to rounding.
    """
    torchrun = f"{sys.executable} -m torch.distributed.run --nproc_per_node 2"
    torchrun += " --rdzv_backend c10d --rdzv_endpoint localhost:0"
    finish(start(settings, tmp_path / "run", LAUNCH=torchrun))
    one, two = undisturbed[0], contents(tmp_path / "run")
    assert two.keys() == one.keys()
    assert two["pool/00.jsonl"] == one["pool/00.jsonl"]
    losses = [[row["loss"] for row in files["model/01/metrics.jsonl"]] for files in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_the_second_run_in_a_folder_refuses(settings, tmp_path):
    """While a run is at work, another one in its folder ends at once with one sentence."""
    first = start(settings, tmp_path / "run")
    while not (tmp_path / "run" / "pool").exists():
        time.sleep(0.02)
    second = start(settings, tmp_path / "run")
    said = second.communicate(timeout=30)[0]
    assert second.returncode == 1
    assert "another run is at work in" in said
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()


@pytest.mark.slow
def test_two_explorations_into_one_file(settings, p0_folder, tmp_path):
    """The second explore.py with the same --out ends with one sentence.

    The first one's pool is whole.
    """
    command = [sys.executable, ROOT / "explore.py", "--model", p0_folder]
    command += ["--prompts", settings["PROMPTS"], "--reward", settings["REWARD"]]
    command += ["--batch-size", "2", "--out", tmp_path / "00.jsonl"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, env=settings, **output) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 1]
    assert "another process is writing" in said[codes.index(1)]
    assert len(read_rows(tmp_path / "00.jsonl")) == 30
    assert sorted(os.listdir(tmp_path)) == ["00.args.json", "00.jsonl"]


# ------------------------------------------------------------------------------------- a checkpoint

HALF_A_SAVE = """
import os, signal, sys, torch
whole = torch.save
def half(value, path):
    whole(value, path)
    data = open(path, "rb").read()
    open(path, "wb").write(data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
import learn
learn.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_torch_save(p0_folder, tmp_path):
    """kill -9 while a checkpoint is replaced: the previous one is whole, and can be replaced."""
    rows = [{"prompt": "a", "completion": s, "reward": 0, "quantile": 1} for s in SENTENCES]
    pool, model = write_jsonl(tmp_path / "q.jsonl", rows), tmp_path / "m"
    options = ["--pool", pool, "--reference", p0_folder, "--steps", "2", "--total-steps", "9"]
    options += ["--warmup", "1", "--batch-size", "2", "--out", model, "--model", p0_folder]

    def python(*command):
        return execute(sys.executable, *command).returncode

    assert python("learn.py", *options) == 0
    before = (model / "model.safetensors").read_bytes()
    options += ["--seed", "1"]
    killed = python("-c", HALF_A_SAVE, *options)
    assert killed == -signal.SIGKILL
    assert (model / "model.safetensors").read_bytes() == before
    assert load_policy(model).n_quantiles == 1
    assert python("learn.py", *options) == 0
    assert (model / "model.safetensors").read_bytes() != before
    assert sorted(os.listdir(tmp_path)) == ["m", "q.jsonl"]


def test_killed_between_the_two_renames(quark_folder, tmp_path):
    """The old checkpoint was moved aside, and the new one is not there yet: the old one comes back.

    Killed after both renames: the old one goes, and the new one can be replaced as usual.
    """
    model, replaced = tmp_path / "m", tmp_path / ".m.replaced"
    shutil.copytree(quark_folder, replaced)
    check_replaceable(model)
    assert os.listdir(tmp_path) == ["m"]
    assert files_of(model) == files_of(quark_folder)
    shutil.copytree(quark_folder, replaced)
    with whole_folder(model) as unfinished:
        (unfinished / "config.json").write_text("{}")
    assert os.listdir(tmp_path) == ["m"]
    assert os.listdir(model) == ["config.json"]


# -------------------------------------------------------------------------- a full disk, and Ctrl-C

FULL_DISK = """
import importlib, resource, signal, sys
# With this, a write beyond the limit fails as on a full disk.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
stage = importlib.import_module(sys.argv[2])
sys.argv = [sys.argv[2] + ".py", *sys.argv[3:]]
stage.options.run_stage(stage.main)
"""
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("explore", "learn", "evaluate")]


@pytest.mark.parametrize("stage", ["quantize", *SLOW])
def test_full_disk(stage, p0_folder, tmp_path):
    """No room: one sentence, what was there is untouched, and nothing half-written is left."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": s} for s in SENTENCES])
    rows = [{"prompt": "a", "completion": s, "reward": 0, "quantile": 1} for s in SENTENCES]
    pool = write_jsonl(tmp_path / "q.jsonl", rows * 20)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "x.jsonl").write_text("before\n")
    limit = 600  # bytes in a file
    if stage == "quantize":
        options = [pool, "--quantiles", "1", "--out", folder / "x.jsonl"]
    elif stage == "explore":
        options = ["--model", p0_folder, "--prompts", prompts, "--reward", "hash"]
        options += ["--out", folder / "x.jsonl"]
    elif stage == "learn":
        options = ["--pool", pool, "--model", p0_folder, "--reference", p0_folder]
        options += ["--steps", "1", "--batch-size", "2", "--out", folder / "m"]
        limit = 100_000
    else:
        options = ["--model", p0_folder, "--reference", p0_folder, "--prompts", prompts]
        options += ["--reward", "hash", "--out", folder / "y"]
    ended = execute(sys.executable, "-c", FULL_DISK, limit, stage, *options)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert "cannot write" in last and "make room" in last
    assert os.listdir(folder) == ["x.jsonl"]
    assert (folder / "x.jsonl").read_text() == "before\n"


def test_no_room_for_a_picture(tmp_path):
    """A run whose report finds no room: no half of a PNG."""
    rows = [
        {"prompt": "a", "completion": s, "reward": i, "iteration": 0} for i, s in enumerate("abc")
    ]
    write_jsonl(tmp_path / "pool" / "00.jsonl", rows)
    options = ["--report", tmp_path]
    ended = execute(sys.executable, "-c", FULL_DISK, 600, "evaluate", *options)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "make room" in ended.stderr and ".png" in ended.stderr
    assert os.listdir(tmp_path / "figures") == []


SLOW_REWARD = """
import sys, time
def f(prompts, completions, **kwargs):
    print("scoring", file=sys.stderr, flush=True)
    time.sleep(60)
"""


def test_ctrl_c(p0_folder, tmp_path):
    """While a reward is at work: one line, exit code 130, no traceback, no half-written file."""
    (tmp_path / "my.py").write_text(SLOW_REWARD)
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": s} for s in SENTENCES])
    command = [sys.executable, ROOT / "explore.py", "--model", p0_folder, "--prompts", prompts]
    command += ["--reward", f"{tmp_path}/my.py:f", "--out", tmp_path / "pool" / "x.jsonl"]
    with ctrl_c_is_obeyed():
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "scoring" in line:
            break
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    message = "explore.py: interrupted; finished files are whole, run the same command to go on"
    assert message in said
    assert os.listdir(tmp_path / "pool") == []
