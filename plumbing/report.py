"""Results for people: tables on the screen, and RUN/report.html with its figures.

Nothing is measured here. evaluate.py hands over what it computed, and a function for the perplexity.
"""

import base64
import html
import io
from pathlib import Path

import numpy as np
from tqdm import tqdm

from plumbing.files import read_json, whole_file
from plumbing.options import pick_device
from plumbing.policy import load_policy
from plumbing.pool import BadInput, read_jsonl, read_pool, shown

# -------------------------------------------------------------------------------- on the screen


def read_table(path):
    """A result of evaluate.py: {"rewards": {...}, metric: {"value", "low", "high"}, ...}."""
    table = read_json(path, "a .json file that evaluate.py wrote")
    if "rewards" not in table:
        raise BadInput(f"{path} is {shown(table)}, not a result of evaluate.py")
    return table


def print_tables(tables, names):
    """Prints several results side by side: all prompts, then each group."""
    width = max(len(label) for label, _ in metrics_of(tables[0])) + 2
    for group in [None, *tables[0].get("groups", {})]:
        parts = [part_of(table, group) for table in tables]
        title = f"{group} prompts" if group else "all prompts"
        print(f"\n{title:{width}s}" + "".join(f"{name:>25s}" for name in names))
        for label, path in metrics_of(parts[0]):
            cells = "".join(f"{in_brackets(at(part, path)):>25s}" for part in parts)
            print(f"  {label:{width - 2}s}{cells}")


def print_completions(files, prompts=3):
    """Prints what each result wrote for the same few prompts."""
    firsts = [first_rows(file) for file in files]
    for prompt in list(firsts[0])[:prompts]:
        print(f"\n{prompt} ...")
        for file, first in zip(files, firsts):
            if row := first.get(prompt):
                print(f"  {file.stem:14s} {_rewards(row):>6s}  {shown(row['completion'], 160)}")


def part_of(table, group):
    """The table of one group of prompts; the whole table for None."""
    return table["groups"].get(group, {}) if group else table


def metrics_of(table):
    """Yields (label, path to it in the table) of every metric."""
    for name, metrics in table.get("rewards", {}).items():
        for metric in metrics:
            yield f"{name} {metric}", ("rewards", name, metric)
    for key, value in table.items():
        if isinstance(value, dict) and "value" in value:
            yield key, (key,)


def at(table, path):
    for key in path:
        table = table.get(key, {})
    return table


def in_brackets(metric):
    """A metric as "value [low, high]"."""
    if metric.get("value") is None:
        return "-"
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**metric)


def first_rows(file):
    """{prompt: its first row} of a result's completions."""
    first = {}
    for _, row in read_jsonl(file):
        first.setdefault(row["prompt"], row)
    return first


def _rewards(row):
    return ", ".join("none" if r is None else f"{r:.2f}" for r in row["rewards"].values())


# ------------------------------------------------------------------------------------- the page


