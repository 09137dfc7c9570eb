"""Killed at any moment and started again, a run ends with the files of an undisturbed one."""

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
from conftest import ROOT, SENTENCES, read_rows, write_jsonl

MY_REWARD = """
import time
def slow(prompts, completions, **kwargs):
    time.sleep(0.15)      # so that some of the kills fall between two batches
    return [sum(map(ord, y)) % 101 / 101 for y in completions]
"""


@pytest.fixture(scope="module")
def settings(p0_folder, tmp_path_factory):
    """run_all.sh on the random model of these tests: every stage, two rounds, seconds."""
    folder = tmp_path_factory.mktemp("run")
    words = " ".join(SENTENCES).split()
    prompts = write_jsonl(folder / "prompts.jsonl", [{"prompt": " ".join(words[i : i + 3]), "group": "ab"[i % 2]} for i in range(30)])
    (folder / "my.py").write_text(MY_REWARD)
    given = dict(MODEL=p0_folder, PROMPTS=prompts, TEST_PROMPTS=prompts, REWARD=f"{folder}/my.py:slow", K=2, ITERATIONS=2, STEPS=4,
                 BATCH=4, LR="1e-3", WARMUP=2, NUM_SAMPLES=3, NEW_TOKENS=8, SAMPLE_BATCH=16, DIAL_SAMPLES=1,
                 EVALUATE="--decode sample --top-p 0.9 --num-samples 2", PYTHON=sys.executable, OMP_NUM_THREADS=1)  # fmt: skip
    return {**os.environ, **{name: str(value) for name, value in given.items()}}


