"""The study of the growing pool: all that study.py makes, and reward, perplexity, diversity, time and disk over the rounds.

    python experiments/pool.py runs/studies/pool.tsv
"""

import numpy as np
import study  # first: it makes the stages importable

from evaluate import dist_n, perplexity
from explore import load_policy
from plumbing.pool import read_pool

PANELS = {"reward": "mean reward of the round's samples", "ppl": "their perplexity under p0", "dist_3": "dist-3 of a prompt's first two",
          "seconds": "seconds to quantize and learn", "mb": "what learn.py reads, MB"}  # fmt: skip


def over_rounds(run, p0):
    """{metric: [a value a round]}: the samples of rounds 0, 1, ..., and what the round that learns from them and older ones costs."""
    rounds = {metric: [] for metric in PANELS}
    for pool in sorted(run.glob("pool/[0-9]*.jsonl")):
        rows, prompts = [row for _, row in read_pool([pool])], {}
        for row in rows:
            prompts.setdefault(row["prompt"], []).append(row["completion"])
        rounds["reward"].append(float(np.mean([row["reward"] for row in rows])))
        rounds["ppl"].append(perplexity(p0, rows[:: max(1, len(rows) // 256)]))
        rounds["dist_3"].append(float(np.mean([dist_n(completions[:2], 3) for completions in prompts.values()])))
        rounds["seconds"].append(seconds(run, pool))
        rounds["mb"].append(megabytes(run, pool))
    return rounds


def draw(rounds, path):
    """A row of panels a task, a line a variant: means over the seeds. rounds: {task: {variant: [over_rounds of each seed]}}."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(PANELS), 3.6 * len(rounds)), layout="constrained")
    for axes, (task, variants) in zip(figure.subplots(len(rounds), len(PANELS), squeeze=False), rounds.items()):
        for ax, (metric, what) in zip(axes, PANELS.items()):
            for number, (name, seeds) in enumerate(variants.items()):
                mean = np.mean([seed[metric] for seed in seeds], axis=0)
                ax.plot(mean, marker="sD^vP*XhH"[number % 9], color=f"C{number}", markersize=4, linewidth=1, label=name)
            ax.set(title=f"{task}: {what}", xlabel="round")
            ax.grid(color="#e5e5e5")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=70)


def costs(run):
    """Means over the rounds and the last round's pool: {metric: value}."""
    pools = sorted(run.glob("pool/[0-9]*.jsonl"))
    return {"seconds": float(np.mean([seconds(run, pool) for pool in pools])), "mb": megabytes(run, pools[-1])}


def seconds(run, pool):
    """To quantize and learn, with that pool as the newest: from one file's time to the other's."""
    return (run / "model" / f"{int(pool.stem) + 1:02d}" / "metrics.jsonl").stat().st_mtime - pool.stat().st_mtime


def megabytes(run, pool):
    return (run / "quantized" / pool.name).stat().st_size / 1e6


def main(argv=None):
    study.main(argv, costs)
    p0, rounds = load_policy(study.ROOT / "tiny" / "lm"), {}
    for name, task, run in study.read_runs(study.arguments(__doc__, argv).runs):
        rounds.setdefault(task, {}).setdefault(name, []).append(over_rounds(run, p0))
    draw(rounds, study.ROOT / "experiments" / "figures" / "pool_rounds.png")


if __name__ == "__main__":
    main()
