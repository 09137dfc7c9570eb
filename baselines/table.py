"""Every comparator on one task: from its training to its row in baselines/results/TASK.json.

    python baselines/table.py sentiment                                # what table.sh calls
    python baselines/table.py sentiment --methods dexperts rloo --seeds 0
    python baselines/table.py sentiment --tries                        # only the tries

Rules. Each method gets at most as many reward calls in training as Quark's default run. Offline
methods learn from one pool of p0's samples, or from its best and worst fifth within each prompt.
The knobs are chosen with seed 0 on 96 openings (repetition 160, PPLM 24) that are in neither file
of prompts, among at least as many settings as Quark's defaults had tries: the highest mean reward
among those that keep the price (the rule of experiments/defaults.py); if none does, the perplexity
nearest to p0's. Where a run is stopped is a knob, too: after one, two or three thirds, so that
three settings cost one run. Then three seeds are measured on the test prompts.

Each finished try and row goes at once to baselines/results/, from which the next call goes on.
"""

import argparse
import importlib.util
import json
import math
import os
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Lock

import common
import page
import running
from running import Run, defaults, seeds, settings_of
from study import T95  # experiments/study.py

from plumbing.files import write_json
from plumbing.options import COUNT, run_stage
from plumbing.pool import BadInput

RESULTS = common.ROOT / "baselines" / "results"

# -------------------------------------------------------------------------------------- the methods


def p0(run):
    run.sample(run.settings["MODEL"])


def quark(run):
    run.sample(run.quark(), run.knobs.get("token", "K"))


def best_of_8(run):
    run.write("best_of_n.py", "--reward", run.task, "--n", run.knobs.get("n", 8))


def best_of_25(run):
    run.write("best_of_n.py", "--reward", run.task, "--n", 25)


def dapt(run):
    run.sample(run.learn_by_thirds(run.fifth("good"), *run.knobs.values(), "--no-reward-token"))


def ctrl(run):
    pool = run.quantized(2, "--per-prompt")
    run.sample(run.learn_by_thirds(pool, *run.knobs.values()), "K")


def dexperts(run):
    experts = ["--expert", run.expert("good"), "--anti-expert", run.expert("bad")]
    run.write("dexperts.py", *experts, "--alpha", run.knobs["alpha"])


def dexperts_global(run):
    """The best and the worst fifth of the whole pool instead; how strong is chosen for dexperts."""
    experts = ["--expert", run.expert("good", ()), "--anti-expert", run.expert("bad", ())]
    run.write("dexperts.py", *experts, "--alpha", run.knobs["alpha"])


def anti_expert(run):
    run.write("dexperts.py", "--anti-expert", run.expert("bad"), "--alpha", run.knobs["alpha"])


def weights(run):
    experts = ["--expert", run.expert("good"), "--anti-expert", run.expert("bad")]
    model, out = run.settings["MODEL"], run.root / "models" / run.name
    options = ["--model", model, *experts, "--scale", run.knobs["scale"]]
    run.sample(run.made_by(out, "baselines/weights.py", *options))


def gedi(run):
    pool, p0 = run.fifth("both"), run.settings["MODEL"]
    options = ["--pool", pool, "--model", p0, "--seed", run.seed]
    options += ["--steps", running.UPDATES, *running.BF16]
    guide = run.made_by(run.root / "models" / "guide", "baselines/gedi_guide.py", *options)
    knobs = [word for key, value in run.knobs.items() for word in (f"--{key}", value)]
    run.write("gedi.py", "--guide", guide, *knobs)


def pplm(run):
    parts = ["--good", run.fifth("good"), "--bad", run.fifth("bad")]
    options = [*parts, "--model", run.settings["MODEL"], "--seed", run.seed]
    classifier = run.made_by(run.root / "classifier.json", "baselines/pplm_classifier.py", *options)
    run.more["classifier's AUC"] = load(classifier)["auc"]
    run.write("pplm.py", "--classifier", classifier, "--eta", run.knobs["eta"])


def ppo(run):
    run.sample(run.train_on_policy("ppo.py", "--epochs", 2))


def rloo(run):
    run.sample(run.train_on_policy("rloo.py"))


