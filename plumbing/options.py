"""Command lines: the options that several stages share, their checks, and how a stage ends."""

import argparse
import os
import sys
from pathlib import Path

from plumbing.pool import BadInput


def run_stage(main):
    """The last line of every stage. Bad input and Ctrl-C end it with one line, no traceback."""
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


class _Help(argparse.RawDescriptionHelpFormatter):
    """Prints the docstring as it stands, and behind each option's text its default."""

    def _get_help_string(self, action):
        if action.default in (None, argparse.SUPPRESS) or action.default is False:
            return action.help
        return f"{action.help} (default %(default)s)"


def stage_parser(docstring):
    return argparse.ArgumentParser(description=docstring, formatter_class=_Help)


def number(kind, least=None, above=None, most=None, below=None):
    """An argparse type: an int or a float within these bounds. NaN is outside of all bounds."""
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    rule = " and ".join(f"{name} {bound}" for name, bound in bounds.items() if bound is not None)

    def parse(text):
        value = kind(text)
        inside = (least is None or value >= least) and (above is None or value > above)
        inside = inside and (most is None or value <= most) and (below is None or value < below)
        if not inside:
            raise argparse.ArgumentTypeError(f"{text} must be {rule}")
        return value

    parse.__name__ = kind.__name__  # argparse's own message then says "invalid int value"
    return parse


COUNT = number(int, least=1)
NATURAL = number(int, least=0, below=2**31)


def add_sampling_options(parser, num_samples, top_p):
    """The options that explore.py and evaluate.py share. Returns the group of the ablations."""
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add("--num-samples", type=COUNT, default=num_samples, help="completions per prompt")
    add("--max-new-tokens", type=COUNT, default=20, help="longest y, in tokens")
    text = "tokens before y may end, 3 in the authors' code"
    add("--min-new-tokens", type=number(int, least=0), default=3, help=text)
    text = "mixed: half greedy, half sampled, as the paper explores repetition"
    add("--decode", choices=["sample", "greedy", "mixed"], default="sample", help=text)
    text = "multiply in bfloat16: faster on GPUs, and on CPUs with AVX512-BF16 or AMX"
    add("--bf16", action="store_true", help=text)
    temperature = number(float, above=0, below=1e6)
    add("--temperature", type=temperature, default=1.0, help="T: the logits are divided by it")
    text = "sample from the nucleus of this mass"
    add("--top-p", type=number(float, above=0, most=1), default=top_p, help=text)
    add("--batch-size", type=COUNT, default=128, help="completions sampled together")
    add_seed_and_device(group, "of the random numbers")
    text = "folder or hub name of the reward's classifier (default: the one in tiny/)"
    add("--reward-model", help=text)
    ablations = parser.add_argument_group("ablations")
    text = "sample from the k likeliest tokens, 50 in the authors' code; 0: from all"
    ablations.add_argument("--top-k", type=number(int, least=0), default=0, help=text)
    return ablations


def add_seed_and_device(group, what_the_seed_is_of):
    """--seed and --device, in every stage that computes with a model."""
    group.add_argument("--seed", type=NATURAL, default=0, help=what_the_seed_is_of)
    devices = ["auto", "cpu", "cuda", "mps"]
    text = "auto: a GPU if there is one"
    group.add_argument("--device", default="auto", choices=devices, help=text)


def check_lengths(parser, args):
    """Ends the stage if y would have to be longer than it may be."""
    if args.min_new_tokens > args.max_new_tokens:
        longest = f"--max-new-tokens, {args.max_new_tokens}"
        parser.error(f"--min-new-tokens {args.min_new_tokens} must be at most {longest}")


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
