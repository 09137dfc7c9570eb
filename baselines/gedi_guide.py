r"""GeDi's guide: p0 fine-tuned to write each text under its class, and to tell the classes apart.

The control codes are the reward tokens r_1, bad, and r_2, good. Each text of the batch is read
under both, so the P(c | x) that is trained is the one that gedi.py uses:

    L = lambda L_LM(true class) + (1 - lambda) CE(P(c | x))

The scale a of P(c | x) starts at 1 and is learned; its b is 0.

Source   Krause et al. 2021 (arXiv 2009.06367), section 3; lambda 0.8
Reads    --pool, rows with quantile 1 (bad) and 2 (good); --model, p0
Writes   --out: the guide's folder, for baselines/gedi.py

    python baselines/gedi_guide.py --pool runs/baselines/bad_good.jsonl --model tiny/lm \
        --out runs/baselines/guide
    python baselines/gedi_guide.py --pool runs/baselines/bad_good.jsonl --model tiny/lm \
        --lam 1 --out runs/baselines/guide-of-L_LM-alone

Where we differ: the original's guide learns from labelled corpora, ours from p0's own samples that
the judge ranked first and last. L_LM is a mean over tokens; theirs is a mean over texts of each
text's mean. The rate of a is 100 times that of the other weights; otherwise 300 updates would
hardly change it.
"""

import common
import numpy as np
import torch
from gedi import BAD, GOOD, class_log_probs

from learn import add_reward_tokens, predicting_states
from plumbing import options
from plumbing.pool import BadInput
from plumbing.quantized import load_quantized


def guide_loss(guide, scale, batch, lam):
    """lam L_LM, a mean over tokens, + (1 - lam) CE, a mean over texts, of [(k, x ids, y ids)].

    k is the true class. Returns the loss and the share of texts whose likelier class is k.
    """
    texts = [[*guide.start_of(x), *y] for _, x, y in batch]
    sums = []
    for k in (BAD, GOOD):
        pairs = [([guide.reward_token_id(k)], text) for text in texts]
        hidden, targets = predicting_states(guide, pairs)
        log_p = guide.head(hidden)[:, : guide.vocab_size].log_softmax(-1)
        of_token = log_p.gather(1, targets[:, None]).squeeze(1)
        sums.append(torch.stack([part.sum() for part in of_token.split([len(t) for t in texts])]))
    sums = torch.stack(sums, -1)  # (B, 2)
    lengths = torch.tensor([len(text) for text in texts], device=sums.device)
    true = torch.tensor([k - 1 for k, _, _ in batch], device=sums.device)
    lm = -sums.gather(1, true[:, None]).sum() / lengths.sum()
    of_class = class_log_probs(sums, lengths, scale, torch.zeros(2, device=sums.device))
    cross_entropy = -of_class.gather(1, true[:, None]).mean()
    right = (of_class.argmax(1) == true).float().mean()
    return lam * lm + (1 - lam) * cross_entropy, right


def updates(guide, parts, args):
    scale = torch.nn.ParameterList([torch.nn.Parameter(torch.ones((), device=guide.device))])
    groups = [{"params": list(guide.model.parameters())}, {"params": list(scale), "times": 100}]
    optimiser = torch.optim.Adam(groups, eps=1e-5)
    for step in range(args.steps):
        rng = np.random.default_rng([args.seed, step])
        batch = [parts[i % 2][rng.integers(len(parts[i % 2]))] for i in range(args.batch_size)]
        loss, right = guide_loss(guide, scale[0], batch, args.lam)
        common.update(optimiser, loss, step, args.steps, args)
        guide.model.config.gedi_scale = scale[0].item()  # kept in the folder's config.json
        yield {"loss": loss.item(), "right": right.item(), "scale": scale[0].item()}


def main(argv=None):
    parser = common.training_parser(__doc__, steps=300, lr=3e-4, batch_size=32)
    add = parser.add_argument
    add("--pool", required=True, help="rows with quantile 1, bad, and 2, good")
    add("--lam", type=float, default=0.8, help="lambda, the weight of the language model's loss")
    args = parser.parse_args(argv)
    guide = common.load_for_training(args, [args.pool])
    parts = load_quantized(args.pool, guide)
    if len(parts) != 2:
        raise BadInput(f"{args.pool} has {len(parts)} quantiles; GeDi needs 2: bad and good")
    add_reward_tokens(guide, 2, args.seed)
    common.train(guide, updates(guide, parts, args), args)


if __name__ == "__main__":
    options.run_stage(main)
