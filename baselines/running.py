"""One run of a comparator: where its files are, and the stages that it calls."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from threading import Lock

import common
import numpy as np

ROOT = common.ROOT
sys.path.insert(0, str(ROOT / "experiments"))

import defaults  # experiments/defaults.py
import held_out as judges  # experiments/held_out.py
import kept  # experiments/kept.py
import seeds  # experiments/seeds.py

from plumbing.files import checksum, read_json, whole_file, write_json
from plumbing.pool import BadInput, dump_row, read_jsonl, read_prompts
from plumbing.tables import read_table

RUNS = ROOT / "runs" / "baselines"
N_TUNING = {"sentiment": 96, "toxicity": 96, "repetition": 160}  # there one greedy text a prompt
N_FEWER, N_FEWER_TUNING = 96, 24
FEWER = {"pplm", "best_of_25", "p0_fewer", "quark_fewer"}  # methods that write for N_FEWER prompts
CHECKED = set()  # Quark's runs that this process has seen
PER_PROMPT = ("--per-prompt",)  # how the fifths are ranked; () is the whole pool at once
UPDATES = 300  # of what several methods stand on: experts, the guide
LOCKS = {}  # of each file that several methods share
# What the methods' scripts stand on.
BELOW = ["baselines/common.py", "baselines/gedi.py", "explore.py", "learn.py"]
# As run_all.sh has it: glibc keeps freed memory, which halves the time of an update.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}

# As settings/tiny.sh has it: multiply in bfloat16 where the CPU can; BF16= turns it off.
HAS_BF16 = kept.machine().endswith(("AVX512-BF16", "AMX"))
BF16 = os.environ.get("BF16", "--bf16" if HAS_BF16 else "").split()

# ------------------------------------------------------------------------------ one run of a method


class Run:
    """A method on one task with one seed: where its files are, and the stages that it calls.

    knobs: {name: value} of the method. tuning: on the openings that are in no file of prompts.
    """

    def __init__(self, task, seed, method, knobs, tuning=False, root=None):
        self.task, self.seed, self.method, self.knobs = task, seed, method, knobs
        self.root = (root or RUNS) / f"{task}-seed{seed}"
        label = "".join(f"-{key}-{value}" for key, value in knobs.items())
        self.name = f"{method}{label}"
        self.out = self.root / ("tuning" if tuning else "test") / self.name
        self.settings = settings_of(task, seed)
        self.prompts = tuning_prompts(task) if tuning else ROOT / self.settings["TEST_PROMPTS"]
        if method in FEWER:
            self.prompts = fewer_prompts(self.prompts, N_FEWER_TUNING if tuning else N_FEWER)
        self.more = {}  # what else is kept of the run
        self.seconds = {}  # of training, with what it stands on: {file or folder: seconds}
        self.calls = {}  # of the reward, in what it learned from: {file or folder: number}
        self.log = self.root / "logs" / f"{self.out.parent.name}-{self.name}.log"

    def python(self, script, *arguments):
        """Runs a script of this project with one thread; its output goes to the log."""
        call([sys.executable, script, *map(str, arguments)], self.log)

    def once(self, path, key, make):
        """Makes a shared file or folder unless it was made with this key; counts its seconds."""
        clock, key = made_file(path), [fingerprint(word) for word in key]
        with lock_of(path):
            made = read_json(clock, "what was made") if clock.exists() else {}
            if made.get("key") != key or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                start = time.perf_counter()
                make()
                made = {"key": key, "seconds": time.perf_counter() - start}
                write_json(clock, made)
        self.seconds[path] = made["seconds"]
        return path

    def made_by(self, path, script, *arguments):
        """`once` with a script of this project, which writes its --out."""
        command = [script, *arguments]
        code = kept.fingerprint(ROOT / file for file in (script, *BELOW))
        return self.once(path, [*command, code], lambda: self.python(*command, "--out", path))

    # ------------------------------------------------------------------------ what methods stand on

    def pool(self, rewards=True):
        """p0's samples, as many as Quark's default run scores. rewards: are they learned from?"""
        path = self.samples_of(self.settings["MODEL"], "p0.jsonl")
        if rewards:
            self.calls[path] = rows_in([path])
        return path

    def quark(self):
        """The last model of Quark's default run."""
        run = quark_folder(self.task, self.seed)
        self.seconds[run] = seconds_of(run)
        self.calls[run] = rows_in(sorted(run.glob("pool/*.jsonl")))
        return run / "model" / f"{int(self.settings['ITERATIONS']):02d}"

    def samples_of(self, model, name):
        """Samples of the training prompts, of all tokens, as many as Quark's default run scores."""
        s = self.settings
        options = ["--model", model, "--prompts", s["PROMPTS"], "--reward", self.task]
        options += ["--num-prompts", s["NUM_PROMPTS"], "--num-samples", per_prompt(s)]
        options += ["--top-p", 1, "--seed", self.seed, "--batch-size", 256, *self.lengths()]
        return self.made_by(self.root / name, "explore.py", *options)

    def lengths(self):
        s = self.settings
        return ["--max-new-tokens", s["NEW_TOKENS"], *self.shortest()]

    def shortest(self):
        return ["--min-new-tokens", self.settings["MIN_TOKENS"]]

    def quantized(self, K, *options):
        """The pool in K quantiles."""
        name = f"quantized-{K}{'-'.join(options)}.jsonl"
        own = [self.pool(), "--quantiles", K, *options, "--seed", self.seed]
        return self.made_by(self.root / name, "quantize.py", *own)

    def fifth(self, name, within=PER_PROMPT):
        """D+, "good", or D-, "bad": quantile 5 or 1 of 5. "both": as quantiles 2 and 1."""
        path = self.root / f"{name}{'' if within else '-global'}.jsonl"
        rows = self.quantized(5, *within)
        wanted = {"good": {5: 5}, "bad": {1: 1}, "both": {1: 1, 5: 2}}[name]

        def make():
            with whole_file(path) as file:
                for _, row in read_jsonl(rows):
                    if row["quantile"] in wanted:
                        file.write(dump_row(row | {"quantile": wanted[row["quantile"]]}) + "\n")

        return self.once(path, [rows, wanted], make)

    def expert(self, name, within=PER_PROMPT):
        """p0 fine-tuned on D+ or D-."""
        pool = self.fifth(name, within)
        out = self.root / "models" / f"expert-{pool.stem}-3e-4-{UPDATES}"
        return self.learn(out, pool, "3e-4", UPDATES, "--no-reward-token")

    def learn(self, out, pool, lr, steps, *options, batch_size=32, model=None, total_steps=None):
        """p0, or a `model` on its way, fine-tuned on a pool, by learn.py without the KL."""
        p0 = self.settings["MODEL"]
        more = ["--beta", 0, "--lr", lr, "--steps", steps, "--batch-size", batch_size]
        more += ["--warmup", 10, "--clip", 1, "--seed", self.seed, *BF16, *options]
        more += ["--total-steps", total_steps] if total_steps else []
        return self.made_by(
            out, "learn.py", "--pool", pool, "--model", model or p0, "--reference", p0, *more
        )

    # ----------------------------------------------------------------------- what the method trains

    def learn_by_thirds(self, pool, lr, third, *options, **more):
        """The model after `third` / 3 of 2 UPDATES of learn.py: all thirds are of one run."""
        model, each = None, 2 * UPDATES // 3
        for n in range(1, third + 1):
            out = self.root / "models" / f"{self.method}-{lr}-{n}"
            own = {"model": model, "total_steps": 3 * each}
            model = self.learn(out, pool, lr, each, *options, **own, **more)
        return model

    def train(self, script, *options, steps, method=None, knobs=None):
        """Trains by a script of baselines/ with this run's knobs. Returns the model's folder.

        The knob "third" is where a run is stopped, so three tries cost one run. method and knobs:
        of another row, whose model is used.
        """
        third = self.knobs.get("third", 3)
        knobs = {k: v for k, v in (knobs or self.knobs).items() if k != "third"}
        name = (method or self.method) + "".join(f"-{key}-{value}" for key, value in knobs.items())
        stops = [max(1, steps * n // 3) for n in (1, 2, 3)]
        own = ["--model", self.settings["MODEL"], "--seed", self.seed, *options]
        own += [word for key, value in knobs.items() for word in (f"--{key}", value)]
        own += ["--steps", steps, "--save-at", *stops[:2], *BF16]
        out = self.made_by(self.root / "models" / name, f"baselines/{script}", *own)
        self.seconds[out] *= third / 3
        model = out if third == 3 else out.with_name(f"{name}-{stops[third - 1]}")
        self.calls[out] = sum(row.get("calls", 0) for _, row in read_jsonl(model / "metrics.jsonl"))
        return model

    def train_on_policy(self, script, *options):
        """`train` with as many reward calls as Quark's default run, 128 a step."""
        s = self.settings
        own = ["--prompts", s["PROMPTS"], "--num-prompts", s["NUM_PROMPTS"], "--reward", self.task]
        own += [*self.lengths(), "--batch-size", 128, *options]
        steps = max(1, int(s["NUM_PROMPTS"]) * per_prompt(s) // 128)
        return self.train(script, *own, steps=steps)

    # ------------------------------------------------------------------- how its texts are measured

    def write(self, script, *options):
        """Completions by a script of baselines/, then their measures."""
        completions = self.out.with_name(f"{self.name}-completions.jsonl")
        own = ["--model", self.settings["MODEL"], "--prompts", self.prompts, *self.lengths()]
        own += ["--num-samples", self.samples(), "--seed", self.seed, *options]
        own += ["--batch-size", 256, *BF16]
        self.python(f"baselines/{script}", *own, "--out", completions)
        self.evaluate("--generations", completions)

    def samples(self):
        return 1 if self.task == "repetition" else 25

    def sample(self, model, token="none"):
        """Completions of an ordinary model, as run_all.sh's last stage has them."""
        decoding = ["--decode", "greedy"] if self.task == "repetition" else ["--top-p", 0.9]
        own = ["--model", model, "--prompts", self.prompts, *self.lengths(), "--seed", self.seed]
        own += ["--reward-token", token, "--batch-size", 256, *BF16]
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
        found = {"reward calls": sum(self.calls.values()), **self.numbers()}
        found["train seconds"] = round(sum(self.seconds.values()), 1)
        found |= self.more
        name, _ = seeds.HELD_OUT.get(self.task, (None, None))
        if name:
            rows = [row for _, row in read_jsonl(self.out.with_name(f"{self.name}.jsonl"))]
            texts = {"completions": [row["completion"] for row in rows]}
            scores = getattr(judges, name)(prompts=[row["prompt"] for row in rows], **texts)
            found[f"held-out {name}"] = float(np.mean(scores))
        return seeds.rounded(found)

    def numbers(self):
        """The table's. Repetition: of nucleus samples, too, or of the one text of a search."""
        found = defaults.numbers(read_table(self.out.with_name(f"{self.name}.json")))
        nucleus = self.out.with_name(f"{self.name}-nucleus.json")
        if self.task == "repetition":
            sampled = defaults.numbers(read_table(nucleus)) if nucleus.exists() else found
            found |= {f"sampled {key}": value for key, value in sampled.items()}
        return found


def lock_of(path):
    return LOCKS.setdefault(path, Lock())


def made_file(path):
    """The path of the record of how a file or folder was made."""
    return path.with_name(path.name + ".made.json")


def fingerprint(word):
    """A word of a command; of a file that `once` made and of a model, with a checksum."""
    if isinstance(word, Path) and made_file(word).exists():
        made = read_json(made_file(word), "what was made")
        return f"{word} {hashlib.sha256(json.dumps(made['key']).encode()).hexdigest()}"
    weights = ROOT / str(word) / "model.safetensors"
    return f"{word} {checksum(weights)}" if weights.exists() else str(word)


def rows_in(pools):
    """How many rows pool files have: each is one call of the reward."""
    return sum(1 for pool in pools for _ in read_jsonl(pool))


def per_prompt(settings):
    return int(settings["NUM_SAMPLES"]) * int(settings["ITERATIONS"])


def call(command, log, **environment):
    """Runs a command in the repository with one thread; what it prints goes to the file `log`.

    Raises Diverged if it says that the learning rate is too high, BadInput if it fails otherwise.
    """
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1", **environment}
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        defaults.call(command, environment, log)
    except BadInput as error:
        kind = Diverged if "lower --lr" in str(error) else BadInput
        raise kind(str(error)) from None


class Diverged(BadInput):
    """The loss is no number: the one failure for which the knobs of a try are to blame."""


def quark_folder(task, seed):
    """The folder of Quark's default run, which is made or finished first.

    run_all.sh skips what is there, and refuses a folder that was made with other settings.
    """
    run = ROOT / "runs" / f"{task}-tiny-seed{seed}"
    with lock_of(run):
        if run not in CHECKED:
            own = {"SEED": str(seed), "RUN": str(run), "PYTHON": sys.executable}
            try:
                call(["bash", "run_all.sh", task], run.with_name(f"{run.name}.log"), **own)
            except Diverged as error:  # no knob of a method can change that
                raise BadInput(str(error)) from None
            CHECKED.add(run)
    return run


def seconds_of(run):
    """From a run's settings to its last model, by the times of the files: a pause counts, too."""
    last = max(run.glob("model/*/config.json"))
    return max(0.0, last.stat().st_mtime - (run / "settings").stat().st_mtime)


def settings_of(task, seed):
    """The settings of Quark's default run: of the kept one, or of the one in runs/."""
    kept = seeds.KEPT / f"{task}-seed{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))["settings"]
    lines = (quark_folder(task, seed) / "settings").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines)


def tuning_prompts(task):
    """N_TUNING of the openings that are in neither file of prompts."""
    folder = ROOT / "tiny" / "prompts"
    files = [folder / f"{name}.jsonl" for name in ("train", "test")]
    used = {prompt["prompt"] for file in files for prompt in read_prompts(file)}
    texts = [row["text"] for _, row in read_jsonl(folder / "openings.jsonl")]
    free = [{"prompt": text} for text in texts if text not in used]
    drawn = np.random.default_rng(0).permutation(len(free))[: N_TUNING[task]]
    return write_prompts(RUNS / f"tuning-{task}.jsonl", [free[i] for i in sorted(drawn)])


def fewer_prompts(path, n):
    """n of the prompts, as many of each group, for methods that cost much at each token."""
    prompts = read_prompts(path)
    groups = {}
    for i in np.random.default_rng(0).permutation(len(prompts)):
        groups.setdefault(prompts[i].get("group"), []).append(int(i))
    drawn = [i for own in groups.values() for i in own[: n // len(groups)]]
    return write_prompts(RUNS / f"{path.stem}-{n}.jsonl", [prompts[i] for i in sorted(drawn)])


def write_prompts(path, prompts):
    """Writes a file of prompts, unless it is there: other tables may be reading it."""
    text = "".join(dump_row(prompt) + "\n" for prompt in prompts)
    with lock_of(path):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(text)
    return path
