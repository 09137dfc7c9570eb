"""What a row costs in each stage: seconds, memory, bytes on the disk.

    python bench/rows.py
    python bench/rows.py --rows 10000

A made-up pool goes through quantize.py and learn.py. explore.py samples with the tiny model, and
evaluate.py measures it. The time that each stage needs to start is measured first and subtracted.
The numbers hold for this machine only.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOCATOR = {  # the settings of run_all.sh for Linux
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}
PROMPTS = [f"The film number {i} was" for i in range(1000)]
COMPLETION = " " + "film " * 19
# In a process of its own: the peak memory of a child begins with that of its parent, so this file
# never imports torch.
ENCODE = """
import json
import sys
from explore import load_policy

policy = load_policy("tiny/lm")
print(json.dumps([policy.encode(text) for text in json.load(sys.stdin)]))
"""


def run(*command):
    """(seconds, peak memory in bytes) of `python command`, in the repository's folder."""
    arguments = [sys.executable, *map(str, command)]
    start = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().split("\n")[-1]
            code = os.waitstatus_to_exitcode(status)
            name = Path(sys.argv[0]).name
            sys.exit(f"{name}: error: {command[0]} ended with status {code}: {last}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.monotonic() - start, usage.ru_maxrss * unit


def write_pool(path, rows):
    """A pool of made-up rows, with the token ids of tiny/lm."""
    command = [sys.executable, "-c", ENCODE]
    texts = json.dumps([*PROMPTS, COMPLETION])
    output = subprocess.check_output(command, cwd=ROOT, input=texts, text=True)
    *prompt_ids, completion_ids = json.loads(output)
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            prompt = i // 4 % len(PROMPTS)
            row = {
                "prompt": PROMPTS[prompt],
                "completion": COMPLETION,
                "reward": rng.random(),
                "iteration": i % 5,
                "prompt_ids": prompt_ids[prompt],
                "completion_ids": completion_ids,
            }
            file.write(json.dumps(row) + "\n")


def show(stage, rows, seconds, memory=None):
    per_row = "" if memory is None else f"{memory:22.0f}"
    print(f"{stage:10s} {rows:9,d} {seconds / rows * 1e6:20.1f} {per_row}", flush=True)


def measure(folder, n):
    """Prints one line for each stage. n: rows of the made-up pool."""
    pool = folder / "pool.jsonl"
    write_pool(pool, n)
    prompts = (ROOT / "tiny/prompts/test.jsonl").read_text(encoding="utf-8").splitlines()
    one_prompt = folder / "one.jsonl"
    one_prompt.write_text(prompts[0] + "\n", encoding="utf-8")
    all_prompts = folder / "all.jsonl"
    all_prompts.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    samples = 4 * len(prompts)
    print(f"{'stage':10s} {'rows':>9s} {'microseconds a row':>20s} {'bytes of memory a row':>22s}")

    sampling = ["--model", "tiny/lm", "--reward", "sentiment", "--num-samples", "4"]
    explore = ["explore.py", *sampling, "--prompts"]
    start, _ = run(*explore, one_prompt, "--out", folder / "a.jsonl")
    seconds, _ = run(*explore, all_prompts, "--out", folder / "b.jsonl")
    show("explore", samples, seconds - start)

    small, big = folder / "small.jsonl", folder / "big.jsonl"
    quantize = ["quantize.py", "--quantiles"]
    start, least = run(*quantize, "1", folder / "a.jsonl", "--out", small)
    seconds, most = run(*quantize, "5", pool, "--out", big)
    show("quantize", n, seconds - start, (most - least) / n)

    models = ["--model", "tiny/lm", "--reference", "tiny/lm"]
    learn = ["learn.py", *models, "--batch-size", "32", "--pool"]
    _, least = run(*learn, small, "--steps", "1", "--out", folder / "m0")
    start, most = run(*learn, big, "--steps", "1", "--out", folder / "m1")
    seconds, _ = run(*learn, big, "--steps", "41", "--out", folder / "m2")
    show("learn", 40 * 32, seconds - start, (most - least) / n)

    evaluate = ["evaluate.py", *sampling, "--reference", "tiny/lm", "--prompts"]
    start, _ = run(*evaluate, one_prompt, "--out", folder / "e1")
    seconds, _ = run(*evaluate, all_prompts, "--out", folder / "e2")
    show("evaluate", samples, seconds - start)
    print(f"a pool row takes {pool.stat().st_size / n:.0f} bytes on the disk here")


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the made-up pool")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.rows)


if __name__ == "__main__":
    main()
