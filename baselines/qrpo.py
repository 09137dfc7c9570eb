r"""QRPO: regress the policy's log-ratio onto the quantile of the reward. Offline, no critic.

q(x, y) is the share of p0's other samples of the same prompt that are worse than y, equal ones
counted half. Under p0 it is uniform, so the Z of the optimal policy p0 exp(q / beta) / Z is known:

    Z = integral_0^1 e^(q / beta) dq = beta (e^(1 / beta) - 1)
    L = (q - beta log Z - beta sum_t log(p_theta / p0)(y_t))^2

Quark's closest relative of today: it, too, learns from quantiles of samples, one at a time. Where
Quark names the quantile by a token, QRPO regresses on it.

Source   Matrenok et al. 2025 (arXiv 2507.08068), Equation 11
Reads    --model, p0; --pool, samples of p0 by explore.py, several of each prompt
Writes   --out, a checkpoint folder, for evaluate.py --model

    python explore.py --model tiny/lm --prompts tiny/prompts/train.jsonl --num-prompts 384 \
        --num-samples 24 --reward sentiment --out runs/baselines/p0.jsonl
    python baselines/qrpo.py --model tiny/lm --pool runs/baselines/p0.jsonl \
        --out runs/baselines/qrpo

Where we differ: Z is exact, where the source simplifies log Z to log beta + 1 / beta. The source's
q is the share of all samples, y among them, whose reward is at most that of y.
"""

import math

import common
import numpy as np
import torch

from plumbing import options
from plumbing.pool import BadInput


def quantiles_of(rewards):
    """(n,) rewards of one prompt's samples of p0 -> (n,) in [0, 1].

    The share of the other samples with a lower reward, plus half of the share with the same.
    """
    rewards = np.asarray(rewards, dtype=float)
    below = (rewards[None, :] < rewards[:, None]).sum(1)
    equal = (rewards[None, :] == rewards[:, None]).sum(1) - 1  # without itself
    return (below + 0.5 * equal) / (len(rewards) - 1)


def log_partition(beta):
    """log of the integral of e^(q / beta) over q in [0, 1]; stable for small beta."""
    return math.log(beta) + 1 / beta + math.log1p(-math.exp(-1 / beta))


def qrpo_loss(log_ratio, q, beta):
    """(B,) sums of log p_theta / p0, (B,) quantiles -> the mean square of what is left."""
    return ((q - beta * log_partition(beta) - beta * log_ratio) ** 2).mean()


def examples_of(samples):
    """[(prompt, x, y, reward)] -> [(x, y, q)]."""
    of_prompt = {}
    for prompt, x, y, reward in samples:
        of_prompt.setdefault(prompt, []).append((x, y, reward))
    if min(map(len, of_prompt.values())) < 2:
        raise BadInput("a prompt has one sample; QRPO ranks a sample among others of its prompt")
    examples = []
    for rows in of_prompt.values():
        q = quantiles_of([reward for _, _, reward in rows])
        examples += [(x, y, float(q_i)) for (x, y, _), q_i in zip(rows, q)]
    return examples


@torch.no_grad()
def log_probs_of_p0(p0, examples, min_new_tokens, batch_size=256):
    """(N,) sums of log p0(y_t): computed once, for p0 does not change."""
    sums = []
    for begin in range(0, len(examples), batch_size):
        pairs = [(x, y) for x, y, _ in examples[begin : begin + batch_size]]
        sums.append(
            common.sum_by_row(*common.token_log_probs(p0, pairs, min_new_tokens), len(pairs))
        )
    return torch.cat(sums)


def batch_loss(policy, pairs, q, log_p0, beta, min_new_tokens):
    """The loss of [(x, y)] with (B,) quantiles and p0's log-probabilities; and the log-ratios."""
    log_p, rows = common.token_log_probs(policy, pairs, min_new_tokens)
    log_ratio = common.sum_by_row(log_p, rows, len(pairs)) - log_p0
    return qrpo_loss(log_ratio, q, beta), log_ratio


def updates(policy, p0, examples, args):
    """args.steps updates; yields the loss and the mean log-ratio of each batch."""
    optimiser = common.adam(policy)
    of_p0 = log_probs_of_p0(p0, examples, args.min_new_tokens)
    for step in range(args.steps):
        drawn = np.random.default_rng([args.seed, step]).integers(
            len(examples), size=args.batch_size
        )
        pairs = [examples[i][:2] for i in drawn]
        q = torch.tensor([examples[i][2] for i in drawn], device=policy.device)
        settings = (args.beta, args.min_new_tokens)
        loss, log_ratio = batch_loss(policy, pairs, q, of_p0[drawn], *settings)
        common.update(optimiser, loss, step, args.steps, args)
        yield {"loss": loss.item(), "log_ratio": log_ratio.mean().item()}


def main(argv=None):
    parser = common.training_parser(__doc__, steps=360, lr=5e-4, batch_size=32)
    add = parser.add_argument
    add("--pool", required=True, help="samples of p0, several of each prompt")
    positive = options.number(float, least=1e-3, below=1e3)
    add("--beta", type=positive, default=0.1, help="strength of the pull to p0")
    add("--min-new-tokens", type=options.NATURAL, default=3, help="as the pool was sampled")
    args = parser.parse_args(argv)
    policy, p0 = common.load_for_training(args, [args.pool]), common.load_p0(args)
    examples = examples_of(common.read_samples(args.pool, policy))
    common.train(policy, updates(policy, p0, examples, args), args)


if __name__ == "__main__":
    options.run_stage(main)
