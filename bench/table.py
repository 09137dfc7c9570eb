"""Prints the README's table of speeds from bench/results/*.json:    python bench/table.py"""

import json
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = {"tiny": "6 layers of 256, 50,257 tokens", "gpt2": "GPT-2 small's shape"}


def read(name):
    """{title: {contestant: median seconds}} of one result file."""
    tables = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["seconds"]
    return {title: {contestant: median(times) for contestant, times in table.items()} for title, table in tables.items()}


def lines():
    yield "| | times as fast as | float32 | `--bf16` | `--int8` | matrix products alone |"
    yield "|---|---|---|---|---|---|"
    for stage, other in (("explore", "`generate` of transformers"), ("learn", "the step as one writes it")):
        for title, table in read(stage).items():
            first, *others = table.values()
            ratio = {contestant: f"{first / seconds:.1f}" for contestant, seconds in zip(list(table)[1:], others)}
            cells = [ratio.get(f"{stage}.py{option}", "") for option in ("", " --bf16", " --int8")]
            floor = max((v for k, v in ratio.items() if k.startswith("floor")), key=float)  # the stricter one
            yield f"| {stage}.py, {SHAPES[title.split(':')[0]]} | {other} | {' | '.join(cells)} | {floor} |"
    trainers, here = ("GRPO", "RLOO", "online DPO"), next(iter(read("iteration").values()))
    ratios = [here[f"TRL {trainer}"] / here["explore, quantize, learn"] for trainer in trainers]
    cell = ", ".join(f"{ratio:.1f}" for ratio in ratios)
    yield f"| a whole round, {SHAPES['tiny']} | TRL's trainers {', '.join(trainers)} | {cell} | | | |"
    quantize = json.loads((RESULTS / "quantize.json").read_text(encoding="utf-8"))
    most = max(row["rows"] for row in quantize)
    cells = [f"{r['contestant']} {median(r['seconds']):.0f} s, {r['bytes'] / 1e6:,.0f} MB" for r in quantize if r["rows"] == most]
    yield ""
    yield f"{most:,} rows of 60 tokens: {'; '.join(cells)}."


if __name__ == "__main__":
    print("\n".join(lines()))
