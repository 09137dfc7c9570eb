r"""SimCTG: training that pushes the states of different tokens apart.

Greedy text loops where the states of many tokens look alike. A second term of the loss pushes their
cosines below 1 - rho. contrastive.py has the search that was made for such a model.

    L = L_MLE + mean_{i != j} max(0, rho - 1 + cos(h_i, h_j)),        within a text

h is the state after the last layer norm.

Source   Su et al. 2022 (arXiv 2202.06417), Equations 2 to 4; rho 0.5
Reads    --pool, p0's own ancestral samples, that of baselines/unlikelihood.py; --model, p0
Writes   --out: a checkpoint folder; prints the mean cosine that p0 has

    python baselines/simctg.py --pool runs/baselines/p0-repetition.jsonl --min-new-tokens 64 \
        --model tiny/lm --out runs/baselines/simctg
    python evaluate.py --model runs/baselines/simctg --reference tiny/lm --reward repetition \
        --decode greedy --num-samples 1 --max-new-tokens 64 --min-new-tokens 64 \
        --prompts tiny/prompts/test.jsonl --out runs/baselines/simctg-measured

Where we differ: the original trains on a corpus; p0's own samples are an unbiased anchor that needs
none, and L_MLE is that of the completions, since the few prompts come again and again.
"""

import common
import numpy as np
import torch

from plumbing import options


def contrastive_loss(states, lengths, rho):
    """(B, T, d) right-padded states, (B,) lengths -> the mean over all texts' pairs i != j."""
    unit = torch.nn.functional.normalize(states, dim=-1)
    cosines = unit @ unit.transpose(1, 2)  # (B, T, T)
    T = states.shape[1]
    real = torch.arange(T, device=states.device) < lengths[:, None]
    pairs = real[:, :, None] & real[:, None, :]
    pairs = pairs & ~torch.eye(T, dtype=torch.bool, device=states.device)
    return (rho - 1 + cosines).clamp(min=0)[pairs].mean()


def mle_and_contrast(policy, pairs, rho, min_new_tokens=0):
    """[(x, y)] -> the mean -log p of the tokens of y, and the contrastive loss of x and y."""
    mle = -common.token_log_probs(policy, pairs, min_new_tokens)[0].mean()
    texts = [[*x, *y] for x, y in pairs]
    lengths = torch.tensor([len(text) for text in texts], device=policy.device)
    return mle, contrastive_loss(policy.hidden_states(texts), lengths, rho)


@torch.no_grad()
def mean_cosine(policy, texts):
    """The mean cosine of different tokens of a text. Pairs below 1 - rho have no such loss."""
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


def main(argv=None):
    parser = common.training_parser(__doc__, steps=600, lr=3e-4, batch_size=20)
    add = parser.add_argument
    add("--pool", required=True, help="p0's ancestral samples, by explore.py")
    add("--rho", type=float, default=0.5, help="the margin: cosines above 1 - rho cost")
    text = "as the pool was sampled: before, <|endoftext|> is impossible"
    add("--min-new-tokens", type=options.NATURAL, default=3, help=text)
    args = parser.parse_args(argv)
    policy = common.load_for_training(args, [args.pool])
    samples = common.read_samples(args.pool, policy)
    found = mean_cosine(policy, [[*x, *y] for _, x, y, _ in samples[:200]])
    print(f"mean cosine of the states of a text: {found:.3f}; those above {1 - args.rho:.3f} cost")
    common.train(policy, updates(policy, samples, args), args)


if __name__ == "__main__":
    options.run_stage(main)
