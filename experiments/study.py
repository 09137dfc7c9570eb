"""A study's runs -> its table with intervals, its verdict, experiments/results/NAME.json and experiments/figures/NAME.png.

    python experiments/study.py runs/studies/beta.tsv            # what `bash experiments/beta.sh` ends with

Verdicts follow from one rule, fixed before any run was made. A claim says of a metric that variant A is above or below variant B.
Seed by seed the difference A - B is taken, and its 95 % interval over the seeds (Student's t). The claim is *reproduced* if in
every task the interval lies on the claimed side of 0, *not reproduced* if in some task it lies on the other side, and *unclear*
otherwise. A study's verdict is that of the claim that fares worst. With fewer than two tasks or three seeds there is no verdict: the
table is printed, the picture drawn in runs/studies/, and experiments/ stays as it is.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from explore import load_policy
from learn import batch_loss

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # two-sided, by number of seeds
METRICS = {  # name: (what it is, digits)
    "reward": ("mean reward", 3), "ppl": ("perplexity / p0's", 3), "kl": ("KL(p0 ‖ p), nats a token", 3), "dist_1": ("dist-1", 3),
    "dist_3": ("dist-3", 3), "seconds": ("seconds a round to quantize and learn", 0), "mb": ("MB that the last round learns from", 2),
    "worst": ("log p(y) - log p0(y) of p0's worst samples, nats a token", 3)}  # fmt: skip

# study: [(metric, A, "<" or ">", B)]: what is claimed; of claims that contradict each other, {claim: [...]}, each with its own verdict
CLAIMS = {
    "beta": [("reward", "1", "<", "0"), ("kl", "1", "<", "0")],
    "quantiles": [("reward", "16", ">", "2"), ("kl", "16", ">", "2")],
    "learned_from": [("dist_3", "best", "<", "all"), ("reward", "random_tokens", "<", "all")],
    "exploration": [("reward", "never", "<", "every_round"), ("reward", "on_no_token", "<", "every_round")],
    "code": [("ppl", "reverse", "<", "paper"), ("ppl", "entropy", ">", "paper"), ("ppl", "top_50", "<", "paper")],
    "ties": [("reward", "age", "<", "random"), ("reward", "together_of_2", ">", "random_of_2")],
    "pool": [("reward", "newest_2", ">", "all"), ("reward", "per_prompt_4", ">", "all")],
    "hidden": {"gone": [("reward", "quark, r_1", ">", "p0"), ("reward", "quark, no token", ">", "p0"), ("reward", "quark+8", ">", "p0+8")],
               "hidden": [("reward", "quark+8", "<", "clean+8")]},
}  # fmt: skip


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def measured(run, p0):
    """One run -> {variant: {metric: value}} of p0 and of what became of it."""
    base, quark = (load(run / "eval" / f"{name}.json") for name in ("base", "quark"))
    values = {}
    for name, table, kl in (("p0", base, 0.0), ("", quark, kl_from_p0(run, p0))):
        (reward,) = table["rewards"].values()
        values[name] = {"reward": reward["mean"]["value"], "ppl": table["perplexity"]["value"] / base["perplexity"]["value"], "kl": kl,
                        "dist_1": table["dist_1"]["value"], "dist_3": table["dist_3"]["value"]}  # fmt: skip
    return values


@torch.no_grad()
def kl_from_p0(run, p0, rows=288):
    """KL(p0 || p(. | r_K)) in nats a token, exact at each of them, on p0's own completions of the test prompts: the same for all variants."""
    policy = load_policy(sorted(run.glob("model/[0-9]*"))[-1])
    lines = (run / "eval" / "base.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines[:: max(1, len(lines) // rows)]]
    k, kl, tokens = policy.n_quantiles or None, 0.0, 0  # None: it never learned a token
    for start in range(0, len(samples), 64):
        batch = [(k, p0.encode(row["prompt"]), p0.encode(row["completion"])) for row in samples[start : start + 64] if row["completion"]]
        sums, n = batch_loss(policy, p0, batch, beta=1)
        kl, tokens = kl + sums[2].item(), tokens + n
    return kl / tokens


def interval(numbers):
    """Mean of one number a seed, and the half width of its 95 % interval by Student's t; infinite for a single seed."""
    half = T95[len(numbers)] * np.std(numbers, ddof=1) / len(numbers) ** 0.5 if len(numbers) > 1 else float("inf")
    return float(np.mean(numbers)), float(half)


def verdict(claims, results):
    """(lines that say how each claim fares, the word). results: {task: {variant: {metric: [a value a seed]}}}."""
    lines, words = [], []
    for metric, a, sign, b in claims:
        sides = []
        for task, variants in results.items():
            mean, half = interval(np.subtract(variants[a][metric], variants[b][metric]))
            towards = mean if sign == ">" else -mean
            sides.append(1 if towards - half > 0 else -1 if towards + half < 0 else 0)
            lines.append(f"{task}: {METRICS[metric][0]}, {a} - {b}: {mean:+.3f} ± {half:.3f}, claimed {sign} 0")
        words.append({1: "reproduced", 0: "unclear", -1: "not reproduced"}[min(sides)])
        lines.append(f"{METRICS[metric][0]}, {a} {sign} {b}: {words[-1]}")
    return lines, next(word for word in ("not reproduced", "unclear", "reproduced") if word in words)


def judged(study, results):
    """verdict() of a study's claims; where they are several, the word is "claim: word; claim: word"."""
    claims = CLAIMS[study]
    if isinstance(claims, list):
        return verdict(claims, results)
    each = {claim: verdict(parts, results) for claim, parts in claims.items()}
    return [line for lines, _ in each.values() for line in lines], "; ".join(f"{claim}: {word}" for claim, (_, word) in each.items())


def _metrics(results):
    """The metrics that `results` has, in the order of METRICS."""
    (measured, *_) = (values for variants in results.values() for values in variants.values())
    return {m: METRICS[m] for m in METRICS if m in measured}


def draw(results, path):
    """Reward against how far p is from p0, a column of panels a task: a dot a seed, a cross of 95 % intervals a variant."""
    from matplotlib.figure import Figure

    distances = [m for m in ("ppl", "kl", "worst") if m in _metrics(results)]
    figure = Figure(figsize=(1.5 + 5 * len(results), 4 * len(distances)), layout="constrained")
    for panels, (task, variants) in zip(figure.subplots(len(distances), len(results), squeeze=False).T, results.items()):
        for ax, metric in zip(panels, distances):
            for number, (name, values) in enumerate(variants.items()):
                (x, dx), (y, dy) = interval(values[metric]), interval(values["reward"])
                ax.plot(values[metric], values["reward"], "o", color=f"C{number}", markersize=3, alpha=0.6)
                ax.errorbar(x, y, xerr=dx, yerr=dy, fmt="sD^vP*XhH"[number % 9], color=f"C{number}", elinewidth=0.7, label=name)
            close = [values[m] for values in variants.values() for m in (metric, "reward")]
            for limits, numbers in ((ax.set_xlim, sum(close[::2], [])), (ax.set_ylim, sum(close[1::2], []))):
                limits(*(np.array([min(numbers), max(numbers)]) + np.array([-0.15, 0.15]) * (np.ptp(numbers) or 1)))  # wide intervals are cut
            ax.set(title=task, xlabel=METRICS[metric][0], ylabel=METRICS["reward"][0])
            ax.grid(color="#e5e5e5")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)


