r"""Best-of-n: draw n completions of p0 and keep the one with the highest reward.

It needs no training: all of it is paid when the model is used. For rewards without ties the best
of n has the expected quantile n / (n + 1). Its distance from q, the distribution that the n are
drawn from (here p0's nucleus), is bounded:

    KL(pi || q) <= log n - (n - 1) / n  nats a completion

Source   Stiennon et al. 2020 (arXiv 2009.01325), the formula in their appendix G; that it is an
         upper bound: Beirami et al. 2024 (arXiv 2401.01879)
Reads    --model, p0; --prompts; --reward, which is called n times for each completion
Writes   --out, the kept completions, for evaluate.py --generations

    python baselines/best_of_n.py --model tiny/lm --prompts tiny/prompts/test.jsonl \
        --reward sentiment --n 8 --out runs/baselines/best_of_8.jsonl
    python evaluate.py --generations runs/baselines/best_of_8.jsonl --reference tiny/lm \
        --reward sentiment --out runs/baselines/best_of_8-measured

Where we differ: nothing; among equal rewards the first sample is kept.
"""

import math

import common

from plumbing import options
from plumbing.pool import BadInput
from rewards import load_reward, score


def best_of(rewards, n):
    """[N n rewards] -> for each group of n the place of its highest one, the first among equals.

    None, no score, is below every reward.
    """
    values = [-math.inf if r is None else r for r in rewards]
    return [
        max(range(begin, begin + n), key=lambda i: values[i]) for begin in range(0, len(values), n)
    ]


def kl_bound(n):
    """log n - (n - 1) / n: an upper bound of KL(best of n || q) in nats a completion."""
    return math.log(n) - (n - 1) / n


def main(argv=None):
    parser = common.generations_parser(__doc__, judge=True)
    parser.add_argument("--n", type=options.COUNT, default=8, help="completions to choose from")
    parser.add_argument("--reward", required=True, help="a built-in name, or file.py:function")
    args = parser.parse_args(argv)
    options.check_lengths(parser, args)
    device = options.pick_device(args.device)
    reward = load_reward(args.reward, args.reward_model, device=device)
    (policy,) = common.load_for_sampling(args)

    def choose(rows):
        values = score(rows, reward)
        if set(values) == {None}:
            raise BadInput(f"reward {args.reward} scored none of the {len(rows)} samples")
        return [rows[i] for i in best_of(values, args.n)]

    drawn = args.num_samples * args.n
    common.write_generations(policy, args, None, reward.files, choose, num_samples=drawn)
    print(f"KL to what is sampled from: at most {kl_bound(args.n):.2f} nats a completion")


if __name__ == "__main__":
    options.run_stage(main)
