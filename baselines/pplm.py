r"""PPLM: before each token, gradient steps on the keys and values of what was read so far.

A linear classifier D reads the mean hidden state of a text. At each token, m steps move H, the keys
and values of x_1 ... x_t-1, by Delta so that the text goes on towards the attribute a. A KL term
holds it near p0. p is p0's distribution of the next token. h_ahead is p0's state one token later,
where it reads e, the mean embedding of that token:

    p' = softmax LM(x_t; H + Delta),  h'_t its state;  e = sum_v p'(v) W_v
    h_ahead = LM(e; p0's own keys and values of x_1 ... x_t)
    s  = (sum_{j<t} h_j + stopgrad h'_t + h_ahead) / (t + 1)
    L  = -log D(a | s) + 0.01 KL(p' || p)
    Delta <- Delta - eta g / ||g||^gamma,       g the gradient of one layer's keys and values
    x_t+1 ~ p'^0.9 p^0.1, in the nucleus of 0.9

Delta is 0 at first. What it became at one token stays in H for the next.

Source   Dathathri et al. 2020 (arXiv 1912.02164), section 3; eta 0.2, m 10, gamma 1
Reads    --classifier, what baselines/pplm_classifier.py wrote; --model, p0; --prompts
Writes   --out: completions for evaluate.py --generations

    python baselines/pplm.py --model tiny/lm --classifier runs/baselines/classifier.json \
        --prompts tiny/prompts/test.jsonl --num-prompts 96 --out runs/baselines/pplm.jsonl
    python evaluate.py --generations runs/baselines/pplm.jsonl --reference tiny/lm \
        --reward sentiment --out runs/baselines/pplm-measured

Where we differ: the norm is taken per layer and per row, since several rows are written at once.
The original leaves the first token out of D's mean, and cuts p'^0.9 p^0.1 without normalising it
first; we do neither. The step sizes of its code and of the paper's text differ by a factor of about
five, so eta is best chosen by trying.
"""

import common
import torch
from transformers import DynamicCache

from plumbing import options
from plumbing.files import read_json
from plumbing.policy import CachedModel, load_policy
from plumbing.pool import BadInput


