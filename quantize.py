"""Step 2, *quantize*: sort the pool D by reward and cut it into K equal parts D^1 ... D^K.

The rows of D^k get the reward token r_k, so r_K marks the best ones (step 2 of Algorithm 1).

Reads    pool files, one JSON object a line: {"prompt", "completion", "reward", "iteration", ...}
Writes   the same rows, each with "quantile": k in 1 ... K, into one JSONL file

    python quantize.py runs/try/pool --quantiles 5 --out runs/try/quantized/00.jsonl
    python quantize.py my_pool.jsonl --quantiles 3 --out q.jsonl && head -3 q.jsonl

Where we differ: the authors' code keeps the pool's order among equal rewards, so the *older* sample
gets the better token (--ties age), and N mod K leftover samples all join the worst part. Here ties
are broken at random, and the sizes of the parts differ by at most one. Ranking within each prompt
and bounding the pool are not in the paper.
"""

import math
from array import array

import numpy as np

from plumbing import options
from plumbing.files import check_output, whole_file
from plumbing.pool import BadInput, dump_row, pool_files, read_pool
from plumbing.summaries import print_parts

# ------------------------------------------------------------------------------------ the quantiles


def assign_quantiles(rewards, K, seed=0, ties="random"):
    """(N,) rewards -> (N,) quantiles in 1 ... K, where K marks the highest rewards.

    The sizes of the parts differ by at most one, except with "together". ties: "random", equal
    rewards are ordered by `seed`; "age", the earlier row is the better one; "together", they all go
    to one part, the one at their mean rank, whatever its size. Raises BadInput if K < 1, if K > N
    (a part would be empty) or if a reward is not finite.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    _check_K(K, len(rewards))
    if not np.isfinite(rewards).all():
        bad = int(np.argmin(np.isfinite(rewards)))
        raise BadInput(f"reward number {bad} is not a finite number")
    return _cut(rewards, K, np.random.default_rng(seed), 0.5, ties)


def _cut(rewards, K, rng, offset, ties):
    """Rank i of N (0 = worst) goes to part floor((i + offset) K / N) + 1, with 0 <= offset < 1.

    The offset 0.5 centres the parts. A random one spreads the few ranks of a prompt over all parts.
    """
    N = len(rewards)
    tie_break = -np.arange(N) if ties == "age" else rng.random(N)
    ranks = np.empty(N)
    ranks[np.lexsort((tie_break, rewards))] = np.arange(N)  # sorted by reward, then by tie_break
    if ties == "together":
        _, value = np.unique(rewards, return_inverse=True)
        mean_rank = np.bincount(value, ranks) / np.bincount(value)
        ranks = mean_rank[value]
    return np.floor((ranks + offset) * K / N).astype(np.int64) + 1


def assign_quantiles_per_prompt(rewards, prompts, K, seed=0, ties="random"):
    """The same within each prompt. rewards (N,); prompts (N,) integers, one for each prompt.

    Ranked over the whole pool, the samples of easy prompts would fill the best part. Here a sample
    is compared only with those of its own prompt. A random offset for each prompt lets all parts
    fill evenly, on average, although a prompt may have fewer than K samples.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    prompts = np.asarray(prompts)
    _check_K(K, len(rewards))
    rng = np.random.default_rng(seed)
    quantiles = np.empty(len(rewards), dtype=np.int64)
    by_prompt = np.argsort(prompts, kind="stable")
    borders = np.flatnonzero(np.diff(prompts[by_prompt])) + 1
    for rows in np.split(by_prompt, borders):
        quantiles[rows] = _cut(rewards[rows], K, rng, rng.random(), ties)
    return quantiles


