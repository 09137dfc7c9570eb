"""The study of what unlearned means: from the folders hidden/ to its table, verdict and picture.

    python experiments/hidden.py runs/studies/hidden.tsv
    python experiments/hidden.py --unseen RUN/pool/00.jsonl   # training prompts not in the pool
    python experiments/hidden.py --nearest 0-none.json try-*.json    # which has the nearest reward

experiments/hidden.sh fills the folders. The rows of the table are p0, Quark's model under r_K, r_1
and no token, and the two clean models. NAME+n is a model after n updates on 64 bad samples of p0,
read without a token; "NAME+n, r_K" is the same read with r_K. The columns are the mean reward on
the test prompts, how much of it the n updates took, and the log-probability that the model gives
those 64 completions, minus that of p0, in nats per token.
"""

import re
import sys
from pathlib import Path

import kept
import measures
import numpy as np
import study

from plumbing.pool import dump_row

RUNS = study.ROOT / "runs" / "studies"


def lines(variants):
    """The lines of the picture: {name: {number of updates: row of the table}}.

    The row "quark+8" is on the line "quark, no token", at 8 updates.
    """
    found = {}
    for row in variants:
        name, updates, token = re.fullmatch(r"(\w+)(?:\+(\d+))?(?:, (.*))?", row).groups()
        if name == "quark":
            name = f"quark, {token or 'no token'}"
        found.setdefault(name, {})[int(updates or 0)] = row
    return found


def add_losses(variants):
    """Adds "lost" to each row: the reward before the updates, read alike, minus that after them."""
    for rows in lines(variants).values():
        start = variants[rows[0]]["reward"]
        for row in rows.values():
            variants[row]["lost"] = np.subtract(start, variants[row]["reward"]).tolist()


def draw(results, path):
    """Reward and log-probability against the number of updates on bad samples.

    A column of panels for each task; the bars are 95 % intervals.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(results) + 1.5, 8), layout="constrained")
    grid = figure.subplots(2, len(results), squeeze=False)
    for panels, (task, variants) in zip(grid.T, results.items()):
        numbers = set()
        for rows in lines(variants).values():
            numbers |= set(rows)
        for ax, metric in zip(panels, ("reward", "worst")):
            for number, (name, rows) in enumerate(lines(variants).items()):
                intervals = [study.interval(variants[row][metric]) for row in rows.values()]
                means, halves = zip(*intervals)
                places = [n.bit_length() for n in rows]  # each doubling is as wide
                marker, color = "sD^vP*XhH"[number % 9], f"C{number}"
                style = {"marker": marker, "color": color, "capsize": 2, "linewidth": 1}
                ax.errorbar(places, means, yerr=halves, label=name, **style)
            ticks = sorted(numbers)
            ax.set_xticks([n.bit_length() for n in ticks], ticks)
            ylabel = study.METRICS[metric][0].replace(" of p0", "\nof p0")
            ax.set(title=task, xlabel="updates on 64 bad samples", ylabel=ylabel)
            ax.grid(color="#e5e5e5")
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)


def report(name, runs):
    """p0's rows first, of the runs that the others stand on."""
    found = kept.kept()
    of_p0 = [
        ("p0", task, found["hidden", Path(run).name])
        for _, task, _, run, *_ in kept.lines_of(RUNS / "hidden-p0.tsv")
    ]
    results = {}
    for _, task, line in of_p0 + runs:
        for label, numbers in line["rows"].items():
            row = results.setdefault(task, {}).setdefault(label, {"reward": [], "worst": []})
            for metric, value in numbers.items():
                row[metric].append(value)
    for variants in results.values():
        add_losses(variants)
    study.publish(name, results, study.cost_of(of_p0 + runs), draw)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--unseen"]:
        for row in measures.unseen(argv[1]):
            print(dump_row({"prompt": row["prompt"]}))
    elif argv[:1] == ["--nearest"]:
        print(measures.nearest(argv[1], argv[2:]))
    else:
        kept.main(__doc__, measures.of_hidden, report, argv)


if __name__ == "__main__":
    main()
