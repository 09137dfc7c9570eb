"""How time and memory of each stage grow with the work: 1, 4, 16 and 64 times as much.

    python bench/growth.py                         # writes bench/results/growth.json and growth.png
    python bench/growth.py --only quantize         # only these; the other results stay

Each point is a process of its own; below 16 times it is the quickest of three. The time that the
stage needs to start is measured too, and subtracted. `exponent` is the slope of the last step, from
16 to 64 times; 1 is linear.

Only one slope is clearly above 1: exploring, with the length of a completion. Attention reads the
keys and values of all columns before each token. At 200 columns this takes as long as the matrix
products.
"""

import argparse
import itertools
import json
import math
import random
import tempfile
from pathlib import Path

from rows import ROOT, run

SCALES = (1, 4, 16, 64)
PROMPTS = ROOT / "tiny" / "prompts" / "train.jsonl"


def write_pool(path, rows, tokens=19, quantiles=5):
    """Rows with completions of `tokens` tokens: " film" is a token of tiny/lm."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            row = {
                "prompt": f"The film number {i // 4} was",
                "completion": " film" * tokens,
                "reward": rng.random(),
                "iteration": i % 5,
                "quantile": i % quantiles + 1,
            }
            file.write(json.dumps(row) + "\n")
    return path


def write_prompts(path, n):
    """The first n training prompts."""
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:n]) + "\n", encoding="utf-8")
    return path


def with_vocabulary(work, V):
    """Samples or learns with a random model of V tokens. main runs this as a process."""
    import numpy as np
    from common import make_policy, random_parts, updates

    policy = make_policy("6x256", 5, vocab_size=V)
    reference = make_policy("6x256", vocab_size=V)
    if work == "sample":
        from explore import sample

        prompts = np.random.default_rng(0).integers(V - 1, size=(256, 12)).tolist()
        sample(policy, prompts, max_new_tokens=20, min_new_tokens=20)
    elif work == "learn":
        parts = random_parts(V, 5, examples=64, prompt=12, new=20)
        for _ in updates(policy, reference, parts, batch_size=64, steps=5):
            pass


def studies(folder):
    """{name: (the smallest command, [the command at 1, 4, 16, 64 times the work])}."""
    count = itertools.count()

    def to_file(*command):
        return [*command, "--out", folder / f"out{next(count)}"]

    small = write_pool(folder / "small.jsonl", 10)
    pools = [write_pool(folder / f"rows{s}.jsonl", 15625 * s) for s in SCALES]
    lengths = [write_pool(folder / f"length{s}.jsonl", 50, 3 * s) for s in SCALES]
    one_prompt = write_prompts(folder / "prompts1.jsonl", 1)
    prompts = [write_prompts(folder / f"prompts{12 * s}.jsonl", 12 * s) for s in SCALES]
    return {
        **exploring(to_file),
        **quantizing(to_file, small, pools),
        **learning(to_file, small, pools, lengths),
        **evaluating(to_file, one_prompt, prompts),
    }


def exploring(to_file):
    explore = ["explore.py", "--model", "tiny/lm", "--prompts", PROMPTS, "--reward"]

    def with_prompts(n, samples):
        numbers = ["--num-prompts", n, "--num-samples", samples]
        return to_file(*explore, "sentiment", *numbers)

    def with_length(n, prompts):
        lengths = ["--max-new-tokens", n, "--min-new-tokens", n]
        return to_file(*explore, "length", "--num-prompts", prompts, *lengths)

    return {
        "explore: prompts": (with_prompts(1, 1), [with_prompts(12 * s, 4) for s in SCALES]),
        "explore: tokens a completion": (
            with_length(1, 1),
            [with_length(3 * s, 640) for s in SCALES],
        ),
        "explore: tokens in the vocabulary": vocabulary("sample"),
    }


def vocabulary(work):
    command = [__file__, "--vocabulary"]
    return [*command, "none", 785], [[*command, work, 785 * s] for s in SCALES]


def quantizing(to_file, small, pools):
    start = to_file("quantize.py", small)
    with_K = [to_file("quantize.py", pools[1], "--quantiles", 2 * s) for s in SCALES]
    return {
        "quantize: rows": (start, [to_file("quantize.py", pool) for pool in pools]),
        "quantize: K": (start, with_K),
    }


def learning(to_file, small, pools, lengths):
    learn_py = ["learn.py", "--model", "tiny/lm", "--reference", "tiny/lm", "--pool"]

    def learn(pool, steps, batch):
        return to_file(*learn_py, pool, "--steps", steps, "--batch-size", batch)

    return {
        "learn: rows": (learn(small, 1, 1), [learn(pool, 1, 1) for pool in pools]),
        "learn: examples a step": (
            learn(pools[0], 1, 1),
            [learn(pools[0], 5, 2 * s) for s in SCALES],
        ),
        "learn: tokens a completion": (
            learn(small, 1, 1),
            [learn(pool, 5, 16) for pool in lengths],
        ),
        "learn: tokens in the vocabulary": vocabulary("learn"),
    }


def evaluating(to_file, one_prompt, prompts):
    models = ["--model", "tiny/lm", "--reference", "tiny/lm"]
    evaluate = ["evaluate.py", *models, "--reward", "sentiment", "--prompts"]
    commands = [to_file(*evaluate, file, "--num-samples", 4) for file in prompts]
    return {"evaluate: prompts": (to_file(*evaluate, one_prompt, "--num-samples", 1), commands)}


def draw(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (time, memory) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for number, (name, result) in enumerate(results.items()):
        style = {
            "marker": "osD^v"[number % 5],
            "linestyle": ("-", "--")[number // 5 % 2],
            "linewidth": 1.2,
            "markersize": 4,
            "label": name,
        }
        time.loglog(SCALES, result["seconds"], **style)
        memory.loglog(SCALES, [b / 1e6 for b in result["bytes"]], **style)
    linear = {"color": "0.6", "linewidth": 4, "alpha": 0.5, "zorder": 0, "label": "linear"}
    time.loglog(SCALES, [0.2 * s for s in SCALES], **linear)
    time.set(xlabel="times the work", ylabel="seconds, without the start", title="time")
    time.set_ylim(0.1, None)  # below that, the start varies more
    memory.set(xlabel="times the work", ylabel="MB", title="peak memory")
    for axis in (time, memory):
        axis.set_xticks(SCALES, [str(s) for s in SCALES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*time.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    figure.savefig(path, dpi=110)


def measure(smallest, commands):
    """Seconds without the start, peak memory, and the exponent of one study."""
    start = min(run(*smallest)[0] for _ in range(3))
    seconds, memory = [], []
    for scale, command in zip(SCALES, commands):
        s, b = min(run(*command) for _ in range(3 if scale < 16 else 1))
        seconds.append(max(s - start, 1e-3))
        memory.append(b)
    exponent = math.log(seconds[-1] / seconds[-2]) / math.log(SCALES[-1] / SCALES[-2])
    return {"start": start, "seconds": seconds, "bytes": memory, "exponent": exponent}


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--vocabulary", nargs=2, help=argparse.SUPPRESS)  # one point, in a process of its own
    add("--only", default="", help="measure only studies whose name contains this")
    add("--out", type=Path, default=ROOT / "bench" / "results" / "growth.json")
    args = parser.parse_args(argv)
    if args.vocabulary:
        work, V = args.vocabulary
        return with_vocabulary(work, int(V))
    results = {}
    if args.only and args.out.exists():
        results = json.loads(args.out.read_text(encoding="utf-8"))
    print(f"{'':36s} {'seconds at 1, 4, 16, 64':>36s} {'exponent':>9s}   peak memory in MB")
    with tempfile.TemporaryDirectory() as folder:
        for name, (smallest, commands) in studies(Path(folder)).items():
            if args.only not in name:
                continue
            result = results[name] = measure(smallest, commands)
            seconds = " ".join(f"{s:8.2f}" for s in result["seconds"])
            memory = " ".join(f"{b / 1e6:.0f}" for b in result["bytes"])
            print(f"{name:36s} {seconds} {result['exponent']:9.2f}   {memory}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
