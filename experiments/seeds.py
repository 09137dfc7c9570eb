"""One table over several runs of one task: p0, Quark and their ratio, mean and range over the runs.

    python experiments/seeds.py --keep runs/sentiment-tiny --out sentiment-seed0.json
    python experiments/seeds.py sentiment-seed0.json sentiment-seed1.json
    python experiments/seeds.py --readme             # the tables that stand in README and docs/

--keep writes what is measured of one run into one file: its settings, its tables, the dial, the
texts of its summary, and the processor. Where a package is installed that experiments/held_out.py
needs, the verdict of a judge that no model was trained against is measured, too.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
from kept import machine  # experiments/kept.py

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plumbing.files import read_json, write_json
from plumbing.options import run_stage
from plumbing.pool import BadInput, read_jsonl
from plumbing.price import dial_beside, summary_lines, two_prompts
from plumbing.tables import at, read_table

NAMES = ("base", "quark", "base-nucleus", "quark-nucleus")
HELD_OUT = {  # task: (a judge of experiments/held_out.py, the module that it needs)
    "sentiment": ("vader", "vaderSentiment"),
    "toxicity": ("clean", "profanity_check"),
}

# ------------------------------------------------------------------------------ what a run measured


def keep(run):
    """What is measured of a finished run.

    {"settings", "machine", "tables", "dial", "texts", "held_out"}; the machine is this one.
    """
    folder = run / "eval"
    tables = {name: read_table(folder / f"{name}.json") for name in NAMES if has(folder, name)}
    if not {"base", "quark"} <= set(tables):
        raise BadInput(
            f"{run} is not the folder of a finished run; its eval/ has no base and quark"
        )
    lines = (run / "settings").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines)
    pair = [folder / f"{name}.json" for name in ("base", "quark")]
    texts = [
        (prompt, [{key: row[key] for key in ("completion", "rewards")} for row in rows])
        for prompt, rows in two_prompts(pair)
    ]
    return {
        "settings": settings,
        "machine": machine(),
        "tables": {name: rounded(table) for name, table in tables.items()},
        "dial": rounded(dial_beside(pair[1])),
        "texts": texts,
        "held_out": held_out(settings["TASK"], folder),
    }


def has(folder, name):
    return (folder / f"{name}.json").exists()


def rounded(content):
    """The same with numbers of six digits after the point."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [rounded(value) for value in content]
    return round(content, 6) if isinstance(content, float) else content


def held_out(task, folder):
    """What another judge says of the completions: its metrics as {"judge", "base", "quark"}.

    None if the task has no such judge, or its package is not installed.
    """
    name, module = HELD_OUT.get(task, (None, None))
    if name is None or importlib.util.find_spec(module) is None:
        return None
    import held_out as judges  # experiments/held_out.py

    found = {"judge": name}
    for who in ("base", "quark"):
        rows = [row for _, row in read_jsonl(folder / f"{who}.jsonl")]
        texts = {"completions": [row["completion"] for row in rows]}
        scores = getattr(judges, name)(prompts=[row["prompt"] for row in rows], **texts)
        worst = {}  # prompt: the worst of its completions
        for row, score in zip(rows, scores):
            worst[row["prompt_number"]] = min(score, worst.get(row["prompt_number"], 1))
        found[who] = {
            "mean": float(np.mean(scores)),
            "avg_max_unwanted": 1 - float(np.mean(list(worst.values()))),
            "unwanted_prob": float(np.mean([score < 0.5 for score in worst.values()])),
        }
    return rounded(found)


# -------------------------------------------------------------------------- several runs in a table


def metrics_of(table, prefix=""):
    """All metrics of a table, in one dict: {"sentiment mean": 0.51, "neutral: dist_1": ...}."""
    flat = {}
    for name, metrics in table["rewards"].items():
        for metric, m in metrics.items():
            flat[f"{prefix}{name} {metric}"] = m["value"]
    for name, m in table.items():
        if isinstance(m, dict) and "value" in m:
            flat[prefix + name] = m["value"]
    for group, part in table.get("groups", {}).items():
        flat |= metrics_of(part, f"{group}: ")
    return flat