def grpo(run):
    run.sample(run.train_on_policy("rloo.py", "--kind", "grpo"))


def qrpo(run):
    run.sample(
        run.train("qrpo.py", "--pool", run.pool(), *run.shortest(), steps=6 * running.UPDATES // 5)
    )


def mle(run):
    """p0 is the MLE model. A control: p0 on its own samples, with at most Quark's updates."""
    own = [*run.knobs.values(), "--no-reward-token"]
    run.sample(run.learn_by_thirds(run.pool(False), *own, batch_size=run.settings["BATCH"]))


def unlikelihood(run, *own):
    own = ["--pool", run.pool(False), *run.shortest(), *own]
    run.sample(run.train("unlikelihood.py", *own, steps=2 * running.UPDATES))


def unlikelihood_sequence(run):
    unlikelihood(run, "--sequence", 0.5)


def quark_unlikelihood(run):
    """Unlikelihood training that goes on from Quark's model, under r_K, on its own samples."""
    model = run.quark()
    pool = run.samples_of(model, "quark.jsonl")
    own = ["--model", model, "--reward-token", "--sequence", 0.5, *run.shortest()]
    run.sample(run.train("unlikelihood.py", "--pool", pool, *own, steps=2 * running.UPDATES), "K")


def simctg(run):
    own = ["--pool", run.pool(False), *run.shortest()]
    run.sample(run.train("simctg.py", *own, steps=2 * running.UPDATES))


def simctg_contrastive(run):
    """The search, on the model of the original's rho."""
    own = ["--pool", run.pool(False), *run.shortest()]
    of = {"method": "simctg", "knobs": {"lr": "3e-4", "rho": 0.5}}
    model = run.train("simctg.py", *own, steps=2 * running.UPDATES, **of)
    run.write("contrastive.py", "--model", model, "--alpha", run.knobs["alpha"])


def contrastive(run):
    run.write("contrastive.py", "--alpha", run.knobs["alpha"])


def grid(**values):
    """All settings: grid(lr=["1e-4"], beta=[0, 1]) -> [{"lr": "1e-4", "beta": 0}, ...]."""
    found = [{}]
    for name, options in values.items():
        found = [{**knobs, name: option} for knobs in found for option in options]
    return found


def spread(low, high, n=27):
    """n numbers in geometric progression from low to high, a coarse grid of them first."""
    order = sorted(range(n), key=lambda i: (i % 9 != 4, i % 3 != 1))  # each ninth, each third, all
    return [float(f"{low * (high / low) ** (i / (n - 1)):.2g}") for i in order]


def with_thirds(*settings):
    """Each setting stopped after one, two and three thirds of its run."""
    return [{**knobs, "third": n} for knobs in settings for n in (1, 2, 3)]


RATES = grid(lr=["3e-4", "1e-4", "1e-3", "2e-4", "5e-4", "7e-4", "5e-5", "2e-3", "3e-5"])
ALPHAS, SCALES = grid(alpha=spread(0.1, 12)), grid(scale=spread(0.1, 5))
ETAS, SEARCHES = grid(eta=spread(0.01, 1)), grid(alpha=spread(0.1, 0.9))
# What is tried; a method that is not here has nothing to choose. Where a task has few tries, the
# first ones must span the knobs.
KNOBS = {
    "dapt": with_thirds(*RATES),
    "ctrl": with_thirds(*RATES),
    "dexperts": ALPHAS,
    "anti_expert": ALPHAS,
    "weights": SCALES,
    "gedi": grid(omega=[5, 20, 1, 10, 60, 2, 3, 30, 40], **{"filter-mass": [0, 0.4, 0.8]}),
    "pplm": ETAS,
    "ppo": with_thirds(
        {"lr": "1e-4", "beta": 0.02},
        {"lr": "3e-5", "beta": 0.02},
        {"lr": "1e-4", "beta": 0.05},
        {"lr": "3e-5", "beta": 0.05},
        {"lr": "2e-4", "beta": 0.05},
        {"lr": "2e-4", "beta": 0.02},
        {"lr": "1e-4", "beta": 0.1},
        {"lr": "3e-5", "beta": 0.1},
        {"lr": "2e-4", "beta": 0.1},
    ),
    "rloo": with_thirds(
        {"lr": "3e-4", "beta": 0.05},
        {"lr": "2e-4", "beta": 0.02},
        {"lr": "2e-4", "beta": 0.05},
        {"lr": "5e-4", "beta": 0.1},
        {"lr": "3e-4", "beta": 0.2},
        {"lr": "2e-4", "beta": 0.1},
        {"lr": "3e-4", "beta": 0.1},
        {"lr": "1e-4", "beta": 0.05},
        {"lr": "5e-4", "beta": 0.2},
    ),
    "grpo": with_thirds(
        {"lr": "5e-5", "samples-per-prompt": 4},
        {"lr": "2e-5", "samples-per-prompt": 4},
        {"lr": "1e-4", "samples-per-prompt": 4},
        {"lr": "2e-4", "samples-per-prompt": 4},
        {"lr": "5e-5", "samples-per-prompt": 8},
        {"lr": "2e-5", "samples-per-prompt": 8},
        {"lr": "1e-5", "samples-per-prompt": 4},
        {"lr": "1e-4", "samples-per-prompt": 8},
        {"lr": "1e-5", "samples-per-prompt": 8},
    ),
    "qrpo": with_thirds(
        {"lr": "1e-4", "beta": 0.03},
        {"lr": "5e-5", "beta": 0.03},
        {"lr": "3e-5", "beta": 0.03},
        {"lr": "5e-4", "beta": 0.1},
        {"lr": "2e-4", "beta": 0.1},
        {"lr": "5e-4", "beta": 0.3},
        {"lr": "2e-4", "beta": 0.03},
        {"lr": "2e-4", "beta": 0.3},
        {"lr": "1e-4", "beta": 0.1},
    ),
    "mle": with_thirds(*RATES),
    "unlikelihood": with_thirds(*RATES[:6], *grid(lr=["3e-4", "1e-4", "1e-3"], alpha=[5])),
    "unlikelihood_sequence": with_thirds(
        *RATES[:6], *grid(lr=["3e-4", "5e-4"], alpha=[0.2]), {"lr": "3e-4", "sequence": 0.2}
    ),
    "quark_unlikelihood": with_thirds(
        *grid(lr=["1e-4", "3e-5", "3e-4", "2e-4", "1e-5"]),
        *grid(lr=["1e-4", "3e-4"], alpha=[0.2]),
        *grid(lr=["1e-4", "3e-4"], alpha=[0.2], sequence=[0.2]),
    ),
    "simctg": with_thirds(*grid(lr=["3e-4", "1e-3", "1e-4"], rho=[0.5, 0.9, 0.2])),
    "simctg_contrastive": SEARCHES,
    "contrastive": SEARCHES,
}
KNOBS_OF = {"dexperts_global": "dexperts"}  # rows with the knobs that were chosen for another
OF_JUDGED = [p0, quark, best_of_8, best_of_25, dapt, ctrl, dexperts, dexperts_global, anti_expert]
OF_JUDGED += [weights, gedi, pplm, ppo, rloo, grpo, qrpo]
OF_REPETITION = [p0, quark, mle, unlikelihood, unlikelihood_sequence, quark_unlikelihood, simctg]
OF_REPETITION += [simctg_contrastive, contrastive]
ON_FEWER = {"p0_fewer": p0, "quark_fewer": quark}  # what pplm and best_of_25 are compared with
METHODS = {
    "sentiment": {f.__name__: f for f in OF_JUDGED} | ON_FEWER,
    "toxicity": {f.__name__: f for f in OF_JUDGED if f is not ctrl} | ON_FEWER,
    "repetition": {f.__name__: f for f in OF_REPETITION},
}


# ------------------------------------------------------------------------------ tries, choice, rows


def load(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def label_of(knobs):
    return ", ".join(f"{name} {value}" for name, value in knobs.items())


def price_of(task, numbers, of_p0):
    """What the rule of experiments/defaults.py looks at, of one try; a method has no dial."""
    run = {"p0": of_p0, "quark": numbers, "dial": [0.0, 1.0]}
    return defaults.summary(task, {0: run})


def choose(task, tries, of_p0):
    """The label of the chosen try: {label: {"knobs", "numbers"}}, the numbers of p0.

    The highest gain among those that keep the price; if none does, the perplexity nearest to p0's.
    A try that failed has no numbers.
    """
    found = {
        name: price_of(task, entry["numbers"], of_p0)
        for name, entry in tries.items()
        if "numbers" in entry
    }
    if not found:
        raise BadInput(f"{task}: all of {len(tries)} tries failed: {', '.join(tries)}")
    kept = [name for name in found if defaults.keeps_price(task, found[name])]
    if kept:
        return max(kept, key=lambda name: found[name]["gain"])
    return min(found, key=lambda name: abs(math.log(found[name]["ppl"])))


class Table:
    """The tries and rows of one task, on disk and in memory."""

    def __init__(self, task, again=False):
        self.task, self.lock = task, Lock()
        self.root = running.RUNS / "again" if again else running.RUNS
        self.rows_file = (self.root / "results" if again else RESULTS) / f"{task}.json"
        self.tries_file = RESULTS / f"{task}-tries.json"
        self.rows, self.tries = load(self.rows_file), load(self.tries_file)

    def make_all(self, jobs, n):
        """n at a time: {method: ([knobs to try], [seeds of rows])}, in this order.

        The order: A's tries, B's tries but two, A's rows, B's last two tries. So a row seldom waits
        for the tries that it is chosen from; only the last method's may.
        """
        tried, rows, futures = {}, [], []
        with ThreadPoolExecutor(n) as pool:
            for method, (tries, numbers) in jobs.items():
                tried[method] = [pool.submit(self.try_knobs, method, k) for k in tries[:-2]]
                futures += [pool.submit(self.add_row, *job) for job in rows]
                tried[method] += [pool.submit(self.try_knobs, method, k) for k in tries[-2:]]
                futures += tried[method]
                rows = [(method, seed, tried) for seed in numbers]
            futures += [pool.submit(self.add_row, *job) for job in rows]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # after Ctrl-C, too
                pool.shutdown(wait=False, cancel_futures=True)
        for future in done:
            future.result()

    def try_knobs(self, method, knobs):
        """One try on the tuning prompts, with seed 0."""
        start = time.perf_counter()
        try:
            run = Run(self.task, 0, method, knobs, tuning=True)
            entry = {"knobs": knobs, "numbers": self.make(run)}
        except running.Diverged as error:
            entry = {"knobs": knobs, "failed": str(error)}
        entry["wall seconds"] = round(time.perf_counter() - start)
        with self.lock:
            self.tries.update(load(self.tries_file))  # another call may have written some
            self.tries.setdefault(method, {})[label_of(knobs)] = entry
            write_json(self.tries_file, self.tries)
        said = entry.get("failed") or f"gain {entry['numbers']['mean']:.3f}"
        print(f"{method} {label_of(knobs)}: {said}, {entry['wall seconds']} s", flush=True)

    def add_row(self, method, seed, tried):
        """The chosen setting on the test prompts, after the tries that it is chosen from."""
        for name in (KNOBS_OF.get(method, method), page.reference_of(method)):
            for future in tried.get(name, []):
                future.result()  # if a try was not made, neither is the row
        start = time.perf_counter()
        numbers = self.make(Run(self.task, seed, method, self.knobs_of(method), root=self.root))
        numbers["wall seconds"] = round(time.perf_counter() - start)
        numbers["machine"] = running.kept.machine()
        with self.lock:
            self.rows.update(load(self.rows_file))
            self.rows.setdefault(method, {})[str(seed)] = numbers
            write_json(self.rows_file, self.rows)
        print(f"{self.task} seed {seed} {method}: {numbers['wall seconds']} s", flush=True)

    def make(self, run):
        METHODS[self.task][run.method](run)
        return run.row()

    def p0_of(self, method):
        """p0's numbers on the tuning prompts of the method."""
        return self.tries[page.reference_of(method)][""]["numbers"]

    def knobs_of(self, method):
        method = KNOBS_OF.get(method, method)
        if method not in KNOBS:
            return {}
        tries = self.tries[method]
        return tries[choose(self.task, tries, self.p0_of(method))]["knobs"]

    def part(self, methods, seeds):
        """The finished rows of these methods and seeds: {method: {seed: numbers}}."""
        found = {}
        for method in methods:
            of_seed = self.rows.get(method, {})
            found[method] = {s: row for s, row in of_seed.items() if int(s) in seeds}
        return {method: of_seed for method, of_seed in found.items() if of_seed}

    def is_complete(self):
        """Whether each row has three seeds."""
        return all(len(self.rows.get(method, {})) >= 3 for method in METHODS[self.task])

    def chosen(self):
        """{method: label of the chosen try}"""
        return {
            method: choose(self.task, tries, self.p0_of(method))
            for method, tries in self.tries.items()
            if method in KNOBS
        }


def jobs_of(table, methods, numbers):
    """What is still to be made: {method: ([knobs to try], [seeds of rows])}."""
    n_tries = len(load(defaults.RESULTS)[table.task])  # as many as Quark's defaults had, or more
    knobs = {method: alternating(tries[: -(-n_tries // 3) * 3]) for method, tries in KNOBS.items()}
    dial = grid(token=[*range(1, int(settings_of(table.task, 0)["K"]) + 1), "none"])
    # no choice, but points of the picture
    knobs |= {"p0": [{}], "quark": dial, "p0_fewer": [{}], "best_of_8": grid(n=[2, 4, 8, 16])}
    beside = ["p0", "quark"]
    if set(methods) & running.FEWER:
        beside += ["p0_fewer", "quark_fewer"]
    rows = dict.fromkeys([*beside, *methods])
    jobs = {}
    for method in dict.fromkeys([*beside, *(KNOBS_OF.get(m, m) for m in methods), *methods]):
        made, finished = table.tries.get(method, {}), table.rows.get(method, {})
        tries = [k for k in knobs.get(method, []) if label_of(k) not in made]
        jobs[method] = (tries, [s for s in numbers if method in rows and str(s) not in finished])
    return jobs


def alternating(settings):
    """Takes the thirds of two runs in turn, so that two tries at a time do not wait for one run."""
    if "third" not in settings[0]:
        return settings
    order = [begin + i for begin in range(0, len(settings), 6) for i in (0, 3, 1, 4, 2, 5)]
    return [settings[i] for i in order if i < len(settings)]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("task", choices=METHODS)
    parser.add_argument("--methods", nargs="+", help="rows (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=COUNT, default=2, help="at a time, each with one thread")
    parser.add_argument("--tries", action="store_true", help="only choose the knobs")
    text = "make the rows anew, in runs/baselines/again/"
    parser.add_argument("--again", action="store_true", help=text)
    args = parser.parse_args(argv)
    known = METHODS[args.task]
    if len(args.seeds) > max(T95):
        raise BadInput(f"{len(args.seeds)} seeds; Student's t is known for {max(T95)} at most")
    methods = args.methods or list(known)
    if unknown := [name for name in methods if name not in known]:
        raise BadInput(f"{args.task} has no row {unknown[0]}; the rows: {' '.join(known)}")
    settings = set(settings_of(args.task, 0)) - {"SEED", "TASK"}
    if exported := sorted(settings & os.environ.keys()):  # run_all.sh would take it
        raise BadInput(f"every row has the default settings; first: unset {' '.join(exported)}")
    for _, module in seeds.HELD_OUT.values():
        if importlib.util.find_spec(module) is None:
            raise BadInput(f"{module} is missing; pip install -r baselines/requirements.txt")
    table = Table(args.task, args.again)
    start = time.perf_counter()
    jobs = jobs_of(table, methods, [] if args.tries else args.seeds)
    is_work = any(tries or numbers for tries, numbers in jobs.values())
    if not is_work:
        again = f"remove {running.RUNS.name}/again" if args.again else "AGAIN=1 (--again)"
        print(f"All of this is there already; to make the rows a second time: {again}.")
    table.make_all(jobs, args.jobs)
    if shown := table.part([m for m in known if m in jobs], args.seeds):
        print(page.table(args.task, shown))
    print(f"{(time.perf_counter() - start) / 60:.0f} minutes")
    if is_work and not args.again and table.is_complete():
        page.publish(table, known)


if __name__ == "__main__":
    run_stage(main)
