r"""PPO: policy gradients with a learned value of each prefix, and several clipped updates a batch.

The reward of the whole text comes at its last token, the KL to p0 at every token:

    R_t = -beta (log p_old - log p0)(y_t) + [t = T] r(x, y)
    delta_t = R_t + gamma V_{t+1} - V_t,   V_{T+1} = 0
    A_t = sum_l (gamma lambda)^l delta_{t+l},   G_t = A_t + V_t      A is whitened after G
    rho_t = p_theta(y_t) / p_old(y_t)
    L = mean_t max(-A_t rho_t, -A_t clip(rho_t, 1 - eps, 1 + eps))
        + c_v 1/2 mean_t max((V - G)^2, (clip(V, V_old - eps, V_old + eps) - G)^2)
    beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)  after n samples, if it adapts

Source   Schulman et al. 2017 (arXiv 1707.06347), as Ziegler et al. 2019 (arXiv 1909.08593) use it
Reads    --model, p0; --prompts; --reward
Writes   --out, a checkpoint folder, for evaluate.py --model

    python baselines/ppo.py --model tiny/lm --prompts tiny/prompts/train.jsonl --num-prompts 384 \
        --reward sentiment --out runs/baselines/ppo
    python evaluate.py --model runs/baselines/ppo --reference tiny/lm --reward sentiment \
        --prompts tiny/prompts/test.jsonl --out runs/baselines/ppo-measured

Where we differ: Quark's authors never published their PPO. Their code still has the settings of an
adaptive beta (target 3, horizon 2500): --target-kl 3. By default beta is constant. The value
network is a second copy of p0 with a linear head; --clip bounds the norm of both gradients
together. Ziegler et al. whiten R_t (--whiten-rewards) and A within each minibatch; we whiten A over
the batch. Their V starts at zero, ours at the mean r of the first batch. From zero, V would be too
low in our first batches. Every advantage would then be too high, most of all at the last tokens.
"""

import common
import numpy as np
import torch

from learn import predicting_states
from plumbing import options
from plumbing.pool import read_prompts
from rewards import load_reward


def whiten(values, shift_mean=True):
    """Divides by the standard deviation; the mean becomes 0, or stays as it was."""
    white = (values - values.mean()) / (values.std(unbiased=False) + 1e-8)
    return white if shift_mean else white + values.mean()


def token_rewards(log_old, log_p0, last, r, beta):
    """(M,) rewards of tokens: the KL term at each, and r (B,) at each row's last token.

    last (B,): which of the M tokens that is.
    """
    R = -beta * (log_old - log_p0)
    return R.index_add(0, last, r.to(R))


def advantages(R, V, lengths, gamma, lam):
    """Generalised advantages of rows that follow each other: (M,) rewards, (M,) values -> (M,)."""
    A = torch.empty_like(R)
    end = len(R)
    for T in reversed(lengths):
        next_V = next_A = 0.0  # after the last token nothing follows
        for t in range(end - 1, end - 1 - T, -1):
            delta = R[t] + gamma * next_V - V[t]
            A[t] = next_A = delta + gamma * lam * next_A
            next_V = V[t]
        end -= T
    return A


def policy_loss(log_p, log_old, A, eps):
    """mean_t max(-A rho, -A clip(rho)) of (M,) tokens.

    The larger loss of the two: nothing is gained by moving rho beyond 1 +- eps.
    """
    rho = (log_p - log_old).exp()
    return torch.maximum(-A * rho, -A * rho.clamp(1 - eps, 1 + eps)).mean()


def value_loss(V, V_old, G, eps):
    """1/2 mean_t max((V - G)^2, (V_clip - G)^2), V_clip within eps of the value at sampling."""
    V_clip = V_old + (V - V_old).clamp(-eps, eps)
    return 0.5 * torch.maximum((V - G) ** 2, (V_clip - G) ** 2).mean()


def adapted(beta, kl, target, n, horizon):
    """The adaptive controller: beta grows where the KL of a completion is above its target."""
    return beta * (1 + np.clip(kl / target - 1, -0.2, 0.2) * n / horizon)


