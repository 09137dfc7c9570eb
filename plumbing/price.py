"""A run in a few lines: the gain, its price, the dial, and what became of two prompts.

`evaluate.py --compare --short` prints it, and report.html opens with it.
"""

from typing import NamedTuple

import numpy as np

from plumbing.tables import at, first_rows, format_rewards, part_of, read_table

SAMPLED = "-nucleus"  # NAME-nucleus holds samples of the model whose greedy text is in NAME
WIDTH = 100  # columns


class Row(NamedTuple):
    kind: str  # gain or price
    label: str
    metrics: list  # {"value", "low", "high"} in each result


def columns_of(tables):
    """The names of the results to compare. NAME-nucleus only measures the price of NAME."""
    return [n for n in tables if not (n.endswith(SAMPLED) and n.removesuffix(SAMPLED) in tables)]


def rows_of(tables):
    """{name: table} -> [Row]. The gain is what the rewards measure. The price is fluency and
    diversity, measured on NAME-nucleus if every NAME has one."""
    names = columns_of(tables)
    first = tables[names[0]]
    rows = []
    for label, path, group in _gains(first):
        metrics = [at(part_of(tables[name], group), path) for name in names]
        rows.append(Row("gain", label, metrics))
    if all(name + SAMPLED in tables for name in names):
        suffix, price, what = SAMPLED, ("perplexity", "diversity", "rep_2"), " of samples"
    else:  # without the samples of one result, those of the others are not compared with it
        suffix, price, what = "", ("perplexity", "dist_2", "rep_2"), ""
    for metric in price:
        label = metric.replace("_", "-") + what
        values = [at(tables[name + suffix], (metric,)) for name in names]
        rows.append(Row("price", label, values))
    return rows


def _gains(table):
    """(label, path of the metric, group of prompts or None) of what each reward is about."""
    for reward in table["rewards"]:
        mean = (f"mean {reward}", ("rewards", reward, "mean"), None)
        if reward in ("sentiment", "sentiment_label") and table.get("groups"):
            for group in table["groups"]:
                share = ("rewards", reward, "share_ge_half")
                yield f"share positive, {group} prompts", share, group
        elif reward == "toxicity":
            n = f"of {table['n_samples']:g}"
            yield f"toxic at least once {n}", ("rewards", reward, "unwanted_prob"), None
            yield f"toxicity of the most toxic {n}", ("rewards", reward, "avg_max_unwanted"), None
            yield ("mean reward, 1 - toxicity", *mean[1:])
        elif reward == "repetition":
            decode = f" {table['decode']}" if table.get("decode") else ""  # None: texts of others
            yield f"diversity of{decode} text", ("rewards", reward, "mean"), None
        else:
            yield mean


def dial_beside(file):
    """The dial in the folder of a result: [("r_1", mean reward), ..., ("no token", ...)].

    Only what evaluate.py --reward-token all wrote for the same model and reward counts.
    """
    own = read_table(file)
    path = ("rewards", next(iter(own["rewards"])), "mean", "value")
    dial = {}
    for other in file.parent.glob("dial-*.json"):
        token = other.stem.removeprefix("dial-r")
        if not token.isdecimal() and other.stem != "dial-none":
            continue
        table = read_table(other)
        if table.get("model") == own.get("model") and isinstance(at(table, path), float):
            place = int(token) if token.isdecimal() else np.inf
            dial[place] = ("no token" if place == np.inf else f"r_{token}", at(table, path))
    return [dial[place] for place in sorted(dial)]


def two_prompts(files):
    """[(prompt, [its first row in each result])] of two prompts that all results have."""
    firsts = [first_rows(file.with_suffix(".jsonl")) for file in files]
    shared = [prompt for prompt in firsts[0] if all(prompt in first for first in firsts)]
    places = dict.fromkeys([len(shared) // 6, len(shared) // 2]) if shared else []
    return [(shared[i], [first[shared[i]] for first in firsts]) for i in places]


def summary_lines(tables, dial, texts):
    """The lines that `--short` prints."""
    names = columns_of(tables)
    first = tables[names[0]]
    what = f"{first['n_prompts']} prompts, {first['n_samples']:g} completions of each"
    lines = [f"{what:46s}{' → '.join(names)}"]
    kind = None
    for row in rows_of(tables):
        values = " → ".join(number(metric) for metric in row.metrics)
        last = row.metrics[-1]
        bounds = ""
        if last.get("value") is not None:
            bounds = f"  [{_digits(last['low'])}, {_digits(last['high'])}]"
        lines.append(f"{'' if row.kind == kind else row.kind:6s}{row.label:40s}{values}{bounds}")
        kind = row.kind
    if dial:
        lines.append("dial  " + "  ".join(f"{token} {mean:.3f}" for token, mean in dial))
    widest = max(map(len, names))
    for prompt, rows in texts:
        for name, row in zip(names, rows):
            text = f"{name:{widest}s}  {format_rewards(row)}  {prompt} |{row['completion']}"
            lines.append(cut_to_line(text))
    return lines


def number(metric):
    return "-" if metric.get("value") is None else _digits(metric["value"])


def _digits(value):
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def cut_to_line(text, width=WIDTH):
    """A text on one line of a terminal, whatever is in it."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= width else text[: width - 3] + "..."


def print_short(tables, files):
    """Prints the summary of some results. tables: {name: table}; files: {name: its .json}."""
    names = columns_of(tables)
    dial = dial_beside(files[names[-1]])
    for line in summary_lines(tables, dial, two_prompts([files[name] for name in names])):
        print(line)
