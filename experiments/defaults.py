"""How the defaults of settings/tiny.sh were chosen: tries on training prompts, one rule, a picture.

    python experiments/defaults.py sentiment --seeds 0           # every try, with one seed
    python experiments/defaults.py sentiment --seeds 1 2 --only "p 0.98, lr 2e-4"
    python experiments/defaults.py                     # only the picture and docs/small-runs.md

A try is a run of run_all.sh with other settings. It is measured on 160 training prompts that the
run did not explore: 25 samples a prompt in the nucleus of 0.9 (repetition: a greedy completion,
and 2 samples), and two completions a prompt under each reward token (toxicity: six). The test
prompts are never read.

The rule, for sentiment and toxicity: of the tries that keep the paper's price, the one with the
highest mean reward. The price, in the mean over three seeds: dist-2 at most 0.05 and dist-3 at most
0.01 below p0's, perplexity at most 1.3 times p0's. For repetition: of the tries whose sampled text
has a diversity of at least 0.93 and a perplexity within 0.9 and 1.15 times p0's, the one with the
most diverse greedy text. In every seed the mean reward rises from r_1 to r_K, for repetition by at
least 0.01 in the mean over the seeds.

Every try is made with seed 0. Those that keep the price there are made with seeds 1 and 2, from the
highest gain down, until one of them keeps it in the mean of the three.

This was not all fixed before the tries. The least step of 0.01 in repetition's dial, and measuring
it on all prompts that a run did not explore, were added when some dials turned out to be flat
within chance: without a dial in the rule, "best 0.4 ranked by prompt" would be the default. Tries
made before that have
repetition's dial of 160 prompts. Some tries have more seeds than the rule asks for.

Each finished run's numbers go at once to experiments/results/defaults.json, from which the next
call goes on. A run takes three to five minutes on a core with bfloat16, and four times as long on
others; two are made at a time.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plumbing.files import read_json, whole_file, write_json
from plumbing.options import COUNT, run_stage
from plumbing.policy import load_policy
from plumbing.pool import BadInput, dump_row, read_jsonl, read_prompts
from plumbing.tables import read_table
from tiny.prompts import group_of, judge

RESULTS = ROOT / "experiments" / "results" / "defaults.json"
RUNS = ROOT / "runs" / "defaults"
TRAIN = ROOT / "tiny" / "prompts" / "train.jsonl"
MARK = "<!-- what follows is written by experiments/defaults.py -->\n"
N_PROMPTS = 160
OF_P0 = Lock()  # of the folder of p0's tables, which the first finished try makes
N_EXPLORED = 384  # a try that explores more draws them from all but the N_PROMPTS

# The settings before this search. Each try lists only what it changes.
SHARED = {"K": 5, "BETA": 0.05, "ITERATIONS": 6, "STEPS": 60, "BATCH": 16, "LR": "5e-4"}
SHARED |= {"WARMUP": 30, "CLIP": 1, "REWARD_TOKEN_INIT": "ordered", "REWARD_TOKEN_LR": 10}
SHARED |= {"NUM_PROMPTS": 384, "NUM_SAMPLES": 4, "FORGET": 1, "DIAL_SAMPLES": 2}
BEFORE = {
    "sentiment": SHARED
    | {"EXPLORE": "--decode sample --top-p 0.95", "QUANTIZE": "--per-prompt --keep-top 0.8"},
    "toxicity": SHARED
    | {
        "EXPLORE": "--decode sample --top-p 0.97",
        "QUANTIZE": "--per-prompt --keep-top 0.9",
        "DIAL_SAMPLES": 6,  # its steps are small
    },
    "repetition": SHARED
    | {
        "EXPLORE": "--decode sample --top-p 1",
        "EXPLORE_P0": "--decode sample --top-p 0.6",
        "QUANTIZE": "--last 1 --keep-p0",
        "FORGET": "",
        "K": 2,
        "NEW_TOKENS": 64,
        "NUM_PROMPTS": 192,
        "NUM_SAMPLES": 5,
        "ITERATIONS": 4,
        "STEPS": 150,
        "BATCH": 20,
        "LR": "3e-3",
        "DIAL_SAMPLES": 1,
    },
}


def nucleus(p):
    return {"EXPLORE": f"--decode sample --top-p {p}"}


def best(share):
    """Keeps this share of p0's and the newest round's samples, the best ones."""
    return {"QUANTIZE": f"--last 1 --keep-p0 --keep-top {share}"}


def ranked_by_prompt(share):
    """Keeps the same rows as best(share), but cuts the quantiles within each prompt."""
    return {"QUANTIZE": f"--per-prompt --last 1 --keep-p0 --keep-top {share}"}


ALL_OF_P, NEARLY_ALL, MOST_OF_P = nucleus(1), nucleus(0.99), nucleus(0.98)
TOKEN_30 = {"LR": "2e-3", "REWARD_TOKEN_LR": 30}
TRIES = {
    "sentiment": {
        "before": {},
        "beta 0.2": {"BETA": 0.2},
        "all of p": ALL_OF_P,
        "all of p, lr 3e-4": ALL_OF_P | {"LR": "3e-4"},
        "p 0.98, beta 0.1": MOST_OF_P | {"BETA": 0.1},
        "p 0.98, beta 0.2": MOST_OF_P | {"BETA": 0.2},
        "p 0.98, lr 3e-4, beta 0.1": MOST_OF_P | {"LR": "3e-4", "BETA": 0.1},
        "all of p, K 8": ALL_OF_P | {"K": 8},
        "p 0.98, lr 3e-4": MOST_OF_P | {"LR": "3e-4"},
        "p 0.99, lr 3e-4": NEARLY_ALL | {"LR": "3e-4"},
        "p 0.98, lr 2e-4": MOST_OF_P | {"LR": "2e-4"},
        "p 0.99, lr 2e-4": NEARLY_ALL | {"LR": "2e-4"},
        "p 0.98, lr 2e-4, beta 0.07": MOST_OF_P | {"LR": "2e-4", "BETA": 0.07},
        "p 0.98, lr 2.5e-4": MOST_OF_P | {"LR": "2.5e-4"},
        "p 0.98, lr 3e-4, beta 0.1, token lr 20": MOST_OF_P
        | {"LR": "3e-4", "BETA": 0.1, "REWARD_TOKEN_LR": 20},
        "p 0.98, lr 3e-4, beta 0.07": MOST_OF_P | {"LR": "3e-4", "BETA": 0.07},
        "p 0.98, lr 3e-4, K 4": MOST_OF_P | {"LR": "3e-4", "K": 4},
        "p 0.98, lr 3e-4, 9 rounds": MOST_OF_P
        | {"LR": "3e-4", "ITERATIONS": 9, "STEPS": 40, "WARMUP": 20, "NUM_PROMPTS": 256},
        "p 0.98, lr 3e-4, 4 rounds, batch 32": MOST_OF_P
        | {"LR": "3e-4", "ITERATIONS": 4, "NUM_SAMPLES": 6, "STEPS": 75, "BATCH": 32},
        "p 0.98, lr 2e-4, 512 prompts": MOST_OF_P
        | {"LR": "2e-4", "NUM_PROMPTS": 512, "NUM_SAMPLES": 3},
        "p 0.98, lr 2.5e-4, entropy 0.02": MOST_OF_P | {"LR": "2.5e-4", "ENTROPY": 0.02},
        "p 0.98, lr 3e-4, entropy 0.04": MOST_OF_P | {"LR": "3e-4", "ENTROPY": 0.04},
        "p 0.98, lr 4e-4, entropy 0.06": MOST_OF_P | {"LR": "4e-4", "ENTROPY": 0.06},
        "p 0.98, lr 3e-4, entropy 0.02": MOST_OF_P | {"LR": "3e-4", "ENTROPY": 0.02},
        "p 0.98, lr 2e-4, best 0.7": MOST_OF_P
        | {"LR": "2e-4", "QUANTIZE": "--per-prompt --keep-top 0.7"},
    },
    "toxicity": {
        "before": {},
        "p 0.98, lr 3e-4, beta 0.1": MOST_OF_P | {"LR": "3e-4", "BETA": 0.1},
        "p 0.98, lr 3e-4": MOST_OF_P | {"LR": "3e-4"},
        "p 0.98, lr 3e-4, keep all": MOST_OF_P
        | {"LR": "3e-4", "QUANTIZE": "--per-prompt", "FORGET": ""},
        "p 0.98, lr 2e-4": MOST_OF_P | {"LR": "2e-4"},
        "p 0.98, lr 2e-4, beta 0.1": MOST_OF_P | {"LR": "2e-4", "BETA": 0.1},
    },
    "repetition": {
        "before": {},
        "lr 1e-3": {"LR": "1e-3"},
        "lr 2e-3, 384 prompts, 100 steps": {"LR": "2e-3", "NUM_PROMPTS": 384, "STEPS": 100},
        "best half": best(0.5),
        "best half, lr 2e-3": best(0.5) | {"LR": "2e-3"},
        "best half, lr 1.5e-3": best(0.5) | {"LR": "1.5e-3"},
        "best 0.6, lr 2e-3": best(0.6) | {"LR": "2e-3"},
        "best half, p 0.95, lr 2e-3, token lr 30": best(0.5) | nucleus(0.95) | TOKEN_30,
        "best half, p 0.98, lr 2e-3, token lr 30": best(0.5) | nucleus(0.98) | TOKEN_30,
        "best half, p 0.99, lr 2e-3, token lr 30": best(0.5) | nucleus(0.99) | TOKEN_30,
        "best 0.7, p 0.99, lr 2e-3, token lr 30": best(0.7) | nucleus(0.99) | TOKEN_30,
        "best half ranked by prompt, p 0.99, lr 2e-3, token lr 30": ranked_by_prompt(0.5)
        | nucleus(0.99)
        | TOKEN_30,
        "best half ranked by prompt, lr 2e-3, token lr 30": ranked_by_prompt(0.5) | TOKEN_30,
        "best 0.4 ranked by prompt, p 0.99, lr 2e-3, token lr 30": ranked_by_prompt(0.4)
        | nucleus(0.99)
        | TOKEN_30,
        "best half ranked by prompt, p 0.995, lr 2e-3, token lr 30": ranked_by_prompt(0.5)
        | nucleus(0.995)
        | TOKEN_30,
        "beta 0.2": {"BETA": 0.2},
        "best 0.75 ranked by prompt, beta 0.15": ranked_by_prompt(0.75) | {"BETA": 0.15},
        "best 0.75 ranked by prompt, beta 0.15, p 0.99, lr 2e-3, token lr 30": ranked_by_prompt(
            0.75
        )
        | nucleus(0.99)
        | TOKEN_30
        | {"BETA": 0.15},
        "best half ranked by prompt, p 0.995, lr 2e-3, token lr 2": ranked_by_prompt(0.5)
        | nucleus(0.995)
        | {"LR": "2e-3", "REWARD_TOKEN_LR": 2},
        "best 0.6 ranked by prompt, p 0.995, lr 2e-3, token lr 2": ranked_by_prompt(0.6)
        | nucleus(0.995)
        | {"LR": "2e-3", "REWARD_TOKEN_LR": 2},
        "best 0.75 ranked by prompt, beta 0.2, p 0.99, lr 2e-3": ranked_by_prompt(0.75)
        | nucleus(0.99)
        | {"LR": "2e-3", "BETA": 0.2},
        "best 0.75 ranked by prompt, beta 0.2, p 0.97, lr 2e-3": ranked_by_prompt(0.75)
        | nucleus(0.97)
        | {"LR": "2e-3", "BETA": 0.2},
        "best 0.6, p0's nucleus 0.66, lr 2e-3, token lr 30": best(0.6)
        | TOKEN_30
        | {"EXPLORE_P0": "--decode sample --top-p 0.66"},
        "best half, p0's nucleus 0.75": best(0.5) | {"EXPLORE_P0": "--decode sample --top-p 0.75"},
        "lr 1e-3, p0 mixed": {"LR": "1e-3", "EXPLORE_P0": "--decode mixed --top-p 0.9"},
        "lr 2e-3, p0 mixed, 384 prompts, 100 steps": {
            "LR": "2e-3",
            "NUM_PROMPTS": 384,
            "STEPS": 100,
            "EXPLORE_P0": "--decode mixed --top-p 0.9",
        },
    },
}


# ------------------------------------------------------------------------------------- making a run


def unexplored_prompts(task, seed):
    """A file of N_PROMPTS training prompts that the run of this seed does not explore.

    Their groups are made as those of the test prompts: by 25 completions of p0, which are not the
    completions of the run's own table.
    """
    path = RUNS / f"unexplored-{task}-seed{seed}.jsonl"
    if not path.exists():
        explored = {p["prompt"] for p in read_prompts(TRAIN, N_EXPLORED, seed)}
        rest = [p for p in read_prompts(TRAIN) if p["prompt"] not in explored]
        order = np.random.default_rng([seed, 1]).permutation(len(rest))[:N_PROMPTS]
        drawn = [rest[i] for i in sorted(order)]
        torch.set_num_threads(1)
        positive = (judge(load_policy(ROOT / "tiny" / "lm"), drawn)[0] >= 0.5).sum(1)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            for prompt, count in zip(drawn, positive.tolist()):
                file.write(dump_row({"prompt": prompt["prompt"], "group": group_of(count)}) + "\n")
    return path


def other_prompts(task, seed):
    """A file of all training prompts but unexplored_prompts."""
    path = RUNS / f"others-{task}-seed{seed}.jsonl"
    if not path.exists():
        kept_back = {p["prompt"] for p in read_prompts(unexplored_prompts(task, seed))}
        others = [p for p in read_prompts(TRAIN) if p["prompt"] not in kept_back]
        with whole_file(path) as file:
            file.writelines(dump_row(prompt) + "\n" for prompt in others)
    return path


def run_try(task, name, seed):
    """Makes the run, measures it, and writes its numbers into RESULTS."""
    run = RUNS / f"{task}-seed{seed}-{name.replace(' ', '_').replace(',', '')}"
    p0_run = RUNS / f"{task}-seed{seed}-p0"
    settings = {key: str(value) for key, value in (BEFORE[task] | TRIES[task][name]).items()}
    for base in ("base", "base-nucleus"):  # p0's tables are the same in every try
        for suffix in (".json", ".jsonl"):
            source = p0_run / "eval" / (base + suffix)
            if source.exists():
                (run / "eval").mkdir(parents=True, exist_ok=True)
                shutil.copy(source, run / "eval")
    if int(settings["NUM_PROMPTS"]) > N_EXPLORED:
        settings["PROMPTS"] = str(other_prompts(task, seed))
    own = {"TEST_PROMPTS": str(unexplored_prompts(task, seed)), "RUN": str(run), "ADOPT": "1"}
    environment = os.environ | settings | own | {"SEED": str(seed), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHON": sys.executable}
    run.parent.mkdir(parents=True, exist_ok=True)
    call(["bash", "run_all.sh", task], environment, Path(f"{run}.log"))
    with OF_P0:
        if not p0_run.exists():
            unfinished = p0_run.with_name(f"{p0_run.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(run / "eval", unfinished / "eval")
            os.replace(unfinished, p0_run)
    if task == "repetition":
        greedy_dial(run, environment)
    return measure(task, run)


def greedy_dial(run, environment):
    """The dial on all training prompts that the run did not explore, in place of its own.

    They are 659, or 467 where a try explores 384 prompts. With one greedy completion each of
    N_PROMPTS, a step of 0.01 would be chance.
    """
    explored = {row["prompt"] for _, row in read_jsonl(run / "pool" / "00.jsonl")}
    prompts = run.with_name(f"{run.name}-dial.jsonl")
    with whole_file(prompts) as file:
        for prompt in read_prompts(TRAIN):
            if prompt["prompt"] not in explored:
                file.write(dump_row(prompt) + "\n")
    model = max((run / "model").glob("[0-9]*"))
    options = ["--model", model, "--reference", "tiny/lm", "--ppl-model", "none"]
    options += ["--prompts", prompts, "--reward", "repetition", "--decode", "greedy"]
    options += ["--max-new-tokens", 64, "--min-new-tokens", 64, "--num-samples", 1]
    options += ["--batch-size", 256, "--reward-token", "all", "--out", run / "eval" / "dial"]
    if read_json(run / "eval" / "quark.args.json", "a stage's options")["bf16"]:
        options.append("--bf16")
    command = [sys.executable, "evaluate.py", *map(str, options)]
    call(command, environment, Path(f"{run}.log"))


def call(command, environment, log):
    """Runs a command in the repository; what it prints goes to the file `log`."""
    with open(log, "a") as file:
        print(*command, file=file, flush=True)
        streams = {"stdout": file, "stderr": file}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False, **streams)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-1]
        last = f"stopped by signal {-done.returncode}" if done.returncode < 0 else last
        raise BadInput(f"{' '.join(command[:3])} failed: {last}; more is in {log}")


def measure(task, run):
    """The numbers of a run: {"p0": {metric: value}, "quark": the same, "dial": [r_1, ...]}."""

    def load(name):
        return read_table(run / "eval" / f"{name}.json")

    result = {}
    for who, name in (("p0", "base"), ("quark", "quark")):
        result[who] = numbers(load(name))
        if task == "repetition":  # the fluency of sampled text
            nucleus = numbers(load(f"{name}-nucleus"))
            result[who] |= {f"sampled {key}": value for key, value in nucleus.items()}
    dial = {}
    for file in (run / "eval").glob("dial-r*.json"):
        if not file.name.endswith(".args.json"):
            (reward,) = load(file.stem)["rewards"].values()
            dial[int(file.stem[6:])] = reward["mean"]["value"]
    return result | {"dial": [dial[k] for k in sorted(dial)]}


def numbers(table):
    """What is looked at of a table of evaluate.py: {metric: value}."""
    (reward,) = table["rewards"].values()
    found = {metric: reward[metric]["value"] for metric in reward}
    text = ("perplexity", "dist_2", "dist_3", "rep_2", "diversity")
    found |= {metric: table[metric]["value"] for metric in text}
    for group, part in table["groups"].items():
        (reward,) = part["rewards"].values()
        found[f"{group} share_ge_half"] = reward["share_ge_half"]["value"]
    return found


# ---------------------------------------------------------------------------------------- the rule


def summary(task, seeds):
    """What the rule looks at, in the mean over the seeds: {name: value}."""

    def mean(function):
        return float(np.mean([function(run["p0"], run["quark"]) for run in seeds.values()]))

    def quark(metric):
        return mean(lambda p0, quark: quark[metric])

    def change(metric):
        return mean(lambda p0, quark: quark[metric] - p0[metric])

    def ratio(metric):
        return mean(lambda p0, quark: quark[metric] / p0[metric])

    kind = "sampled " if task == "repetition" else ""
    found = {
        "gain": quark("diversity" if task == "repetition" else "mean"),
        "dist_2": change(kind + "dist_2"),
        "dist_3": change(kind + "dist_3"),
        "rep_2": quark(kind + "rep_2"),
        "ppl": ratio(kind + "perplexity"),
        "rising": min(float(np.diff(run["dial"]).min()) for run in seeds.values()),
        "step": float(np.mean([np.diff(run["dial"]).min() for run in seeds.values()])),
    }
    for group in ("negative", "neutral"):
        share = f"{group} share_ge_half"
        if task == "sentiment" and all(share in run["quark"] for run in seeds.values()):
            found[group] = quark(share)
    if task == "toxicity":
        for name in ("unwanted_prob", "avg_max_unwanted"):
            found[name] = ratio(name)
    if task == "repetition":
        found["diversity"] = quark("sampled diversity")
    return found


def keeps_price(task, found):
    """Whether a try keeps the price, by the rule above."""
    if task == "repetition":
        paid = found["diversity"] >= 0.93 and 0.9 <= found["ppl"] <= 1.15
        paid = paid and found["step"] >= 0.01
    else:
        paid = found["dist_2"] >= -0.05 and found["dist_3"] >= -0.01 and found["ppl"] <= 1.3
    return paid and found["rising"] > 0


def ranked(task, tries):
    """[(name, summary, whether the rule says that it keeps the price)], the highest gain first.

    Before a try has all three seeds, seed 0 decides; without it, a try is left out.
    """
    found = []
    for name, seeds in tries.items():
        if "0" not in seeds:
            continue
        first = {"0": seeds["0"]} if len(seeds) < 3 else seeds
        kept = keeps_price(task, summary(task, first))
        found.append((name, summary(task, seeds), kept))
    return sorted(found, key=lambda one: -one[1]["gain"])


def choose(task, tries):
    """The try that the rule chooses; None if no try with three seeds keeps the price."""
    found = {name: summary(task, seeds) for name, seeds in tries.items() if len(seeds) >= 3}
    kept = [name for name in found if keeps_price(task, found[name])]
    return max(kept, key=lambda name: found[name]["gain"], default=None)


PRICE = {
    "ppl": ("perplexity / p0's", ".2f"),
    "dist_2": ("dist-2 − p0's", "+.3f"),
    "dist_3": ("dist-3 − p0's", "+.3f"),
    "rep_2": ("rep-2", ".3f"),
    "rising": ("least step of the dial", "+.3f"),
}
COLUMNS = {  # task: {what summary() calls it: (heading, format)}
    "sentiment": {
        "gain": ("mean reward", ".3f"),
        "negative": ("negative", ".3f"),
        "neutral": ("neutral", ".3f"),
        **PRICE,
    },
    "toxicity": {
        "gain": ("mean reward", ".3f"),
        "unwanted_prob": ("unwanted probability / p0's", ".2f"),
        "avg_max_unwanted": ("avg max unwanted / p0's", ".2f"),
        **PRICE,
    },
    "repetition": {
        "gain": ("diversity of greedy text", ".3f"),
        "diversity": ("diversity of samples", ".3f"),
        **PRICE,
    },
}


def table(task, tries):
    """The tries of a task in Markdown, numbered as in the picture."""
    columns = COLUMNS[task]
    heading = " | ".join(name for name, _ in columns.values())
    lines = [f"| | {task} | seeds | {heading} | keeps the price |"]
    lines.append("|---" * (len(columns) + 4) + "|")
    chosen = choose(task, tries)
    for number, (name, found, kept) in enumerate(ranked(task, tries), 1):
        cells = [f"{found[key]:{form}}" for key, (_, form) in columns.items()]
        label = f"**{name}**" if name == chosen else name
        cells += ["yes" if kept else "no"]
        lines.append(f"| {number} | {label} | {len(tries[name])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results):
    """experiments/figures/defaults.png: gain against the loss of diversity, a panel for a task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(results), 5), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for ax, (task, tries) in zip(panels, results.items()):
        x_of, limit = ("diversity", 0.93) if task == "repetition" else ("dist_2", -0.05)
        best = choose(task, tries)
        for number, (name, found, kept) in enumerate(ranked(task, tries), 1):
            for seed, one in tries[name].items():
                one = summary(task, {seed: one})
                ax.plot(one[x_of], one["gain"], ".", color="#aaaaaa", markersize=3)
            colour = "#D55E00" if name == best else "#0072B2"
            style = {"marker": "*" if name == best else "o", "s": 140 if name == best else 30}
            place = (found[x_of], found["gain"])
            ax.scatter(*place, facecolor=colour if kept else "none", edgecolor=colour, **style)
            ax.annotate(str(number), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        ax.axvline(limit, color="#777777", linestyle="--", linewidth=1)
        heading = COLUMNS[task][x_of][0]
        ax.set(title=task, xlabel=heading, ylabel=COLUMNS[task]["gain"][0])
        ax.grid(color="#e5e5e5")
        ax.locator_params("x", nbins=5)
    path = ROOT / "experiments" / "figures" / "defaults.png"
    figure.savefig(path, dpi=110)


def publish(results):
    """The picture, and the tables at the end of docs/small-runs.md; prints them, too."""
    tables = "\n".join(table(task, tries) for task, tries in results.items())
    print("\n" + tables)
    draw(results)
    page = ROOT / "docs" / "small-runs.md"
    text = page.read_text(encoding="utf-8").split(MARK)[0]
    with whole_file(page) as file:
        file.write(f"{text}{MARK}\n{tables}")


# ---------------------------------------------------------------------------------------- the tries


def kept_tries():
    """{task: {name of a try: {seed: numbers}}}"""
    return read_json(RESULTS, "the numbers of the tries") if RESULTS.exists() else {}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("task", nargs="*", help=f"of {', '.join(TRIES)}; none: make no run")
    parser.add_argument("--only", nargs="+", help="names of tries")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=COUNT, default=2, help="runs at a time, one thread each")
    args = parser.parse_args(argv)
    known = {name for tries in TRIES.values() for name in tries}
    for given, names in ((args.task, TRIES), (args.only or [], known)):
        if unknown := [name for name in given if name not in names]:
            parser.error(f"{unknown[0]!r} is none of {', '.join(names)}")
    results = kept_tries()
    lock = Lock()

    def go(job):
        task, name, seed = job
        numbers = run_try(task, name, seed)
        with lock:  # numbers of a finished run are never lost
            results.update(kept_tries())  # another call, of another task, may have written some
            entry = results.setdefault(task, {}).setdefault(name, {})
            entry[str(seed)] = numbers
            write_json(RESULTS, results)
            line = {key: round(value, 3) for key, value in summary(task, {0: numbers}).items()}
            print(task, name, f"seed {seed}:", line, flush=True)

    jobs = []
    for task in args.task:
        names = [name for name in TRIES[task] if args.only is None or name in args.only]
        todo = [(task, name, s) for s in args.seeds for name in names]
        jobs += [j for j in todo if str(j[2]) not in results.get(task, {}).get(j[1], {})]
        for seed in args.seeds:
            unexplored_prompts(task, seed)  # before two runs would make it
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(go, jobs))
    publish(results)


if __name__ == "__main__":
    run_stage(main)
