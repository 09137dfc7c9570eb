"""Command lines: the options that several stages share, their checks, and how a stage ends."""

import os
import sys
from pathlib import Path

from plumbing.pool import BadInput


def run_stage(main):
    """The last line of every stage. Bad input and Ctrl-C end with one line instead of a traceback."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except BadInput as error:
        sys.exit(f"{name}: error: {error}")
    except KeyboardInterrupt:
        print(
            f"\n{name}: interrupted; finished files are whole, run the same command to go on",
            file=sys.stderr,
        )
        sys.exit(130)


def check_options(parser, args, rules):
    """Ends the stage at the first rule that is broken. rules: [(option, holds, what it must be)]."""
    for name, holds, rule in rules:
        if not holds:
            value = getattr(args, name)
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be {rule}")


def add_sampling_options(parser, num_samples, top_p):
    """The options that explore.py and evaluate.py share."""
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    text = f"completions per prompt (default {num_samples})"
    add("--num-samples", type=int, default=num_samples, help=text)
    add("--max-new-tokens", type=int, default=20, help="longest y, in tokens (default 20)")
    text = "tokens before y may end (default 3, as in the authors' code)"
    add("--min-new-tokens", type=int, default=3, help=text)
    text = "mixed: half greedy, half sampled, as the paper explores\nrepetition (default sample)"
    add("--decode", choices=["sample", "greedy", "mixed"], default="sample", help=text)
    text = "multiply in bfloat16: faster on GPUs, and on CPUs with\nAVX512-BF16 or AMX"
    add("--bf16", action="store_true", help=text)
    text = "T: the logits are divided by it (default 1)"
    add("--temperature", type=float, default=1.0, help=text)
    text = "sample from the k likeliest tokens; 50 in the authors' code\n(default 0: all)"
    add("--top-k", type=int, default=0, help=text)
    text = f"sample from the nucleus of this mass (default {top_p})"
    add("--top-p", type=float, default=top_p, help=text)
    add("--batch-size", type=int, default=128, help="completions sampled together (default 128)")
    add_seed_and_device(group, "of the random numbers")
    text = "folder or hub name of the reward's classifier\n(default: the one in tiny/)"
    add("--reward-model", help=text)


def add_seed_and_device(group, what_the_seed_is_of):
    """--seed and --device, in every stage that computes with a model."""
    add = group.add_argument
    add("--seed", type=int, default=0, help=f"{what_the_seed_is_of} (default 0)")
    devices = ["auto", "cpu", "cuda", "mps"]
    text = "auto: a GPU if there is one (default auto)"
    add("--device", default="auto", choices=devices, help=text)


def check_sampling_options(parser, args):
    lengths = 0 <= args.min_new_tokens <= args.max_new_tokens
    temperature = "above 0 (for the likeliest token: --decode greedy)"
    rules = [
        ("num_samples", args.num_samples >= 1, "at least 1"),
        ("max_new_tokens", args.max_new_tokens >= 1, "at least 1"),
        ("min_new_tokens", lengths, "from 0 to --max-new-tokens"),
        ("temperature", 0 < args.temperature < 1e6, temperature),
        ("top_k", args.top_k >= 0, "at least 0"),
        ("top_p", 0 < args.top_p <= 1, "above 0 and at most 1"),
        ("batch_size", args.batch_size >= 1, "at least 1"),
        ("seed", 0 <= args.seed < 2**31, "from 0 to 2^31 - 1"),
    ]
    check_options(parser, args, rules)


def pick_device(name):
    """The name of the device to compute on. auto: a GPU if there is one."""
    import torch  # not at the top: quantize.py and rewards.py can do without it

    has_gpu = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((gpu for gpu, found in has_gpu.items() if found), "cpu")
    if not has_gpu.get(name, True):
        raise BadInput(f"--device {name}: this machine or PyTorch build has none; use --device cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one GPU per process
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return name
