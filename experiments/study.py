"""A study's runs -> its table with intervals, its verdict, experiments/results/NAME.json and experiments/figures/NAME.png.

    python experiments/study.py beta            # what `bash experiments/beta.sh` ends with

Verdicts follow from one rule, fixed before any run was made. A claim says of a metric that variant A is above or below variant B.
Seed by seed the difference A - B is taken, and its 95 % interval over the seeds (Student's t). The claim is *reproduced* if in
every task the interval lies on the claimed side of 0, *not reproduced* if in some task it lies on the other side, and *unclear*
otherwise. A study's verdict is that of the claim that fares worst.
"""

import argparse
import json
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # two-sided, by number of seeds
METRICS = {"reward": "mean reward", "ppl": "perplexity / p0's", "kl": "KL(p0 || p), nats a token", "dist_1": "dist-1", "dist_3": "dist-3"}

# study: [(metric, A, "<" or ">", B)]: what is claimed
CLAIMS = {
    "beta": [("reward", "1", "<", "0"), ("kl", "1", "<", "0"), ("ppl", "1", "<", "0")],
}


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def measured(run):
    """One run -> {metric: value}; KL is the mean of the last quarter of its last round's steps."""
    base, quark = (load(run / "eval" / f"{name}.json") for name in ("base", "quark"))
    steps = [json.loads(line) for line in sorted(run.glob("model/*/metrics.jsonl"))[-1].read_text(encoding="utf-8").splitlines()]
    (reward,) = quark["rewards"]
    return {"reward": quark["rewards"][reward]["mean"]["value"], "ppl": quark["perplexity"]["value"] / base["perplexity"]["value"],
            "kl": float(np.mean([s["kl"] for s in steps[-max(1, len(steps) // 4) :]])),
            "dist_1": quark["dist_1"]["value"], "dist_3": quark["dist_3"]["value"]}  # fmt: skip


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
            lines.append(f"{task}: {METRICS[metric]}, {a} - {b}: {mean:+.3f} ± {half:.3f}, claimed {sign} 0")
        words.append({1: "reproduced", 0: "unclear", -1: "not reproduced"}[min(sides)])
    return lines, next(word for word in ("not reproduced", "unclear", "reproduced") if word in words)


def draw(results, path):
    """Reward against perplexity, a panel a task: every seed a dot, every variant a cross of its intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(results), 4.2), layout="constrained")
    for ax, (task, variants) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items()):
        for number, (name, values) in enumerate(variants.items()):
            color, (x, dx), (y, dy) = f"C{number}", interval(values["ppl"]), interval(values["reward"])
            ax.plot(values["ppl"], values["reward"], "o", color=color, markersize=3, alpha=0.6)
            ax.plot(x, y, "sD^vP*Xh"[number % 8], color=color, label=name)
        ax.set(title=task, xlabel="perplexity / p0's (right: further away)", ylabel="mean reward")
        ax.grid(color="#e5e5e5")
        ax.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("study", choices=CLAIMS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "studies")
    args = parser.parse_args(argv)
    found = {}  # task: {variant: {seed: metrics}}
    for table in sorted((args.runs / args.study).glob("*/eval/quark.json"), key=lambda f: f.stat().st_mtime):
        task, variant, seed = table.parent.parent.name.split("-", 1)[0], *table.parent.parent.name.split("-", 1)[1].rsplit("-seed", 1)
        found.setdefault(task, {}).setdefault(variant, {})[int(seed)] = measured(table.parent.parent)
    results, record = {}, {}
    for task, variants in found.items():
        seeds = sorted(set.intersection(*(set(v) for v in variants.values())))
        results[task] = {name: {m: [by_seed[s][m] for s in seeds] for m in METRICS} for name, by_seed in variants.items()}
        print(f"\n| {task}, seeds {', '.join(map(str, seeds))} | " + " | ".join(METRICS.values()) + " |\n|---|" + "---|" * len(METRICS))
        for name, values in results[task].items():
            print(f"| {name} | " + " | ".join("{:.3f} ± {:.3f}".format(*interval(values[m])) for m in METRICS) + " |")
    lines, word = verdict(CLAIMS[args.study], results)
    print("\n" + "\n".join(lines) + f"\n\nVerdict: {word}.")
    out = ROOT / "experiments" / "results" / f"{args.study}.json"
    out.parent.mkdir(exist_ok=True)
    record = {"results": results, "claims": lines, "verdict": word}
    out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(results, ROOT / "experiments" / "figures" / f"{args.study}.png")


if __name__ == "__main__":
    main()
