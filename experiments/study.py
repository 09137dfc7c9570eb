"""From a study's runs to its table with intervals, its verdict, a JSON file and a picture.

    python experiments/study.py runs/studies/beta.tsv     # `bash experiments/beta.sh` ends with it

Verdicts follow one rule, which was fixed before any run was made. A claim says that a metric of
variant A is above or below that of variant B. For each seed the difference A - B is taken, then its
95 % interval over the seeds (Student's t). The claim is

- *reproduced* if in every task the interval is on the claimed side of 0,
- *not reproduced* if in some task it is on the other side,
- *unclear* otherwise.

The verdict of a study is that of its worst claim; claims with names have a verdict each. With
fewer than two tasks or five seeds there is no verdict: the table is printed, the picture is drawn
in runs/studies/, and the page, its figures and the study's JSON stay as they are.
"""

import json

import kept
import measures  # it makes the stages importable
import numpy as np

from plumbing.files import read_json, whole_file

ROOT = kept.ROOT
N_SEEDS = 5  # of every study with a verdict
# Two-sided 95 % quantiles of Student's t, by number of seeds.
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
METRICS = {  # name: (what it is, digits)
    "reward": ("mean reward", 3),
    "ppl": ("perplexity / p0's", 3),
    "kl": ("KL(p0 ‖ p), nats a token", 3),
    "dist_1": ("dist-1", 3),
    "dist_2": ("dist-2", 3),
    "dist_3": ("dist-3", 3),
    "rep_2": ("rep-2", 3),
    "seconds": ("seconds a round to quantize and learn", 0),
    "mb": ("MB that the last round learns from", 2),
    "lost": ("reward lost by these updates", 3),
    "worst": ("log p(y) - log p0(y) of p0's worst samples, nats a token", 3),
}

# study: what is claimed, as [(metric, A, "<" or ">", B)]. Where a study asks several questions, its
# claims have names, {name: [...]}, and a verdict each.
CLAIMS = {
    "beta": [("reward", "1", "<", "0"), ("kl", "1", "<", "0")],
    "quantiles": [("reward", "16", ">", "2"), ("kl", "16", ">", "2")],
    "learned_from": [("dist_3", "best", "<", "all"), ("reward", "random_tokens", "<", "all")],
    "exploration": [
        ("reward", "never", "<", "every_round"),
        ("reward", "on_no_token", "<", "every_round"),
    ],
    "code": {
        "the entropy bonus": [("ppl", "entropy", ">", "paper")],
        "top-50 sampling": [("ppl", "top_50", "<", "paper")],
        "the direction of the KL": [("ppl", "reverse", "<", "paper")],
    },
    "ties": {
        "by age": [("reward", "age", "<", "random")],
        "together": [("reward", "together_of_2", ">", "random_of_2")],
    },
    "pool": {
        "the newest": [("reward", "newest_2", ">", "all")],
        "the best": [("reward", "drop_fifth", ">", "all")],
        "within a prompt": [("reward", "per_prompt_4", ">", "all")],
    },
    "hidden": {
        "gone": [
            ("reward", "quark, r_1", ">", "p0"),
            ("reward", "quark, no token", ">", "p0"),
            ("reward", "quark+8", ">", "p0+8"),
        ],
        "hidden": [("lost", "quark+8", ">", "clean_near+8")],
    },
}


# ------------------------------------------------------------------------------------ the verdicts


def interval(numbers):
    """Mean of one number a seed, and half the width of its 95 % interval by Student's t.

    The interval of a single seed is infinite.
    """
    mean = float(np.mean(numbers))
    if len(numbers) == 1:
        return mean, float("inf")
    half = T95[len(numbers)] * np.std(numbers, ddof=1) / len(numbers) ** 0.5
    return mean, float(half)


def side_of_zero(mean, half):
    """1 if the interval is above 0, -1 if it is below, 0 if it holds 0."""
    if mean - half > 0:
        return 1
    if mean + half < 0:
        return -1
    return 0


