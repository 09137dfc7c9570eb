r"""GeDi: a small model that reads a text under two control codes says which one it fits better.

By Bayes' rule this gives the class of every possible next token at once, and p0 is reweighted:

    P(c | x_1:t) = softmax_c [ (a / t) sum_j log p_phi(x_j | x_<j, c) + b_c ]      the prompt counts
    p_w(v) = p0(v | x_<t) P(c+ | x_<t, v)^omega / Z

The filter: sort the tokens by P(c+ | x_<t, v), lowest first. Delete a token if P < tau and the sum
of p_w up to and including it is below 1 - rho. The scale a was learned with the guide; b is 0, but
for --class-bias.

Source   Krause et al. 2021 (arXiv 2009.06367), section 3 and Equation 6; omega 30, 1 - rho 0.8,
         tau 0.8
Reads    --guide, what baselines/gedi_guide.py wrote; --model, p0; --prompts
Writes   --out: completions for evaluate.py --generations

    python baselines/gedi.py --model tiny/lm --guide runs/baselines/guide --omega 30 \
        --prompts tiny/prompts/test.jsonl --out runs/baselines/gedi.jsonl
    python evaluate.py --generations runs/baselines/gedi.jsonl --reference tiny/lm \
        --reward sentiment --out runs/baselines/gedi-measured

Where we differ: the original's repetition penalty of 1.2 is off (it would be another method's
gain). What the filter leaves is sampled in the nucleus of 0.9, as all other rows are.
"""

import common
import torch

from plumbing import options
from plumbing.policy import CachedModel
from plumbing.pool import BadInput

BAD, GOOD = 1, 2  # the control codes are the reward tokens r_1 and r_2


def class_log_probs(sums, lengths, scale, bias):
    """log P(c | x): (..., 2) sums of log p(x_j | c), (...,) lengths t -> (..., 2)."""
    return (scale * sums / lengths[..., None] + bias).log_softmax(-1)


def reweighted(z_0, log_p_good, omega, mass, tau):
    """(B, V) logits of p0, (B, V) log P(c+ | ., v) -> (B, V) logits of p_w, filtered.

    mass: 1 - rho, the most that the filter deletes.
    """
    log_w = (z_0.log_softmax(-1) + omega * log_p_good).log_softmax(-1)
    log_p_good = log_p_good.masked_fill(z_0.isneginf(), -torch.inf)  # what cannot be drawn: first
    ascending = log_p_good.argsort(-1)
    p_w = log_w.exp().gather(1, ascending)
    deleted = (p_w.cumsum(-1) < mass) & (log_p_good.gather(1, ascending).exp() < tau)
    deleted[:, -1] = False  # one is always left
    return log_w.masked_fill(torch.zeros_like(deleted).scatter(1, ascending, deleted), -torch.inf)


class GeDi(common.Together):
    """p0 reweighted by the guide, which reads each text twice: under r_1 and under r_2.

    sums (B, 2): log p(x_1:t | c) of each row so far. lengths (B,): its t.
    """

    def __init__(self, p0, guide, omega, mass, tau, bias=0.0, min_new_tokens=0):
        super().__init__([p0], min_new_tokens)
        self.guides = [CachedModel(guide.model), CachedModel(guide.model)]
        self.codes = [guide.reward_token_id(BAD), guide.reward_token_id(GOOD)]
        self.scale, self.settings = guide.model.config.gedi_scale, (omega, mass, tau)
        self.bias = torch.tensor([0.0, bias], device=guide.device)

    def start(self, padding):
        super().start(padding)
        self.padding = padding
        self.sums = None
        for network in self.guides:
            network.start(padding)

    def keep(self, rows):
        super().keep(rows)
        self.sums, self.lengths = self.sums[rows], self.lengths[rows]
        self.next_log_p = self.next_log_p[rows]
        for network in self.guides:
            network.keep(rows)

    def next_logits(self, tokens):
        if self.sums is None:
            self.read_prompts(tokens)
        else:  # one more token was drawn; its log-probability is known from the last step
            drawn = tokens[:, :, None].expand(-1, -1, 2)
            self.sums = self.sums + self.next_log_p.gather(1, drawn)[:, 0]
            self.lengths = self.lengths + 1
            self.next_log_p = torch.stack([self.log_p(g, tokens)[:, -1] for g in self.guides], -1)
        return super().next_logits(tokens)

    def read_prompts(self, tokens):
        """(P, T) left-padded prompts, each with a control code in front of its first token."""
        real = torch.arange(tokens.shape[1], device=tokens.device) >= self.padding[:, None]
        sums, last = [], []
        for guide, code in zip(self.guides, self.codes):
            with_code = torch.cat([tokens[:, :1], tokens], 1)
            with_code.scatter_(1, self.padding[:, None], code)
            log_p = self.log_p(guide, with_code)  # (P, T + 1, V)
            of_token = log_p[:, :-1].gather(2, tokens[:, :, None]).squeeze(2)
            sums.append((of_token * real).sum(1))
            last.append(log_p[:, -1])
        self.sums, self.lengths = torch.stack(sums, -1), real.sum(1)
        self.next_log_p = torch.stack(last, -1)  # (P, V, 2), of every possible next token

    def log_p(self, guide, tokens):
        """(B, t) next tokens -> log-probabilities (B, t, V) of the tokens that follow them."""
        return guide.logits_of(guide.next_states(tokens))[..., : self.V].log_softmax(-1)

    def combine(self, z_0):
        sums = self.sums[:, None] + self.next_log_p
        of_class = class_log_probs(sums, self.lengths[:, None] + 1, self.scale, self.bias)
        return reweighted(z_0, of_class[..., 1], *self.settings)


def main(argv=None):
    parser = common.generations_parser(__doc__)
    add = parser.add_argument
    add("--guide", required=True, help="what gedi_guide.py wrote")
    add("--omega", type=float, default=30.0, help="exponent of the class's probability")
    share = options.number(float, least=0, most=1)
    add("--filter-mass", type=share, default=0.8, help="1 - rho: at most this mass is deleted")
    add("--tau", type=float, default=0.8, help="tokens with P(c+) of at least this stay")
    add("--class-bias", type=float, default=0.0, help="b of the good class (detoxifying: 2)")
    args = parser.parse_args(argv)
    options.check_lengths(parser, args)
    p0, guide = common.load_for_sampling(args, args.guide)
    if guide.n_quantiles != 2 or not hasattr(guide.model.config, "gedi_scale"):
        raise BadInput(f"{args.guide} is no guide; make one with gedi_guide.py")
    settings = (args.omega, args.filter_mass, args.tau, args.class_bias, args.min_new_tokens)
    common.write_generations(p0, args, GeDi(p0, guide, *settings), [args.guide])


if __name__ == "__main__":
    options.run_stage(main)