def publish(study, results, draw=draw):
    """Prints the table. If the study is whole, writes experiments/results/STUDY.json, the study's place in experiments/README.md and
    experiments/figures/STUDY.png."""
    if len(results) < 2 or len(next(iter(next(iter(results.values())).values()))["reward"]) < 3:
        picture = ROOT / "runs" / "studies" / f"{study}.png"
        draw(results, picture)
        print(f"{tables(results)}\nA part of the study: no verdict, and experiments/ stays as it is. Picture: {picture.relative_to(ROOT)}")
        return
    lines, word = judged(study, results)
    out = ROOT / "experiments" / "results" / f"{study}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"results": results, "claims": lines, "verdict": word}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(results, ROOT / "experiments" / "figures" / f"{study}.png")
    text = as_text(study, results)
    print(text)
    page = ROOT / "experiments" / "README.md"
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {study} -->\n")
    page.write_text(f"{before}<!-- {study} -->\n{text}<!-- end{rest.split('<!-- end', 1)[1]}", encoding="utf-8")


def as_text(study, results):
    """The study's tables, how its claims fare, its verdict and its picture, in Markdown."""
    lines, word = judged(study, results)
    claims = "\n".join(f"- {line}" for line in lines)
    return f"{tables(results)}\n{claims}\n\n**Verdict: {word}.**\n\n![{study}](figures/{study}.png)\n"


def tables(results):
    """A table a task, in Markdown: a row a variant, mean and 95 % interval of each metric."""
    metrics, parts = _metrics(results), []
    for task, variants in results.items():
        n = len(next(iter(variants.values()))["reward"])
        parts.append(f"| {task}, {n} seeds | " + " | ".join(what for what, _ in metrics.values()) + " |\n|---|" + "---|" * len(metrics) + "\n")
        for name, values in variants.items():
            cells = ["{:.{d}f} ± {:.{d}f}".format(*interval(values[m]), d=digits) for m, (_, digits) in metrics.items()]
            parts[-1] += f"| {name} | " + " | ".join(cells) + " |\n"
    return "\n".join(parts)


def arguments(text, argv=None):
    """The command line of a study's script, whose docstring is `text`."""
    parser = argparse.ArgumentParser(description=text.split("\n\n")[0])
    parser.add_argument("runs", type=Path, help="the file in which study.sh lists a study's runs")
    return parser.parse_args(argv)


def read_runs(path):
    """Yields (variant, task, folder) of every run that study.sh lists in the file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, task, _, run = line.split("\t")[:4]
        yield name, task, ROOT / run


def main(argv=None, costs=lambda run: {}):
    """costs: what a study measures of a run besides, {metric: value}."""
    args, p0, results = arguments(__doc__, argv), load_policy(ROOT / "tiny" / "lm"), {}  # task: {variant: {metric: [a value a seed]}}
    variants = list(read_runs(args.runs))
    for name, task, run in variants:
        values, extra = measured(run, p0), costs(run)
        if name == variants[0][0]:
            _append(results, task, "p0", {**values["p0"], **dict.fromkeys(extra, 0.0)})
        _append(results, task, name, {**values[""], **extra})
    publish(args.runs.stem, results)


def _append(results, task, variant, values):
    for metric, value in values.items():
        results.setdefault(task, {}).setdefault(variant, {}).setdefault(metric, []).append(value)


if __name__ == "__main__":
    main()
