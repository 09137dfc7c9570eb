"""The study of the growing pool: what study.py makes, and how the runs change over the rounds.

python experiments/pool.py runs/studies/pool.tsv
"""

import kept
import measures
import numpy as np
import study

PANELS = {
    "reward": "mean reward of the round's samples",
    "ppl": "their perplexity under p0",
    "dist_3": "dist-3 of a prompt's first two",
    "seconds": "seconds to quantize and learn",
    "mb": "what learn.py reads, MB",
}


def draw(rounds, path):
    """A row of panels for each task, a line for each variant: means over the seeds.

    rounds: {task: {variant: [measures.over_rounds of each seed]}}.
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


def report(name, runs):
    figures = study.report_study(name, runs)
    rounds = {}
    for variant, task, line in runs:
        rounds.setdefault(task, {}).setdefault(variant, []).append(line["rounds"])
    draw(rounds, figures / "pool_rounds.png")


if __name__ == "__main__":
    kept.main(__doc__, measures.of_pool, report)
