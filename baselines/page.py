"""The tables and pictures of baselines/README.md, from baselines/results/.

    python baselines/page.py            # writes them anew, from the JSON files alone

Below each table a sentence for each comparator, by a rule that was fixed before the runs: of each
seed the difference of the gain to Quark's, then its 95 % interval over the seeds (Student's t).
Above 0 the method is *above* Quark, below 0 *below*, otherwise they are *not told apart*.
"""

import argparse
import json

import common  # noqa: F401, it puts the project on the path
from running import ROOT, defaults
from study import interval, side_of_zero  # experiments/study.py

from plumbing.options import run_stage

HERE = ROOT / "baselines"
GAIN = {  # task: (metric, heading)
    "sentiment": ("mean", "mean reward"),
    "toxicity": ("mean", "mean reward"),
    "repetition": ("mean", "diversity of greedy text"),
}
COLUMNS = {  # task: [(metric, heading, digits)]; a metric that ends in "/" is divided by p0's
    "sentiment": [
        ("mean", "mean reward", 3),
        ("negative share_ge_half", "negative prompts", 3),
        ("neutral share_ge_half", "neutral prompts", 3),
        ("held-out vader", "VADER", 3),
        ("perplexity/", "perplexity / p0's", 2),
        ("dist_2", "dist-2", 3),
        ("dist_3", "dist-3", 3),
        ("rep_2", "rep-2", 3),
    ],
    "toxicity": [
        ("mean", "mean reward", 3),
        ("unwanted_prob", "toxicity probability", 3),
        ("avg_max_unwanted", "average maximum", 3),
        ("held-out clean", "profanity classifier", 3),
        ("perplexity/", "perplexity / p0's", 2),
        ("dist_2", "dist-2", 3),
        ("dist_3", "dist-3", 3),
        ("rep_2", "rep-2", 3),
    ],
    "repetition": [
        ("mean", "greedy diversity", 3),
        ("rep_2", "greedy rep-2", 3),
        ("sampled diversity", "sampled diversity", 3),
        ("sampled perplexity/", "sampled perplexity / p0's", 2),
    ],
}
NO_CALLS = {"p0", "best_of_8", "best_of_25", "mle", "contrastive"}
NO_CALLS |= {"unlikelihood", "unlikelihood_sequence", "simctg", "simctg_contrastive"}
AT_TEST = {"best_of_8": 8, "best_of_25": 25}  # reward calls a completion
FORWARDS = {"best_of_8": 8, "best_of_25": 25, "dexperts": 3, "anti_expert": 2, "gedi": 3}
FORWARDS |= {"pplm": 62, "simctg_contrastive": 9, "contrastive": 9}  # a token; all others: 1


def values_of(rows, method, metric):
    """A number for each seed, in the order of the seeds."""
    found = []
    for seed, numbers in sorted(rows[method].items()):
        value = numbers[metric.rstrip("/")]
        found.append(value / rows["p0"][seed][metric[:-1]] if metric.endswith("/") else value)
    return found


