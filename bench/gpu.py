"""One GPU: exploring and learning in bfloat16 at the shapes of GPT-2 small and large, beside what the card can do.

    python bench/gpu.py                     # both shapes; writes bench/results/gpu.json and prints the README's table
    python bench/gpu.py --shapes gpt2 --batches 128 256

Exploring: prompts of 12 tokens, 20 new ones each, ours and transformers' `generate` in turn. Learning: one step of 128 examples of
12 + 20 tokens. Both are set against two rates measured first, a large bfloat16 product and a copy within the card's memory, by
the least that the work needs: two operations a weight and token (learning: eight, pθ forwards, p0 forwards, pθ backwards twice), and
all weights read once a step. Without a GPU it runs on the CPU, to be tried with `--shapes tiny --batches 8 --examples 8`, and writes nothing.
"""

import argparse
import json
import statistics
from types import SimpleNamespace

from common import ROOT, SHAPES, V, alternately, as_here, random_policy

import numpy as np
import torch

from explore import sample
from learn import learn

PROMPT, NEW, K = 12, 20, 5
GPU = torch.cuda.is_available()


def rates():
    """(operations a second of a bfloat16 product, bytes a second of a copy, read and written), the best of twenty."""
    n = 8192 if GPU else 512
    device = "cuda" if GPU else "cpu"
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(n * n, device=device)
    target = torch.empty_like(source)
    times = alternately(
        {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, repeats=20
    )
    return 2 * n**3 / min(times["product"]), 2 * source.nbytes / min(times["copy"])


def weights(shape):
    """(weights of the blocks' matrices, of the output layer)."""
    d = SHAPES[shape]["n_embd"]
    return 12 * d * d * SHAPES[shape]["n_layer"], V * d


def peak_memory(function):
    """What `function` returns, and the most memory in bytes that PyTorch's tensors took meanwhile."""
    if GPU:
        torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
    result = function()
    return result, torch.cuda.max_memory_allocated() if GPU else 0


def exploring(shape, batch, operations, bandwidth):
    policy = random_policy(shape)
    prompts = torch.randint(V - 1, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    ids = prompts.to(policy.device)

    def generate():
        with torch.no_grad(), torch.autocast(policy.device.type, dtype=torch.bfloat16):
            policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, max_new_tokens=NEW,
                                  min_new_tokens=NEW, pad_token_id=V - 1)  # fmt: skip

    def ours():
        sample(
            policy,
            prompts.tolist(),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            batch_size=batch,
            bf16=True,
        )

    times, memory = peak_memory(
        lambda: alternately({"generate": generate, "explore.py": as_here(ours)})
    )
    seconds = {name: statistics.median(t) for name, t in times.items()}
    blocks, output = weights(shape)
    work = 2 * batch * (blocks * (PROMPT + NEW - 1) + output * NEW)
    read = NEW * (
        2 * blocks + 4 * output
    )  # bfloat16 in the blocks; the output layer stays in float32
    return {"shape": shape, "batch": batch, "seconds": times, "times generate": seconds["generate"] / seconds["explore.py"],
            "tokens/s": batch * NEW / seconds["explore.py"], "of the product rate": work / seconds["explore.py"] / operations,
            "of the bandwidth": read / seconds["explore.py"] / bandwidth, "peak bytes": memory}  # fmt: skip


def learning(shape, examples, operations):
    policy, p0, rng = random_policy(shape, K), random_policy(shape), np.random.default_rng(0)
    parts = [
        [
            (k, rng.integers(V - 1, size=PROMPT), rng.integers(V - 1, size=NEW))
            for _ in range(examples)
        ]
        for k in range(1, K + 1)
    ]
    args = SimpleNamespace(steps=10**9, total_steps=10**9, batch_size=examples, grad_accum=1, beta=0.05, kl="forward", entropy_coef=0.0, clip=0,
                           lr=1e-5, warmup=0, reward_token_lr=1.0, seed=0, bf16=True, closed_form=False)  # fmt: skip
    steps = learn(
        policy,
        p0,
        parts,
        args,
        torch.optim.Adam(policy.model.parameters(), eps=1e-5, fused=True),
        0,
    )
    times, memory = peak_memory(lambda: alternately({"learn.py": lambda: next(steps)}, repeats=10))
    seconds = statistics.median(times["learn.py"])
    blocks, output = weights(shape)
    work = 8 * examples * (blocks * (PROMPT + NEW) + output * NEW)
    return {"shape": shape, "batch": examples, "seconds": times, "sequences/s": examples / seconds,
            "of the product rate": work / seconds / operations, "peak bytes": memory}  # fmt: skip


def table(results):
    """The README's rows."""
    yield f"| {results['card']} | sequences a batch | a second | times `generate` | of the product rate | of the bandwidth | peak memory |"
    yield "|---|---|---|---|---|---|---|"
    for row in results["rows"]:
        stage, rate = (
            ("explore.py", f"{row['tokens/s']:,.0f} tokens")
            if "tokens/s" in row
            else ("learn.py", f"{row['sequences/s']:,.0f} sequences")
        )
        times = f"{row['times generate']:.1f}" if "times generate" in row else ""
        bandwidth = f"{row['of the bandwidth']:.0%}" if "of the bandwidth" in row else ""
        yield (f"| {stage}, {row['shape']} | {row['batch']} | {rate} | {times} | {row['of the product rate']:.0%} | {bandwidth} "
               f"| {row['peak bytes'] / 2**30:.1f} GiB |")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["gpt2", "gpt2-large"])
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[128, 256], help="prompts sampled together"
    )
    parser.add_argument("--examples", type=int, default=128, help="examples of a learning step")
    args = parser.parse_args()
    operations, bandwidth = rates()
    card = torch.cuda.get_device_name() if GPU else "CPU"
    print(
        f"{card}: {operations / 1e12:.1f} TFLOP/s in bfloat16, {bandwidth / 1e9:.0f} GB/s",
        flush=True,
    )
    results = {
        "card": card,
        "torch": torch.__version__,
        "operations/s": operations,
        "bytes/s": bandwidth,
        "rows": [],
    }
    for shape in args.shapes:
        for batch in args.batches:
            results["rows"].append(exploring(shape, batch, operations, bandwidth))
        results["rows"].append(learning(shape, args.examples, operations))
        if GPU:
            (ROOT / "bench" / "results" / "gpu.json").write_text(
                json.dumps(results, indent=1) + "\n", encoding="utf-8"
            )
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
