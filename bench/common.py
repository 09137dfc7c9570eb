"""What the scripts of bench/ share: random models of two shapes, alternating measurement, the floor, the result files."""

import json
import platform
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from explore import Policy, multiply_with_onednn, quicker

SHAPES = {"tiny": dict(n_embd=256, n_layer=6, n_head=4), "gpt2": dict(n_embd=768, n_layer=12, n_head=12)}
V = 50257  # GPT-2's vocabulary at both shapes


def random_policy(shape, n_quantiles=0, seed=0, context=256):
    """A Policy of GPT-2's layout with random weights. It has no vocabulary: token ids are all that the benchmarks need."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=V + n_quantiles, n_positions=context, bos_token_id=V - 1, eos_token_id=V - 1, **SHAPES[shape],
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager" if not torch.cuda.is_available() else "sdpa")
    model = quicker(model).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Policy(model, SimpleNamespace(eot_token=V - 1), V, n_quantiles, {})


def alternately(contestants, repeats=5):
    """{name: function} -> {name: [seconds]}: each once to warm up, then one after the other, `repeats` times round."""
    times = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, function in contestants.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def as_here(function):
    """`function` with the products as load_policy sets them; all others multiply as PyTorch does by itself."""

    def run():
        multiply_with_onednn()
        result = function()
        torch.set_float32_matmul_precision("highest")
        return result

    return run


def matmul_rate(rows, inner, columns, dtype=torch.float32, seconds=1.0):
    """FLOP/s of (rows, inner) @ (inner, columns), the best of those that fit into `seconds`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(rows, inner, device=device).to(dtype), torch.randn(inner, columns, device=device).to(dtype)

    def best():
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            a @ b
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    return 2 * rows * inner * columns / as_here(best)()


def matrices(model):
    """[(inner, columns, how many)] of one token's way through the transformer's blocks, without attention and output layer."""
    d, n = model.config.n_embd, model.config.n_layer
    return [(d, 3 * d, n), (d, d, n), (d, 4 * d, n), (4 * d, d, n)]


def seconds_of_products(model, rows, dtype=torch.float32):
    """Seconds that the blocks' matrix products need for `rows` tokens at once, at rates measured now."""
    return sum(count * 2 * rows * inner * columns / matmul_rate(rows, inner, columns, dtype, 0.5) for inner, columns, count in matrices(model))


def report(name, tables):
    """Prints medians and ranges beside the first contestant's, and writes bench/results/NAME.json."""
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    if torch.cuda.is_available():
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    for title, table in tables.items():
        print(f"\n{title}")
        first = statistics.median(next(iter(table.values())))
        for contestant, times in table.items():
            median = statistics.median(times)
            print(f"  {contestant:60s} {median:9.3f} s  ({min(times):.3f} to {max(times):.3f})   {first / median:5.2f} x")
    path = ROOT / "bench" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "seconds": tables}, indent=1) + "\n", encoding="utf-8")