def report(run, perplexity):
    """Draws RUN/report.html, one self-contained page, and RUN/figures/*.png from a run's files.

    Works at any moment of a run. perplexity(policy, rows) is evaluate.py's.
    """
    pools = _numbered(run / "pool")
    results = [
        f for f in sorted((run / "eval").glob("*.json")) if not f.name.endswith(".args.json")
    ]
    tables = {f.stem: read_table(f) for f in results}
    if not pools and not tables:
        raise BadInput(
            f"{run} has neither pool/ nor eval/; name the folder of a run, e.g. runs/sentiment-tiny"
        )
    figures = _figures(run, pools, tables, perplexity)
    sections = []
    for pair in (("base", "quark"), ("base-nucleus", "quark-nucleus")):
        if all(name in tables for name in pair):
            sections.append(_html_table(tables[pair[0]], tables[pair[1]], pair))
    if "base" in tables and "quark" in tables:
        sections.append(_html_completions(run))
    (run / "figures").mkdir(exist_ok=True)
    for name, title, caption, figure in figures:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        (run / "figures" / f"{name}.png").write_bytes(png.getvalue())
        data = base64.b64encode(png.getvalue()).decode()
        sections.append(
            f'<figure><h2>{title}</h2><img alt="{html.escape(title)}" '
            f'src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    title = html.escape(f"Quark: {run.resolve().name}")
    page = PAGE.replace("TITLE", title).replace("SECTIONS", "\n".join(sections))
    with whole_file(run / "report.html") as file:
        file.write(page)
    print(f"{run / 'report.html'}: {len(figures)} figures, also in {run / 'figures'}")


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>TITLE</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 2rem; }
.wide { grid-column: 1 / -1; min-width: 0; } figure { margin: 0; min-width: 0; } img { width: 100%; height: auto; }
figcaption, .small { color: #555; font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } th, td { text-align: left; padding: .25rem .5rem; vertical-align: top; }
tr { border-bottom: 1px solid #ddd; } .number { white-space: nowrap; } .scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .25rem 2rem; padding: .6rem 0; border-bottom: 1px solid #ddd; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } th, td { padding: .25rem .3rem .25rem 0; } table { font-size: .8rem; } }
.pair p { margin: 0; overflow-wrap: anywhere; } .pair .prompt { grid-column: 1 / -1; font-weight: 600; }
</style></head><body><h1>TITLE</h1><main>
SECTIONS
</main></body></html>
"""


def _html_table(base, quark, names):
    """Two results side by side: all prompts, then each group in a fold."""
    parts = []
    for group in [None, *base.get("groups", {})]:
        pair = [part_of(table, group) for table in (base, quark)]
        lines = [f"<tr><th></th><th>{names[0]}</th><th>{names[1]}</th></tr>"]
        for label, path in metrics_of(pair[0]):
            cells = "".join(f"<td>{_html_cell(at(table, path))}</td>" for table in pair)
            name = html.escape(label).replace("_", "_<wbr>")
            lines.append(f"<tr><td>{name}</td>{cells}</tr>")
        table = f'<div class="scroll"><table>{"".join(lines)}</table></div>'
        if group:
            summary = f"<summary>{html.escape(group)} prompts</summary>"
            table = f"<details>{summary}{table}</details>"
        parts.append(table)
    note = (
        f"{base['n_prompts']} prompts, {base['n_samples']} completions a prompt, "
        f"decode {base['decode']}; in brackets 95 % intervals over prompts."
    )
    return (
        f'<section class="wide"><h2>{names[0]} and {names[1]}</h2>{"".join(parts)}'
        f'<p class="small">{note}</p></section>'
    )


def _html_cell(metric):
    if metric.get("value") is None:
        return "-"
    value = '<span class="number">{value:.3f}</span>'.format(**metric)
    bounds = '<span class="number small">[{low:.3f}, {high:.3f}]</span>'.format(**metric)
    return f"{value} {bounds}"


def _html_completions(run, count=8):
    """What p0 and Quark wrote for the same prompts, which are spread over the file and its groups."""
    names = ("base", "quark")
    firsts = [first_rows(run / "eval" / f"{name}.jsonl") for name in names]
    prompts = [p for p in firsts[0] if p in firsts[1]]
    pairs = []
    for prompt in prompts[:: max(1, len(prompts) // count)][:count]:
        cells = [f'<p class="prompt">{html.escape(prompt)} ...</p>']
        for name, first in zip(names, firsts):
            row = first[prompt]
            label = f'<span class="small">{name} {_rewards(row)}</span>'
            cells.append(f"<p>{label} {html.escape(row['completion'])}</p>")
        pairs.append(f'<div class="pair">{"".join(cells)}</div>')
    title = "<h2>The same prompts, before and after</h2>"
    return f'<section class="wide">{title}{"".join(pairs)}</section>'


# ---------------------------------------------------------------------------------- the figures

# Colours that colour-blind readers can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, GREY = "#56B4E9", "#D55E00", "#777777"


def _numbered(folder):
    """00.jsonl, 01.jsonl, ... of a folder."""
    return [f for f in sorted(folder.glob("*.jsonl")) if f.stem.isdecimal()]


def _texts_and_rewards(pool):
    """What the figures need of a pool file, without the token ids, which take the most memory."""
    fields = ("prompt", "completion", "reward")
    return [{field: row[field] for field in fields} for _, row in read_pool([pool])]


def _figures(run, pools, tables, perplexity):
    """[(file name, title, caption, Figure)] of all that the run has so far."""
    figures = []
    if pools:
        rounds = {int(f.stem): _texts_and_rewards(f) for f in pools}
        caption = (
            "Round 0 is p0; later rounds are sampled under r_K. Line: median; dark band: the "
            "middle half; light band: from 5 % to 95 %; dots: mean."
        )
        title = "Reward of each round's samples"
        figures.append(("rewards", title, caption, _draw_rewards(rounds)))
        figures += _fluency_figure(rounds, tables, perplexity)
    if quantized := _numbered(run / "quantized"):
        caption = (
            "Share of each round's samples in D^K, from which r_K is learned, at every "
            "quantization. If new samples are better than old ones, they take it over."
        )
        figures.append(("quantiles", "Who fills the best quantile", caption, _draw_top(quantized)))
    logs = sorted(run.glob("model/[0-9]*/metrics.jsonl"))
    if logs := [[row for _, row in read_jsonl(f)] for f in logs]:
        caption = (
            "Nats per completion token, mean of ten steps: the LM term, the KL term to p0 (before "
            "beta), and exp(LM), the perplexity of the pool under p_theta. Dashed: a new round."
        )
        figures.append(("learning", "The objective while learning", caption, _draw_learning(logs)))
    dial = {}
    for name, table in tables.items():
        if name.startswith("dial-r") and name[6:].isdecimal():
            dial[int(name[6:])] = table
    if dial:
        caption = (
            "Mean reward on the test prompts under each reward token, with 95 % intervals. All "
            "quantiles were learned; the token chooses."
        )
        figures.append(("dial", "The dial", caption, _draw_dial(dial, tables)))
    return figures


def _axes(rows=1, height=3.6):
    """A Figure and its axes, narrow enough to be read on a phone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#e5e5e5")
        ax.set_axisbelow(True)
    return figure, axes


def _whole_numbers(ax):
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_rewards(rounds):
    figure, (ax,) = _axes()
    x = list(rounds)
    rewards = [[row["reward"] for row in rows] for rows in rounds.values()]
    bands = np.array([np.quantile(r, [0.05, 0.25, 0.5, 0.75, 0.95]) for r in rewards]).T
    ax.fill_between(x, bands[0], bands[4], color=SKY, alpha=0.3, linewidth=0)
    ax.fill_between(x, bands[1], bands[3], color=SKY, alpha=0.7, linewidth=0)
    ax.plot(x, bands[2], color=BLUE)
    ax.plot(x, [np.mean(r) for r in rewards], "o", color=RED)
    ax.set(xlabel="round", ylabel="reward")
    _whole_numbers(ax)
    return figure


def _fluency_figure(rounds, tables, perplexity, words_a_round=4000):
    """Mean reward against perplexity under p0, of some samples of each round."""
    models = (t.get("ppl_model") or t.get("reference") for t in tables.values())
    model = next(models, None)
    if model is None:
        return []
    try:
        policy = load_policy(model, pick_device("auto"))
    except BadInput as error:
        print(f"no figure of the fluency: {error}")
        return []
    x, y = [], []
    for rows in tqdm(rounds.values(), desc="perplexity of each round"):
        shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        words = [len(row["completion"].split()) for row in shuffled]
        before = np.cumsum([0, *words])
        some = [row for row, n in zip(shuffled, before) if n < words_a_round]
        x.append(perplexity(policy, some))
        y.append(np.mean([row["reward"] for row in rows]))
    figure, (ax,) = _axes()
    ax.plot(x, y, color=GREY, linewidth=1)
    ax.scatter(x, y, c=[BLUE] + [ORANGE] * (len(x) - 1), s=45, zorder=3)
    for number, place in zip(rounds, zip(x, y)):
        ax.annotate(str(number), place, xytext=(6, -12), textcoords="offset points")
    ax.margins(0.1)
    name = Path(model).name
    ax.set(xlabel=f"perplexity under {name} (lower: more fluent)", ylabel="mean reward")
    caption = "One point a round, with its number; blue is p0. Up is better, right is the price."
    return [("fluency", "Fluency against reward", caption, figure)]


def _draw_top(quantized):
    figure, (ax,) = _axes()
    shares, labels = [], []
    for file in quantized:
        rounds = {}  # quantile: the rounds of its samples
        for _, row in read_pool([file]):
            rounds.setdefault(row["quantile"], []).append(row.get("iteration", 0))
        best = np.array(rounds[max(rounds)])
        age = best.max() - best
        shares.append([np.mean(age == 0), np.mean(age == 1), np.mean(age == 2), np.mean(age > 2)])
        labels.append(int(file.stem))
    bottom = np.zeros(len(shares))
    names = ("newest", "one older", "two older", "older still")
    for part, colour, name in zip(np.array(shares).T, (BLUE, ORANGE, GREEN, GREY), names):
        if part.any():
            ax.bar(labels, part, bottom=bottom, color=colour, label=name, width=0.7)
        bottom += part
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, frameon=False)
    ax.set(xlabel="newest round in the pool", ylabel="share of D^K", ylim=(0, 1))
    _whole_numbers(ax)
    return figure


def _draw_learning(logs):
    figure, axes = _axes(rows=3, height=5.4)
    steps = [step for log in logs for step in log]
    x = np.array([s["step"] for s in steps])
    window = min(10, len(x))
    kernel = np.ones(window) / window
    lm = np.convolve([s["lm"] for s in steps], kernel, mode="valid")
    kl = np.convolve([s["kl"] for s in steps], kernel, mode="valid")
    curves = ((lm, "LM", BLUE), (kl, "KL", RED), (np.exp(lm), "exp(LM)", GREEN))
    for ax, (values, name, colour) in zip(axes, curves):
        ax.plot(x[window - 1 :], values, color=colour)
        ax.set_ylabel(name)
        for log in logs[1:]:
            ax.axvline(log[0]["step"], color="#999999", linestyle="--", linewidth=0.8)
    axes[-1].set_xlabel("step")
    return figure


def _draw_dial(dial, tables):
    figure, (ax,) = _axes()
    tokens = sorted(dial)
    for name, colour in zip(dial[tokens[0]]["rewards"], (BLUE, GREEN, PINK)):
        metrics = [dial[k]["rewards"][name]["mean"] for k in tokens]
        columns = ([m[key] for m in metrics] for key in ("value", "low", "high"))
        value, low, high = (np.array(column, dtype=float) for column in columns)
        error = [value - low, high - value]
        ax.errorbar(tokens, value, yerr=error, fmt="o-", color=colour, capsize=4, label=name)
        for other, what, style in (("base", "p0", ":"), ("dial-none", "no token", "--")):
            mean = at(tables, (other, "rewards", name, "mean")).get("value")
            if mean is not None:
                label = f"{name}, {what}"
                ax.axhline(mean, color=colour, linestyle=style, linewidth=1, label=label)
    ax.set_xticks(tokens, [f"r_{k}" for k in tokens])
    ax.set(ylabel="mean reward")
    ax.legend(frameon=False)
    return figure
