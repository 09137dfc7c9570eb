"""Training: one update of learn.py, by quark_loss and by the closed form.

    python bench/training.py
    python bench/training.py --shapes tiny/lm --batch 4 --repeats 1 --out /tmp/training.json

Each update learns from 32 examples (tiny/lm: 16, then 32) of 12 + 20 tokens. The contestants take
turns in one process:

- "straightforward": transformers' forward pass with logits at every position, quark_loss, and AdamW
  with its defaults;
- "learn.py": logits at the positions of y alone, quark_loss by autograd, and a prepacked p0;
- "learn.py --closed-form": the same, with the gradient of plumbing/closed_form.py;
- "matrix products alone": a lower bound of the two above.
"""

import numpy as np
import torch
from common import (
    alternately,
    bench_parser,
    has_bf16,
    make_policy,
    random_parts,
    report,
    seconds_of_products,
    updates,
    with_onednn,
)

from learn import quark_loss
from plumbing.fast_cpu import prepack

PROMPT, NEW, K, BETA = 12, 20, 5, 0.05


def straightforward(shape, reference, parts, batch):
    """A function that makes one update as one writes it first."""
    policy = make_policy(shape, K)
    V = policy.vocab_size
    optimiser = torch.optim.AdamW(policy.model.parameters(), lr=1e-5)
    rng = np.random.default_rng(0)

    def step():
        rows = [parts[k][rng.integers(len(parts[k]))] for k in rng.integers(K, size=batch)]
        tokens = torch.tensor(np.array([[*x, *y] for _, x, y in rows]))
        r_k = torch.tensor([[V + k - 1] for k, _, _ in rows])
        logits = policy.model(torch.cat([r_k, tokens], dim=1)).logits[:, 1:-1]
        with torch.no_grad():
            reference_logits = reference.model(tokens).logits[:, :-1]
        targets = tokens[:, 1:]
        mask = torch.zeros_like(targets)
        mask[:, PROMPT - 1 :] = 1
        loss, _ = quark_loss(logits, reference_logits, targets, mask, BETA)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimiser.step()

    return step


def learn_contestant(shape, reference, parts, batch, bf16, closed_form):
    """A function that makes one update of learn.py."""
    steps = updates(make_policy(shape, K), reference, parts, batch, bf16, closed_form)
    return with_onednn(lambda: next(steps))


def lower_bound(model, batch):
    """Seconds of all matrix products of an update.

    Blocks: the policy's forward pass, its backward pass (twice as much), and p0's forward pass. The
    output layer, at the positions of y alone: two times logits and two gradients.
    """
    plain, _ = seconds_of_products(model, batch * (PROMPT + NEW), batch * NEW)
    return 4 * plain


def measure(shape, batch, repeats):
    """{contestant: [seconds]} of one shape."""
    reference = make_policy(shape)
    parts = random_parts(reference.vocab_size, K, batch, PROMPT, NEW)
    contestants = {"straightforward": straightforward(shape, reference, parts, batch)}
    for option in ("", " --bf16") if has_bf16() else ("",):
        bf16 = option == " --bf16"
        prepacked = make_policy(shape)
        prepack(prepacked.model, bf16)  # as learn.py does with p0
        for form in ("", " --closed-form"):
            step = learn_contestant(shape, prepacked, parts, batch, bf16, bool(form))
            contestants[f"learn.py{form}{option}"] = step
    times = alternately(contestants, repeats)
    times["matrix products alone"] = [lower_bound(reference.model, batch)]
    return times


def main(argv=None):
    parser = bench_parser(__doc__, "training", ["tiny/lm", "6x256", "gpt2"], repeats=3)
    text = "examples an update (default: 16 and 32 with tiny/lm, else 32)"
    parser.add_argument("--batch", type=int, nargs="+", help=text)
    args = parser.parse_args(argv)
    tables = {}
    for shape in args.shapes:
        for batch in args.batch or ([16, 32] if shape == "tiny/lm" else [32]):
            title = f"{shape}: a step of {batch} x ({PROMPT} + {NEW}) tokens"
            tables[title] = measure(shape, batch, args.repeats)
    report(args.out, tables)


if __name__ == "__main__":
    main()