def start(settings, run, **more):
    return subprocess.Popen(["bash", ROOT / "run_all.sh", "sentiment"], env={**settings, "RUN": str(run), **more}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip


def contents(run):
    """{file: what must be equal}: bytes, with the run's own path taken out; of a checkpoint the weights and the state."""
    found = {}
    for file in sorted(p for p in run.rglob("*") if p.is_file()):
        name = str(file.relative_to(run))
        if name.endswith("optimizer.pt"):
            state = torch.load(file, weights_only=True)
            found[name] = str([(k, v.tolist() if hasattr(v, "tolist") else v) for s in state["optimizer"]["state"].values() for k, v in s.items()])
        elif name.endswith("metrics.jsonl"):
            found[name] = [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in read_rows(file)]
        elif name.startswith("figures") or name == "report.html":
            found[name] = None  # drawn anew, with the times of the run
        else:
            found[name] = file.read_bytes().replace(str(run).encode(), b"RUN")
    return found


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    began = time.monotonic()
    process = start(settings, run)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return contents(run), time.monotonic() - began


def behind_the_handler(said):
    """The frames of tracebacks in `said` that lie in a stage behind the line from which on Ctrl-C is one line. Before it, in the first
    hundredths of a second, a traceback is Python's own."""
    frames = re.findall(rf'File "{re.escape(str(ROOT))}/(\w+\.py)", line (\d+)', said)
    last = {}
    for file in {file for file, _ in frames}:
        mark = "signal.signal(signal.SIGTERM" if file == "quantize.py" else "from quantize import"
        last[file] = next(n for n, line in enumerate((ROOT / file).read_text().splitlines(), 1) if line.strip().startswith(mark))
    return [(file, int(line)) for file, line in frames if int(line) > last[file]]


@pytest.mark.slow
def test_thirty_kills(settings, undisturbed, tmp_path):
    """SIGKILL, SIGTERM and Ctrl-C at 30 random moments: each finished run has all the files of the undisturbed one and no other."""
    chance, kills, runs, stages = random.Random(7), 0, 0, set()
    files, seconds = undisturbed
    while kills < 30 or runs == 0:
        run, done = tmp_path / f"run{runs}", False
        while not done:
            process = start(settings, run)
            try:
                said = process.communicate(timeout=seconds * chance.uniform(0.01, 0.25) if kills < 30 else 300)[0]
                assert process.returncode == 0, said
                done = True
            except subprocess.TimeoutExpired:
                kind = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                os.killpg(process.pid, kind)
                said = process.communicate(timeout=30)[0]
                kills += 1
                stages |= {line.split()[1] for line in said.splitlines() if line.startswith("+ ")}
                assert process.returncode != 0, said
                assert not behind_the_handler(said), said
        assert contents(run) == files
        runs += 1
        shutil.rmtree(run)
    assert stages == {"explore.py", "quantize.py", "learn.py", "evaluate.py"}


@pytest.mark.slow
def test_what_a_power_cut_leaves(settings, undisturbed, tmp_path):
    """Half-written files of every kind lie about: the run ends with the same files, and they are gone."""
    run = tmp_path / "run"
    process = start(settings, run)
    while not list((run / "pool").glob("00.jsonl.*.part0")) or not list((run / "pool").glob("*.part0"))[0].read_bytes():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    part = next((run / "pool").glob("*.part0"))
    part.write_bytes(part.read_bytes()[:-30])
    for name in ("pool/00.jsonl.tmp", "quantized/00.jsonl.tmp", "eval/base.json.tmp", "model/01.tmp/model.safetensors"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text('{"prompt": "hal')
    process = start(settings, run)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "going on: " in said and contents(run) == undisturbed[0]


@pytest.mark.slow
def test_a_run_by_torchrun(settings, undisturbed, tmp_path):
    """LAUNCH="torchrun ...": the same files, the first pool byte for byte, the weights to rounding."""
    torchrun = f"{sys.executable} -m torch.distributed.run --nproc_per_node 2 --rdzv_backend c10d --rdzv_endpoint localhost:0"
    process = start(settings, tmp_path / "run", LAUNCH=torchrun)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    files = contents(tmp_path / "run")
    assert files.keys() == undisturbed[0].keys() and files["pool/00.jsonl"] == undisturbed[0]["pool/00.jsonl"]
    one, two = ([m["loss"] for m in f["model/01/metrics.jsonl"]] for f in (undisturbed[0], files))
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_the_second_run_in_a_folder_refuses(settings, tmp_path):
    """While one run is at work another one in its folder ends at once with one sentence."""
    first = start(settings, tmp_path / "run")
    while not (tmp_path / "run" / "pool").exists():
        time.sleep(0.02)
    second = start(settings, tmp_path / "run")
    said = second.communicate(timeout=30)[0]
    assert second.returncode == 1 and "another run is at work in" in said and first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()


@pytest.mark.slow
def test_two_explorations_into_one_file(settings, p0_folder, tmp_path):
    """The second explore.py with the same --out ends with one sentence; the first one's pool is whole."""
    command = [sys.executable, ROOT / "explore.py", "--model", p0_folder, "--prompts", settings["PROMPTS"], "--reward",
               settings["REWARD"], "--batch-size", "2", "--out", tmp_path / "00.jsonl"]  # fmt: skip
    processes = [subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 1] and "another process is writing" in said[codes.index(1)]
    assert len(read_rows(tmp_path / "00.jsonl")) == 30 and sorted(os.listdir(tmp_path)) == ["00.args.json", "00.jsonl"]


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
    """kill -9 while the checkpoint is replaced in its own folder: the previous one opens, and learning goes on from it."""
    from explore import load_policy

    pool = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a", "completion": s, "reward": 0, "quantile": 1} for s in SENTENCES])
    options = ["--pool", pool, "--reference", p0_folder, "--steps", "2", "--total-steps", "9", "--warmup", "1", "--batch-size", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    again = [*options, "--model", tmp_path / "m", "--out", tmp_path / "m"]
    subprocess.run([sys.executable, ROOT / "learn.py", *options, "--model", p0_folder, "--out", tmp_path / "m"], check=True, env=environment)
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    killed = subprocess.run([sys.executable, "-c", HALF_A_SAVE, *map(str, again)], env=environment)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert load_policy(tmp_path / "m").n_quantiles == 1
    subprocess.run([sys.executable, ROOT / "learn.py", *again], check=True, env=environment)
    assert torch.load(tmp_path / "m" / "optimizer.pt", weights_only=True)["step"] == 4
    assert sorted(os.listdir(tmp_path)) == ["m", "q.jsonl"]


def test_killed_between_the_two_renames(quark_folder, tmp_path):
    """The old checkpoint has been moved aside and the new one is not there yet: the next start puts it back."""
    from plumbing.files import check_replaceable, whole_folder

    shutil.copytree(quark_folder, tmp_path / "m.replaced")
    check_replaceable(tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]
    shutil.copytree(quark_folder, tmp_path / "m.replaced")  # killed after both renames
    with whole_folder(tmp_path / "m") as beside:
        (beside / "config.json").write_text("{}")
    assert os.listdir(tmp_path) == ["m"] and os.listdir(tmp_path / "m") == ["config.json"]


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)      # a write beyond the limit then fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
import importlib
stage = importlib.import_module(sys.argv[2])
sys.argv = [sys.argv[2] + ".py", *sys.argv[3:]]
stage.options.run_stage(stage.main)
"""


@pytest.mark.parametrize("stage", ["quantize", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("explore", "learn", "evaluate"))])
def test_full_disk(stage, p0_folder, tmp_path):
    """No room: one sentence, what was there is untouched, and nothing half-written is left."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": s} for s in SENTENCES])
    pool = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a", "completion": s, "reward": 0, "quantile": 1} for s in SENTENCES * 20])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.jsonl").write_text("before\n")
    options = {
        "explore": ["--model", p0_folder, "--prompts", prompts, "--reward", "hash", "--out", tmp_path / "out" / "x.jsonl"],
        "quantize": [pool, "--quantiles", "1", "--out", tmp_path / "out" / "x.jsonl"],
        "learn": ["--pool", pool, "--model", p0_folder, "--reference", p0_folder, "--steps", "1", "--batch-size", "2", "--out", tmp_path / "out" / "m"],
        "evaluate": ["--model", p0_folder, "--reference", p0_folder, "--prompts", prompts, "--reward", "hash", "--out", tmp_path / "out" / "x"],
    }[stage]  # fmt: skip
    limit = 100_000 if stage == "learn" else 600
    ended = subprocess.run([sys.executable, "-c", FULL_DISK, str(limit), stage, *map(str, options)], capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)  # fmt: skip
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1 and "Traceback" not in ended.stderr and "cannot write" in last and "make room" in last, ended.stderr
    assert os.listdir(tmp_path / "out") == ["x.jsonl"] and (tmp_path / "out" / "x.jsonl").read_text() == "before\n"


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
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "scoring" in line:
            break
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert "explore.py: interrupted; finished files are whole, run the same command to go on" in said
    assert os.listdir(tmp_path / "pool") == []
