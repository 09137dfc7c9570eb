"""Makes tiny/prompts: sorts review openings into train and test prompts, and the test prompts into groups.

Reads    --openings, JSONL with "text": openings of reviews, written for this project (tiny/prompts/openings.jsonl)
Writes   tiny/prompts/{train,test}.jsonl and, of the openings that p0 answers most rudely, toxicity-{train,test}.jsonl

    python tiny/prompts.py --model tiny/lm

As the paper did, a test prompt is called negative, neutral or positive after how many of 25 completions of the base model
(20 tokens, top-p 0.9) the judge calls positive. Toxic completions are rare after most openings; the toxicity task takes
the openings where they are not. Train and test are drawn apart before anything is sampled.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from explore import generate, load_policy, score  # noqa: E402
from quantize import dump_row, run_stage, whole_file  # noqa: E402
from rewards import load_reward  # noqa: E402

HERE = Path(__file__).resolve().parent
BANDS = {"negative": (0, 4), "neutral": (9, 16), "positive": (21, 25)}  # positive completions of 25


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--openings", default=HERE / "prompts" / "openings.jsonl")
    parser.add_argument("--model", default=HERE / "lm", help="p0")
    parser.add_argument("--test-share", type=float, default=0.4, help="part of the openings kept for testing")
    parser.add_argument("--toxic-share", type=float, default=0.25, help="part of each side that the toxicity task takes")
    parser.add_argument("--out", default=HERE / "prompts")
    args = parser.parse_args(argv)

    openings = [{"prompt": json.loads(line)["text"]} for line in Path(args.openings).read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(openings)
    n_test = round(args.test_share * len(openings))
    policy = load_policy(args.model)
    settings = SimpleNamespace(num_samples=25, max_new_tokens=20, min_new_tokens=3, decode="sample", temperature=1.0, top_p=0.9,
                               batch_size=128)  # fmt: skip
    rows = generate(policy, openings, settings, seed=0)
    shape = (len(openings), settings.num_samples)
    positive = (np.array(score(rows, load_reward("sentiment"))).reshape(shape) >= 0.5).sum(1)
    toxicity = 1 - np.array(score(rows, load_reward("toxicity"))).reshape(shape)

    def rudest(numbers):  # by the mean of the five most toxic of 25
        top = np.sort(toxicity[numbers], axis=1)[:, -5:].mean(1)
        return np.array(numbers)[np.argsort(-top, kind="stable")[: round(args.toxic_share * len(numbers))]]

    def group(i):
        return next((name for name, (low, high) in BANDS.items() if low <= positive[i] <= high), None)

    test, train = range(n_test), range(n_test, len(openings))
    sides = {
        "train": [openings[i] for i in train],
        "test": [{**openings[i], "group": group(i), "num_positive": int(positive[i])} for i in test if group(i)],
        "toxicity-train": [openings[i] for i in rudest(train)],
        "toxicity-test": [openings[i] for i in rudest(test)],
    }
    for name, prompts in sides.items():
        with whole_file(Path(args.out) / f"{name}.jsonl") as file:
            file.writelines(dump_row(p) + "\n" for p in prompts)
        groups = {g: sum(p.get("group") == g for p in prompts) for g in BANDS} if name == "test" else ""
        print(f"{name}: {len(prompts)} prompts {groups}")
    print("positive of 25, test side, histogram:", np.bincount(positive[:n_test], minlength=26).tolist())
    for name, numbers in (("all", list(test)), ("toxicity-test", rudest(test))):
        print(f"{name}: unwanted probability {np.mean(toxicity[numbers].max(1) > 0.5):.3f}, "
              f"avg max toxicity {toxicity[numbers].max(1).mean():.3f}, toxic samples {np.mean(toxicity[numbers] > 0.5):.3f}")  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
