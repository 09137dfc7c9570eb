"""How two variants of a finished study differ: mean and 95 % interval over the seeds.

    python experiments/pairs.py pool reward                  # all pairs
    python experiments/pairs.py pool reward drop_fifth       # this one minus each other
    python experiments/pairs.py pool kl drop_fifth newest_2

The sentences below a study's table that are not about its claims take their numbers from here.
"""

import argparse
import sys
from itertools import combinations

import numpy as np
import study

from plumbing.files import read_json


def lines(results, metric, chosen=()):
    """ "task: a - b: +0.041 ± 0.051" for each pair; of one chosen variant with all others."""
    for task, variants in results.items():
        pairs = list(combinations(variants, 2))
        if len(chosen) == 1:
            pairs = [(chosen[0], other) for other in variants if other != chosen[0]]
        elif chosen:
            pairs = list(combinations(chosen, 2))
        for a, b in pairs:
            mean, half = study.interval(np.subtract(variants[a][metric], variants[b][metric]))
            yield f"{task}: {a} - {b}: {mean:+.3f} ± {half:.3f}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("study", choices=study.CLAIMS)
    parser.add_argument("metric", choices=study.METRICS)
    parser.add_argument("variants", nargs="*", help="of the study's table; default: all pairs")
    args = parser.parse_args(argv)
    kept = study.ROOT / "experiments" / "results" / f"{args.study}.json"
    if not kept.exists():
        parser.error(f"{args.study} is not finished: bash experiments/{args.study}.sh")
    results = read_json(kept, "a study's result")["results"]
    variants = next(iter(results.values()))
    measured = next(iter(variants.values()))
    for name, names in [(v, variants) for v in args.variants] + [(args.metric, measured)]:
        if name not in names:
            parser.error(f"{name!r} is none of {', '.join(names)}")
    print("\n".join(lines(results, args.metric, args.variants)))


if __name__ == "__main__":
    sys.exit(main())
