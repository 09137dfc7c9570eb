"""Learning: one step of ours, the straightforward step, and the floor, alternately.

    python bench/learn.py [tiny] [gpt2]      # 32 examples of 12 + 20 tokens

Straightforward: transformers' forward with logits at every position, KL and entropy by autograd from their definition,
AdamW with its defaults. The floor is the time that our step's matrix products need alone, measured in the same run.
"""

import sys
from types import SimpleNamespace

from common import V, alternately, as_here, has_bf16, random_policy, report, seconds_of_products

import numpy as np
import torch

from plumbing.fast_cpu import prepack
from learn import learn, quark_loss

EXAMPLES, PROMPT, NEW, K, BETA = 32, 12, 20, 5, 0.05


def floor(policy):
    """Blocks: forward, twice that backward, and p0's forward; output layer, at y's positions only: two logits, two gradients."""
    return 4 * seconds_of_products(policy.model, EXAMPLES * (PROMPT + NEW), EXAMPLES * NEW)[0]


def main():
    tables = {}
    for shape in sys.argv[1:] or ["tiny", "gpt2"]:
        reference, rng = random_policy(shape), np.random.default_rng(0)
        parts = [[(k, rng.integers(V - 1, size=PROMPT), rng.integers(V - 1, size=NEW)) for _ in range(EXAMPLES)] for k in range(1, K + 1)]

        def ours(bf16):
            policy, p0 = random_policy(shape, K), random_policy(shape)
            if p0.device.type == "cpu":
                prepack(p0.model, bf16)  # as main does
            args = SimpleNamespace(steps=10**9, total_steps=10**9, batch_size=EXAMPLES, grad_accum=1, beta=BETA, kl="forward", entropy_coef=0.0,
                                   clip=1.0, lr=1e-5, warmup=0, reward_token_lr=1.0, seed=0, bf16=bf16, closed_form=False)  # fmt: skip
            steps = learn(policy, p0, parts, args, torch.optim.Adam(policy.model.parameters(), eps=1e-5, fused=True), 0)
            return lambda: next(steps)

        def straightforward():
            policy = random_policy(shape, K)
            optimiser = torch.optim.AdamW(policy.model.parameters(), lr=1e-5)

            def step():
                batch = [parts[k][rng.integers(EXAMPLES)] for k in rng.integers(K, size=EXAMPLES)]
                x = torch.tensor(np.array([[*p, *y] for _, p, y in batch]), device=policy.device)
                tokens = torch.tensor([[V + k - 1] for k, _, _ in batch], device=policy.device)
                logits = policy.model(torch.cat([tokens, x], dim=1)).logits[:, 1:-1]
                with torch.no_grad():
                    reference_logits = reference.model(x).logits[:, :-1]
                mask = torch.zeros_like(x[:, 1:])
                mask[:, PROMPT - 1 :] = 1
                loss, _ = quark_loss(logits, reference_logits, x[:, 1:], mask, BETA)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
                optimiser.step()

            return step

        contestants = {"straightforward": straightforward(), "learn.py": as_here(ours(False))}
        if has_bf16():
            contestants["learn.py --bf16"] = as_here(ours(True))
        table = alternately(contestants, repeats=3)
        tables[f"{shape}: a step of {EXAMPLES} x ({PROMPT} + {NEW}) tokens"] = {**table, "floor: float32 matrix products alone": [floor(reference)]}
    report("learn", tables)


if __name__ == "__main__":
    main()
