"""Every comparator on one task: from its training to its row in baselines/results/TASK.json.

    python baselines/table.py sentiment                                # what table.sh calls
    python baselines/table.py sentiment --methods dexperts rloo --seeds 0
    python baselines/table.py sentiment --tries                        # only the tries

Rules. Each method gets as many reward calls in training as Quark's default run. Offline methods
learn from one pool of p0's samples, or from its best and worst fifth within each prompt. The knobs
are chosen with seed 0 on 160 openings that are in neither file of prompts, among as many settings
as Quark's defaults had tries: the highest mean reward among those that keep the price (the rule of
experiments/defaults.py); if none does, the one with the lowest perplexity. Then three seeds are
measured on the test prompts.

Each finished try and row goes at once to baselines/results/, from which the next call goes on.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import common
import page
import running
from running import RUNS, Run, defaults, quark_folder, settings_of

from plumbing.files import write_json
from plumbing.options import run_stage
from plumbing.pool import BadInput

RESULTS = common.ROOT / "baselines" / "results"
N_PPLM = 96  # prompts: it costs about 62 forward passes a token

# --------------------------------------------------------------------------------------- the methods


def p0(run):
    run.sample(run.settings["MODEL"])


def quark(run):
    run.sample(last_model(run), run.knobs.get("token", "K"))


def last_model(run):
    """The model of Quark's default run."""
    folder = quark_folder(run.task, run.seed) / "model"
    return folder / f"{int(run.settings['ITERATIONS']):02d}"


def best_of_8(run):
    run.write("best_of_n.py", "--reward", run.task, "--n", 8)


def best_of_25(run):
    run.write("best_of_n.py", "--reward", run.task, "--n", 25)


def dapt(run):
    run.sample(run.expert("good", **run.knobs))


def ctrl(run):
    pool, out = run.quantized(2), run.out / "model"
    run.once(out, lambda: run.learn(out, pool, run.knobs["lr"], run.knobs["steps"]))
    run.sample(out, "K")


def dexperts(run):
    experts = ["--expert", run.expert("good"), "--anti-expert", run.expert("bad")]
    run.write("dexperts.py", *experts, "--alpha", run.knobs["alpha"])


def anti_expert(run):
    run.write("dexperts.py", "--anti-expert", run.expert("bad"), "--alpha", run.knobs["alpha"])


def weights(run):
    experts = ["--expert", run.expert("good"), "--anti-expert", run.expert("bad")]
    model, out = run.settings["MODEL"], run.out / "model"
    options = ["--model", model, *experts, "--scale", run.knobs["scale"], "--out", out]
    run.once(out, lambda: run.python("baselines/weights.py", *options))
    run.sample(out)


def gedi(run):
    guide, pool = run.root / "guide", run.fifth("both")
    options = ["--train", "--pool", pool, "--model", run.settings["MODEL"], "--seed", run.seed]
    options += ["--steps", running.UPDATES]
    run.once(guide, lambda: run.python("baselines/gedi.py", *options, "--out", guide))
    run.write("gedi.py", "--guide", guide, "--omega", run.knobs["omega"])


def pplm(run):
    classifier, parts = run.root / "classifier.json", [run.fifth("good"), run.fifth("bad")]
    options = ["--train", "--good", parts[0], "--bad", parts[1], "--model", run.settings["MODEL"]]
    own = [*options, "--seed", run.seed, "--out", classifier]
    run.once(classifier, lambda: run.python("baselines/pplm.py", *own))
    eta = ["--classifier", classifier, "--eta", run.knobs["eta"]]
    run.write("pplm.py", *eta, num_prompts=N_PPLM)


def ppo(run):
    run.sample(run.train("ppo.py", prompts=True))


def rloo(run):
    run.sample(run.train("rloo.py", prompts=True))


def grpo(run):
    run.sample(run.train("rloo.py", "--kind", "grpo", prompts=True))


def qrpo(run):
    run.sample(run.train("qrpo.py", "--pool", run.pool()))


def mle(run):
    """p0 is the MLE model. A control: as many updates on its own samples."""
    pool, out = run.pool(), run.out / "model"
    steps = int(run.settings["STEPS"]) * int(run.settings["ITERATIONS"])
    run.once(out, lambda: run.learn(out, pool, "3e-4", steps, "--no-reward-token"))
    run.sample(out)


def unlikelihood(run):
    run.sample(run.train("unlikelihood.py", "--pool", run.pool()))


