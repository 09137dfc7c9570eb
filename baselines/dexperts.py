r"""DExperts: at each token, p0's logits plus the difference between an expert and an anti-expert.

The experts are p0 fine-tuned on good and on bad text. Tokens that the expert prefers gain, tokens
that the anti-expert prefers lose, and alpha sets how much:

    z = z_0 + alpha (z_plus - z_minus)

within the nucleus of p0, which is cut *before* the mixing (`combine`).

Source   Liu et al. 2021 (arXiv 2105.03023), Equation 2; alpha 2.0 for toxicity, 3.2 for sentiment
Reads    --model, p0; --expert and --anti-expert, folders of learn.py; --prompts
Writes   --out, completions, for evaluate.py --generations

    python baselines/dexperts.py --model tiny/lm --expert runs/baselines/good \
        --anti-expert runs/baselines/bad --alpha 2 --prompts tiny/prompts/test.jsonl \
        --out runs/baselines/dexperts.jsonl
    python evaluate.py --generations runs/baselines/dexperts.jsonl --reference tiny/lm \
        --reward sentiment --out runs/baselines/dexperts-measured

Where we differ: the original's experts learn from labelled corpora, ours from p0's own samples that
the judge ranked first and last. Without --expert it is *anti-expert only*, z_0 in its place.
*Expert only* needs no file: it is a model that was fine-tuned on good text, as in the row dapt.
"""

import common
import torch

from plumbing import options


class DExperts(common.Together):
    """z_0 + alpha (z_plus - z_minus), (B, V) logits, on the nucleus of p0.

    policies: p0, expert, anti-expert; or p0 and anti-expert, then z_0 is also z_plus.
    """

    def __init__(self, policies, alpha, top_p, min_new_tokens=0):
        super().__init__(policies, min_new_tokens)
        self.alpha, self.top_p = alpha, top_p

    def combine(self, z_0, *experts):
        z_plus, z_minus = experts if len(experts) == 2 else (z_0, *experts)
        cut = common.outside_nucleus(z_0, self.top_p) | z_0.isneginf()
        return (z_0 + self.alpha * (z_plus - z_minus)).masked_fill(cut, -torch.inf)


def main(argv=None):
    parser = common.generations_parser(__doc__)
    add = parser.add_argument
    add("--expert", help="p0 fine-tuned on good text (default: none, p0 takes its place)")
    add("--anti-expert", required=True, help="p0 fine-tuned on bad text")
    add("--alpha", type=float, default=2.0, help="weight of the difference")
    args = parser.parse_args(argv)
    options.check_lengths(parser, args)
    names = [name for name in (args.expert, args.anti_expert) if name]
    policies = common.load_for_sampling(args, *names)
    network = DExperts(policies, args.alpha, args.top_p, args.min_new_tokens)
    # `combine` has cut p0's nucleus; sampling must not cut another one
    common.write_generations(policies[0], args, network, names, top_p=1.0)


if __name__ == "__main__":
    options.run_stage(main)
