"""How time and memory of each stage grow with the work: 1, 4, 16 and 64 times of it, on one log-log picture.

    python bench/growth.py          # writes bench/results/growth.json and growth.png

Each point is a process of its own, the quickest of three below 16; what the same stage takes for next to nothing, its start, is measured too and taken off the
seconds. `exponent`: the slope of the last step, 16 to 64; 1 is linear. Steeper is only exploring with the length of a completion: for
each token attention reads the keys and values of all columns before it, at 200 columns as long as the matrix products take.
"""

import argparse
import json
import math
import random
import tempfile
from pathlib import Path

from rows import ROOT, run

SCALES = (1, 4, 16, 64)


def write_pool(path, rows, tokens=19, quantiles=5):
    """Rows with completions of `tokens` tokens: each " film" is one of tiny/lm's."""
    rng = random.Random(0)
    with path.open("w") as file:
        for i in range(rows):
            file.write(json.dumps({"prompt": f"The film number {i // 4} was", "completion": " film" * tokens, "reward": rng.random(),
                                   "iteration": i % 5, "quantile": i % quantiles + 1}) + "\n")  # fmt: skip
    return path


def in_process(what, V):
    """`what` (sample or learn) with a random model of V tokens: run as a process by main, which measures it."""
    from types import SimpleNamespace

    import common
    import numpy as np
    import torch

    common.V = V
    policy, reference, rng = (
        common.random_policy("tiny", 5),
        common.random_policy("tiny"),
        np.random.default_rng(0),
    )
    if what == "sample":
        from explore import sample

        sample(
            policy,
            rng.integers(V - 1, size=(256, 12)).tolist(),
            max_new_tokens=20,
            min_new_tokens=20,
        )
    elif what == "learn":
        from learn import learn

        parts = [
            [(k, rng.integers(V - 1, size=12), rng.integers(V - 1, size=20)) for _ in range(64)]
            for k in range(1, 6)
        ]
        args = SimpleNamespace(steps=5, total_steps=5, batch_size=64, grad_accum=1, beta=0.05, kl="forward", entropy_coef=0.0, clip=1.0,
                               lr=1e-5, warmup=0, reward_token_lr=1.0, seed=0, bf16=False, closed_form=False)  # fmt: skip
        list(
            learn(
                policy,
                reference,
                parts,
                args,
                torch.optim.Adam(policy.model.parameters(), eps=1e-5, fused=True),
                0,
            )
        )


def studies(folder):
    """{name: (command for next to nothing, [command at 1, 4, 16, 64 times])}."""
    explore = ["explore.py", "--model", "tiny/lm", "--prompts", "tiny/prompts/train.jsonl"]
    evaluate = [
        "evaluate.py",
        "--model",
        "tiny/lm",
        "--reference",
        "tiny/lm",
        "--prompts",
        "tiny/prompts/train.jsonl",
        "--reward",
        "sentiment",
    ]
    learn = ["learn.py", "--model", "tiny/lm", "--reference", "tiny/lm"]
    lines = (ROOT / "tiny/prompts/train.jsonl").read_text(encoding="utf-8").splitlines()
    few = write_pool(folder / "few.jsonl", 10)
    pools = [write_pool(folder / f"rows{s}.jsonl", 15625 * s) for s in SCALES]
    lengths = [write_pool(folder / f"length{s}.jsonl", 50, 3 * s) for s in SCALES]
    prompts = [folder / f"prompts{n}.jsonl" for n in (1, *(12 * s for s in SCALES))]
    for path in prompts:
        path.write_text("\n".join(lines[: int(path.stem[7:])]) + "\n", encoding="utf-8")
    count = iter(range(1000))

    def to(*command):
        return [*command, "--out", folder / f"out{next(count)}"]

    def tokens(n, prompts=640):
        return [
            "--num-prompts",
            prompts,
            "--max-new-tokens",
            n,
            "--min-new-tokens",
            n,
            "--reward",
            "length",
        ]

    return {
        "explore: prompts": (to(*explore, "--num-prompts", "1", "--reward", "sentiment"),
                             [to(*explore, "--num-prompts", 12 * s, "--num-samples", "4", "--reward", "sentiment") for s in SCALES]),
        "explore: tokens a completion": (to(*explore, *tokens(1, 1)), [to(*explore, *tokens(3 * s)) for s in SCALES]),
        "explore: tokens in the vocabulary": ([__file__, "--one", "none", "785"], [[__file__, "--one", "sample", 785 * s] for s in SCALES]),
        "quantize: rows": (to("quantize.py", few), [to("quantize.py", pool) for pool in pools]),
        "quantize: K": (to("quantize.py", few), [to("quantize.py", pools[1], "--quantiles", 2 * s) for s in SCALES]),
        "learn: rows": (to(*learn, "--pool", few, "--steps", "1", "--batch-size", "1"),
                        [to(*learn, "--pool", pool, "--steps", "1", "--batch-size", "1") for pool in pools]),
        "learn: examples a step": (to(*learn, "--pool", pools[0], "--steps", "1", "--batch-size", "1"),
                                   [to(*learn, "--pool", pools[0], "--steps", "5", "--batch-size", 2 * s) for s in SCALES]),
        "learn: tokens a completion": (to(*learn, "--pool", few, "--steps", "1", "--batch-size", "1"),
                                       [to(*learn, "--pool", pool, "--steps", "5", "--batch-size", "16") for pool in lengths]),
        "learn: tokens in the vocabulary": ([__file__, "--one", "none", "785"], [[__file__, "--one", "learn", 785 * s] for s in SCALES]),
        "evaluate: prompts": (to(*evaluate[:5], "--prompts", prompts[0], *evaluate[7:], "--num-samples", "1"),
                              [to(*evaluate[:5], "--prompts", path, *evaluate[7:], "--num-samples", "4") for path in prompts[1:]]),
    }  # fmt: skip