class Value(torch.nn.Module):
    """V(x, y_<t): a copy of p0 with a linear head, which is a constant at first."""

    def __init__(self, policy):
        super().__init__()
        self.policy, self.network = policy, policy.model
        self.head = torch.nn.Linear(policy.head.weight.shape[1], 1).to(policy.device)
        torch.nn.init.zeros_(self.head.weight)
        self.start_at(0.0)

    def start_at(self, constant):
        torch.nn.init.constant_(self.head.bias, constant)

    def forward(self, pairs):
        starts = [(self.policy.start_of(x), y) for x, y in pairs]
        return self.head(predicting_states(self.policy, starts)[0]).squeeze(-1)  # (M,)


@torch.no_grad()
def at_sampling(policy, p0, value, pairs, r, beta, args):
    """What stays fixed while a batch is learned from, of its M tokens.

    Returns log p_old, V_old, A and G, each (M,), and the mean KL of a completion.
    """
    lengths = [len(y) for _, y in pairs]
    log_old, rows = common.token_log_probs(policy, pairs, args.min_new_tokens)
    log_p0, _ = common.token_log_probs(p0, pairs, args.min_new_tokens)
    V_old = value(pairs)
    last = torch.tensor(np.cumsum(lengths) - 1, device=log_old.device)
    R = token_rewards(log_old, log_p0, last, r, beta)
    if args.whiten_rewards:
        R = whiten(R, shift_mean=False)
    A = advantages(R.cpu(), V_old.cpu(), lengths, args.gamma, args.lam).to(R.device)
    kl = common.sum_by_row(log_old - log_p0, rows, len(pairs)).mean().item()
    return log_old, V_old, whiten(A), A + V_old, kl


def updates(policy, p0, value, prompts, reward, args):
    """args.steps batches of samples, each learned from in args.epochs passes."""
    optimiser = common.adam(policy, value)
    beta = args.beta
    total = args.steps * args.epochs * -(-args.batch_size // args.minibatch)
    done = 0
    for step in range(args.steps):
        pairs, r = common.rollout(policy, prompts, reward, args, step)
        lengths = [len(y) for _, y in pairs]
        ends = np.cumsum(lengths)
        if step == 0:
            value.start_at(r.mean().item())
        log_old, V_old, A, G, kl = at_sampling(policy, p0, value, pairs, r, beta, args)
        for epoch in range(args.epochs):
            order = np.random.default_rng([args.seed, step, epoch]).permutation(len(pairs))
            for begin in range(0, len(order), args.minibatch):
                members = order[begin : begin + args.minibatch]
                part = [pairs[i] for i in members]
                at = np.concatenate([np.arange(ends[i] - lengths[i], ends[i]) for i in members])
                log_p, _ = common.token_log_probs(policy, part, args.min_new_tokens)
                loss = policy_loss(log_p, log_old[at], A[at], args.eps)
                loss = loss + args.c_v * value_loss(value(part), V_old[at], G[at], args.eps)
                common.update(optimiser, loss, done, total, args)
                done += 1
        if args.target_kl:
            beta = adapted(beta, kl, args.target_kl, len(pairs), args.horizon)
        yield {"calls": len(r), "reward": r.mean().item(), "kl": kl, "beta": beta}


def main(argv=None):
    parser = common.training_parser(__doc__, steps=72, lr=1e-4, batch_size=128, on_policy=True)
    common.add_rollout_options(parser, samples_per_prompt=1)
    add = parser.add_argument
    add("--epochs", type=options.COUNT, default=2, help="passes over each batch of samples")
    add("--minibatch", type=options.COUNT, default=32, help="completions per update")
    add("--beta", type=float, default=0.05, help="weight of the KL at each token, at the start")
    add("--target-kl", type=float, help="nats a completion; beta then adapts (default: it stays)")
    add("--horizon", type=float, default=2500, help="samples in which beta adapts")
    add("--gamma", type=float, default=1.0, help="discount")
    add("--lam", type=float, default=0.95, help="lambda of the advantages")
    add("--eps", type=float, default=0.2, help="clipping range of the ratio and of the value")
    text = "divide R_t by its standard deviation, which Ziegler et al. do"
    add("--whiten-rewards", action="store_true", help=text)
    add("--c-v", type=float, default=0.1, help="weight of the value's loss")
    args = parser.parse_args(argv)
    reward = load_reward(args.reward, args.reward_model, device=options.pick_device(args.device))
    prompts = read_prompts(args.prompts, args.num_prompts, args.seed)
    policy, p0 = common.load_for_training(args, [args.prompts]), common.load_p0(args)
    value = Value(common.load_for_training(args))
    common.train(policy, updates(policy, p0, value, prompts, reward, args), args)


if __name__ == "__main__":
    options.run_stage(main)
