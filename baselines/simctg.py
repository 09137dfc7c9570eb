r"""SimCTG: train the states of different tokens apart, then search for likely *and* new states.

Greedy text loops where the states of many tokens look alike. The loss pushes their cosines below
1 - rho, and contrastive search chooses among the k likeliest tokens:

    L = L_MLE + mean_{i != j} max(0, rho - 1 + cos(h_i, h_j)),        within a text
    y_t = argmax_{v in top k} (1 - alpha) p(v | y_<t) - alpha max_{j < t} cos(h_v, h_j)

h is the state after the last layer norm; j runs over the prompt, too. The scores stand in the place
of logits, and `explore.sample` takes their argmax: greedy decoding.

Source   Su et al. 2022 (arXiv 2202.06417), Equations 2 to 5; rho 0.5, k 8, alpha 0.6
Reads    train: --pool, p0's own ancestral samples; --model, p0
         else: --model, any; --prompts
Writes   --out: a checkpoint folder, or completions by contrastive search

    python baselines/simctg.py --train --pool runs/baselines/p0-repetition.jsonl \
        --min-new-tokens 64 --model tiny/lm --out runs/baselines/simctg
    python baselines/simctg.py --model runs/baselines/simctg --prompts tiny/prompts/test.jsonl \
        --max-new-tokens 64 --min-new-tokens 64 --out runs/baselines/simctg_contrastive.jsonl

The pool is that of baselines/unlikelihood.py. Where we differ: the original trains on a corpus; p0's own samples are an unbiased anchor that needs
none, and L_MLE is that of the completions, since the few prompts come again and again. A search
costs k + 1 forward passes a token: the chosen token is read once more.
"""

import sys

import common
import numpy as np
import torch

from plumbing import options
from plumbing.policy import CachedModel


def contrastive_loss(states, lengths, rho):
    """(B, T, d) states, right-padded, (B,) lengths -> the mean over pairs i != j within the texts."""
    unit = torch.nn.functional.normalize(states, dim=-1)
    cosines = unit @ unit.transpose(1, 2)  # (B, T, T)
    T = states.shape[1]
    real = torch.arange(T, device=states.device) < lengths[:, None]
    pairs = real[:, :, None] & real[:, None, :]
    pairs = pairs & ~torch.eye(T, dtype=torch.bool, device=states.device)
    return (rho - 1 + cosines).clamp(min=0)[pairs].mean()


def search_scores(p, states, context, empty, alpha):
    """(1 - alpha) p - alpha max_j cos(h_v, h_j), for k candidates.

    p (B, k); states (B, k, d) of the candidates; context (B, t, d); empty (B, t): no token there.
    """
    unit = torch.nn.functional.normalize
    cosines = unit(states, dim=-1) @ unit(context, dim=-1).transpose(1, 2)  # (B, k, t)
    nearest = cosines.masked_fill(empty[:, None], -torch.inf).amax(-1)
    return (1 - alpha) * p - alpha * nearest


class ContrastiveSearch(CachedModel):
    """A `network` of `explore.sample` whose "logits" are the scores of the candidates.

    Its argmax, greedy decoding, is contrastive search.
    """

    def __init__(self, policy, k, alpha, min_new_tokens=0):
        super().__init__(policy.model)
        self.V, self.eos_id, self.k, self.alpha = policy.vocab_size, policy.eos_id, k, alpha
        self.min_new_tokens = min_new_tokens

    def start(self, padding):
        super().start(padding)
        self.context, self.t = None, 0

    def keep(self, rows):
        super().keep(rows)
        self.context, self.empty = self.context[rows], self.empty[rows]

    def next_logits(self, tokens):
        states = self.next_states(tokens).float()
        if self.context is None:
            column = torch.arange(tokens.shape[1], device=tokens.device)
            self.context, self.empty = states, column < self.padding[:, None]
        else:
            self.context = torch.cat([self.context, states], 1)
            self.empty = torch.nn.functional.pad(self.empty, (0, 1))
        logits = self.logits_of(states[:, -1])[:, : self.V]
        if self.t < self.min_new_tokens:
            logits[:, self.eos_id] = -torch.inf
        self.t += 1
        p, candidates = logits.softmax(-1).topk(self.k)  # (B, k)
        branch = common.copy_of(self)
        CachedModel.keep(branch, torch.arange(len(p), device=p.device).repeat_interleave(self.k))
        of_candidates = branch.next_states(candidates.reshape(-1, 1)).float()
        of_candidates = of_candidates.view(len(p), self.k, -1)
        scores = search_scores(p, of_candidates, self.context, self.empty, self.alpha)
        return torch.full_like(logits, -torch.inf).scatter(1, candidates, scores)


