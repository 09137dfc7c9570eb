"""One run of a comparator: where its files are, and the stages that it calls."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from threading import Lock

import common
import numpy as np

ROOT = common.ROOT
sys.path.insert(0, str(ROOT / "experiments"))

import defaults  # experiments/defaults.py
import held_out as judges  # experiments/held_out.py
import seeds  # experiments/seeds.py

from plumbing.files import whole_file
from plumbing.pool import BadInput, dump_row, read_jsonl, read_prompts
from plumbing.tables import read_table

RUNS = ROOT / "runs" / "baselines"
N_TUNING = 160
UPDATES = 300  # of what several methods stand on: experts, the guide
LOCKS = defaultdict(Lock)  # of each file that several methods share
# As run_all.sh has it: glibc keeps freed memory, which halves the time of an update.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}

# ------------------------------------------------------------------------------- one run of a method


class Run:
    """A method on one task with one seed: where its files are, and the stages that it calls.

    knobs: {name: value} of the method. tuning: on the openings that are in no file of prompts.
    """

    def __init__(self, task, seed, method, knobs, tuning=False):
        self.task, self.seed, self.method, self.knobs = task, seed, method, knobs
        self.root = RUNS / f"{task}-seed{seed}"
        label = "".join(f"-{key}-{value}" for key, value in knobs.items())
        self.name = f"{method}{label}"
        self.out = self.root / ("tuning" if tuning else "test") / self.name
        self.settings = settings_of(task, seed)
        self.prompts = tuning_prompts() if tuning else ROOT / self.settings["TEST_PROMPTS"]
        self.seconds = 0.0  # of training, with what it stands on
        self.log = self.root / "logs" / f"{self.out.parent.name}-{self.name}.log"

    def python(self, script, *arguments):
        """Runs a script of this project with one thread; its output goes to the log."""
        call([sys.executable, script, *map(str, arguments)], self.log)

    def once(self, path, make):
        """Makes a shared file or folder unless it is there, and counts its seconds."""
        clock = path.with_name(path.name + ".seconds")
        with LOCKS[path]:
            if not clock.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                start = time.perf_counter()
                make()
                clock.write_text(str(time.perf_counter() - start))
        self.seconds += float(clock.read_text())
        return path

    # ------------------------------------------------------------------------ what methods stand on

    def pool(self):
        """p0's samples, as many as Quark's default run scores."""
        path = self.root / "p0.jsonl"
        return self.once(path, lambda: self.python("explore.py", *self.of_pool(), "--out", path))

    def of_pool(self):
        s = self.settings
        per_prompt = int(s["NUM_SAMPLES"]) * int(s["ITERATIONS"])
        options = ["--model", s["MODEL"], "--prompts", s["PROMPTS"], "--reward", self.task]
        options += ["--num-prompts", s["NUM_PROMPTS"], "--num-samples", per_prompt]
        return options + ["--top-p", 1, "--seed", self.seed, "--batch-size", 256, *self.lengths()]

    def lengths(self):
        s = self.settings
        return ["--max-new-tokens", s["NEW_TOKENS"], "--min-new-tokens", s["MIN_TOKENS"]]

    def quantized(self, K):
        """The pool in K quantiles within each prompt."""
        path, pool = self.root / f"quantized-{K}.jsonl", self.pool()
        options = ["--quantiles", K, "--per-prompt", "--seed", self.seed, "--out", path]
        return self.once(path, lambda: self.python("quantize.py", pool, *options))

    def fifth(self, name):
        """D+, "good", or D-, "bad": quantile 5 or 1 of 5. "both": as quantiles 2 and 1."""
        path, rows = self.root / f"{name}.jsonl", self.quantized(5)
        wanted = {"good": {5: 5}, "bad": {1: 1}, "both": {1: 1, 5: 2}}[name]

        def make():
            with whole_file(path) as file:
                for _, row in read_jsonl(rows):
                    if row["quantile"] in wanted:
                        file.write(dump_row(row | {"quantile": wanted[row["quantile"]]}) + "\n")

        return self.once(path, make)

    def expert(self, name, lr="3e-4", steps=None):
        """p0 fine-tuned on D+ or D-."""
        steps = steps or UPDATES
        path, pool = self.root / f"expert-{name}-{lr}-{steps}", self.fifth(name)
        return self.once(path, lambda: self.learn(path, pool, lr, steps, "--no-reward-token"))

    def learn(self, out, pool, lr, steps, *options):
        p0 = self.settings["MODEL"]
        more = ["--beta", 0, "--lr", lr, "--steps", steps, "--batch-size", 32, "--warmup", 10]
        more += ["--clip", 1, "--seed", self.seed, *options, "--out", out]
        self.python("learn.py", "--pool", pool, "--model", p0, "--reference", p0, *more)

    # ------------------------------------------------------------------- how its texts are measured

    def train(self, script, *options, prompts=False):
        """Trains by a script of baselines/ with this run's knobs. Returns the model's folder."""
        s, out = self.settings, self.root / "models" / self.name
        if prompts:
            options += ("--prompts", s["PROMPTS"], "--num-prompts", s["NUM_PROMPTS"])
            options += ("--reward", self.task, *self.lengths())
        knobs = [word for key, value in self.knobs.items() for word in (f"--{key}", value)]
        own = ["--model", s["MODEL"], "--seed", self.seed, *options, *knobs, "--out", out]
        return self.once(out, lambda: self.python(f"baselines/{script}", *own))

    def write(self, script, *options, num_prompts=None):
        """Completions by a script of baselines/, then their measures."""
        completions = self.out.with_name(f"{self.name}-completions.jsonl")
        own = ["--model", self.settings["MODEL"], "--prompts", self.prompts, *self.lengths()]
        own += ["--num-samples", self.samples(), "--seed", self.seed, *options]
        if num_prompts:
            own += ["--num-prompts", num_prompts]
        self.python(f"baselines/{script}", *own, "--out", completions)
        self.evaluate("--generations", completions)

    def samples(self):
        return 1 if self.task == "repetition" else 25

    def sample(self, model, token="none"):
        """Completions of an ordinary model, as run_all.sh's last stage has them."""
        decoding = ["--decode", "greedy"] if self.task == "repetition" else ["--top-p", 0.9]
        own = ["--model", model, "--prompts", self.prompts, *self.lengths(), "--seed", self.seed]
        own += ["--reward-token", token, "--batch-size", 256]
        self.evaluate(*own, *decoding, "--num-samples", self.samples())
        if self.task == "repetition":
            nucleus = ["--top-p", 0.9, "--num-samples", 2]
            self.evaluate(*own, *nucleus, suffix="-nucleus")

    def evaluate(self, *options, suffix=""):
        p0, out = self.settings["MODEL"], self.out.with_name(self.name + suffix)
        own = ["--reference", p0, "--reward", self.task, "--out", out]
        self.python("evaluate.py", *options, *own)

    def row(self):
        """What is kept of the run: {metric: value}, the second judge's with "held-out" in front."""
        found = {"train seconds": round(self.seconds, 1), **self.numbers()}
        name, _ = seeds.HELD_OUT.get(self.task, (None, None))
        if name:
            rows = [row for _, row in read_jsonl(self.out.with_name(f"{self.name}.jsonl"))]
            texts = {"completions": [row["completion"] for row in rows]}
            scores = getattr(judges, name)(prompts=[row["prompt"] for row in rows], **texts)
            found[f"held-out {name}"] = float(np.mean(scores))
        return seeds.rounded(found)

    def numbers(self):
        found = defaults.numbers(read_table(self.out.with_name(f"{self.name}.json")))
        nucleus = self.out.with_name(f"{self.name}-nucleus.json")
        if nucleus.exists():
            sampled = defaults.numbers(read_table(nucleus))
            found |= {f"sampled {key}": value for key, value in sampled.items()}
        return found