def verdict(claims, results):
    """(lines that say how each claim fares, the verdict).

    results: {task: {variant: {metric: [a value for each seed]}}}.
    """
    lines, words = [], []
    for metric, a, sign, b in claims:
        sides = []
        for task, variants in results.items():
            mean, half = interval(np.subtract(variants[a][metric], variants[b][metric]))
            sides.append(side_of_zero(mean if sign == ">" else -mean, half))
            difference = f"{mean:+.3f} ± {half:.3f}, claimed {sign} 0"
            lines.append(f"{task}: {METRICS[metric][0]}, {a} - {b}: {difference}")
        words.append({1: "reproduced", 0: "unclear", -1: "not reproduced"}[min(sides)])
        lines.append(f"{METRICS[metric][0]}, {a} {sign} {b}: {words[-1]}")
    worst = next(word for word in ("not reproduced", "unclear", "reproduced") if word in words)
    return lines, worst


def verdict_of_study(study, results):
    """verdict() of a study's claims. Of several, the verdict is "name: word; name: word"."""
    claims = CLAIMS[study]
    if isinstance(claims, list):
        return verdict(claims, results)
    lines, words = [], []
    for name, named_claims in claims.items():
        more, word = verdict(named_claims, results)
        lines += more
        words.append(f"{name}: {word}")
    return lines, "; ".join(words)


# -------------------------------------------------------------------------- tables and the picture


def _metrics(results):
    """The metrics that `results` has, in the order of METRICS."""
    variants = next(iter(results.values()))
    measured = next(iter(variants.values()))
    return {m: METRICS[m] for m in METRICS if m in measured}


def tables(results):
    """A Markdown table for each task. Rows: variants; cells: mean and 95 % interval of a metric."""
    metrics = _metrics(results)
    parts = []
    for task, variants in results.items():
        n = len(next(iter(variants.values()))["reward"])
        heading = " | ".join(name for name, _ in metrics.values())
        rows = [f"| {task}, {n} seeds | {heading} |\n|---|" + "---|" * len(metrics) + "\n"]
        for name, values in variants.items():
            cells = []
            for m, (_, digits) in metrics.items():
                mean, half = interval(values[m])
                cells.append(f"{mean:.{digits}f} ± {half:.{digits}f}")
            rows.append(f"| {name} | " + " | ".join(cells) + " |\n")
        parts.append("".join(rows))
    return "\n".join(parts)


def as_text(study, results):
    """The study's tables, how its claims fare, its verdict and its picture, in Markdown."""
    lines, word = verdict_of_study(study, results)
    claims = "\n".join(f"- {line}" for line in lines)
    verdict_line = f"**Verdict: {word}.**"
    return f"{tables(results)}\n{claims}\n\n{verdict_line}\n\n![{study}](figures/{study}.png)\n"


def draw(results, path):
    """Reward against distance from p0. A column of panels for each task.

    A dot is a seed; a cross is a variant with its 95 % intervals.
    """
    from matplotlib.figure import Figure

    distances = [m for m in ("ppl", "kl") if m in _metrics(results)]
    size = (1.5 + 5 * len(results), 4 * len(distances))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(distances), len(results), squeeze=False)
    for panels, (task, variants) in zip(grid.T, results.items()):
        for ax, metric in zip(panels, distances):
            for number, (name, values) in enumerate(variants.items()):
                color = f"C{number}"
                ax.plot(values[metric], values["reward"], "o", color=color, markersize=3, alpha=0.6)
                (x, dx), (y, dy) = interval(values[metric]), interval(values["reward"])
                marker = "sD^vP*XhH"[number % 9]
                bars = {"xerr": dx, "yerr": dy, "elinewidth": 0.7}
                ax.errorbar(x, y, fmt=marker, color=color, label=name, **bars)
            ax.set_xlim(*_limits(variants, metric))
            ax.set_ylim(*_limits(variants, "reward"))
            ax.set(title=task, xlabel=METRICS[metric][0], ylabel=METRICS["reward"][0])
            ax.grid(color="#e5e5e5")
    handles = grid[0, 0].get_legend_handles_labels()
    title = {"beta": "β", "quantiles": "K"}.get(path.stem)
    figure.legend(*handles, loc="outside right upper", fontsize=9, title=title)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)


