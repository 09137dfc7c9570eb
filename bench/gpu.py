"""One GPU: explore.py and learn.py in bfloat16, in the shapes of GPT-2 small and large.

    python bench/gpu.py              # writes bench/results/gpu.json, prints the table of the README
    python bench/gpu.py --shapes gpt2 --batches 128 256
    python bench/gpu.py --shapes tiny/lm --batches 8 --examples 8    # a try without a GPU

Exploring: prompts of 12 tokens, 20 new ones each, by explore.py and by transformers' `generate` in
turn. Learning: one update of 128 examples of 12 + 20 tokens, by quark_loss and by the closed form.
Without a GPU the script writes nothing.

Both are compared with two rates of the card, measured first: a large bfloat16 product, and a copy
within its memory. The least work that is needed: two operations for each weight and token, and all
weights read once a step. Learning needs eight operations: p_theta forwards two, p0 forwards two,
p_theta backwards four.
"""

import argparse
import json
import statistics

import torch
from common import ROOT, SHAPES, alternately, make_policy, random_parts, updates

from explore import sample

PROMPT, NEW, K = 12, 20, 5
RESULTS = ROOT / "bench" / "results" / "gpu.json"
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def rates():
    """(operations a second of a bfloat16 product, bytes a second of a copy), the best of twenty.

    The bytes of a copy are counted twice, because they are read and written.
    """
    n = 8192 if GPU else 512
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(n * n, device=DEVICE)
    target = torch.empty_like(source)
    contestants = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    times = alternately(contestants, repeats=20)
    return 2 * n**3 / min(times["product"]), 2 * source.nbytes / min(times["copy"])


def count_weights(policy):
    """(weights of the matrices of all blocks, weights of the output layer)."""
    config = policy.model.config
    d = config.n_embd
    return 12 * d * d * config.n_layer, policy.vocab_size * d


def peak_memory(function):
    """What `function` returns, and the peak memory of PyTorch's tensors meanwhile, in bytes."""
    if not GPU:
        return function(), 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    result = function()
    return result, torch.cuda.max_memory_allocated()


def exploring(shape, batch, operations, bandwidth):
    """The row of explore.py: speed, memory, and shares of the card's rates."""
    policy = make_policy(shape, device=DEVICE)
    V = policy.vocab_size
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(V - 1, (batch, PROMPT), generator=generator)
    ids = prompts.to(DEVICE)
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "pad_token_id": V - 1}
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW}

    def generate():
        with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16):
            mask = torch.ones_like(ids)
            policy.model.generate(ids, attention_mask=mask, **settings, **length)

    def explore():
        sample(policy, prompts.tolist(), batch_size=batch, bf16=True, **length)

    contestants = {"generate": generate, "explore.py": explore}
    times, memory = peak_memory(lambda: alternately(contestants))
    seconds = {name: statistics.median(t) for name, t in times.items()}
    ours = seconds["explore.py"]
    blocks, output = count_weights(policy)
    work = 2 * batch * (blocks * (PROMPT + NEW - 1) + output * NEW)
    read = NEW * (2 * blocks + 4 * output)  # the output layer stays in float32
    return {
        "shape": shape,
        "batch": batch,
        "seconds": times,
        "times generate": seconds["generate"] / ours,
        "tokens/s": batch * NEW / ours,
        "of the product rate": work / ours / operations,
        "of the bandwidth": read / ours / bandwidth,
        "peak bytes": memory,
    }


def learning(shape, examples, closed_form, operations):
    """The row of learn.py, in one of its two forms."""
    policy = make_policy(shape, K, DEVICE)
    reference = make_policy(shape, device=DEVICE)
    parts = random_parts(policy.vocab_size, K, examples, PROMPT, NEW)
    steps = updates(policy, reference, parts, examples, bf16=True, closed_form=closed_form)
    name = "learn.py --closed-form" if closed_form else "learn.py"
    times, memory = peak_memory(lambda: alternately({name: lambda: next(steps)}, repeats=10))
    seconds = statistics.median(times[name])
    blocks, output = count_weights(policy)
    work = 8 * examples * (blocks * (PROMPT + NEW) + output * NEW)
    return {
        "shape": shape,
        "batch": examples,
        "seconds": times,
        "sequences/s": examples / seconds,
        "of the product rate": work / seconds / operations,
        "peak bytes": memory,
    }


def table(results):
    """The rows of the README."""
    yield (
        f"| {results['card']} | sequences a batch | a second | times `generate` "
        "| of the product rate | of the bandwidth | peak memory |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in results["rows"]:
        command = list(row["seconds"])[-1]
        times = bandwidth = ""
        if "tokens/s" in row:
            speed = f"{row['tokens/s']:,.0f} tokens"
            times = f"{row['times generate']:.1f}"
            bandwidth = f"{row['of the bandwidth']:.0%}"
        else:
            speed = f"{row['sequences/s']:,.0f} sequences"
        yield (
            f"| {command}, {row['shape']} | {row['batch']} | {speed} | {times} "
            f"| {row['of the product rate']:.0%} | {bandwidth} "
            f"| {row['peak bytes'] / 2**30:.1f} GiB |"
        )


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    choices = ["tiny/lm", *SHAPES]
    add("--shapes", nargs="+", choices=choices, default=["gpt2", "gpt2-large"])
    text = "prompts sampled together"
    add("--batches", nargs="+", type=int, default=[128, 256], help=text)
    add("--examples", type=int, default=128, help="examples of an update")
    add("--table", action="store_true", help="only print the kept results")
    args = parser.parse_args(argv)
    if args.table:
        print("\n".join(table(json.loads(RESULTS.read_text(encoding="utf-8")))))
        return
    operations, bandwidth = rates()
    card = torch.cuda.get_device_name() if GPU else "CPU"
    speed = f"{operations / 1e12:.1f} TFLOP/s in bfloat16, {bandwidth / 1e9:.0f} GB/s"
    print(f"{card}: {speed}", flush=True)
    rows = []
    measured = {"operations/s": operations, "bytes/s": bandwidth, "rows": rows}
    results = {"card": card, "torch": torch.__version__, **measured}
    for shape in args.shapes:
        for batch in args.batches:
            rows.append(exploring(shape, batch, operations, bandwidth))
        for closed_form in (False, True):
            rows.append(learning(shape, args.examples, closed_form, operations))
        if GPU:
            text = json.dumps(results, indent=1) + "\n"
            RESULTS.write_text(text, encoding="utf-8")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
