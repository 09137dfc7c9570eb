"""The figures of a run's report: rewards, their price, quantiles, learning curves and the dial."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from plumbing.options import pick_device
from plumbing.policy import load_policy
from plumbing.pool import BadInput, read_jsonl, read_pool, shown

# Colours that colour-blind readers can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, GREY = "#56B4E9", "#D55E00", "#777777"


def _numbered(folder):
    """00.jsonl, 01.jsonl, ... of a folder, without empty ones."""
    files = [f for f in folder.glob("*.jsonl") if f.stem.isdecimal() and f.stat().st_size]
    return sorted(files, key=lambda f: int(f.stem))


def _texts_and_rewards(pool):
    """What the figures need from a pool file: not the token ids, which take the most memory."""
    fields = ("prompt", "completion", "reward")
    return [{field: row[field] for field in fields} for _, row in read_pool([pool])]


def _read_metrics(file):
    rows = []
    for place, row in read_jsonl(file):
        if not all(isinstance(row.get(name), (int, float)) for name in ("step", "lm", "kl")):
            raise BadInput(f"{place}: is {shown(row)}, not a line of learn.py's metrics")
        rows.append(row)
    return rows


def draw_figures(run, tables, perplexity, text_sums):
    """[(file name, title, caption, Figure)] of all that the run has so far."""
    figures = []
    if pools := _numbered(run / "pool"):
        rounds = {int(f.stem): _texts_and_rewards(f) for f in pools}
        caption = (
            "Round 0 is p0; later rounds are sampled under r_K. Line: median; dark band: the "
            "middle half; light band: from 5 % to 95 %; dots: mean."
        )
        title = "Reward of each round's samples"
        figures.append(("rewards", title, caption, _draw_rewards(rounds)))
        figures += _price_figure(rounds, tables, perplexity, text_sums)
    if quantized := _numbered(run / "quantized"):
        caption = (
            "Which rounds the samples in D^K come from, after each round. r_K is learned from "
            "them. If new samples are better than old ones, they fill it."
        )
        figures.append(("quantiles", "Who fills the best quantile", caption, _draw_top(quantized)))
    logs = [f for f in run.glob("model/*/metrics.jsonl") if f.parent.name.isdecimal()]
    logs = [_read_metrics(f) for f in sorted(logs, key=lambda f: int(f.parent.name))]
    if logs := [log for log in logs if log]:
        caption = (
            "Nats per completion token, 10-step moving average: the LM term, the KL term to p0 "
            "(before beta), and exp(LM), the perplexity of the pool under p_theta. Dashed: the "
            "next round."
        )
        figures.append(("learning", "The objective while learning", caption, _draw_learning(logs)))
    dial = {}
    for name, table in tables.items():
        if name.startswith("dial-r") and name[6:].isdecimal():
            dial[int(name[6:])] = table
    if dial:
        caption = (
            "Mean reward on the test prompts under each reward token, with 95 % intervals. The "
            "model has learned all quantiles; the token selects one."
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


def _price_figure(rounds, tables, perplexity, text_sums):
    """Reward, perplexity, dist-2 and rep-2 of each round's samples."""
    models = (t.get("ppl_model") or t.get("reference") for t in tables.values())
    model = next(models, None)
    if model is None:
        return []
    curves = {"mean reward": [], "perplexity": [], "dist-2": [], "rep-2": []}
    try:
        policy = load_policy(model, pick_device("auto"))
        for rows in tqdm(rounds.values(), desc="the price of each round"):
            curves["mean reward"].append(np.mean([row["reward"] for row in rows]))
            curves["perplexity"].append(perplexity(policy, _some_of(rows)))
            for name, value in _diversity(rows, policy, text_sums).items():
                curves[name].append(value)
    except BadInput as error:
        print(f"no figure of the price: {error}")
        return []
    figure, axes = _axes(rows=4, height=6.4)
    for ax, (name, values), colour in zip(axes, curves.items(), (RED, BLUE, GREEN, PINK)):
        ax.plot(list(rounds), values, "o-", color=colour)
        ax.set_ylabel(name)
    axes[-1].set_xlabel("round")
    _whole_numbers(axes[-1])
    caption = (
        "The samples that were explored: round 0 by p0, later rounds under r_K. Perplexity of "
        f"about 4,000 words under {Path(model).name}. dist-2: distinct pairs of words in the "
        "samples of a prompt, per word."
    )
    return [("price", "The gain, and its price, round by round", caption, figure)]


def _some_of(rows, words=4000):
    """Some of the rows, drawn at random, with about that many words."""
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    before = np.cumsum([0, *(len(row["completion"].split()) for row in shuffled)])
    return [row for row, n in zip(shuffled, before) if n < words]


def _diversity(rows, policy, text_sums):
    """dist-2 and rep-2 of a round, as evaluate.py measures them."""
    texts = {}
    for row in rows:
        texts.setdefault(row["prompt"], []).append(row["completion"])
    sums = [
        text_sums(own, [policy.encode(text, goes_on=True) for text in own])
        for own in texts.values()
    ]
    found = {}
    for metric in ("dist_2", "rep_2"):
        a, b = np.sum([s[metric] for s in sums], axis=0)
        found[metric.replace("_", "-")] = a / b
    return found


def _draw_top(quantized):
    figure, (ax,) = _axes()
    shares, labels = [], []
    for file in quantized:
        rounds_of = {}  # quantile: the rounds of its samples
        for place, row in read_pool([file]):
            if "quantile" not in row:
                raise BadInput(f'{place}: "quantile" is missing; run quantize.py on the pool first')
            rounds_of.setdefault(row["quantile"], []).append(row.get("iteration", 0))
        newest = max(map(max, rounds_of.values()))  # in the whole pool, not only in D^K
        age = newest - np.array(rounds_of[max(rounds_of)])
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


def _mean_reward(table, name):
    """The mean reward of a result; None if the result or its value is missing."""
    return table["rewards"].get(name, {}).get("mean", {}).get("value") if table else None


def _draw_dial(dial, tables):
    figure, (ax,) = _axes()
    tokens = sorted(dial)
    in_all = [n for n in dial[tokens[0]]["rewards"] if all(n in dial[k]["rewards"] for k in tokens)]
    for name, colour in zip(in_all, (BLUE, GREEN, PINK)):
        metrics = [dial[k]["rewards"][name]["mean"] for k in tokens]
        columns = ([m[key] for m in metrics] for key in ("value", "low", "high"))
        value, low, high = (np.array(column, dtype=float) for column in columns)
        error = [value - low, high - value]
        ax.errorbar(tokens, value, yerr=error, fmt="o-", color=colour, capsize=4, label=name)
        for other, what, style in (("base", "p0", ":"), ("dial-none", "no token", "--")):
            mean = _mean_reward(tables.get(other), name)
            if mean is not None:
                label = f"{name}, {what}"
                ax.axhline(mean, color=colour, linestyle=style, linewidth=1, label=label)
    ax.set_xticks(tokens, [f"r_{k}" for k in tokens])
    ax.set(ylabel="mean reward")
    ax.legend(frameon=False)
    return figure