def _limits(variants, metric):
    """Limits of an axis that show all seeds. Intervals that are wider are cut."""
    numbers = []
    for values in variants.values():
        numbers += values[metric]
    margin = 0.15 * (np.ptp(numbers) or 1)
    return min(numbers) - margin, max(numbers) + margin


def publish(study, results, cost, draw=draw):
    """Prints the table and, if the study is complete, writes it into experiments/.

    That is experiments/results/STUDY.json, the study's place in experiments/README.md, and
    experiments/figures/STUDY.png. Returns the folder of the picture.
    """
    variants = next(iter(results.values()))
    n_seeds = len(next(iter(variants.values()))["reward"])
    if len(results) < 2 or n_seeds < N_SEEDS:
        picture = ROOT / "runs" / "studies" / f"{study}.png"
        draw(results, picture)
        print(tables(results))
        print("A part of the study: no verdict, and the page stays as it is.")
        print(f"Picture: {picture.relative_to(ROOT)}")
        return picture.parent
    lines, word = verdict_of_study(study, results)
    out = ROOT / "experiments" / "results" / f"{study}.json"
    out.parent.mkdir(exist_ok=True)
    content = {"results": results, "claims": lines, "verdict": word, "cost": cost}
    with whole_file(out) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    figures = ROOT / "experiments" / "figures"
    draw(results, figures / f"{study}.png")
    text = as_text(study, results)
    print(text)
    write_part(study, text)
    write_part("times", times())
    return figures


def write_part(name, text, page=ROOT / "experiments" / "README.md"):
    """Puts `text` between the markers of its place in a page."""
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {name} -->\n")
    after = rest.split("<!-- end", 1)[1]
    with whole_file(page) as file:
        file.write(f"{before}<!-- {name} -->\n{text}<!-- end{after}")


def times():
    """The studies with a result, then their sum: runs, hours of one core, and the machines."""
    costs = {}
    for study in CLAIMS:
        result = ROOT / "experiments" / "results" / f"{study}.json"
        if result.exists() and (cost := read_json(result, "a study's result").get("cost")):
            costs[study] = cost
    if not costs:
        return ""
    total = {key: sum(cost[key] for cost in costs.values()) for key in ("runs", "seconds")}
    costs["together"] = total | {"machines": []}
    lines = ["| study | runs | hours of one core | machine |", "|---|---|---|---|"]
    for study, cost in costs.items():
        hours = f"{cost['seconds'] / 3600:.1f}"
        lines.append(f"| {study} | {cost['runs']} | {hours} | {'; '.join(cost['machines'])} |")
    return "".join(f"{line}\n" for line in lines)


# ----------------------------------------------------------------------------------------- the runs


def cost_of(runs):
    """What the kept lines of a study say of its cost."""
    lines = [line for *_, line in runs]
    machines = sorted({line["machine"] for line in lines})
    return {
        "runs": len(lines),
        "seconds": sum(line["seconds"] for line in lines),
        "machines": machines,
    }


def report_study(study, runs):
    """Table, verdict and picture from the kept lines: [(variant, task, line)].

    Returns the folder of the picture.
    """
    results = {}  # task: {variant: {metric: [a value for each seed]}}
    first_variant = runs[0][0]
    for name, task, line in runs:
        if name == first_variant:
            _append(results, task, "p0", {m: line["p0"].get(m, 0.0) for m in line["quark"]})
        _append(results, task, name, line["quark"])
    return publish(study, results, cost_of(runs))


def _append(results, task, variant, values):
    row = results.setdefault(task, {}).setdefault(variant, {})
    for metric, value in values.items():
        row.setdefault(metric, []).append(value)


if __name__ == "__main__":
    kept.main(__doc__, measures.of_run, report_study)
