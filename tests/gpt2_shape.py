"""Writes a random model of GPT-2 small's shape (124 M parameters) with GPT-2's own vocabulary.

It stands in for `gpt2` where the hub is out of reach. Code path, sizes and speed are the same, but
what it writes makes no sense.

    python tests/gpt2_shape.py --vocab FOLDER_WITH_vocab.json_AND_merges.txt --out gpt2-random
    MODEL=gpt2-random PROMPTS=prompts.jsonl TEST_PROMPTS=prompts.jsonl REWARD_MODEL=tiny/toxicity \\
        ITERATIONS=1 STEPS=2 bash run_all.sh toxicity
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    help = "folder with GPT-2's vocab.json and merges.txt"
    parser.add_argument("--vocab", required=True, help=help)
    parser.add_argument("--out", required=True)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args(argv)
    if Path(args.out).exists():
        parser.error(f"--out {args.out} exists; remove it, or choose another")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=args.layers)).save_pretrained(args.out)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(Path(args.vocab) / name, Path(args.out) / name)


if __name__ == "__main__":
    main()
