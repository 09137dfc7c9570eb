"""Cutting a pool into quantiles: quantize.py beside DuckDB's ntile and pandas, over the same JSONL.

    pip install duckdb pandas
    python bench/cutting.py
    python bench/cutting.py --rows 1000 --repeats 1 --out /tmp/cutting.json

Each contestant is a process of its own. It reads pool.jsonl (rows of 60 tokens) and writes the rows
with their quantile, so seconds and peak memory are those of the whole stage, its start included.
"""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

from rows import ROOT, run

DUCKDB = """
import sys
import duckdb

duckdb.sql(f'''
    COPY (
        SELECT * EXCLUDE (u), ntile(5) OVER (ORDER BY reward, u) AS quantile
        FROM (
            SELECT *, random() AS u
            FROM read_json('{sys.argv[1]}', format = 'newline_delimited')
        )
    ) TO '{sys.argv[2]}' (FORMAT json)
''')
"""
PANDAS = """
import sys
import numpy as np
import pandas

rows = pandas.read_json(sys.argv[1], lines=True)
rank = rows["reward"].rank(method="first").to_numpy() - 1
rows["quantile"] = np.floor((rank + 0.5) * 5 / len(rows)).astype(int) + 1
rows.to_json(sys.argv[2], orient="records", lines=True)
"""


def write_pool(path, rows, rng):
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            ids = [rng.randrange(50000) for _ in range(60)]
            row = {
                "prompt": f"The film number {i // 4} was",
                "completion": " film" * 48,
                "reward": rng.random(),
                "iteration": i % 5,
                "prompt_ids": ids[:12],
                "completion_ids": ids[12:],
            }
            file.write(json.dumps(row) + "\n")


def measure(contestants, rows, repeats):
    """One result for each contestant. They take turns."""
    runs = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, command in contestants.items():
            runs[name].append(run(*command))
    results = []
    for name, measured in runs.items():
        seconds = [s for s, _ in measured]
        memory = max(m for _, m in measured)
        results.append({"rows": rows, "contestant": name, "seconds": seconds, "bytes": memory})
    return results


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--rows", type=int, default=1_000_000, help="rows of the largest pool")
    add("--repeats", type=int, default=3, help="turns at a tenth of the rows")
    add("--out", type=Path, default=ROOT / "bench" / "results" / "cutting.json")
    args = parser.parse_args(argv)
    results = []
    heading = "seconds: median (range)"
    print(f"{'rows':>10s}  {'':14s} {heading:>28s} {'microseconds a row':>19s} {'memory':>12s}")
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.jsonl"
        out = Path(folder) / "out.jsonl"
        contestants = {
            "quantize.py": ["quantize.py", pool, "--quantiles", "5", "--out", out],
            "DuckDB ntile": ["-c", DUCKDB, pool, out],
            "pandas rank": ["-c", PANDAS, pool, out],
        }
        for rows, repeats in ((args.rows // 10, args.repeats), (args.rows, 1)):
            write_pool(pool, rows, random.Random(0))
            for result in measure(contestants, rows, repeats):
                results.append(result)
                seconds = result["seconds"]
                median = statistics.median(seconds)
                time = f"{median:12.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
                name, per_row = result["contestant"], f"{median / rows * 1e6:19.1f}"
                memory = f"{result['bytes'] / 1e6:9.0f} MB"
                print(f"{rows:10,d}  {name:14s} {time} {per_row} {memory}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
