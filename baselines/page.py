"""The tables and pictures of baselines/README.md, from baselines/results/.

    python baselines/page.py            # writes them anew, from the JSON files alone

Below each table a sentence for each comparator, by a rule that was fixed before the runs: for
each seed the method's gain minus Quark's, then the 95 % interval over the seeds (Student's t).
Above 0 the method is *above* Quark, below 0 *below*, otherwise they are *not told apart*.
"""

import argparse
import textwrap

import common  # noqa: F401, it puts the project on the path
from running import FEWER, N_FEWER, ROOT, defaults, seeds
from study import interval, side_of_zero, write_part  # experiments/study.py

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
        ("perplexity/", "perplexity / p0's", 3),
        ("dist_2", "dist-2", 3),
        ("dist_3", "dist-3", 3),
        ("rep_2", "rep-2", 3),
    ],
    "toxicity": [
        ("mean", "mean reward", 3),
        ("unwanted_prob", "toxicity probability", 3),
        ("avg_max_unwanted", "average maximum", 3),
        ("held-out clean", "profanity classifier", 3),
        ("perplexity/", "perplexity / p0's", 3),
        ("dist_2", "dist-2", 3),
        ("dist_3", "dist-3", 3),
        ("rep_2", "rep-2", 3),
    ],
    "repetition": [
        ("mean", "greedy diversity", 3),
        ("rep_2", "greedy rep-2", 3),
        ("sampled diversity", "sampled diversity", 3),
        ("sampled perplexity/", "sampled perplexity / p0's", 3),
    ],
}
DIALS = """\
Tries of the methods that have one hyperparameter, from weak to strong. *0.1: 0.494 at 1.02* means:
with the value 0.1 the {} is 0.494, at 1.02 times p0's perplexity (on the tuning openings).
"""
PAIRS = """\
Each pair by the same rule: the gain of the row's method is above (>), below (<) or not told apart
(=) from that of the column's.
"""
AT_TEST = {"best_of_8": 8, "best_of_25": 25}  # reward calls a completion
FORWARDS = {"dexperts": 3, "dexperts_global": 3, "anti_expert": 2, "gedi": 3, "pplm": 62}
FORWARDS |= AT_TEST | {"simctg_contrastive": 9, "contrastive": 9}  # a token; all others: 1


def values_of(rows, method, metric):
    """A number for each seed, in the order of the seeds."""
    found = []
    for seed, numbers in sorted(rows[method].items()):
        value = numbers[metric.rstrip("/")]
        of_p0 = rows[reference_of(method)][seed]
        found.append(value / of_p0[metric[:-1]] if metric.endswith("/") else value)
    return found


