"""What the scripts of bench/ share: random models of two shapes, alternating measurement, the floor, the result files."""

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# All sides keep their memory as run_all.sh's stages do; glibc reads this when a process starts, so the script starts once more.
ALLOCATOR = dict(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="17179869184", MALLOC_TOP_PAD_="67108864")
if sys.platform == "linux" and Path(sys.argv[0]).resolve().parent == ROOT / "bench" and not ALLOCATOR.items() <= os.environ.items():
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR)

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from plumbing.fast_cpu import PrepackedLinear, fuse_gelu, matrices, use_onednn_for_float32
from plumbing.policy import Policy

SHAPES = {"tiny": dict(n_embd=256, n_layer=6, n_head=4), "gpt2": dict(n_embd=768, n_layer=12, n_head=12),
          "gpt2-large": dict(n_embd=1280, n_layer=36, n_head=20)}  # fmt: skip
V = 50257  # GPT-2's vocabulary at every shape


def has_bf16():
    """Whether --bf16 is worth a try here: a processor that cannot multiply bfloat16 is forty times slower with it."""
    return torch.cuda.is_available() or torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_vnni():
    """Whether --int8 is worth a try here: without VNNI it is fourteen times slower than float32."""
    return not torch.cuda.is_available() and bool(torch.cpu.get_capabilities().get("avx512_vnni"))


def random_policy(shape, n_quantiles=0, seed=0, context=256):
    """A Policy of GPT-2's layout with random weights. It has no vocabulary: token ids are all that the benchmarks need."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=V + n_quantiles, n_positions=context, bos_token_id=V - 1, eos_token_id=V - 1, **SHAPES[shape],
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager" if not torch.cuda.is_available() else "sdpa")
    fuse_gelu(model)
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Policy(model, SimpleNamespace(eot_token=V - 1), V, n_quantiles, {})


def alternately(contestants, repeats=5, seconds=0.0):
    """{name: function} -> {name: [seconds]}: each once to warm up, then one after the other, `repeats` times round, or for
    `seconds` if that is longer."""
    times, rounds, end = {name: [] for name in contestants}, 0, time.perf_counter() + seconds
    while rounds <= repeats or time.perf_counter() < end:
        for name, function in contestants.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if rounds:
                times[name].append(time.perf_counter() - start)
        rounds += 1
    return times


def as_here(function):
    """`function` with float32 products as load_policy sets them; the others multiply as PyTorch does by itself."""

    def run(*args):
        if not torch.cuda.is_available():
            use_onednn_for_float32()
        result = function(*args)
        torch.set_float32_matmul_precision("highest")
        return result

    return run


@as_here
def seconds_of_products(model, rows, output_rows):
    """Seconds of nothing but the matrix products of `rows` tokens on their way through all blocks, and of `output_rows` through
    the output layer: of x @ weight, and on a CPU also with the weights as explore.py lays them out; each the quickest sweep of
    two seconds. Each block's own matrices, so that they come from memory as they do in the work."""
    products = []
    for _, name, weight, _ in matrices(model):
        x = torch.randn(output_rows if name == "lm_head" else rows, weight.shape[1], device=weight.device)
        packed = PrepackedLinear(weight, None, torch.float32) if x.is_cpu and hasattr(torch.ops.mkldnn, "_linear_pointwise") else None
        products.append((x, weight.T, packed))

    def plain():
        for x, weight, _ in products:
            x @ weight

    def as_laid_out():
        for x, _, product in products:
            product(x)

    sweeps = {"plain": plain} | ({"laid out": as_laid_out} if products[0][2] else {})
    times = alternately(sweeps, seconds=2.0 * len(sweeps))
    return min(times["plain"]), min(times.get("laid out", times["plain"]))


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
