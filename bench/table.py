"""Prints the tables for two CPU cores in bench/README.md, from bench/results/*.json.

python bench/table.py
"""

import json
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = {
    "tiny/lm": "tiny/lm",
    "6x256": "6 layers of 256, 50,257 tokens",
    "gpt2": "GPT-2 small's shape",
}
TRAINERS = ("GRPO", "RLOO", "online DPO")
OPTIONS = ("", " --bf16")


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def medians(name):
    """{title: {contestant: median seconds}} of one result file."""
    tables = {}
    for title, table in read(name)["seconds"].items():
        tables[title] = {contestant: median(times) for contestant, times in table.items()}
    return tables


def model_of(title):
    """ "gpt2: a step of 32 x ..." -> the model, and for tiny/lm the size of the batch."""
    shape, work = title.split(": ")
    size = work.removeprefix("a step of ").split()[0]
    return SHAPES[shape] + (f", batches of {size}" if shape == "tiny/lm" else "")


def row(*cells):
    return f"| {' | '.join(cells)} |"


def ratio(seconds, a, b, digits=1):
    """How many times as long as b contestant a takes; nothing where one was not measured."""
    return f"{seconds[a] / seconds[b]:.{digits}f}" if a in seconds and b in seconds else ""


def speeds():
    """How many times as fast as other people's code ours is."""
    yield row("", "times as fast as", "float32", "`--bf16`", "matrix products alone")
    yield "|---|---|---|---|---|"
    stages = [
        ("sampling", "explore.py", "transformers generate", "`generate` of transformers"),
        ("training", "learn.py", "straightforward", "the straightforward step"),
        ("training", "learn.py --closed-form", "straightforward", "the straightforward step"),
    ]
    for file, command, other, name in stages:
        for title, seconds in medians(file).items():
            cells = [ratio(seconds, other, command + option) for option in OPTIONS]
            bounds = [c for c in seconds if c.startswith("matrix products alone")]
            fastest = min(bounds, key=seconds.get)
            if any(cells):
                label = f"{command}, {model_of(title)}"
                yield row(label, name, *cells, ratio(seconds, other, fastest))
    (seconds,) = medians("whole_round").values()
    for command in ("explore, quantize, learn", "explore, quantize, learn --closed-form"):
        cells = [ratio(seconds, f"TRL {trainer}", command) for trainer in TRAINERS]
        if any(cells):
            label = f"{command}, {SHAPES['6x256']}"
            yield row(label, f"TRL's trainers {', '.join(TRAINERS)}", ", ".join(cells), "", "")


def comparison(file, heading, slow, fast):
    """The time of one form of a stage divided by that of another, for each model."""
    lines = []
    for title, seconds in medians(file).items():
        cells = [ratio(seconds, slow.format(o), fast.format(o), digits=2) for o in OPTIONS]
        if any(cells):
            lines.append(row(model_of(title), *cells))
    if lines:
        yield ""
        yield row(heading, "float32", "`--bf16`")
        yield "|---|---|---|"
        yield from lines


def cutting():
    """Seconds and memory of quantize.py and of two other tools, on the largest pool."""
    results = read("cutting")
    most = max(r["rows"] for r in results)
    cells = []
    for r in results:
        if r["rows"] == most:
            memory = r["bytes"] / 1e6
            cells.append(f"{r['contestant']} {median(r['seconds']):.0f} s, {memory:,.0f} MB")
    yield f"{most:,} rows of 60 tokens: {'; '.join(cells)}."


def rounding():
    """What --bf16 does to the probabilities of tiny/lm."""
    means = read("sampling").get("bf16 against float32")
    if means:
        yield ""
        yield (
            f"`--bf16` with tiny/lm, against float32: a KL of {means['KL']:.4f} nats per token, a "
            f"total variation of {means['total variation']:.3f}."
        )


def lines():
    yield from speeds()
    heading = "time of learn.py / time with `--closed-form`"
    yield from comparison("training", heading, "learn.py{}", "learn.py --closed-form{}")
    heading = "time of explore.py without prepacking / time with it"
    yield from comparison("sampling", heading, "explore.py{}, not prepacked", "explore.py{}")
    yield ""
    yield from cutting()
    yield from rounding()


if __name__ == "__main__":
    print("\n".join(lines()))
