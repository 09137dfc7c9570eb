"""Quantizing: quantize.py, DuckDB's ntile and pandas over the same JSONL, alternately; then growth with the rows.

    python bench/quantize.py [--rows 1000000]        # needs: pip install duckdb pandas

Every contestant is a process of its own that reads pool.jsonl (rows of 60 tokens) and writes the rows with their quantile,
so that seconds and peak memory are of the whole stage, its start included. Writes bench/results/quantize.json.
"""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

from rows import ROOT, run

DUCKDB = """
import sys, duckdb
duckdb.sql(f"COPY (SELECT * EXCLUDE (u), ntile(5) OVER (ORDER BY reward, u) AS quantile FROM (SELECT *, random() AS u "
           f"FROM read_json('{sys.argv[1]}', format = 'newline_delimited'))) TO '{sys.argv[2]}' (FORMAT json)")
"""
PANDAS = """
import sys, numpy as np, pandas
rows = pandas.read_json(sys.argv[1], lines=True)
rank = rows["reward"].rank(method="first").to_numpy() - 1
rows["quantile"] = np.floor((rank + 0.5) * 5 / len(rows)).astype(int) + 1
rows.to_json(sys.argv[2], orient="records", lines=True)
"""


def write_pool(path, rows, rng):
    with path.open("w") as file:
        for i in range(rows):
            ids = [rng.randrange(50000) for _ in range(60)]
            file.write(json.dumps({"prompt": f"The film number {i // 4} was", "completion": " film" * 48, "reward": rng.random(), "iteration": i % 5,
                                   "prompt_ids": ids[:12], "completion_ids": ids[12:]}) + "\n")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the largest pool (default 1,000,000)")
    parser.add_argument("--repeats", type=int, default=3, help="turns at a tenth of the rows (default 3)")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        pool, out = Path(folder) / "pool.jsonl", Path(folder) / "out.jsonl"
        contestants = {"quantize.py": ["quantize.py", pool, "--quantiles", "5", "--out", out], "DuckDB ntile": ["-c", DUCKDB, pool, out],
                       "pandas rank": ["-c", PANDAS, pool, out]}  # fmt: skip
        print(f"{'rows':>10s}  {'':14s} {'seconds: median (range)':>28s} {'microseconds a row':>19s} {'peak memory':>12s}")
        for rows in (args.rows // 10, args.rows):
            write_pool(pool, rows, random.Random(0))
            measured = {name: [] for name in contestants}
            for _ in range(args.repeats if rows < args.rows else 1):
                for name, command in contestants.items():
                    measured[name].append(run(*command))
            for name, runs in measured.items():
                seconds = [s for s, _ in runs]
                median, memory = statistics.median(seconds), max(m for _, m in runs)
                print(f"{rows:10,d}  {name:14s} {median:12.2f} ({min(seconds):.2f} to {max(seconds):.2f}) {median / rows * 1e6:19.1f} {memory / 1e6:9.0f} MB", flush=True)
                results.append({"rows": rows, "contestant": name, "seconds": seconds, "bytes": memory})
    path = ROOT / "bench" / "results" / "quantize.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
