"""One table over several runs of one task: p0, Quark and their ratio, mean and range over the runs.

python experiments/seeds.py runs/sentiment-tiny-seed0 runs/sentiment-tiny-seed1
"""

import argparse
import json
from pathlib import Path


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def metrics_of(table, prefix=""):
    """All metrics of a table, in one dict: {"sentiment mean": 0.51, "neutral: dist_1": ...}."""
    flat = {}
    for name, metrics in table["rewards"].items():
        for metric, m in metrics.items():
            flat[f"{prefix}{name} {metric}"] = m["value"]
    for name, m in table.items():
        if isinstance(m, dict) and "value" in m:
            flat[prefix + name] = m["value"]
    for group, part in table.get("groups", {}).items():
        flat |= metrics_of(part, f"{group}: ")
    return flat


def mean_and_range(numbers):
    numbers = [n for n in numbers if n is not None]
    if not numbers:
        return "-"
    return f"{sum(numbers) / len(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"


def print_comparison(runs, base, quark):
    """One line for each metric: p0, Quark, and Quark divided by p0."""
    heading = f"mean (range) over {len(runs)} runs"
    print(f"\n{heading:46s}{base:>28s}{quark:>28s}{'ratio':>28s}")
    of_base = [metrics_of(load(run / "eval" / f"{base}.json")) for run in runs]
    of_quark = [metrics_of(load(run / "eval" / f"{quark}.json")) for run in runs]
    for key in of_base[0]:
        b = [metrics[key] for metrics in of_base]
        q = [metrics[key] for metrics in of_quark]
        ratios = [y / x for x, y in zip(b, q) if x and y is not None]
        cells = "".join(f"{mean_and_range(numbers):>28s}" for numbers in (b, q, ratios))
        print(f"{key:46s}{cells}")


def print_dial(runs):
    """The mean reward under each reward token."""
    print("\nmean reward by token")
    for file in sorted((runs[0] / "eval").glob("dial-*.json")):
        if file.name.endswith(".args.json"):
            continue
        tables = [load(run / "eval" / file.name)["rewards"] for run in runs]
        cells = []
        for name in tables[0]:
            means = [table[name]["mean"]["value"] for table in tables]
            cells.append(f"{name} {mean_and_range(means)}")
        print(f"  {file.stem:12s}" + "  ".join(cells))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    runs = parser.parse_args(argv).runs
    for base, quark in (("base", "quark"), ("base-nucleus", "quark-nucleus")):
        if (runs[0] / "eval" / f"{base}.json").exists():
            print_comparison(runs, base, quark)
    print_dial(runs)


if __name__ == "__main__":
    main()
