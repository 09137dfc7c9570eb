"""The study of the growing pool: what study.py makes, and how the runs change over the rounds.

python experiments/pool.py runs/studies/pool.tsv
"""

import kept
import numpy as np
import study  # first: it makes the stages importable

from evaluate import dist_n, perplexity
from plumbing.pool import read_pool

PANELS = {
    "reward": "mean reward of the round's samples",
    "ppl": "their perplexity under p0",
    "dist_3": "dist-3 of a prompt's first two",
    "seconds": "seconds to quantize and learn",
    "mb": "what learn.py reads, MB",
}


def over_rounds(run, p0):
    """{metric: [a value for each round]} of one run.

    Reward, perplexity and dist-3 are of the samples of rounds 0, 1, ... Seconds and MB are of the
    round that learns from them.
    """
    rounds = {metric: [] for metric in PANELS}
    for pool in sorted(run.glob("pool/[0-9]*.jsonl")):
        rows = [row for _, row in read_pool([pool])]
        by_prompt = {}
        for row in rows:
            by_prompt.setdefault(row["prompt"], []).append(row["completion"])
        dist_3 = [dist_n(completions[:2], 3) for completions in by_prompt.values()]
        rounds["reward"].append(float(np.mean([row["reward"] for row in rows])))
        rounds["ppl"].append(perplexity(p0, rows[:: max(1, len(rows) // 256)]))
        rounds["dist_3"].append(float(np.mean(dist_3)))
        rounds["seconds"].append(seconds(run, pool))
        rounds["mb"].append(megabytes(run, pool))
    return rounds


def seconds(run, pool):
    """Time to quantize and learn with that pool as the newest, from the times of the files."""
    metrics = run / "model" / f"{int(pool.stem) + 1:02d}" / "metrics.jsonl"
    return metrics.stat().st_mtime - pool.stat().st_mtime


def megabytes(run, pool):
    """What the round with that pool as the newest learns from."""
    return (run / "quantized" / pool.name).stat().st_size / 1e6


def costs(run):
    """Seconds as a mean over the rounds; MB of the last round."""
    pools = sorted(run.glob("pool/[0-9]*.jsonl"))
    mean = float(np.mean([seconds(run, pool) for pool in pools]))
    return {"seconds": mean, "mb": megabytes(run, pools[-1])}


def draw(rounds, path):
    """A row of panels for each task, a line for each variant: means over the seeds.

    rounds: {task: {variant: [over_rounds of each seed]}}.
    """
    from matplotlib.figure import Figure

    size = (4 * len(PANELS), 3.6 * len(rounds))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rounds), len(PANELS), squeeze=False)
    for axes, (task, variants) in zip(grid, rounds.items()):
        for ax, (metric, title) in zip(axes, PANELS.items()):
            for number, (name, seeds) in enumerate(variants.items()):
                mean = np.mean([seed[metric] for seed in seeds], axis=0)
                marker, color = "sD^vP*XhH"[number % 9], f"C{number}"
                style = {"marker": marker, "color": color, "markersize": 4, "linewidth": 1}
                ax.plot(mean, label=name, **style)
            ax.set(title=f"{task}: {title}", xlabel="round")
            ax.grid(color="#e5e5e5")
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=70)


def measure(run, p0):
    """What study.py measures and the costs; and how the run went over its rounds."""
    numbers = study.measure(run, p0)
    return numbers | {"quark": numbers["quark"] | costs(run), "rounds": over_rounds(run, p0)}


def report(name, runs):
    study.report_study(name, runs)
    rounds = {}
    for variant, task, line in runs:
        rounds.setdefault(task, {}).setdefault(variant, []).append(line["rounds"])
    draw(rounds, study.ROOT / "experiments" / "figures" / "pool_rounds.png")


if __name__ == "__main__":
    kept.main(__doc__, measure, report)