# ---------------------------------------------------------------------------------------- training


def mle_and_contrast(policy, pairs, rho, min_new_tokens=0):
    """[(x, y)] -> the mean -log p of the tokens of y, and the contrastive loss of x and y."""
    mle = -common.token_log_probs(policy, pairs, min_new_tokens)[0].mean()
    texts = [[*x, *y] for x, y in pairs]
    lengths = torch.tensor([len(text) for text in texts], device=policy.device)
    return mle, contrastive_loss(policy.hidden_states(texts), lengths, rho)


@torch.no_grad()
def mean_cosine(policy, texts):
    """The mean cosine of different tokens of a text. Pairs below 1 - rho have no contrastive loss."""
    lengths = torch.tensor([len(text) for text in texts], device=policy.device)
    loss = contrastive_loss(policy.hidden_states(texts), lengths, rho=2.0)  # 1 + cos, never cut
    return loss.item() - 1


def updates(policy, samples, args):
    optimiser = common.adam(policy)
    for step in range(args.steps):
        drawn = np.random.default_rng([args.seed, step]).integers(
            len(samples), size=args.batch_size
        )
        pairs = [samples[i][1:3] for i in drawn]
        mle, contrast = mle_and_contrast(policy, pairs, args.rho, args.min_new_tokens)
        common.update(optimiser, mle + contrast, step, args.steps, args)
        yield {"mle": mle.item(), "contrast": contrast.item()}


def train_model(argv):
    parser = common.training_parser(__doc__, steps=600, lr=3e-4, batch_size=20)
    add = parser.add_argument
    add("--train", action="store_true", required=True, help="train")
    add("--pool", required=True, help="p0's ancestral samples, by explore.py")
    add("--rho", type=float, default=0.5, help="the margin: cosines above 1 - rho cost")
    text = "as the pool was sampled: before, <|endoftext|> is impossible"
    add("--min-new-tokens", type=options.NATURAL, default=3, help=text)
    args = parser.parse_args(argv)
    policy, _ = common.load_for_training(args, [args.pool])
    samples = common.read_samples(args.pool, policy)
    found = mean_cosine(policy, [[*x, *y] for _, x, y, _ in samples[:200]])
    print(f"mean cosine of the states of a text: {found:.3f}; those above {1 - args.rho:.3f} cost")
    common.train(policy, updates(policy, samples, args), args)


def main(argv=None):
    if "--train" in (sys.argv[1:] if argv is None else argv):
        return train_model(argv)
    parser = common.generations_parser(__doc__)
    parser.set_defaults(num_samples=1, decode="greedy")
    add = parser.add_argument
    add("--train", action="store_true", help="train a model; its options: --train --help")
    add("--k", type=options.COUNT, default=8, help="candidates: the likeliest tokens")
    add("--alpha", type=options.number(float, least=0, most=1), default=0.6, help="alpha")
    args = parser.parse_args(argv)
    options.check_lengths(parser, args)
    for name in ("decode", "temperature", "top_p", "top_k"):
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"contrastive search draws nothing; leave out --{name.replace('_', '-')}")
    (policy,) = common.load_for_sampling(args)
    if not 2 <= args.k <= policy.vocab_size:
        parser.error(f"--k must be from 2 to {policy.vocab_size}, the number of tokens")
    network = ContrastiveSearch(policy, args.k, args.alpha, args.min_new_tokens)
    common.write_generations(policy, args, network)


if __name__ == "__main__":
    options.run_stage(main)
