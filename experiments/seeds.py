"""One table over several runs of the same task: p0, Quark and their ratio, mean and range over the runs.

    python experiments/seeds.py runs/sentiment-tiny-seed0 runs/sentiment-tiny-seed1 runs/sentiment-tiny-seed2
"""

import argparse
import json
from pathlib import Path


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def values(table, prefix=""):
    """Every metric of a table, flat: {"sentiment mean": 0.51, "perplexity": 31.2, "neutral: ...": ...}."""
    flat = {}
    for name, metrics in table["rewards"].items():
        flat |= {f"{prefix}{name} {metric}": m["value"] for metric, m in metrics.items()}
    flat |= {prefix + k: m["value"] for k, m in table.items() if isinstance(m, dict) and "value" in m}
    for group, part in table.get("groups", {}).items():
        flat |= values(part, f"{group}: ")
    return flat


def spread(numbers):
    numbers = [n for n in numbers if n is not None]
    return f"{sum(numbers) / len(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})" if numbers else "-"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args(argv).runs
    for pair in (("base", "quark"), ("base-nucleus", "quark-nucleus")):
        if not (runs[0] / "eval" / f"{pair[0]}.json").exists():
            continue
        base, quark = ([values(load(run / "eval" / f"{name}.json")) for run in runs] for name in pair)
        print(f"\n{'mean (range) over ' + str(len(runs)) + ' runs':46s}{pair[0]:>28s}{pair[1]:>28s}{'ratio':>28s}")
        for key in base[0]:
            ratios = [q[key] / b[key] for b, q in zip(base, quark) if b[key] and q[key] is not None]
            print(f"{key:46s}{spread([b[key] for b in base]):>28s}{spread([q[key] for q in quark]):>28s}{spread(ratios):>28s}")
    print("\nmean reward by token")
    for file in sorted(f for f in (runs[0] / "eval").glob("dial-*.json") if not f.name.endswith(".args.json")):
        tables = [load(run / "eval" / file.name)["rewards"] for run in runs]
        print(f"  {file.stem:12s}" + "  ".join(f"{name} {spread([t[name]['mean']['value'] for t in tables])}" for name in tables[0]))


if __name__ == "__main__":
    main()