def cell(values, digits):
    mean, half = interval(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def table(task, rows):
    """{method: {seed: {metric: value}}} -> the table in Markdown; means and 95 % intervals."""
    headings = [heading for _, heading, _ in COLUMNS[task]]
    headings += ["reward calls, training", "test, a text", "seconds to train", "forwards a token"]
    lines = ["| | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    calls = "as Quark" if "quark" in rows else "9,216"
    for method in rows:
        cells = [cell(values_of(rows, method, m), digits) for m, _, digits in COLUMNS[task]]
        seconds = values_of(rows, method, "train seconds")
        cells.append("0" if method in NO_CALLS else calls)
        cells.append(str(AT_TEST.get(method, 0)))
        cells.append(f"{sum(seconds) / len(seconds):.0f}" if any(seconds) else "-")
        cells.append(str(FORWARDS.get(method, 1)))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def against_quark(task, rows, method):
    """ "above", "below" or "not told apart", and the difference of the gain with its interval."""
    metric, _ = GAIN[task]
    seeds = sorted(set(rows[method]) & set(rows["quark"]))
    differences = [rows[method][s][metric] - rows["quark"][s][metric] for s in seeds]
    mean, half = interval(differences)
    return {1: "above", 0: "not told apart from", -1: "below"}[side_of_zero(mean, half)], mean, half


def keeps_price(task, rows, method):
    """Whether the mean over the seeds keeps the price of experiments/defaults.py."""
    seeds = rows[method].keys() & rows["p0"].keys()
    runs = {s: {"p0": rows["p0"][s], "quark": rows[method][s], "dial": [0, 1]} for s in seeds}
    return defaults.keeps_price(task, defaults.summary(task, runs))


def sentences(task, rows):
    """A line for each comparator."""
    lines = []
    for method in rows:
        if method in ("p0", "quark"):
            continue
        word, mean, half = against_quark(task, rows, method)
        paid = "keeps" if keeps_price(task, rows, method) else "does not keep"
        lines.append(f"- {method}: {word} Quark ({mean:+.3f} ± {half:.3f}); {paid} the price.")
    return "\n".join(lines) + "\n"


def draw(task, tries, chosen, path):
    """Gain against perplexity on the tuning prompts: a curve for each method's dial."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    ax = figure.subplots()
    ppl = "sampled perplexity" if task == "repetition" else "perplexity"
    metric, heading = GAIN[task]
    for number, (method, points) in enumerate(tries.items()):
        xs = [t["numbers"][ppl] / t["p0"][ppl] for t in points.values()]
        ys = [t["numbers"][metric] for t in points.values()]
        color, marker = f"C{number % 10}", "osD^v<>PXh"[number // 10 % 10]
        one_knob = len({tuple(t["knobs"]) for t in points.values()} | {()}) == 2
        one_knob = one_knob and all(len(t["knobs"]) == 1 for t in points.values())
        line = "-" if one_knob else ""
        style = {"color": color, "linestyle": line, "marker": marker, "markersize": 3}
        ax.plot(xs, ys, linewidth=0.8, label=method, **style)
        if method in chosen:
            t = points[chosen[method]]
            place = (t["numbers"][ppl] / t["p0"][ppl], t["numbers"][metric])
            ax.plot(*place, marker="*", color=color, markersize=13, linestyle="")
    ax.axvline(1.15 if task == "repetition" else 1.3, color="#777777", linestyle="--", linewidth=1)
    ax.set(xscale="log", xlabel=f"{ppl} / p0's", ylabel=heading, title=task)
    ax.grid(color="#e5e5e5")
    ax.legend(fontsize=8, loc="outside right upper")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def publish(task, rows, tries, choose, order):
    """The task's part of baselines/README.md and its picture."""
    chosen = {m: choose(task, t) for m, t in tries.items() if m not in ("p0", "quark")}
    draw(task, tries, chosen, HERE / "figures" / f"{task}.png")
    rows = {method: rows[method] for method in order if method in rows}
    picked = ", ".join(f"{m} {label}" for m, label in chosen.items())
    text = f"{table(task, rows)}\n{sentences(task, rows)}\nChosen: {picked}.\n"
    page = HERE / "README.md"
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {task} -->\n")
    after = rest.split("<!-- end", 1)[1]
    page.write_text(f"{before}<!-- {task} -->\n{text}<!-- end{after}", encoding="utf-8")


def main(argv=None):
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args(argv)
    import table as runs  # baselines/table.py

    for task in runs.METHODS:
        rows, tries = (
            json.loads((runs.RESULTS / f"{task}{x}.json").read_text(encoding="utf-8"))
            for x in ("", "-tries")
        )
        publish(task, rows, tries, runs.choose, runs.METHODS[task])


if __name__ == "__main__":
    run_stage(main)
