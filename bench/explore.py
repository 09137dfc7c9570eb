"""Exploring: our sampling loop, transformers' generate with the same settings, and the floor, alternately.

    python bench/explore.py [tiny] [gpt2]      # 64 prompts of 12 tokens, 20 new tokens each

The floor is the time that the matrix products of the work need at rates measured in the same run; what is above it is
attention, the softmax over 50,257 tokens, drawing, and Python.
"""

import sys

from common import V, alternately, as_here, matmul_rate, random_policy, report, seconds_of_products

import torch

from explore import sample

PROMPTS, LENGTH, NEW = 64, 12, 20


def floor(policy):
    """Seconds of all matrix products: the prompts at once, then a column a step; the output layer each time."""
    step = seconds_of_products(policy.model, PROMPTS) + 2 * PROMPTS * policy.model.config.n_embd * V / matmul_rate(PROMPTS, policy.model.config.n_embd, V)
    return seconds_of_products(policy.model, PROMPTS * LENGTH) + NEW * step


def main():
    tables = {}
    for shape in sys.argv[1:] or ["tiny", "gpt2"]:
        policy = random_policy(shape)
        prompts = torch.randint(V - 1, (PROMPTS, LENGTH), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(prompts)
        on_device = prompts.to(policy.device), mask.to(policy.device)

        def generate():
            with torch.no_grad():
                policy.model.generate(on_device[0], attention_mask=on_device[1], do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                                      max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=V - 1)  # fmt: skip

        def ours(bf16=False):
            sample(policy, prompts.tolist(), max_new_tokens=NEW, min_new_tokens=NEW, batch_size=PROMPTS, bf16=bf16)

        table = alternately({"transformers generate": generate, "explore.sample": as_here(ours), "explore.sample, --bf16": as_here(lambda: ours(True))})
        tables[f"{shape}: {PROMPTS} prompts x {NEW} tokens"] = {**table, "floor: float32 matrix products alone": [floor(policy)]}
    report("explore", tables)


if __name__ == "__main__":
    main()