def cell(values, digits):
    mean, half = interval(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def table(task, rows):
    """{method: {seed: {metric: value}}} -> the table in Markdown; means and 95 % intervals."""
    headings = [heading for _, heading, _ in COLUMNS[task]]
    headings += ["reward calls in training", "reward calls a text at test"]
    headings += ["seconds to train", "forward passes a token"]
    lines = ["| | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    for method in rows:
        cells = [cell(values_of(rows, method, m), digits) for m, _, digits in COLUMNS[task]]
        seconds = values_of(rows, method, "train seconds")
        calls = sorted(set(values_of(rows, method, "reward calls")))
        cells.append(" to ".join(f"{n:,}" for n in dict.fromkeys((calls[0], calls[-1]))))
        cells.append(str(AT_TEST.get(method, 0)))
        cells.append(f"{sum(seconds) / len(seconds):.0f}" if any(seconds) else "-")
        cells.append(str(FORWARDS.get(method, 1)))
        lines.append(f"| {name_of(method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def name_of(method):
    """As the page shows it."""
    return method.replace("_fewer", "") + (f", {N_FEWER} prompts" if method in FEWER else "")


def difference(task, rows, method, other):
    """The mean over the seeds of a row's gain minus another's, and half its 95 % interval."""
    metric, _ = GAIN[task]
    seeds = sorted(rows[method].keys() & rows[other].keys())
    return interval([rows[method][s][metric] - rows[other][s][metric] for s in seeds])


def against_quark(task, rows, method):
    """ "above", "below" or "not told apart from", and the difference of the gain, its interval."""
    mean, half = difference(task, rows, method, "quark_fewer" if method in FEWER else "quark")
    return {1: "above", 0: "not told apart from", -1: "below"}[side_of_zero(mean, half)], mean, half


def moved(task, rows, method, n_tries):
    """A row's gain minus p0's, with a note unless it is at least three half-widths of it."""
    mean, half = difference(task, rows, method, reference_of(method))
    said = f"{mean:+.3f} ± {half:.3f} from p0"
    if mean < 3 * half:
        less = "uncertain (less than three times the ±)"
        said += ", in the wrong direction" if mean + half < 0 else f", {less}"
        said += f", the best of {n_tries} tries" if n_tries else ", with nothing to choose"
    return said


def keeps_price(task, rows, method):
    """Whether the mean over the seeds keeps the price of experiments/defaults.py."""
    of_p0 = rows[reference_of(method)]
    seeds = rows[method].keys() & of_p0.keys()
    runs = {s: {"p0": of_p0[s], "quark": rows[method][s], "dial": [0, 1]} for s in seeds}
    return defaults.keeps_price(task, defaults.summary(task, runs))


def sentences(task, rows, n_tries):
    """A line for each comparator. n_tries: {method: how many settings it was chosen from}."""
    lines = []
    for method in rows:
        if method in ("p0", "quark", "p0_fewer", "quark_fewer"):
            continue
        word, mean, half = against_quark(task, rows, method)
        paid = "keeps" if keeps_price(task, rows, method) else "does not keep"
        by = moved(task, rows, method, n_tries.get(method, 0))
        line = f"- {method}: {word} Quark ({mean:+.3f} ± {half:.3f}); {by}; {paid} the price."
        wrapped = textwrap.fill(line, 100, subsequent_indent="  ", break_on_hyphens=False)
        lines.append(wrapped)
    return "\n".join(lines) + "\n"


def by_other_runs(task, rows, kept):
    """The verdicts that Quark's kept runs change: the README's, of another processor than its row.

    kept: what experiments/seeds.py kept, one for each of the seeds 0, 1, 2. Nothing is said if they
    are the very runs of the row.
    """
    gains = [run["tables"]["quark"]["rewards"][task]["mean"]["value"] for run in kept]
    if gains == [rows["quark"][str(seed)]["mean"] for seed in range(len(kept))]:
        return ""
    others = rows | {"quark": {str(seed): {"mean": gain} for seed, gain in enumerate(gains)}}
    changed = []
    for method in rows.keys() - FEWER - {"p0", "quark"}:
        word, mean, half = against_quark(task, others, method)
        if word != against_quark(task, rows, method)[0]:
            changed.append(f"{method} is {word} it ({mean:+.3f} ± {half:.3f})")
    machines_of = "; ".join(sorted({run["machine"] for run in kept}))
    said = f"Quark's runs in the README are of another processor ({machines_of}) and have "
    said += f"{interval(gains)[0]:.3f}. With them "
    said += ", ".join(sorted(changed)) + (", and " if changed else "")
    said += "every other verdict is the same." if changed else "every verdict is the same."
    return textwrap.fill(said, 100, break_on_hyphens=False) + "\n"


def pairs(task, rows):
    """A mark for each two methods that wrote for the same prompts, the highest gain first."""
    parts = []
    for few in (False, True):
        methods = [method for method in rows if (method in FEWER) == few]
        methods.sort(key=lambda m: -interval(values_of(rows, m, GAIN[task][0]))[0])
        head = " ".join(f"{n:2}" for n in range(1, len(methods) + 1))
        lines = [f"{'':28}{head}"]
        for n, a in enumerate(methods, 1):
            sides = [side_of_zero(*difference(task, rows, a, b)) for b in methods]
            marks = [" " if a == b else "=><"[side] for b, side in zip(methods, sides)]
            lines.append(f"{n:2} {name_of(a):25}{'  '.join(['', *marks])[1:]}".rstrip())
        parts += ["\n".join(lines) + "\n"] if methods else []
    return "```\n" + "\n".join(parts) + "```\n"


def dials(task, tries):
    """A row for each method with one hyperparameter: gain and price at up to five settings.

    Quark's is its token, with "no token" left out.
    """
    ppl = "sampled perplexity" if task == "repetition" else "perplexity"
    lines = ["| | weakest | | | | strongest |", "|---|---|---|---|---|---|"]
    for method, entries in tries.items():
        made = [entry for entry in entries.values() if "numbers" in entry]
        made = [entry for entry in made if "none" not in entry["knobs"].values()]
        if len(made) < 3 or any(len(entry["knobs"]) != 1 for entry in made):
            continue
        made.sort(key=lambda entry: place_on_dial(entry["knobs"]))
        of_p0 = tries[reference_of(method)][""]["numbers"][ppl]
        cells = []
        n = min(5, len(made))
        for entry in (made[round(i * (len(made) - 1) / (n - 1))] for i in range(n)):
            (value,) = entry["knobs"].values()
            price = entry["numbers"][ppl] / of_p0
            price = f"{price:.2f}" if price < 100 else f"{price:,.0f}"
            cells.append(f"{value}: {entry['numbers'][GAIN[task][0]]:.3f} at {price}")
        (knob,) = made[0]["knobs"]
        name = "best of n" if method == "best_of_8" else name_of(method)
        cells += [""] * (5 - n)
        lines.append(f"| {name}, {knob} | {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def reference_of(method):
    """p0's row on the same prompts."""
    return "p0_fewer" if method in FEWER else "p0"


def draw(task, tries, chosen, path):
    """Gain against perplexity on the tuning prompts: a curve for each method's dial.

    tries: {method: {label: {"knobs", "numbers"}}}. A star is the chosen setting, or the row's where
    nothing is chosen: r_K of Quark, n = 8 of best-of-n. Where a method has two knobs its settings
    are dots. The picture ends at four times p0's perplexity.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = [*colormaps["tab20"].colors[::2], *colormaps["tab20b"].colors[::2]]
    figure = Figure(figsize=(10, 7), layout="constrained")
    ax = figure.subplots()
    ppl = "sampled perplexity" if task == "repetition" else "perplexity"
    metric, heading = GAIN[task]
    r_K = max(label for label in tries["quark"] if label != "token none")  # "token 5"
    marked = chosen | {"p0": "", "quark": r_K, "best_of_8": "n 8"}
    for number, (method, entries) in enumerate(tries.items()):
        of_p0 = tries[reference_of(method)][""]["numbers"][ppl]
        points = {  # (perplexity, gain)
            label: (t["numbers"][ppl] / of_p0, t["numbers"][metric])
            for label, t in entries.items()
            if "numbers" in t
        }
        is_dial = all(len(t["knobs"]) == 1 for t in entries.values())
        order = sorted(points, key=lambda label: place_on_dial(entries[label]["knobs"]))
        style = {"color": colors[number % 20], "marker": "osD^v"[number % 5]}
        line = {"linestyle": "-" if is_dial else "", "linewidth": 0.8, "markersize": 3}
        if points:
            others = {"p0_fewer": "p0 on pplm's prompts", "best_of_8": "best of n"}
            name = others.get(method, method)
            ax.plot(*zip(*(points[label] for label in order)), label=name, **style, **line)
        if method in marked:
            ax.plot(*points[marked[method]], **style | {"marker": "*"}, markersize=13)
            place = {"xytext": (7, 4), "textcoords": "offset points"}
            ax.annotate(method, points[marked[method]], fontsize=8, color=style["color"], **place)
    dashes = {"color": "#777777", "linestyle": "--", "linewidth": 1}
    ax.axvline(1.15 if task == "repetition" else 1.3, label="limit of perplexity", **dashes)
    title = f"{task}: every setting that was tried; a star is the one in the table"
    ax.set(xscale="log", xlabel=f"{ppl} / p0's", ylabel=heading, title=title)
    low, high = ax.get_xlim()
    ticks = [x for x in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4) if x >= low]
    ax.set_xlim(low, min(high, 4))
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.grid(color="#e5e5e5")
    figure.legend(fontsize=8, loc="outside right upper")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def place_on_dial(knobs):
    """Numbers in their order; Quark's "none" last."""
    values = list(knobs.values())
    return [float(value) if value != "none" else float("inf") for value in values]


def machines(rows):
    """Which machine made which rows; seconds of different machines are not comparable."""
    made = {}
    for method, of in rows.items():
        machine = "; ".join(sorted({n["machine"] for n in of.values()}))
        made.setdefault(machine, []).append(name_of(method))
    said = ". ".join(f"{machine}: {'; '.join(methods)}" for machine, methods in made.items())
    return textwrap.fill(f"Made on {said}.", 100, break_on_hyphens=False)


def text(table_of_task, order):
    """The task's part of baselines/README.md."""
    task, rows = table_of_task.task, table_of_task.rows
    rows = {method: rows[method] for method in order if method in rows}
    chosen = table_of_task.chosen()
    picked = "; ".join(f"{method}: {label}" for method, label in chosen.items())
    picked = textwrap.fill(f"Chosen: {picked}.", 100, break_on_hyphens=False)
    made = [
        entry
        for part in (rows, table_of_task.tries)
        for of in part.values()
        for entry in of.values()
    ]
    hours = sum(entry["wall seconds"] for entry in made) / 3600
    tried = {method: len(of) for method, of in table_of_task.tries.items()}
    n_tries = sum(tried.values())
    took = f"{n_tries} tries and {len(made) - n_tries} rows took {hours:.1f} hours of one core, "
    took += "waiting for shared files included."
    picture = f"![{task}: gain against perplexity](figures/{task}.png)"
    parts = [table(task, rows), sentences(task, rows, tried)]
    parts += [by_other_runs(task, rows, seeds.kept_runs()[task]), PAIRS, pairs(task, rows)]
    legend = textwrap.fill(DIALS.format(GAIN[task][1]), 100, break_on_hyphens=False)
    parts += [f"{legend}\n", dials(task, table_of_task.tries), f"{picked}\n", f"{took}\n"]
    return "\n".join([*filter(None, parts), f"{machines(rows)}\n", f"{picture}\n"])


def publish(table_of_task, order):
    """Writes the task's part into baselines/README.md, and draws its picture."""
    task, tries = table_of_task.task, table_of_task.tries
    draw(task, tries, table_of_task.chosen(), HERE / "figures" / f"{task}.png")
    write_part(task, text(table_of_task, order), HERE / "README.md")


def main(argv=None):
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args(argv)
    import table as runs  # baselines/table.py

    for task, methods in runs.METHODS.items():
        finished = runs.Table(task)
        if finished.is_complete():
            publish(finished, methods)
        else:
            print(f"{task}: not all rows are made yet; bash baselines/table.sh {task}")


if __name__ == "__main__":
    run_stage(main)
