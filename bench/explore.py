"""Exploring: our sampling loop, transformers' generate with the same settings, and the floor, alternately.

    python bench/explore.py [tiny] [gpt2]      # 64 prompts of 12 tokens, 20 new tokens each

The floor is the time that the work's matrix products need alone, measured in the same run; what is above it is attention, the
softmax over 50,257 tokens, drawing, and Python.
"""

import functools
import json
import sys

from common import ROOT, V, alternately, as_here, has_bf16, has_vnni, random_policy, report, seconds_of_products

import torch

from explore import Decoder, load_policy, sample
from plumbing.fast_cpu import in_int8, prepack

PROMPTS, LENGTH, NEW = 64, 12, 20


def floor(policy):
    """Seconds of all matrix products, plain and laid out: the prompts at once, then a column a step; the output layer each time."""
    first, later = (seconds_of_products(policy.model, rows, PROMPTS) for rows in (PROMPTS * LENGTH, PROMPTS))
    return [one + (NEW - 1) * more for one, more in zip(first, later)]


def differences():
    """What --bf16 and --int8 do to p, with the trained tiny/lm on its own samples: the mean KL to float32's p, and the mean total
    variation: of so many tokens another one is drawn, at the least."""
    policy, rough = load_policy(ROOT / "tiny/lm"), load_policy(ROOT / "tiny/lm")
    in_int8(rough.model)
    prompts = [policy.encode(json.loads(line)["prompt"]) for line in (ROOT / "tiny/prompts/test.jsonl").read_text().splitlines()]
    texts = [x + y for x, y in zip(prompts, sample(policy, prompts, max_new_tokens=NEW))]

    def log_p(policy, bf16=False):
        logits = []
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            for text in texts:
                network = Decoder(policy.model, torch.tensor([0]), len(text))
                logits += [network.next_logits(torch.tensor([[token]])) for token in text]
        return torch.cat(logits).log_softmax(-1)

    exact = log_p(policy)
    others = {"--bf16": log_p(policy, bf16=True)} if has_bf16() else {}
    for name, other in (others | {"--int8": log_p(rough)}).items():
        kl = (exact.exp() * (exact - other)).sum(-1).mean()
        variation = (exact.exp() - other.exp()).abs().sum(-1).mean() / 2
        print(f"  {name}: KL {kl:.5f} nats a token, total variation {variation:.4f}")


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

        policies = {option: random_policy(shape) for option in ["", *[" --bf16"] * has_bf16(), *[" --int8"] * has_vnni()]}
        if policy.device.type == "cpu":  # as explore.py does
            for option, other in policies.items():
                in_int8(other.model) if option == " --int8" else prepack(other.model, bf16=option == " --bf16")

        def ours(option):
            sample(policies[option], prompts.tolist(), max_new_tokens=NEW, min_new_tokens=NEW, batch_size=PROMPTS, bf16=option == " --bf16")

        table = alternately({"transformers generate": generate} | {f"explore.py{o}": as_here(functools.partial(ours, o)) for o in policies})
        plain, laid = floor(policy)
        table |= {"floor: float32 matrix products alone": [plain], "floor: the same, the weights laid out": [laid]}
        tables[f"{shape}: {PROMPTS} prompts x {NEW} tokens"] = table
    report("explore", tables)
    print("\nwhat rounding does to tiny/lm:")
    differences()


if __name__ == "__main__":
    main()
