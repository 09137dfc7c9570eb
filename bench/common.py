"""What the scripts of bench/ share: models, measuring in turn, a lower bound, and result files."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from rows import ALLOCATOR, ROOT

RESULTS = ROOT / "bench" / "results"
sys.path.insert(0, str(ROOT))

# The allocator settings are for every contestant. glibc reads them when a process starts, so a
# script of this folder starts itself again with them.
is_bench = Path(sys.argv[0]).resolve().parent == ROOT / "bench"
if sys.platform == "linux" and is_bench and not ALLOCATOR.items() <= os.environ.items():
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR)

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from learn import add_reward_tokens, learn
from plumbing.fast_cpu import PrepackedLinear, fuse_gelu, linear_layers, use_onednn_for_float32
from plumbing.policy import Policy, load_policy

SHAPES = {  # models with random weights, beside tiny/lm itself
    "6x256": {"n_embd": 256, "n_layer": 6, "n_head": 4},
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
}
V = 50257  # GPT-2's vocabulary


def has_bf16():
    """Does this CPU multiply bfloat16 natively? Otherwise it is forty times slower than float32."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


# ----------------------------------------------------------------------------------- the models


def make_policy(shape, n_quantiles=0, device="cpu", vocab_size=V):
    """tiny/lm, or a Policy with random weights in the shape of that name.

    A random policy has no tokenizer: token ids are all that the benchmarks need.
    """
    if shape == "tiny/lm":
        policy = load_policy(ROOT / "tiny" / "lm", device)
        torch.set_float32_matmul_precision("highest")  # PyTorch's default; see with_onednn
        if n_quantiles:
            add_reward_tokens(policy, n_quantiles)
        return policy
    torch.manual_seed(0)
    eos = vocab_size - 1
    config = GPT2Config(
        vocab_size=vocab_size + n_quantiles,
        n_positions=256,
        bos_token_id=eos,
        eos_token_id=eos,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **SHAPES[shape],
    )
    attention = "eager" if device == "cpu" else "sdpa"  # as in load_policy
    model = GPT2LMHeadModel._from_config(config, attn_implementation=attention)
    if device == "cpu":  # as in load_policy
        fuse_gelu(model)
    tokenizer = SimpleNamespace(eos_id=eos, bos=())
    return Policy(model.eval().to(device), tokenizer, vocab_size, n_quantiles)


def random_parts(vocab_size, K, examples, prompt, new):
    """D^1 ... D^K with `examples` rows each: (k, prompt_ids, completion_ids) of random tokens."""
    rng = np.random.default_rng(0)
    parts = []
    for k in range(1, K + 1):
        part = []
        for _ in range(examples):
            x = rng.integers(vocab_size - 1, size=prompt)
            y = rng.integers(vocab_size - 1, size=new)
            part.append((k, x, y))
        parts.append(part)
    return parts


def updates(policy, reference, parts, batch_size, bf16=False, closed_form=False, steps=10**9):
    """The updates of learn.py as an iterator: each `next` makes one."""
    args = SimpleNamespace(
        steps=steps,
        total_steps=steps,
        batch_size=batch_size,
        grad_accum=1,
        beta=0.05,
        kl="forward",
        entropy_coef=0.0,
        clip=1.0,
        lr=1e-5,
        warmup=0,
        reward_token_lr=1.0,
        seed=0,
        bf16=bf16,
        closed_form=closed_form,
    )
    optimiser = torch.optim.Adam(policy.model.parameters(), eps=1e-5, fused=True)
    return learn(policy, reference, parts, args, optimiser, 0)


# ------------------------------------------------------------------------------------ measuring


def alternately(contestants, repeats=5, seconds=0.0):
    """{name: function} -> {name: [seconds]}. The contestants take turns.

    The first turn is a warm-up and does not count. There are `repeats` more turns, or as many as
    fit into `seconds`, if those are more.
    """
    times = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    turn = 0
    while turn <= repeats or time.perf_counter() < end:
        for name, function in contestants.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
        turn += 1
    return times


def with_onednn(function):
    """`function` with float32 products as load_policy sets them on a CPU.

    The other contestants multiply as PyTorch does by default. All have the one-kernel GELU.
    """

    def run(*args):
        use_onednn_for_float32()
        result = function(*args)
        torch.set_float32_matmul_precision("highest")
        return result

    return run


@with_onednn
def seconds_of_products(model, rows, output_rows):
    """Seconds of the float32 matrix products alone: (with plain weights, with prepacked weights).

    `rows` tokens go through the matrices of all blocks, `output_rows` through the output layer.
    Each number is the quickest of the passes made in two seconds. Every block has its own matrices,
    so they come from memory, as they do in the work itself.
    """
    products = []
    for _, name, weight, _ in linear_layers(model):
        x = torch.randn(output_rows if name == "lm_head" else rows, weight.shape[1])
        products.append((x, weight.T))

    def plain():
        for x, weight in products:
            x @ weight

    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        seconds = min(alternately({"plain": plain}, seconds=2.0)["plain"])
        return seconds, seconds
    layers = [PrepackedLinear(weight.T, None, torch.float32) for _, weight in products]

    def prepacked():
        for (x, _), layer in zip(products, layers):
            layer(x)

    times = alternately({"plain": plain, "prepacked": prepacked}, seconds=4.0)
    return min(times["plain"]), min(times["prepacked"])


# -------------------------------------------------------------------------- options and results


def bench_parser(docstring, name, shapes, repeats):
    """The options of the scripts that compare contestants on the CPU."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=docstring, formatter_class=formatter)
    add = parser.add_argument
    choices = ["tiny/lm", *SHAPES]
    add("--shapes", nargs="+", choices=choices, default=shapes, help="models to measure")
    add("--repeats", type=int, default=repeats, help="turns after the warm-up")
    add("--out", type=Path, default=RESULTS / f"{name}.json", help="file for the results")
    return parser


def report(path, tables, **more):
    """Prints each row's median, range and speed, relative to the first row. Writes all to `path`.

    tables: {title: {contestant: [seconds]}}. `more` goes into the file as it is.
    """
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    for title, table in tables.items():
        print(f"\n{title}")
        first = statistics.median(next(iter(table.values())))
        for contestant, times in table.items():
            median = statistics.median(times)
            spread = f"({min(times):.3f} to {max(times):.3f})"
            print(f"  {contestant:42s} {median:9.3f} s  {spread:18s}  {first / median:5.2f} x")
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine, "seconds": tables, **more}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
