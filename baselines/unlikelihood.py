r"""Unlikelihood training: besides raising what should be written, lower what should not.

Token level: at each place of a text, tokens that stood before are candidates that should not come
again. Sequence level: the model continues a prefix greedily, and every token of an n-gram which it
has written before is made less likely:

    L_token(t) = -log p(y_t) - alpha sum_{c in {x, y_<t} \ {y_t}} log(1 - p(c))
    L_seq(t)   = -log(1 - p(y_t))      if y_t is part of an n-gram that occurred before, n = 4

Source   Welleck et al. 2020 (arXiv 1908.04319), sections 5.1 and 5.2; alpha 1, half of the updates
         at each level
Reads    --model, p0; --pool, p0's own ancestral samples (T = 1, all tokens): the MLE term
Writes   --out, a checkpoint folder, for evaluate.py --model

    python explore.py --model tiny/lm --prompts tiny/prompts/train.jsonl --num-prompts 192 \
        --num-samples 20 --max-new-tokens 64 --min-new-tokens 64 --reward repetition \
        --out runs/baselines/p0-repetition.jsonl
    python baselines/unlikelihood.py --model tiny/lm --pool runs/baselines/p0-repetition.jsonl \
        --min-new-tokens 64 --sequence 0.5 --out runs/baselines/unlikelihood

The losses are means over tokens; that of L_seq counts the tokens without a loss, too.

Where we differ: the original trains on a corpus; the model's own samples are an unbiased anchor
that needs no corpus. The original continues 50 tokens by 100, in 1,500 updates; ours are the
defaults of --prefix, --new-tokens and --steps. Its loop over n-grams leaves out the last one, ours
does not. Candidates come from the prompt and the completion of one text, never from another. With
--reward-token, --model is Quark's, r_K stands in front, and --pool holds samples of that model.
"""

import common
import numpy as np
import torch

from explore import sample
from plumbing import options

SMALLEST = {"token": 1e-5, "sequence": 1e-20}  # 1 - p is clamped here, as by the authors


def previous_tokens(pairs):
    """For each token y_t of [(x, y)]: the ids in x and y_<t that are not y_t. A list of M sets."""
    candidates = []
    for x, y in pairs:
        seen = set(x)
        for token in y:
            candidates.append(seen - {token})
            seen.add(token)
    return candidates


def unlikelihood(log_p, candidates):
    """(M, V) log-probabilities, M sets of ids -> (M,) - sum_c log(1 - p(c))."""
    sizes = torch.tensor([len(ids) for ids in candidates], device=log_p.device)
    rows = torch.arange(len(candidates), device=log_p.device).repeat_interleave(sizes)
    c = [token for ids in candidates for token in ids]
    one_minus_p = (1 - log_p[rows, c].exp()).clamp(min=SMALLEST["token"])
    return -common.sum_by_row(one_minus_p.log(), rows, len(candidates))


def token_loss(logits, targets, candidates, alpha):
    """The mean over tokens of -log p(y_t) + alpha times the unlikelihood of its candidates."""
    log_p = logits.log_softmax(-1)
    nll = -log_p.gather(1, targets[:, None]).squeeze(1)
    return (nll + alpha * unlikelihood(log_p, candidates)).mean()


def repeats(y, n):
    """For each token of y: is it part of an n-gram that occurred before in y? [bool]"""
    seen, found = set(), [False] * len(y)
    for t in range(len(y) - n + 1):
        ngram = tuple(y[t : t + n])
        if ngram in seen:
            found[t : t + n] = [True] * n
        seen.add(ngram)
    return found


def sequence_loss(logits, targets, repeated):
    """The mean over all tokens of -log(1 - p(y_t)) at those of repeated n-grams.

    logits (M, V), targets (M,), repeated (M,) bool.
    """
    p = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1).exp()
    return -((1 - p).clamp(min=SMALLEST["sequence"]).log() * repeated).mean()


def updates(policy, samples, args):
    """args.steps updates; yields the loss, and the share of greedy tokens that repeat an n-gram.

    An update without greedy tokens repeats the last share, at first 0.
    """
    optimiser = common.adam(policy)
    k = policy.n_quantiles if args.reward_token else None
    room = policy.room_for_prompt(args.new_tokens, 1 if k else 0)
    repeated_share = 0.0
    for step in range(args.steps):
        rng = np.random.default_rng([args.seed, step])
        drawn = [samples[i] for i in rng.integers(len(samples), size=args.batch_size)]
        if rng.random() < args.sequence:
            prefixes = [(list(x) + list(y))[: args.prefix][-room:] for _, x, y, _ in drawn]
            decoding = {"quantile": k, "max_new_tokens": args.new_tokens, "greedy": True}
            decoding |= {"min_new_tokens": args.new_tokens, "batch_size": args.batch_size}
            pairs = list(zip(prefixes, sample(policy, prefixes, **decoding)))
            flags = [flag for _, y in pairs for flag in repeats(y, args.n)]
            repeated_share = sum(flags) / len(flags)
            reads = with_front(policy, k, pairs)
            logits, targets, _ = common.token_logits(policy, reads, args.new_tokens)
            repeated = torch.tensor(flags, device=policy.device)
            loss = sequence_loss(logits, targets, repeated)
        else:
            pairs = [(x, y) for _, x, y, _ in drawn]
            reads = with_front(policy, k, pairs)
            logits, targets, _ = common.token_logits(policy, reads, args.min_new_tokens)
            loss = token_loss(logits, targets, previous_tokens(pairs), args.alpha)
        common.update(optimiser, loss, step, args.steps, args)
        yield {"loss": loss.item(), "repeated": repeated_share}


def with_front(policy, k, pairs):
    """The pairs with r_K, if any, in front of x: what `explore.sample` reads."""
    return [(policy.start_of(x, k), y) for x, y in pairs]


def main(argv=None):
    parser = common.training_parser(__doc__, steps=600, lr=3e-4, batch_size=20)
    add = parser.add_argument
    add("--pool", required=True, help="p0's ancestral samples, by explore.py")
    add("--alpha", type=float, default=1.0, help="weight of the candidates at token level")
    share = options.number(float, least=0, most=1)
    add("--sequence", type=share, default=0.0, help="share of updates at sequence level")
    add("--n", type=options.COUNT, default=4, help="n-grams that must not come again")
    add("--prefix", type=options.COUNT, default=16, help="tokens that greedy text goes on from")
    add("--new-tokens", type=options.COUNT, default=64, help="greedy tokens")
    add("--reward-token", action="store_true", help="put r_K in front: --model is of Quark")
    text = "as the pool was sampled: before, <|endoftext|> is impossible"
    add("--min-new-tokens", type=options.NATURAL, default=3, help=text)
    args = parser.parse_args(argv)
    policy = common.load_for_training(args, [args.pool])
    if args.reward_token and not policy.n_quantiles:
        parser.error(f"--reward-token: {args.model} has no reward tokens")
    common.train(policy, updates(policy, common.read_samples(args.pool, policy), args), args)


if __name__ == "__main__":
    options.run_stage(main)
