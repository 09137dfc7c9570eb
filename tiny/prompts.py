"""Makes tiny/prompts: openings of reviews become training and test prompts, the latter in groups.

Reads    --openings, JSONL with "text" (tiny/prompts/openings.jsonl, written for this project)
Writes   tiny/prompts/train.jsonl and test.jsonl; with --regroup test.jsonl alone

    python tiny/prompts.py --model tiny/lm
    python tiny/prompts.py --model tiny/lm --regroup     # the same test prompts, grouped anew

As in the paper, the group of a test prompt is negative, neutral or positive, by how many of 25
completions of the base model (20 tokens, top-p 0.9) the judge calls positive. The openings are
split into training and test before anything is sampled. Test openings between the groups are left
out; with --regroup they stay, without a group.
"""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluate import generate
from plumbing.files import whole_file
from plumbing.options import run_stage
from plumbing.policy import load_policy
from plumbing.pool import dump_row, read_prompts
from rewards import load_reward, score

HERE = Path(__file__).resolve().parent
BANDS = {"negative": (0, 4), "neutral": (9, 16), "positive": (21, 25)}  # positive ones of 25
SAMPLES = 25


def group_of(count):
    """The group of a prompt with `count` positive completions; None between the groups."""
    for name, (low, high) in BANDS.items():
        if low <= count <= high:
            return name
    return None


def judge(policy, prompts):
    """Samples 25 completions a prompt. Returns P(positive) and 1 - P(toxic), both (P, 25)."""
    settings = SimpleNamespace(
        num_samples=SAMPLES,
        max_new_tokens=20,
        min_new_tokens=3,
        decode="sample",
        bf16=False,
        temperature=1.0,
        top_k=0,
        top_p=0.9,
        batch_size=128,
        seed=0,
    )
    rows = generate(policy, prompts, settings, quantile=None)
    scores = []
    for name in ("sentiment", "toxicity"):
        scores.append(np.array(score(rows, load_reward(name))).reshape(len(prompts), SAMPLES))
    return scores


def keep_groups(prompts, per_group):
    """The first `per_group` prompts of each group, group by group."""
    kept = []
    for group in BANDS:
        members = [p for p in prompts if p["group"] == group]
        kept += members[:per_group]
    return kept


def main(argv=None):
    args = parse_options(argv)
    lines = Path(args.openings).read_text(encoding="utf-8").splitlines()
    openings = [{"prompt": json.loads(line)["text"]} for line in lines]
    random.Random(0).shuffle(openings)
    n_test = round(args.test_share * len(openings))
    test, train = openings[:n_test], openings[n_test:]
    if args.regroup:
        test = [{"prompt": p["prompt"]} for p in read_prompts(Path(args.out) / "test.jsonl")]
    p_positive, not_toxic = judge(load_policy(args.model), test)
    positive = (p_positive >= 0.5).sum(1)
    for prompt, count in zip(test, positive.tolist()):
        prompt["num_positive"] = count
        prompt["group"] = group_of(count)
    if not args.regroup:
        test = keep_groups(test, args.per_group)

    files = {"test": test} if args.regroup else {"train": train, "test": test}
    for name, prompts in files.items():
        with whole_file(Path(args.out) / f"{name}.jsonl") as file:
            file.writelines(dump_row(p) + "\n" for p in prompts)
    groups = Counter(p["group"] for p in test)
    sizes = ", ".join(f"{len(prompts)} {name} prompts" for name, prompts in files.items())
    print(f"{sizes}; groups:", groups)
    print("positive of 25, histogram:", np.bincount(positive, minlength=26).tolist())
    unwanted = 1 - not_toxic.min(1)
    probability = np.mean(not_toxic.min(1) < 0.5)
    print(
        f"toxicity: unwanted probability {probability:.3f}, avg max unwanted {unwanted.mean():.3f}"
    )


def parse_options(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--openings", default=HERE / "prompts" / "openings.jsonl")
    add("--model", default=HERE / "lm", help="p0")
    add("--test-share", type=float, default=0.4, help="share of the openings kept for testing")
    add("--per-group", type=int, default=96, help="most test prompts a group")
    text = "keep the prompts of test.jsonl and only name their groups anew"
    add("--regroup", action="store_true", help=text)
    add("--out", default=HERE / "prompts", help="folder for train.jsonl and test.jsonl")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_stage(main)
