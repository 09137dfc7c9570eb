r"""Contrastive search: of the k likeliest next tokens, the one that is likely *and* new.

    y_t = argmax_{v in top k} (1 - alpha) p(v | x, y_<t) - alpha max_{j < t} cos(h_v, h_j)

h is the state after the last layer norm; j runs over the prompt, too. The scores stand in the place
of logits, and `explore.sample` takes their argmax: greedy decoding.

Source   Su et al. 2022 (arXiv 2202.06417), Equation 5; k 8, alpha 0.6
Reads    --model, p0 or what baselines/simctg.py trained; --prompts
Writes   --out: completions for evaluate.py --generations

    python baselines/contrastive.py --model tiny/lm --prompts tiny/prompts/test.jsonl \
        --max-new-tokens 64 --min-new-tokens 64 --out runs/baselines/contrastive.jsonl
    python baselines/contrastive.py --model runs/baselines/simctg --alpha 0.4 \
        --prompts tiny/prompts/test.jsonl --max-new-tokens 64 --min-new-tokens 64 \
        --out runs/baselines/simctg_contrastive.jsonl

Where we differ: the original keeps what it read of the chosen candidate; here that token is read
once more, so that a token costs k + 1 forward passes.
"""

import copy

import common
import torch

from plumbing import options
from plumbing.policy import CachedModel


def search_scores(p, states, context, empty, alpha):
    """(1 - alpha) p - alpha max_j cos(h_v, h_j), for k candidates.

    p (B, k); states (B, k, d) of the candidates; context (B, t, d); empty (B, t): no token there.
    """
    unit = torch.nn.functional.normalize
    with torch.autocast(p.device.type, enabled=False):  # bfloat16 would round cosines into ties
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
        branch = copy_of(self)
        CachedModel.keep(branch, torch.arange(len(p), device=p.device).repeat_interleave(self.k))
        of_candidates = branch.next_states(candidates.reshape(-1, 1)).float()
        of_candidates = of_candidates.view(len(p), self.k, -1)
        scores = search_scores(p, of_candidates, self.context, self.empty, self.alpha)
        return torch.full_like(logits, -torch.inf).scatter(1, candidates, scores)


def copy_of(cached):
    """A CachedModel that reads on from the same place, on its own."""
    branch = copy.copy(cached)
    branch.cache = copy.deepcopy(cached.cache)
    return branch


def main(argv=None):
    parser = common.generations_parser(__doc__)
    parser.set_defaults(num_samples=1, decode="greedy")
    add = parser.add_argument
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