def unlikelihood_sequence(run):
    run.sample(run.train("unlikelihood.py", "--pool", run.pool(), "--sequence", 0.5))


def quark_unlikelihood(run):
    """Unlikelihood training that goes on from Quark's model, under r_K."""
    model = ["--model", last_model(run), "--reward-token", "--sequence", 0.5]
    run.sample(run.train("unlikelihood.py", "--pool", run.pool(), *model), "K")


def simctg(run):
    run.sample(run.train("simctg.py", "--train", "--pool", run.pool()))


def simctg_contrastive(run):
    search(run, run.train("simctg.py", "--train", "--pool", run.pool()))


def contrastive(run):
    search(run, run.settings["MODEL"], "--alpha", run.knobs["alpha"])


def search(run, model, *options):
    """Contrastive search for the main columns; the others measure nucleus samples of the model."""
    run.write("simctg.py", "--model", model, *options)
    own = ["--model", model, "--prompts", run.prompts, *run.lengths(), "--seed", run.seed]
    own += ["--reward-token", "none", "--top-p", 0.9, "--num-samples", 2]
    run.evaluate(*own, suffix="-nucleus")


def grid(**values):
    """All settings: grid(lr=["1e-4"], beta=[0, 1]) -> [{"lr": "1e-4", "beta": 0}, ...]."""
    found = [{}]
    for name, options in values.items():
        found = [{**knobs, name: option} for knobs in found for option in options]
    return found


RATES = ["1e-4", "2e-4", "3e-4", "5e-4", "1e-3"]
KNOBS = {  # what is tried; a method that is not here has nothing to choose
    "dapt": grid(lr=RATES, steps=[150, 300, 600]),
    "ctrl": grid(lr=RATES, steps=[150, 300, 600]),
    "dexperts": grid(alpha=[0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3.2, 4, 5, 6, 8, 10]),
    "anti_expert": grid(alpha=[0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3.2, 4, 5, 6, 8, 10]),
    "weights": grid(scale=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1, 1.25, 1.5, 1.75, 2, 2.5, 3]),
    "gedi": grid(omega=[1, 2, 3, 5, 7, 10, 13, 16, 20, 25, 30, 40, 50, 70, 100]),
    "pplm": grid(
        eta=[0.003, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16]
        + [0.2, 0.25, 0.3]
    ),
    "ppo": grid(lr=["1e-4", "2e-4", "3e-4"], beta=[0.01, 0.02, 0.05, 0.1, 0.2]),
    "rloo": grid(lr=["2e-4", "3e-4", "5e-4"], beta=[0.02, 0.05, 0.1, 0.15, 0.2]),
    "grpo": grid(lr=["1e-4", "2e-4", "3e-4"], beta=[0, 0.02, 0.05, 0.1, 0.2]),
    "qrpo": grid(lr=["2e-4", "5e-4", "1e-3"], beta=[0.03, 0.05, 0.1, 0.2, 0.3]),
    "unlikelihood": grid(lr=["1e-4", "3e-4", "1e-3"], alpha=[1, 3, 10]),
    "unlikelihood_sequence": grid(lr=["1e-4", "3e-4", "1e-3"], alpha=[1, 3, 10]),
    "quark_unlikelihood": grid(lr=["3e-5", "1e-4", "3e-4"], alpha=[0.3, 1, 3]),
    "simctg": grid(lr=["1e-4", "3e-4", "1e-3"], rho=[0.5, 0.7, 0.9]),
    "simctg_contrastive": grid(lr=["1e-4", "3e-4", "1e-3"], rho=[0.5, 0.7, 0.9]),
    "contrastive": grid(alpha=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
}
OF_JUDGED = [p0, quark, best_of_8, best_of_25, dapt, ctrl, dexperts, anti_expert, weights, gedi]
OF_JUDGED += [pplm, ppo, rloo, grpo, qrpo]
OF_REPETITION = [p0, quark, mle, unlikelihood, unlikelihood_sequence, quark_unlikelihood, simctg]
OF_REPETITION += [simctg_contrastive, contrastive]
METHODS = {
    "sentiment": {f.__name__: f for f in OF_JUDGED},
    "toxicity": {f.__name__: f for f in OF_JUDGED if f is not ctrl},
    "repetition": {f.__name__: f for f in OF_REPETITION},
}


# ------------------------------------------------------------------------------- tries, choice, rows


