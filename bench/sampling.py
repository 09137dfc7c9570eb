"""Sampling: explore.py beside transformers' `generate`, and with and without prepacked weights.

    python bench/sampling.py
    python bench/sampling.py --shapes tiny/lm --batch 4 --new 3 --repeats 1 --out /tmp/sampling.json

Each contestant samples 20 tokens for each of 64 prompts of 12 tokens (256 prompts with tiny/lm, as
in run_all.sh). All use the same settings and take turns in one process. "not prepacked" leaves out
`prepack` of plumbing/fast_cpu.py. The rows "matrix products alone" are a lower bound; the rest is
attention, the softmax over the vocabulary, drawing, and Python.

At the end the script measures how much --bf16 changes the probabilities of tiny/lm.
"""

import json

import torch
from common import (
    ROOT,
    alternately,
    bench_parser,
    has_bf16,
    make_policy,
    report,
    seconds_of_products,
    with_onednn,
)

from explore import sample
from plumbing.fast_cpu import prepack

LENGTH = 12  # tokens of a prompt


def explore_contestant(shape, prompts, new, bf16, prepacked):
    """A function that samples as explore.py does."""
    policy = make_policy(shape)
    if prepacked:
        prepack(policy.model, bf16)
    settings = {"max_new_tokens": new, "min_new_tokens": new, "bf16": bf16}
    return with_onednn(lambda: sample(policy, prompts, batch_size=len(prompts), **settings))


def generate_contestant(shape, prompts, new):
    """A function that samples with `generate` of transformers."""
    policy = make_policy(shape)
    ids = torch.tensor(prompts)
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    lengths = {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": policy.eos_id}

    @torch.no_grad()
    def generate():
        policy.model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **lengths)

    return generate


def lower_bound(shape, batch, new):
    """Seconds of all matrix products: (with plain weights, with prepacked weights).

    First all prompts go through the network, then one column a step. The output layer is used once
    a step.
    """
    model = make_policy(shape).model
    plain, prepacked = seconds_of_products(model, batch * LENGTH, batch)
    later_plain, later_prepacked = seconds_of_products(model, batch, batch)
    return plain + (new - 1) * later_plain, prepacked + (new - 1) * later_prepacked


def measure(shape, batch, new, repeats):
    """{contestant: [seconds]} of one shape."""
    V = make_policy(shape).vocab_size
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(V - 1, (batch, LENGTH), generator=generator).tolist()
    contestants = {"transformers generate": generate_contestant(shape, prompts, new)}
    for option in ("", " --bf16") if has_bf16() else ("",):
        for prepacked in (True, False):
            name = f"explore.py{option}" + ("" if prepacked else ", not prepacked")
            bf16 = option == " --bf16"
            contestants[name] = explore_contestant(shape, prompts, new, bf16, prepacked)
    times = alternately(contestants, repeats)
    plain, prepacked = lower_bound(shape, batch, new)
    times["matrix products alone"] = [plain]
    times["matrix products alone, prepacked"] = [prepacked]
    return times


# ------------------------------------------------------------------------------ rounding by --bf16


@torch.no_grad()
def log_probabilities(policy, texts, bf16):
    """log p of every next token of the texts: (tokens of all texts, V), one forward pass a text."""
    logits = []
    for text in texts:
        hidden = policy.hidden_states([text], bf16)
        logits.append(policy.model.lm_head(hidden)[0])
    return torch.cat(logits).log_softmax(-1)


def rounding(n_prompts):
    """How far p under --bf16 is from p in float32, with tiny/lm on its own samples.

    Returns two means over the tokens: the KL in nats, and the total variation. The total variation
    is the smallest share of tokens that come out differently.
    """
    policy = make_policy("tiny/lm")
    lines = (ROOT / "tiny/prompts/test.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [policy.encode(json.loads(line)["prompt"]) for line in lines[:n_prompts]]
    completions = sample(policy, prompts, max_new_tokens=20)
    texts = [x + y for x, y in zip(prompts, completions)]
    exact = log_probabilities(policy, texts, bf16=False)
    prepack(policy.model, bf16=True)
    rounded = log_probabilities(policy, texts, bf16=True)
    kl = (exact.exp() * (exact - rounded)).sum(-1).mean().item()
    variation = (exact.exp() - rounded.exp()).abs().sum(-1).mean().item() / 2
    return {"KL": kl, "total variation": variation}


def main(argv=None):
    parser = bench_parser(__doc__, "sampling", ["tiny/lm", "6x256", "gpt2"], repeats=5)
    text = "prompts sampled together (default: 256 with tiny/lm, else 64)"
    parser.add_argument("--batch", type=int, help=text)
    parser.add_argument("--new", type=int, default=20, help="tokens to sample")
    parser.add_argument("--texts", type=int, default=288, help="prompts of the rounding test")
    args = parser.parse_args(argv)
    tables = {}
    for shape in args.shapes:
        batch = args.batch or (256 if shape == "tiny/lm" else 64)
        title = f"{shape}: {batch} prompts x {args.new} tokens"
        tables[title] = measure(shape, batch, args.new, args.repeats)
    more = {"bf16 against float32": rounding(args.texts)} if has_bf16() else {}
    report(args.out, tables, **more)
    for name, value in more.get("bf16 against float32", {}).items():
        print(f"tiny/lm, --bf16 against float32: {name} {value:.5f}")


if __name__ == "__main__":
    main()
