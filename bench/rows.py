"""What a row costs in each stage: seconds, memory, bytes on the disk.    python bench/rows.py [--rows 1000000]

A pool of N made-up rows goes through quantize.py; the tiny model's own samples through explore.py, learn.py, evaluate.py.
Times hold for this machine only, and include each stage's start, which is measured first and taken off.
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
# In a process of its own: a child's peak memory begins with its parent's, which therefore never imports torch.
ENCODE = "import sys; from explore import load_policy; print(load_policy('tiny/lm').encode(sys.argv[1]))"


def run(*command):
    """(seconds, peak memory in bytes) of `python command`."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().split("\n")[-1]
            sys.exit(f"{Path(sys.argv[0]).name}: error: {command[0]} ended with status {os.waitstatus_to_exitcode(status)}: {last}")
    return time.monotonic() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the made-up pool (default 1,000,000)")
    args = parser.parse_args()
    rng = random.Random(0)
    completion = " " + "film " * 19
    ids = json.loads(subprocess.check_output([sys.executable, "-c", ENCODE, completion], cwd=ROOT))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        with (folder / "pool.jsonl").open("w") as file:
            for i in range(args.rows):
                prompt_ids = [rng.randrange(4000) for _ in range(8)]
                file.write(json.dumps({"prompt": f"The film number {i // 4} was", "completion": completion, "reward": rng.random(),
                                       "iteration": i % 5, "prompt_ids": prompt_ids, "completion_ids": ids}) + "\n")  # fmt: skip
        prompts = (ROOT / "tiny/prompts/test.jsonl").read_text().splitlines()
        for n in (1, len(prompts)):
            (folder / f"{n}.jsonl").write_text("\n".join(prompts[:n]) + "\n")
        few, many = folder / "1.jsonl", folder / f"{len(prompts)}.jsonl"
        explore = ["explore.py", "--model", "tiny/lm", "--reward", "sentiment", "--num-samples", "4"]
        evaluate = ["evaluate.py", "--model", "tiny/lm", "--reference", "tiny/lm", "--reward", "sentiment", "--num-samples", "4"]
        learn = ["learn.py", "--model", "tiny/lm", "--reference", "tiny/lm", "--batch-size", "32"]
        n, samples = args.rows, 4 * len(prompts)
        print(f"{'stage':10s} {'rows':>9s} {'microseconds a row':>20s} {'bytes of memory a row':>22s}")

        def show(name, rows, seconds, memory=None):
            print(f"{name:10s} {rows:9,d} {seconds / rows * 1e6:20.1f} {'' if memory is None else f'{memory / n:22.0f}'}", flush=True)

        start, _ = run(*explore, "--prompts", few, "--out", folder / "a.jsonl")
        seconds, _ = run(*explore, "--prompts", many, "--out", folder / "b.jsonl")
        show("explore", samples, seconds - start)
        start, least = run("quantize.py", folder / "a.jsonl", "--quantiles", "1", "--out", folder / "small.jsonl")
        seconds, most = run("quantize.py", folder / "pool.jsonl", "--out", folder / "big.jsonl")
        show("quantize", n, seconds - start, most - least)
        _, least = run(*learn, "--pool", folder / "small.jsonl", "--steps", "1", "--out", folder / "m0")
        start, most = run(*learn, "--pool", folder / "big.jsonl", "--steps", "1", "--out", folder / "m1")
        seconds, _ = run(*learn, "--pool", folder / "big.jsonl", "--steps", "41", "--out", folder / "m2")
        show("learn", 40 * 32, seconds - start, most - least)
        start, _ = run(*evaluate, "--prompts", few, "--out", folder / "e1")
        seconds, _ = run(*evaluate, "--prompts", many, "--out", folder / "e2")
        show("evaluate", samples, seconds - start)
        print(f"a pool row takes {(folder / 'pool.jsonl').stat().st_size / n:.0f} bytes on the disk here")


if __name__ == "__main__":
    main()