def draw(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for number, (name, r) in enumerate(results.items()):
        style = dict(
            marker="osD^v"[number % 5],
            linestyle=("-", "--")[number // 5 % 2],
            linewidth=1.2,
            markersize=4,
            label=name,
        )
        axes[0].loglog(SCALES, r["seconds"], **style)
        axes[1].loglog(SCALES, [b / 1e6 for b in r["bytes"]], **style)
    axes[0].loglog(
        SCALES,
        [0.2 * s for s in SCALES],
        color="0.6",
        linewidth=4,
        alpha=0.5,
        zorder=0,
        label="linear",
    )
    axes[0].set(
        xlabel="times the work", ylabel="seconds, without the start", title="time", ylim=(0.1, None)
    )  # less is lost in the start's own noise
    axes[1].set(xlabel="times the work", ylabel="MB", title="peak memory")
    for axis in axes:
        axis.set_xticks(SCALES, [str(s) for s in SCALES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--one", nargs=2, help=argparse.SUPPRESS
    )  # a point of the vocabulary's, in a process of its own
    parser.add_argument(
        "--only",
        default="",
        help="measure those only whose name contains this; the others' results stay",
    )
    args = parser.parse_args()
    if args.one:
        return in_process(args.one[0], int(args.one[1]))
    out = ROOT / "bench" / "results" / "growth.json"
    results = json.loads(out.read_text(encoding="utf-8")) if args.only else {}
    print(f"{'':36s} {'seconds at 1, 4, 16, 64':>36s} {'exponent':>9s}   peak memory in MB")
    with tempfile.TemporaryDirectory() as folder:
        for name, (nothing, commands) in studies(Path(folder)).items():
            if args.only not in name:
                continue
            start = min(run(*nothing)[0] for _ in range(3))
            measured = [
                min(run(*command) for _ in range(3 if scale < 16 else 1))
                for scale, command in zip(SCALES, commands)
            ]
            seconds = [max(s - start, 1e-3) for s, _ in measured]
            exponent = math.log(seconds[-1] / seconds[-2]) / math.log(SCALES[-1] / SCALES[-2])
            results[name] = {
                "start": start,
                "seconds": seconds,
                "bytes": [b for _, b in measured],
                "exponent": exponent,
            }
            print(
                f"{name:36s} {' '.join(f'{s:8.2f}' for s in seconds)} {exponent:9.2f}   {' '.join(f'{b / 1e6:.0f}' for _, b in measured)}",
                flush=True,
            )
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
