"""Command lines: the options that several stages share, their checks, and how a stage ends."""

import argparse
import errno
import operator
import os
import sys
from pathlib import Path

from plumbing.pool import BadInput


def run_stage(main):
    """Runs main(). Bad input and Ctrl-C end it with one line instead of a traceback."""
    name = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a console that is not UTF-8
    try:
        main()
        print(end="", flush=True)
    except BadInput as error:
        sys.exit(f"{name}: error: {error}")
    except BrokenPipeError:  # nobody reads any more: "| head -1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename or error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"{name}: error: cannot print: {error.strerror}; the output's files are whole")
    except KeyboardInterrupt:
        print(
            f"\n{name}: interrupted; finished files are whole, run the same command to go on",
            file=sys.stderr,
        )
        sys.exit(130)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the docstring, and adds the default to each option's help."""

    def _get_help_string(self, action):
        if action.default in (None, argparse.SUPPRESS) or action.default is False:
            return action.help
        return f"{action.help} (default %(default)s)"


def stage_parser(docstring):
    return argparse.ArgumentParser(description=docstring, formatter_class=_Help)


def number(kind, least=None, above=None, most=None, below=None):
    """An argparse type: an int or a float within these bounds. NaN is outside of all bounds."""
    checks = [("at least", operator.ge, least), ("above", operator.gt, above)]
    checks += [("at most", operator.le, most), ("below", operator.lt, below)]
    checks = [check for check in checks if check[2] is not None]
    rule = " and ".join(f"{name} {bound}" for name, _, bound in checks)

    def parse(text):
        value = kind(text)
        if not all(holds(value, bound) for _, holds, bound in checks):
            raise argparse.ArgumentTypeError(f"{text} must be {rule}")
        return value

    parse.__name__ = kind.__name__  # argparse's own message then says "invalid int value"
    return parse


COUNT = number(int, least=1)
NATURAL = number(int, least=0, below=2**31)


def add_sampling_options(parser, num_samples, top_p, judge=True):
    """The options of explore.py and evaluate.py. Returns the group to add more ablations to.

    judge: with --reward-model.
    """
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add("--num-samples", type=COUNT, default=num_samples, help="completions per prompt")
    add("--max-new-tokens", type=COUNT, default=20, help="longest y, in tokens")
    text = "shortest y, in tokens (the authors' code: 3)"
    add("--min-new-tokens", type=number(int, least=0), default=3, help=text)
    text = "mixed: half greedy, half sampled, as the paper explores repetition"
    add("--decode", choices=["sample", "greedy", "mixed"], default="sample", help=text)
    text = "multiply in bfloat16: faster on GPUs, and on CPUs with AVX512-BF16 or AMX"
    add("--bf16", action="store_true", help=text)
    text = "store the weights in bfloat16, too (not the output layer's): about half the memory"
    add("--bf16-weights", action="store_true", help=text)
    temperature = number(float, least=1e-3, below=1e6)
    add("--temperature", type=temperature, default=1.0, help="divides the logits")
    text = "sample from the nucleus with this probability mass; 1: from all tokens"
    add("--top-p", type=number(float, above=0, most=1), default=top_p, help=text)
    add("--batch-size", type=COUNT, default=128, help="completions sampled together")
    add_seed_and_device(group, "random seed")
    text = "judge of sentiment or toxicity, a folder or hub name (default: in tiny/)"
    if judge:
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
    """Ends the stage if the shortest y is longer than the longest."""
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
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: a GPU per process, or shared ones
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return name