def call(command, log, **environment):
    """Runs a command in the repository with one thread; what it prints goes to the file `log`."""
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1", **environment}
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        print(*command, file=file, flush=True)
        streams = {"stdout": file, "stderr": file}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False, **streams)
    if done.returncode:
        raise BadInput(f"{' '.join(command[:3])} failed; what it printed is in {log}")


def quark_folder(task, seed):
    """Quark's default run, which is made unless it is finished."""
    run = ROOT / "runs" / f"{task}-tiny-seed{seed}"
    with LOCKS[run]:
        if not (run / "report.html").exists():
            own = {"SEED": str(seed), "RUN": str(run), "PYTHON": sys.executable}
            call(["bash", "run_all.sh", task], run.with_name(f"{run.name}.log"), **own)
    return run


def settings_of(task, seed):
    """The settings of Quark's default run: of the kept one, or of the one in runs/."""
    kept = seeds.KEPT / f"{task}-seed{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))["settings"]
    lines = (quark_folder(task, seed) / "settings").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines)


def tuning_prompts():
    """N_TUNING of the openings that are in neither file of prompts."""
    path = RUNS / "tuning.jsonl"
    with LOCKS[path]:
        if not path.exists():
            folder = ROOT / "tiny" / "prompts"
            used = {
                p["prompt"]
                for name in ("train", "test")
                for p in read_prompts(folder / f"{name}.jsonl")
            }
            free = [row["text"] for _, row in read_jsonl(folder / "openings.jsonl")]
            free = [text for text in free if text not in used]
            drawn = sorted(np.random.default_rng(0).permutation(len(free))[:N_TUNING])
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                for i in drawn:
                    file.write(dump_row({"prompt": free[i]}) + "\n")
    return path
