"""Makes tiny/prompts: sorts review openings into train and test prompts, and the test prompts into groups.

Reads    --openings, JSONL with "text": openings of reviews, written for this project (tiny/prompts/openings.jsonl)
Writes   tiny/prompts/train.jsonl and test.jsonl

    python tiny/prompts.py --model tiny/lm
    python tiny/prompts.py --model tiny/lm --regroup          # the test prompts stay, a new judge names their groups

As the paper did, a test prompt is called negative, neutral or positive after how many of 25 completions of the base model
(20 tokens, top-p 0.9) the judge calls positive. Train and test are drawn apart before anything is sampled; test openings
between the groups are left out (after --regroup they stay, in no group).
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
from evaluate import generate  # noqa: E402
from explore import load_policy  # noqa: E402
from plumbing.files import whole_file  # noqa: E402
from plumbing.options import run_stage  # noqa: E402
from plumbing.pool import dump_row, read_prompts  # noqa: E402
from rewards import load_reward, score  # noqa: E402

HERE = Path(__file__).resolve().parent
BANDS = {"negative": (0, 4), "neutral": (9, 16), "positive": (21, 25)}  # positive completions of 25


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--openings", default=HERE / "prompts" / "openings.jsonl")
    parser.add_argument("--model", default=HERE / "lm", help="p0")
    parser.add_argument(
        "--test-share", type=float, default=0.4, help="part of the openings kept for testing"
    )
    parser.add_argument("--per-group", type=int, default=96, help="test prompts a group, at most")
    parser.add_argument(
        "--regroup",
        action="store_true",
        help="keep the prompts of test.jsonl, only name their groups anew",
    )
    parser.add_argument("--out", default=HERE / "prompts")
    args = parser.parse_args(argv)

    openings = [
        {"prompt": json.loads(line)["text"]}
        for line in Path(args.openings).read_text(encoding="utf-8").splitlines()
    ]
    random.Random(0).shuffle(openings)
    n_test = round(args.test_share * len(openings))
    test, train = openings[:n_test], openings[n_test:]
    if args.regroup:
        test = [{"prompt": p["prompt"]} for p in read_prompts(Path(args.out) / "test.jsonl")]
    policy = load_policy(args.model)
    settings = SimpleNamespace(
        num_samples=25,
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
    rows = generate(policy, test, settings, quantile=None)
    p_positive, nice = (
        np.array(score(rows, load_reward(r))).reshape(len(test), 25)
        for r in ("sentiment", "toxicity")
    )
    positive = (p_positive >= 0.5).sum(1)
    for prompt, count in zip(test, positive.tolist()):
        prompt["num_positive"] = count
        prompt["group"] = next(
            (name for name, (low, high) in BANDS.items() if low <= count <= high), None
        )
    if not args.regroup:
        test = [p for g in BANDS for p in [p for p in test if p["group"] == g][: args.per_group]]

    for name, prompts in (("train", train), ("test", test)):
        with whole_file(Path(args.out) / f"{name}.jsonl") as file:
            file.writelines(dump_row(p) + "\n" for p in prompts)
    print(
        f"{len(train)} train prompts; {len(test)} test prompts of {n_test}:",
        Counter(p["group"] for p in test),
    )
    print("positive of 25, histogram:", np.bincount(positive, minlength=26).tolist())
    print(
        f"toxicity: unwanted probability {np.mean(nice.min(1) < 0.5):.3f}, avg max unwanted {1 - nice.min(1).mean():.3f}"
    )


if __name__ == "__main__":
    run_stage(main)