def load(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def label_of(knobs):
    return ", ".join(f"{name} {value}" for name, value in knobs.items())


def price_of(task, numbers, of_p0):
    """What the rule of experiments/defaults.py looks at, of one try; a method has no dial."""
    run = {"p0": of_p0, "quark": numbers, "dial": [0.0, 1.0]}
    return defaults.summary(task, {0: run})


def choose(task, tries):
    """The knobs of the chosen try: {"label": {"knobs", "p0", "numbers"}} -> its label.

    The highest gain among those that keep the price; if none does, the lowest perplexity.
    """
    found = {name: price_of(task, t["numbers"], t["p0"]) for name, t in tries.items()}
    kept = [name for name in found if defaults.keeps_price(task, found[name])]
    if kept:
        return max(kept, key=lambda name: found[name]["gain"])
    return min(found, key=lambda name: found[name]["ppl"])


class Table:
    """The tries and rows of one task, on disk and in memory."""

    def __init__(self, task, rows_in=RESULTS):
        self.task, self.lock = task, Lock()
        self.rows_file = rows_in / f"{task}.json"
        self.tries_file = RESULTS / f"{task}-tries.json"
        self.rows, self.tries = load(self.rows_file), load(self.tries_file)

    def try_knobs(self, job):
        """One try on the tuning prompts, with seed 0."""
        method, knobs = job
        numbers, seconds = self.make(Run(self.task, 0, method, knobs, tuning=True))
        with self.lock:
            of_p0 = self.tries.get("p0", {}).get("", {}).get("numbers", numbers)
            entry = {"knobs": knobs, "p0": of_p0, "numbers": numbers}
            self.tries.setdefault(method, {})[label_of(knobs)] = entry
            write_json(self.tries_file, self.tries)
            gain = price_of(self.task, numbers, of_p0)["gain"]
            print(f"{method} {label_of(knobs)}: gain {gain:.3f}, {seconds:.0f} s", flush=True)

    def add_row(self, job):
        """The chosen setting on the test prompts."""
        method, seed = job
        numbers, seconds = self.make(Run(self.task, seed, method, self.knobs_of(method)))
        with self.lock:
            self.rows.setdefault(method, {})[str(seed)] = numbers
            write_json(self.rows_file, self.rows)
            print(f"{self.task} seed {seed} {method}: {seconds:.0f} s", flush=True)

    def make(self, run):
        start = time.perf_counter()
        METHODS[self.task][run.method](run)
        return run.row(), time.perf_counter() - start

    def knobs_of(self, method):
        tries = self.tries.get(method)
        return tries[choose(self.task, tries)]["knobs"] if method in KNOBS and tries else {}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("task", choices=METHODS)
    parser.add_argument("--methods", nargs="+", help="rows (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="at a time, each with one thread")
    parser.add_argument("--tries", action="store_true", help="only choose the knobs")
    text = "make the rows anew, in runs/baselines/results/"
    parser.add_argument("--again", action="store_true", help=text)
    args = parser.parse_args(argv)
    methods = args.methods or list(METHODS[args.task])
    if unknown := [name for name in methods if name not in METHODS[args.task]]:
        known = " ".join(METHODS[args.task])
        raise BadInput(f"{args.task} has no row {unknown[0]}; the rows: {known}")
    table = Table(args.task, RUNS / "results" if args.again else RESULTS)
    start = time.perf_counter()
    with ThreadPoolExecutor(args.jobs) as pool:
        if "p0" not in table.tries and set(methods) & set(KNOBS):
            table.try_knobs(("p0", {}))
        dial = grid(token=[*range(1, int(settings_of(args.task, 0)["K"]) + 1), "none"])
        knobs = KNOBS | {"quark": dial}  # no choice, but a curve of the picture
        todo = [(m, k) for m in dict.fromkeys(["quark", *methods]) for k in knobs.get(m, [])]
        todo = [(m, k) for m, k in todo if label_of(k) not in table.tries.get(m, {})]
        list(pool.map(table.try_knobs, todo))
        if not args.tries:
            rows = dict.fromkeys(["p0", "quark", *methods])
            todo = [(m, s) for s in args.seeds for m in rows if str(s) not in table.rows.get(m, {})]
            list(pool.map(table.add_row, todo))
    print(page.table(args.task, {m: table.rows[m] for m in METHODS[args.task] if m in table.rows}))
    print(f"{(time.perf_counter() - start) / 60:.0f} minutes")
    if not args.again and all(len(table.rows.get(m, {})) == 3 for m in METHODS[args.task]):
        page.publish(args.task, table.rows, table.tries, choose, METHODS[args.task])


if __name__ == "__main__":
    run_stage(main)
