"""The peak memory of an update of GPT-2 small: 128 examples of 12 + 20 tokens, in float32.

    python bench/memory.py FOLDER      # it has GPT-2's vocab.json and merges.txt
    python bench/memory.py --table     # the row of docs/running.md, from what was measured

learn.py makes two updates of a model with random weights, as a process of its own for each way to
compute the loss. Memory has the allocator settings of run_all.sh.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from rows import ALLOCATOR, ROOT, run

RESULT = ROOT / "bench" / "results" / "memory.json"
WAYS = {
    "--closed-form": ["--closed-form"],
    "quark_loss": [],
    "quark_loss, GRAD_ACCUM=8": ["--grad-accum", "8"],
}


def write_pool(path, rows):
    """Rows of 12 + 20 tokens: " film" is a token, and the 20th is the end of text."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            texts = {"prompt": "The" + " film" * 11, "completion": " film" * 19}
            file.write(json.dumps(texts | {"reward": i / rows, "quantile": i % 5 + 1}) + "\n")


def measure(vocab):
    """{way: peak memory in bytes}."""
    os.environ.update(ALLOCATOR)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run("tests/gpt2_shape.py", "--vocab", vocab, "--out", folder / "p0")
        write_pool(folder / "pool.jsonl", 640)
        command = ["learn.py", "--pool", folder / "pool.jsonl", "--model", folder / "p0"]
        command += ["--reference", folder / "p0", "--device", "cpu", "--steps", 2]
        command += ["--batch-size", 128, "--out", folder / "model"]
        return {way: run(*command, *options)[1] for way, options in WAYS.items()}


def table(peaks):
    """The first row of "Memory and disk" in docs/running.md."""
    closed, written_out, parts = (f"{peaks[way] / 1e9:.1f} GB" for way in WAYS)
    return (
        "| an update of GPT-2 small: 128 examples of 12 + 20 tokens, float32 "
        f"([memory.py](../bench/README.md#the-scripts)) | {closed}; with `LEARN=` (through "
        f"`quark_loss`) {written_out}; with `LEARN= GRAD_ACCUM=8` {parts} |"
    )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vocab", nargs="?", help="folder with GPT-2's vocab.json and merges.txt")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what was")
    parser.add_argument("--out", type=Path, default=RESULT, help="the file of results")
    args = parser.parse_args(argv)
    if args.table:
        print(table(json.loads(args.out.read_text(encoding="utf-8"))))
        return
    if args.vocab is None:
        parser.error("name the folder that has GPT-2's vocab.json and merges.txt")
    peaks = measure(args.vocab)
    args.out.write_text(json.dumps(peaks, indent=1) + "\n", encoding="utf-8")
    print(table(peaks))


if __name__ == "__main__":
    main()
