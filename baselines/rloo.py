r"""RLOO and GRPO: policy gradients whose baseline is the samples of the same prompt.

k completions of each prompt are drawn from p_theta. The reward of each is compared with the mean of
the others, so no value network is needed:

    r_i = R(x, y_i) - beta sum_t log(p_theta / p0)(y_i,t)            no gradient through r
    A_i = r_i - mean_{j != i} r_j
    L   = - mean_i A_i log p_theta(y_i | x)

--kind grpo: A_i = (R_i - mean R) / (std R + 1e-4), no KL, and the mean over all tokens.

Source   Ahmadian et al. 2024 (arXiv 2402.14740); GRPO: Shao et al. 2024 (arXiv 2402.03300)
Reads    --model, p0; --prompts; --reward
Writes   --out, a checkpoint folder, for evaluate.py --model

    python baselines/rloo.py --model tiny/lm --prompts tiny/prompts/train.jsonl --num-prompts 384 \
        --reward sentiment --out runs/baselines/rloo
    python evaluate.py --model runs/baselines/rloo --reference tiny/lm --reward sentiment \
        --prompts tiny/prompts/test.jsonl --out runs/baselines/rloo-measured

Where we differ: one update for each batch of samples, so every ratio of new to old probabilities
is 1 and nothing is clipped. Shao et al. average within a completion before they average over the
completions, and have a KL term in the loss; today's libraries have neither by default.
"""

import common
import torch

from plumbing import options
from plumbing.pool import read_prompts
from rewards import load_reward


def leave_one_out(rewards):
    """(P, k) rewards -> (P, k): each minus the mean of the others of its row."""
    k = rewards.shape[1]
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (k - 1)


def group_normalised(rewards, eps=1e-4):
    """(P, k) rewards -> (P, k): each minus its row's mean, divided by the row's std."""
    std = rewards.std(1, keepdim=True)  # with k - 1, as TRL has it
    return (rewards - rewards.mean(1, keepdim=True)) / (std + eps)


def sequence_loss(log_probs, rows, advantages):
    """(M,) log-probabilities of tokens, rows (M,), (B,) advantages -> -mean_i A_i log p(y_i)."""
    return -(advantages * common.sum_by_row(log_probs, rows, len(advantages))).mean()


def token_loss(log_probs, rows, advantages):
    """The same as a mean over all tokens of the batch, GRPO's."""
    return -(advantages[rows] * log_probs).mean()


def batch_loss(policy, p0, pairs, R, k, kind, beta, min_new_tokens=0):
    """The loss of [(x, y)] with (B,) rewards R, k samples of each prompt one after the other.

    Returns the loss, and the sums of log p_theta / p0 (B,).
    """
    log_p, rows = common.token_log_probs(policy, pairs, min_new_tokens)
    with torch.no_grad():
        log_p0, _ = common.token_log_probs(p0, pairs, min_new_tokens)
    log_ratio = common.sum_by_row(log_p.detach() - log_p0, rows, len(pairs))
    if kind == "rloo":
        A = leave_one_out((R - beta * log_ratio).view(-1, k)).flatten()
        return sequence_loss(log_p, rows, A), log_ratio
    return token_loss(log_p, rows, group_normalised(R.view(-1, k)).flatten()), log_ratio


def updates(policy, p0, prompts, reward, args):
    """args.steps updates; yields the mean reward and the KL to p0 of each batch."""
    optimiser = common.adam(policy)
    settings = (args.samples_per_prompt, args.kind, args.beta, args.min_new_tokens)
    for step in range(args.steps):
        pairs, R = common.rollout(policy, prompts, reward, args, step)
        loss, log_ratio = batch_loss(policy, p0, pairs, R, *settings)
        common.update(optimiser, loss, step, args.steps, args)
        yield {"calls": len(R), "reward": R.mean().item(), "kl": log_ratio.mean().item()}


def main(argv=None):
    parser = common.training_parser(__doc__, steps=72, lr=3e-4, batch_size=128, on_policy=True)
    common.add_rollout_options(parser, samples_per_prompt=4)
    add = parser.add_argument
    add("--kind", choices=["rloo", "grpo"], default="rloo", help="which advantages, which mean")
    add("--beta", type=float, default=0.05, help="rloo: weight of the KL in the reward")
    args = parser.parse_args(argv)
    if args.samples_per_prompt < 2:
        parser.error("--samples-per-prompt must be at least 2: a sample is compared with others")
    reward = load_reward(args.reward, args.reward_model, device=options.pick_device(args.device))
    prompts = read_prompts(args.prompts, args.num_prompts, args.seed)
    policy, p0 = common.load_for_training(args, [args.prompts]), common.load_p0(args)
    common.train(policy, updates(policy, p0, prompts, reward, args), args)


if __name__ == "__main__":
    options.run_stage(main)