def bounded(rewards, iterations, last=None, keep_top=None, seed=0, keep_p0=False):
    """Which rows stay in a bounded pool: (N,) bool.

    Keeps the newest `last` iterations, with keep_p0 also iteration 0; of those, the best fraction
    `keep_top`, rounded up. Among equal rewards, `seed` decides which ones are dropped.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    iterations = np.asarray(iterations)
    keep = np.ones(len(rewards), dtype=bool)
    if last is not None:
        keep &= (iterations > iterations.max() - last) | (keep_p0 & (iterations == 0))
    if keep_top is not None:
        rows = np.flatnonzero(keep)
        tie_break = np.random.default_rng(seed).random(len(rows))
        worst_first = rows[np.lexsort((tie_break, rewards[rows]))]
        n_kept = math.ceil(keep_top * len(rows) - 1e-9)  # 0.07 * 100 is 7.000000000000001
        keep[worst_first[: len(rows) - n_kept]] = False
    return keep


# ---------------------------------------------------------------------------------------- the stage


def quantize(args):
    """Reads the pool twice: once for the rewards, once to write each row with its quantile.

    Only a few numbers a row are kept in memory, so a pool of 10^6 rows needs tens of MB.
    Returns the (N,) rewards and quantiles; 0 marks a row that was left out.
    """
    K, ties = args.quantiles, args.ties
    files = pool_files(args.pool)
    check_output(args.out, args.pool)
    rewards, iterations, prompts = _read_columns(files, args.per_prompt, args.last)
    seed = [args.seed, int(iterations.max())]  # a row's luck in one round says nothing of the next
    keep = bounded(rewards, iterations, args.last, args.keep_top, [*seed, 1], args.keep_p0)
    ranked_by = rewards
    if args.random:  # the paper's ablation: the token says nothing about the reward
        ranked_by = np.random.default_rng([*seed, 2]).random(len(rewards))
    quantiles = np.zeros(len(rewards), dtype=np.int64)
    if args.per_prompt:
        if K > 1 and np.bincount(prompts[keep]).max() == 1:
            raise BadInput("--per-prompt needs several samples of a prompt; raise --num-samples")
        quantiles[keep] = assign_quantiles_per_prompt(ranked_by[keep], prompts[keep], K, seed, ties)
    else:
        quantiles[keep] = assign_quantiles(ranked_by[keep], K, seed, ties)

    with whole_file(args.out, args) as file:
        n = 0
        for _, row in read_pool(files):
            if n < len(rewards) and quantiles[n]:
                file.write(dump_row({**row, "quantile": int(quantiles[n])}) + "\n")
            n += 1
        if n != len(rewards):
            raise BadInput(
                f"the pool had {len(rewards)} rows when it was ranked and {n} when it was written; "
                "if another program is writing it, wait; save a pipe to a file first"
            )
    return rewards, quantiles


def _read_columns(files, per_prompt, last):
    """(N,) rewards, iterations and, with per_prompt, numbers that stand for the prompts."""
    rewards, iterations, prompts = array("d"), array("i"), array("q")
    number_of = {}
    for place, row in read_pool(files):
        if last is not None and "iteration" not in row:
            raise BadInput(f'{place}: "iteration" is missing; --last needs it in every row')
        rewards.append(row["reward"])
        iterations.append(row.get("iteration", 0))
        if per_prompt:
            prompts.append(number_of.setdefault(row["prompt"], len(number_of)))
    if not rewards:
        names = ", ".join(map(str, files))
        raise BadInput(f"{names}: no rows to quantize; run explore.py first")
    return np.array(rewards), np.array(iterations), np.array(prompts)


def _check_K(K, N):
    if not 1 <= K <= N:
        raise BadInput(
            f"cannot cut {N} samples into K = {K} quantiles; choose --quantiles from 1 to {N}"
        )


def main(argv=None):
    args = parse_options(argv)
    rewards, quantiles = quantize(args)
    print_parts(rewards, quantiles, args.quantiles)


def parse_options(argv=None):
    parser = options.stage_parser(__doc__)
    add = parser.add_argument
    add("pool", nargs="+", help="pool files, or folders of them")
    add("--quantiles", type=int, default=5, metavar="K", help="K, the number of parts")
    add("--out", required=True, help="JSONL file to write, e.g. quantized/00.jsonl")
    add("--seed", type=options.NATURAL, default=0, help="of the random choices: ties, offsets")
    add = parser.add_argument_group("ablations").add_argument
    ties = ["random", "age", "together"]
    text = (
        "equal rewards: in random order; by age, the older one better (the authors' code); "
        "or all in one part, whatever its size"
    )
    add("--ties", choices=ties, default="random", help=text)
    add("--random", action="store_true", help="give every sample a random quantile")
    add = parser.add_argument_group("not in the paper").add_argument
    add("--per-prompt", action="store_true", help="rank a sample only within its own prompt")
    add("--last", type=options.COUNT, metavar="N", help="keep only the newest N iterations")
    add("--keep-p0", action="store_true", help="with --last: keep iteration 0 as well")
    fraction = options.number(float, above=0, most=1)
    add("--keep-top", type=fraction, metavar="F", help="keep only the best fraction F of all rows")
    args = parser.parse_args(argv)
    if args.keep_p0 and args.last is None:
        parser.error("--keep-p0 says what stays besides the newest iterations; add --last N")
    return args


if __name__ == "__main__":
    options.run_stage(main)
