r"""Writes docs/samples.md: completions of p0 and of Quark for each task, drawn at random by a seed.

    python experiments/samples.py runs/sentiment-tiny runs/toxicity-tiny runs/repetition-tiny

Twenty test prompts of each run are drawn; for each, one of p0's completions and Quark's of the same
number. Nothing is chosen. `OMP_NUM_THREADS=1 bash run_all.sh TASK` makes such a run.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from kept import machine  # experiments/kept.py

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plumbing.files import whole_file
from plumbing.options import run_stage
from plumbing.pool import BadInput, read_jsonl

PAGE = """# What the models write

Twenty test prompts of each task, drawn at random and not chosen, by

```bash
{command}
```

after `OMP_NUM_THREADS=1 bash run_all.sh TASK` for each task ({machine}).

For each prompt you see one of p0's 25 completions (p0 is `tiny/lm`), and below it the completion of
the same number that Quark's model writes under r_K. For repetition both are greedy. The middle
column names the model and gives the reward; higher is better. The small model writes as film
reviews on the web are written, insults included.
"""


def completions_of(file):
    """{prompt number: its rows}."""
    rows = {}
    for place, row in read_jsonl(file):
        if "prompt_number" not in row:
            raise BadInput(f"{place}: is no line of a result of evaluate.py")
        rows.setdefault(row["prompt_number"], []).append(row)
    return rows


def drawn_pairs(run, count, seed):
    """[(p0's row, Quark's row)] of `count` prompts, in the order of the prompt file."""
    base, quark = (completions_of(run / "eval" / f"{name}.jsonl") for name in ("base", "quark"))
    rng = np.random.default_rng(seed)
    shared = sorted(set(base) & set(quark))
    if count > len(shared):
        raise BadInput(f"{run} has {len(shared)} prompts, fewer than --count {count}")
    numbers = sorted(rng.choice(shared, count, replace=False).tolist())
    pairs = []
    for number in numbers:
        i = rng.integers(min(len(base[number]), len(quark[number])))
        pairs.append((base[number][i], quark[number][i]))
    return pairs


def as_line(row, who, prompt=""):
    (reward,) = row["rewards"].values()
    score = "none" if reward is None else f"{reward:.2f}"
    first = f"| {escaped(prompt)} |" if prompt else "| |"
    return f"{first} {who} {score} | {escaped(row['completion'])} |"


def escaped(text):
    text = " ".join(text.split())
    for character in "\\`*_<>[]|#":
        text = text.replace(character, "\\" + character)
    return text


def section(run, pairs):
    """A table: the prompt, and below it what both models wrote."""
    task = next(iter(pairs[0][0]["rewards"]))
    lines = [f"## {task.capitalize()}", "", "| prompt | reward | completion |", "|---|---|---|"]
    for base, quark in pairs:
        lines.append(as_line(base, "p0", base["prompt"]))
        lines.append(as_line(quark, "Quark"))
    return "\n".join(lines) + "\n"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--count", type=int, default=20, help="prompts of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "samples.md")
    args = parser.parse_args(argv)
    command = " \\\n    ".join(["python experiments/samples.py", *map(str, args.runs)])
    parts = [PAGE.format(command=command, machine=machine())]
    parts += [section(run, drawn_pairs(run, args.count, args.seed)) for run in args.runs]
    with whole_file(args.out) as file:
        file.write("\n".join(parts))


if __name__ == "__main__":
    run_stage(main)
