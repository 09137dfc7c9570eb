"""A whole round: explore.py, quantize.py and learn.py beside the trainers of TRL.

    pip install trl "datasets<5" "pyarrow<24"           # TRL 1.16 was measured
    python bench/whole_round.py [--turns 3] [--bf16]
    python bench/whole_round.py --only explore --turns 1 --prompts 4 --steps 1 --out /tmp/round.json

The task is the same for all: 8 completions of 20 tokens for each of 64 prompts (online DPO samples
2 at a time), the same reward function in Python, then 16 updates of 32 completions, with a KL to
the original model. The model is random: 6 layers of 256, 50,257 tokens. All run in one process, one
after the other.

Our time includes reading and writing files and the checkpoint. TRL's trainers are made before the
clock starts, save nothing, and run without gradient checkpointing, which is on by default there.
All multiply in float32, or all in bfloat16, TRL's default.
"""

import argparse
import contextlib
import inspect
import io
import json
import os
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from common import RESULTS, ROOT, V, make_policy, report, with_onednn

import explore
import learn
import quantize
from plumbing.tokenizer import EOS

SAMPLES, NEW, BATCH, BETA = 8, 20, 32, 0.05
TRAINERS = ("GRPO", "RLOO", "online DPO")


def commas(prompts, completions, **kwargs):
    """The reward: any function would do."""
    return [float(y.count(",")) + len(set(y)) / 100 for y in completions]


def write_model(folder):
    """Writes the random model. Its vocabulary is that of tiny/lm and further merges, V tokens."""
    vocab = json.loads((ROOT / "tiny/lm/vocab.json").read_text(encoding="utf-8"))
    merges = (ROOT / "tiny/lm/merges.txt").read_text(encoding="utf-8").strip("\n").split("\n")
    tokens = [token for token in vocab if token != EOS]
    known = set(tokens)
    for left in tokens[256:]:
        for right in tokens[256:300]:
            if len(tokens) < V - 1 and left + right not in known:
                tokens.append(left + right)
                known.add(left + right)
                merges.append(f"{left} {right}")
    make_policy("6x256").model.save_pretrained(folder)
    ids = {token: i for i, token in enumerate([*tokens, EOS])}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")


def our_round(form, model, prompts, reward, folder, args):
    """A function that makes one round with the stages' own command lines."""
    pool, quantized = f"{folder}/pool.jsonl", f"{folder}/quantized.jsonl"
    sampling = f"--num-samples {SAMPLES} --max-new-tokens {NEW} --min-new-tokens {NEW}".split()
    training = f"--steps {args.steps} --batch-size {BATCH} --beta {BETA} --lr 1e-5".split()
    inputs = ["--model", f"{model}", "--prompts", f"{prompts}", "--reward", f"{reward}:commas"]
    models = ["--model", f"{model}", "--reference", f"{model}"]

    def go():
        explore.main([*inputs, *sampling, "--batch-size", "256", "--out", pool, *args.bf16])
        quantize.main([pool, "--quantiles", "5", "--out", quantized])
        options = [*models, *training, *form, *args.bf16]
        learn.main(["--pool", quantized, *options, "--out", f"{folder}/model"])

    return with_onednn(go)


def trl_round(name, model, prompts, folder, args):
    """A function that makes the same round with a trainer of TRL."""
    from datasets import Dataset
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(
        model, pad_token=EOS, eos_token=EOS, padding_side="left"
    )
    rows = prompts.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["prompt"] for row in rows]
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": bool(args.bf16),
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "max_steps": args.steps,
        "learning_rate": 1e-5,
        "temperature": 1.0,
        "beta": BETA,
    }
    parts = {
        "model": GPT2LMHeadModel.from_pretrained(model),
        "reward_funcs": commas,
        "processing_class": tokenizer,
    }
    if name == "online DPO":
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

        config = OnlineDPOConfig(
            per_device_train_batch_size=BATCH // 2, max_new_tokens=NEW, max_length=64, **settings
        )
        data = Dataset.from_dict({"prompt": (texts * args.steps)[: args.steps * BATCH // 2]})
        reference = GPT2LMHeadModel.from_pretrained(model)
        trainer = OnlineDPOTrainer(args=config, train_dataset=data, ref_model=reference, **parts)
        return trainer.train
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    Config, Trainer = (GRPOConfig, GRPOTrainer) if name == "GRPO" else (RLOOConfig, RLOOTrainer)
    config = Config(
        per_device_train_batch_size=BATCH,
        steps_per_generation=args.steps,
        num_generations=SAMPLES,
        max_completion_length=NEW,
        **settings,
    )
    return Trainer(args=config, train_dataset=Dataset.from_dict({"prompt": texts}), **parts).train


def seconds_of(function):
    start = time.perf_counter()
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        function()
    return time.perf_counter() - start


def measure(folder, args):
    """{contestant: [seconds]}. The first turn is a warm-up and does not count."""
    model, prompts, reward = folder / "p0", folder / "prompts.jsonl", folder / "my_reward.py"
    write_model(model)
    lines = (ROOT / "tiny/prompts/train.jsonl").read_text(encoding="utf-8").splitlines()
    prompts.write_text("\n".join(lines[: args.prompts]) + "\n", encoding="utf-8")
    reward.write_text(inspect.getsource(commas), encoding="utf-8")
    ours = "explore, quantize, learn"
    forms = {ours: [], f"{ours} --closed-form": ["--closed-form"]}
    names = [*(f"TRL {trainer}" for trainer in TRAINERS), *forms]
    times = {name: [] for name in names if args.only in name}
    for turn in range(args.turns + 1):
        for name, seconds in times.items():
            own = folder / f"{turn} {name}"
            own.mkdir()
            if name in forms:
                go = our_round(forms[name], model, prompts, reward, own, args)
            else:
                go = trl_round(name.removeprefix("TRL "), model, prompts, own, args)
            took = seconds_of(go)
            print(f"{'warm-up: ' if turn == 0 else ''}{name} {took:.1f} s", flush=True)
            if turn:
                seconds.append(took)
    return times


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--turns", type=int, default=3, help="rounds of each after the warm-up")
    text = "products in bfloat16, for all"
    add("--bf16", action="store_const", const=["--bf16"], default=[], help=text)
    add("--prompts", type=int, default=64, help="prompts to sample for")
    add("--steps", type=int, default=16, help="updates")
    add("--only", default="", help="measure only contestants whose name contains this")
    text = "file for the results (default: whole_round.json or whole_round-bf16.json in results/)"
    add("--out", type=Path, help=text)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), args)
    work = f"{args.prompts} prompts x {SAMPLES} completions of {NEW} tokens"
    title = f"{work}, {args.steps} steps of {BATCH}, 6 x 256 with {V:,} tokens"
    name = "whole_round-bf16.json" if args.bf16 else "whole_round.json"
    report(args.out or RESULTS / name, {title: times})


if __name__ == "__main__":
    main()
