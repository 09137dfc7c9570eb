"""A whole round: explore.py, quantize.py and learn.py against the trainers of TRL, which are what people use instead.

    pip install trl                         # beside the requirements; 1.16 was measured
    python bench/iteration.py [--turns 3] [--bf16]

Each samples 512 completions of 20 tokens for 64 prompts (8 a prompt; online DPO 2 at a time), scores them with the same
Python function and makes 16 gradient steps of 32 completions, with a KL to the original model, on the same random network of 6
layers of 256 with 50,257 tokens, in one process, one after the other. Ours reads and writes its files and the checkpoint within
its time; TRL's trainers are made before the clock starts and save nothing; gradient checkpointing, on by default there, is off.
All multiply in float32, or all in bfloat16, TRL's default.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"], os.environ["TOKENIZERS_PARALLELISM"] = "1", "false"

from common import ROOT, V, as_here, random_policy, report

import explore
import learn
import quantize

PROMPTS, SAMPLES, NEW, STEPS, BATCH, BETA = 64, 8, 20, 16, 32, 0.05
REWARD = """
def commas(prompts, completions, **kwargs):
    return [float(y.count(",")) + len(set(y)) / 100 for y in completions]
"""


def write_model(folder):
    """The random network in a folder, with a vocabulary of V tokens: tiny/lm's and after them merges of its tokens, in order."""
    vocab = json.loads((ROOT / "tiny/lm/vocab.json").read_text(encoding="utf-8"))
    merges = (ROOT / "tiny/lm/merges.txt").read_text(encoding="utf-8").strip("\n").split("\n")
    tokens = [token for token in vocab if token != explore.EOS]
    known = set(tokens)
    for left in tokens[256:]:
        for right in tokens[256:300]:
            if len(tokens) < V - 1 and left + right not in known:
                tokens.append(left + right), known.add(left + right), merges.append(f"{left} {right}")
    policy = random_policy("tiny")
    policy.model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate([*tokens, explore.EOS])}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")


def ours(model, prompts, reward, folder, bf16):
    """One round by the stages' own command lines; returns the function to be timed."""
    pool, quantized = folder / "pool.jsonl", folder / "quantized.jsonl"

    def go():
        explore.main(["--model", f"{model}", "--prompts", f"{prompts}", "--reward", f"{reward}:commas", "--num-samples", f"{SAMPLES}",
                      "--max-new-tokens", f"{NEW}", "--min-new-tokens", f"{NEW}", "--batch-size", "256", "--out", f"{pool}", *bf16])  # fmt: skip
        quantize.main([f"{pool}", "--quantiles", "5", "--out", f"{quantized}"])
        learn.main(["--pool", f"{quantized}", "--model", f"{model}", "--reference", f"{model}", "--steps", f"{STEPS}",
                    "--batch-size", f"{BATCH}", "--beta", f"{BETA}", "--lr", "1e-5", "--out", f"{folder / 'model'}", *bf16])  # fmt: skip

    return as_here(go)


def theirs(name, model, prompts, reward, folder, bf16):
    """A TRL trainer, ready to make the same round; returns the function to be timed."""
    from datasets import Dataset
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(model, pad_token=explore.EOS, eos_token=explore.EOS, padding_side="left")
    lines = [json.loads(line)["prompt"] for line in prompts.read_text(encoding="utf-8").splitlines()]
    common = dict(output_dir=str(folder), use_cpu=True, bf16=bool(bf16), gradient_checkpointing=False, report_to="none", save_strategy="no",
                  disable_tqdm=True, logging_strategy="no", max_steps=STEPS, learning_rate=1e-5)  # fmt: skip
    make = dict(model=GPT2LMHeadModel.from_pretrained(model), reward_funcs=reward, processing_class=tokenizer)
    if name == "online DPO":
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

        args = OnlineDPOConfig(**common, per_device_train_batch_size=BATCH // 2, max_new_tokens=NEW, max_length=64, temperature=1.0, beta=BETA)
        data = Dataset.from_dict({"prompt": (lines * STEPS)[: STEPS * BATCH // 2]})
        return OnlineDPOTrainer(args=args, train_dataset=data, ref_model=GPT2LMHeadModel.from_pretrained(model), **make).train
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    Config, Trainer = (GRPOConfig, GRPOTrainer) if name == "GRPO" else (RLOOConfig, RLOOTrainer)
    args = Config(**common, per_device_train_batch_size=BATCH, steps_per_generation=STEPS, num_generations=SAMPLES,
                  max_completion_length=NEW, temperature=1.0, beta=BETA)  # fmt: skip
    return Trainer(args=args, train_dataset=Dataset.from_dict({"prompt": lines}), **make).train


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--turns", type=int, default=3, help="rounds of each that are timed, after one that is not (default 3)")
    parser.add_argument("--bf16", action="store_const", const=["--bf16"], default=[], help="products in bfloat16, on all sides")
    args = parser.parse_args()
    names = ["TRL GRPO", "TRL RLOO", "TRL online DPO", "explore, quantize, learn"]
    times = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model, prompts, reward = folder / "p0", folder / "prompts.jsonl", folder / "my_reward.py"
        write_model(model)
        lines = (ROOT / "tiny/prompts/train.jsonl").read_text(encoding="utf-8").splitlines()
        prompts.write_text("\n".join(lines[:PROMPTS]) + "\n", encoding="utf-8")
        reward.write_text(REWARD, encoding="utf-8")
        scope = {}
        exec(REWARD, scope)
        for turn in range(args.turns + 1):
            for name in names:
                own = folder / f"{turn} {name}"
                own.mkdir()
                if name in names[:3]:
                    go = theirs(name[4:], model, prompts, scope["commas"], own, args.bf16)
                else:
                    go = ours(model, prompts, reward, own, args.bf16)
                start = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    go()
                seconds = time.perf_counter() - start
                print(f"{'not counted: ' if turn == 0 else ''}{name} {seconds:.1f} s", flush=True)
                if turn:
                    times[name].append(seconds)
    report("iteration-bf16" if args.bf16 else "iteration", {f"{PROMPTS} prompts x {SAMPLES} completions of {NEW} tokens, {STEPS} steps of {BATCH}, 6 x 256 with {V:,} tokens": times})


if __name__ == "__main__":
    main()