class Pplm:
    """A `network` of `explore.sample`. The perturbed past carries on to the next token.

    A past is, for each layer, its keys and values, (B, heads, t, d_head) each. total (B, d): the
    sum of p0's states h_j so far, j < t while a step is made.
    """

    def __init__(self, policy, weight, bias, m, eta, gamma, kl_scale, gm_scale):
        self.model, self.V = policy.model, policy.vocab_size
        self.logits_of = CachedModel(policy.model).logits_of
        self.weight, self.bias = weight, bias  # D: log odds of a = s . weight + bias
        self.m, self.eta, self.gamma = m, eta, gamma
        self.kl_scale, self.gm_scale = kl_scale, gm_scale
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)  # the gradient is that of the past only

    def start(self, padding):
        self.padding = padding
        self.past = self.plain = None  # [(keys, values) of each layer]: perturbed, and p0's own

    def keep(self, rows):
        self.padding, self.total = self.padding[rows], self.total[rows]
        for name in ("past", "plain"):
            setattr(self, name, [(k[rows], v[rows]) for k, v in getattr(self, name)])

    def forward(self, past, tokens=None, embedded=None):
        """Reads t more columns after `past`: hidden states (B, t, d), and the longer past."""
        reads = {"input_ids": tokens} if embedded is None else {"inputs_embeds": embedded}
        t = (tokens if embedded is None else embedded).shape[1]
        cache = DynamicCache(config=self.model.config)
        before = 0
        if past is not None:
            before = past[0][0].shape[2]
            for layer, (keys, values) in enumerate(past):
                cache.update(keys, values, layer)
        column = torch.arange(before + t, device=self.padding.device)
        real = column >= self.padding[:, None]
        position = (column - self.padding[:, None]).clamp(min=0)[:, -t:]
        more = {"attention_mask": real.long(), "position_ids": position, "past_key_values": cache}
        output = self.model.base_model(**reads, **more, use_cache=True)
        past = [(in_full(layer.keys), in_full(layer.values)) for layer in cache.layers]
        return in_full(output.last_hidden_state), past

    def logits(self, hidden):
        return self.logits_of(hidden)[..., : self.V]

    def next_logits(self, tokens):
        if self.plain is None and tokens.shape[1] > 1:  # the prompt, but for its last token
            states, self.plain = self.forward(None, tokens[:, :-1])
            real = torch.arange(states.shape[1], device=tokens.device) >= self.padding[:, None]
            self.past, self.total = self.plain, (states * real[..., None]).sum(1)
        last = tokens[:, -1:]
        hidden, self.plain = self.forward(self.plain, last)
        log_p = self.logits(hidden[:, -1]).log_softmax(-1)
        if self.past is None:  # a prompt of one token has no past to move
            self.past, self.total = self.plain, hidden[:, -1]
            return log_p
        read = self.plain[0][0].shape[2] - self.padding  # (B,): t of each row
        past = self.past
        for _ in range(self.m):
            past = self.moved(past, last, log_p, read)
        perturbed, self.past = self.forward(past, last)
        log_moved = self.logits(perturbed[:, -1]).log_softmax(-1)
        self.total = self.total + hidden[:, -1]
        return self.gm_scale * log_moved + (1 - self.gm_scale) * log_p

    def moved(self, past, last, log_p, read):
        """`past` after one step against the gradient of L; each row by its own norm."""
        with torch.enable_grad():
            leaves = [(k.detach().requires_grad_(), v.detach().requires_grad_()) for k, v in past]
            loss = self.losses(leaves, last, log_p, read).sum()  # rows do not touch each other
            flat = [tensor for pair in leaves for tensor in pair]
            gradients = torch.autograd.grad(loss, flat)
        result = []
        for i, (keys, values) in enumerate(past):
            g_k, g_v = gradients[2 * i], gradients[2 * i + 1]
            norm = (g_k.pow(2).sum((1, 2, 3)) + g_v.pow(2).sum((1, 2, 3))).sqrt() + 1e-15
            step = (self.eta / norm**self.gamma)[:, None, None, None]
            result.append((keys - step * g_k, values - step * g_v))
        return result

    def losses(self, past, last, log_p, read):
        """(B,): -log D(a | s) + kl_scale KL(p' || p) of each row, where `past` is H + Delta."""
        states, _ = self.forward(past, last)
        log_moved = self.logits(states[:, -1]).log_softmax(-1)
        p_moved = log_moved.exp()
        embedded = p_moved @ self.model.get_input_embeddings().weight[: self.V]
        ahead, _ = self.forward(self.plain, embedded=embedded[:, None])
        mean = (self.total + states[:, -1].detach() + ahead[:, -1]) / (read + 1)[:, None]
        log_d = torch.nn.functional.logsigmoid((mean * self.weight).sum(-1) + self.bias)
        return -log_d + self.kl_scale * (p_moved * (log_moved - log_p)).sum(-1)


def in_full(x):
    """A step of H is smaller than the rounding of bfloat16, in which it would be lost."""
    return x.float() if x.dtype == torch.bfloat16 else x


def main(argv=None):
    parser = common.generations_parser(__doc__)
    add = parser.add_argument
    add("--classifier", required=True, help="what pplm_classifier.py wrote")
    add("--m", type=options.COUNT, default=10, help="gradient steps a token")
    add("--eta", type=float, default=0.2, help="their size")
    add("--gamma", type=float, default=1.0, help="exponent of the gradient's norm")
    add("--kl-scale", type=float, default=0.01, help="weight of KL(p' || p)")
    add("--gm-scale", type=float, default=0.9, help="p' ^ this times p ^ (1 - this)")
    args = parser.parse_args(argv)
    options.check_lengths(parser, args)
    # The steps differentiate, so nothing is repacked; weights stored in bfloat16 are quick as well.
    in_bf16 = args.bf16 or args.bf16_weights
    policy = load_policy(args.model, options.pick_device(args.device), in_bf16)
    found = read_json(args.classifier, "what pplm_classifier.py wrote")
    weight = torch.tensor(found.get("weight") or [], device=policy.device)
    if weight.shape != (policy.head.weight.shape[1],) or "bias" not in found:
        raise BadInput(f"{args.classifier} is no classifier of this model; run pplm_classifier.py")
    settings = (args.m, args.eta, args.gamma, args.kl_scale, args.gm_scale)
    network = Pplm(policy, weight, found["bias"], *settings)
    common.write_generations(policy, args, network, [args.classifier])


if __name__ == "__main__":
    options.run_stage(main)