def mean_and_range(numbers):
    numbers = [n for n in numbers if n is not None]
    if not numbers:
        return "-"
    return f"{sum(numbers) / len(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"


def print_comparison(title, of_base, of_quark, names=("base", "quark")):
    """One line for each metric: p0, Quark, and Quark divided by p0."""
    print(f"\n{title:46s}{names[0]:>28s}{names[1]:>28s}{'ratio':>28s}")
    for key in of_base[0]:
        b = [metrics[key] for metrics in of_base]
        q = [metrics[key] for metrics in of_quark]
        ratios = [y / x for x, y in zip(b, q) if x and y is not None]
        cells = "".join(f"{mean_and_range(numbers):>28s}" for numbers in (b, q, ratios))
        print(f"{key:46s}{cells}")


def print_dial(runs):
    """The mean reward under each reward token."""
    print("\nmean reward by token")
    for place, (token, _) in enumerate(runs[0]["dial"]):
        print(f"  {token:10s}" + mean_and_range([run["dial"][place][1] for run in runs]))


# ------------------------------------------------------------------------------ the README's table

KEPT = ROOT / "experiments" / "results" / "runs"
README = [  # kind, task, what it is, [(result, path of a metric)], the paper's figures
    (
        "gain",
        "sentiment",
        "share positive, 96 negative prompts",
        [("", ("groups", "negative", "rewards", "sentiment", "share_ge_half"))],
        "0.00 → 0.47",
    ),
    (
        "gain",
        "sentiment",
        "share positive, 96 neutral prompts",
        [("", ("groups", "neutral", "rewards", "sentiment", "share_ge_half"))],
        "0.50 → 0.95",
    ),
    (
        "price",
        "sentiment",
        "dist-2; dist-3; rep-2; perplexity under p0",
        [("", (metric,)) for metric in ("dist_2", "dist_3", "rep_2", "perplexity")],
        ".85 → .80; .85 → .84; not given; 11.4 → 14.5, GPT-2 XL",
    ),
    (
        "gain",
        "toxicity",
        "toxicity probability; average maximum",
        [("", ("rewards", "toxicity", m)) for m in ("unwanted_prob", "avg_max_unwanted")],
        "not verified",
    ),
    (
        "price",
        "toxicity",
        "dist-2; dist-3; rep-2; perplexity under p0",
        [("", (metric,)) for metric in ("dist_2", "dist_3", "rep_2", "perplexity")],
        "not verified",
    ),
    (
        "gain",
        "repetition",
        "diversity of greedy text",
        [("", ("rewards", "repetition", "mean"))],
        "not verified",
    ),
    (
        "price",
        "repetition",
        "of samples: diversity; rep-2; perplexity under p0",
        [("-nucleus", (metric,)) for metric in ("diversity", "rep_2", "perplexity")],
        "not verified",
    ),
]


def kept_runs():
    """{task: what --keep wrote of seeds 0, 1 and 2}"""
    tasks = ("sentiment", "toxicity", "repetition")
    return {task: [read_kept(KEPT / f"{task}-seed{s}.json") for s in range(3)] for task in tasks}


def read_kept(file):
    return read_json(file, "a file that --keep wrote")


def made_on():
    """What stands at each of these tables: the command of its runs, and their processors."""
    machines = {run["machine"] for runs in kept_runs().values() for run in runs}
    return f"Runs: `bash experiments/seeds.sh TASK` ({'; '.join(sorted(machines))})."


def readme_table():
    """The README's table of results, in Markdown, from the kept runs."""
    runs = kept_runs()
    lines = ["| | mean (range) over seeds 0, 1, 2 | p0 | Quark | the paper, GPT-2 large |"]
    lines.append("|---|---|---|---|---|")
    for kind, task, what, metrics, paper in README:
        cells = []
        for name in ("base", "quark"):
            numbers = []
            for suffix, path in metrics:
                values = [at(run["tables"][name + suffix], path)["value"] for run in runs[task]]
                numbers.append(short_range(values))
            cells.append("; ".join(numbers))
        lines.append(f"| {kind} | {task}: {what} | {' | '.join(cells)} | {paper} |")
    return "\n".join(lines)


def readme_summary():
    """The README's example of how a run ends."""
    run = read_kept(KEPT / "sentiment-seed0.json")
    return "\n".join(summary_lines(run["tables"], run["dial"], run["texts"]))


def dial_table():
    """The table of docs/metrics.md: the mean reward of p0 and under each token, over the seeds."""
    lines = ["| | p0 | r_1 … r_K | no token |", "|---|---|---|---|"]
    for task, runs in kept_runs().items():
        p0 = np.mean([run["tables"]["base"]["rewards"][task]["mean"]["value"] for run in runs])
        dial = np.mean([[mean for _, mean in run["dial"]] for run in runs], axis=0)
        *tokens, none = (f"{mean:.3f}" for mean in dial)
        lines.append(f"| {task} | {p0:.3f} | {', '.join(tokens)} | {none} |")
    return "\n".join(lines)


def held_out_table():
    """The table of docs/running.md: the means by the trained judge and by one nobody trained on."""
    lines = ["| | seed | its own judge | another judge | share of the gain |", "|---" * 5 + "|"]
    for task, runs in kept_runs().items():
        for run in runs:
            if not run["held_out"]:
                continue
            own = [run["tables"][w]["rewards"][task]["mean"]["value"] for w in ("base", "quark")]
            other = [run["held_out"][who]["mean"] for who in ("base", "quark")]
            share = (other[1] - other[0]) / (own[1] - own[0])
            cells = (f"{a:.3f} → {b:.3f}" for a, b in (own, other))
            seed = run["settings"]["SEED"]
            name = f"{task}, {run['held_out']['judge']}"
            lines.append(f"| {name} | {seed} | {' | '.join(cells)} | {share:.2f} |")
    return "\n".join(lines)


def short_range(values):
    """0.664 (0.642 to 0.691), with one digit from 10 on."""
    digits = 1 if values[0] >= 10 else 3
    mean, low, high = (f"{x:.{digits}f}" for x in (np.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("results", nargs="*", type=Path, help="what --keep wrote of each run")
    parser.add_argument("--keep", metavar="RUN", type=Path, help="measure a run, write --out")
    parser.add_argument("--out", type=Path)
    text = "print the README's summary and table, and the tables of docs/metrics and running"
    parser.add_argument("--readme", action="store_true", help=text)
    args = parser.parse_args(argv)
    if args.keep:
        if not args.out:
            parser.error("--keep needs --out")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, keep(args.keep))
        return
    if args.readme:
        parts = (readme_summary, readme_table, made_on, dial_table, held_out_table)
        print("\n\n".join(part() for part in parts))
        return
    if not args.results:
        parser.error("name the files that --keep wrote")
    runs = [read_kept(file) for file in args.results]
    if len({run["settings"]["TASK"] for run in runs}) > 1:
        parser.error("name files of one task")
    for pair in (NAMES[:2], NAMES[2:]):
        if pair[0] in runs[0]["tables"]:
            of_base, of_quark = ([metrics_of(run["tables"][name]) for run in runs] for name in pair)
            print_comparison(f"mean (range) over {len(runs)} runs", of_base, of_quark, pair)
    held_out = [run["held_out"] for run in runs if run["held_out"]]
    if held_out:
        of_base, of_quark = ([found[who] for found in held_out] for who in ("base", "quark"))
        print_comparison(f"another judge, {held_out[0]['judge']}", of_base, of_quark)
    print_dial(runs)


if __name__ == "__main__":
    run_stage(main)
