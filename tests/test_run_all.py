"""run_all.sh: Algorithm 1. Which commands it starts, and what each of them reads.

A stand-in takes the place of python (stand_in.py). The expected commands are written out in full.
"""

import importlib
import json
import os
import shlex
import subprocess

import pytest
from conftest import ROOT
from stand_in import python_of, split_command


def run_all(folder, task, **settings):
    """Runs run_all.sh with RUN=folder/run. Returns the words of its commands, with RUN for that.

    Variables of whoever starts the tests do not count. BF16 depends on the processor.
    """
    run, log = folder / "run", folder / "log"
    log.unlink(missing_ok=True)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"PYTHON": str(python_of(folder)), "RUN": str(run), "BF16": "", **settings}
    command = ["bash", str(ROOT / "run_all.sh"), task]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text().replace(str(run), "RUN").splitlines()]


def split(commands):
    return [split_command(words) for words in commands]


def written_out(text):
    """The commands of a text below, one in each paragraph."""
    return split(shlex.split(command) for command in text.strip().split("\n\n"))


def origin(file):
    return json.loads(file.read_text())


# ------------------------------------------------------------------------------------- the commands

SENTIMENT = """
explore.py --model tiny/lm --prompts tiny/prompts/train.jsonl --reward sentiment
    --iteration 0 --num-prompts 384 --num-samples 4 --decode sample --top-p 0.98
    --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0 --out RUN/pool/00.jsonl

quantize.py RUN/pool/00.jsonl --quantiles 5 --per-prompt --keep-top 0.8 --seed 0
    --out RUN/quantized/00.jsonl

learn.py --pool RUN/quantized/00.jsonl --model tiny/lm --reference tiny/lm
    --beta 0.05 --kl forward --entropy-coef 0 --steps 60 --total-steps 180 --batch-size 16
    --grad-accum 1 --lr 2e-4 --warmup 30 --clip 1 --reward-token-lr 10
    --reward-token-init ordered --seed 0 --out RUN/model/01

explore.py --model RUN/model/01 --prompts tiny/prompts/train.jsonl --reward sentiment
    --iteration 1 --num-prompts 384 --num-samples 4 --decode sample --top-p 0.98
    --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0 --out RUN/pool/01.jsonl

quantize.py RUN/quantized/00.jsonl RUN/pool/01.jsonl --quantiles 5 --per-prompt --keep-top 0.8
    --seed 0 --out RUN/quantized/01.jsonl

learn.py --pool RUN/quantized/01.jsonl --model RUN/model/01 --reference tiny/lm
    --beta 0.05 --kl forward --entropy-coef 0 --steps 60 --total-steps 180 --batch-size 16
    --grad-accum 1 --lr 2e-4 --warmup 30 --clip 1 --reward-token-lr 10
    --reward-token-init ordered --seed 0 --out RUN/model/02

explore.py --model RUN/model/02 --prompts tiny/prompts/train.jsonl --reward sentiment
    --iteration 2 --num-prompts 384 --num-samples 4 --decode sample --top-p 0.98
    --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0 --out RUN/pool/02.jsonl

quantize.py RUN/quantized/01.jsonl RUN/pool/02.jsonl --quantiles 5 --per-prompt --keep-top 0.8
    --seed 0 --out RUN/quantized/02.jsonl

learn.py --pool RUN/quantized/02.jsonl --model RUN/model/02 --reference tiny/lm
    --beta 0.05 --kl forward --entropy-coef 0 --steps 60 --total-steps 180 --batch-size 16
    --grad-accum 1 --lr 2e-4 --warmup 30 --clip 1 --reward-token-lr 10
    --reward-token-init ordered --seed 0 --out RUN/model/03

evaluate.py --model tiny/lm --reference tiny/lm --ppl-model tiny/lm
    --prompts tiny/prompts/test.jsonl --reward sentiment --decode sample --top-p 0.9
    --num-samples 25 --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0
    --short --out RUN/eval/base

evaluate.py --model RUN/model/03 --reference tiny/lm --ppl-model tiny/lm
    --prompts tiny/prompts/test.jsonl --reward sentiment --decode sample --top-p 0.9
    --num-samples 25 --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0
    --short --out RUN/eval/quark

evaluate.py --model RUN/model/03 --reference tiny/lm --ppl-model none
    --prompts tiny/prompts/test.jsonl --reward sentiment --decode sample --top-p 0.9
    --num-samples 6 --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0
    --reward-token all --out RUN/eval/dial

evaluate.py --compare RUN/eval/base.json RUN/eval/quark.json --report RUN --short
"""

TOXICITY = """
explore.py --model tiny/lm --prompts tiny/prompts/train.jsonl --reward toxicity
    --iteration 0 --num-prompts 384 --num-samples 4 --decode sample --top-p 0.98
    --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0 --out RUN/pool/00.jsonl

quantize.py RUN/pool/00.jsonl --quantiles 5 --per-prompt --keep-top 0.9 --seed 0
    --out RUN/quantized/00.jsonl

learn.py --pool RUN/quantized/00.jsonl --model tiny/lm --reference tiny/lm
    --beta 0.05 --kl forward --entropy-coef 0 --steps 60 --total-steps 120 --batch-size 16
    --grad-accum 1 --lr 3e-4 --warmup 30 --clip 1 --reward-token-lr 10
    --reward-token-init ordered --seed 0 --out RUN/model/01

explore.py --model RUN/model/01 --prompts tiny/prompts/train.jsonl --reward toxicity
    --iteration 1 --num-prompts 384 --num-samples 4 --decode sample --top-p 0.98
    --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0 --out RUN/pool/01.jsonl

quantize.py RUN/quantized/00.jsonl RUN/pool/01.jsonl --quantiles 5 --per-prompt --keep-top 0.9
    --seed 0 --out RUN/quantized/01.jsonl

learn.py --pool RUN/quantized/01.jsonl --model RUN/model/01 --reference tiny/lm
    --beta 0.05 --kl forward --entropy-coef 0 --steps 60 --total-steps 120 --batch-size 16
    --grad-accum 1 --lr 3e-4 --warmup 30 --clip 1 --reward-token-lr 10
    --reward-token-init ordered --seed 0 --out RUN/model/02

evaluate.py --model tiny/lm --reference tiny/lm --ppl-model tiny/lm
    --prompts tiny/prompts/test.jsonl --reward toxicity --decode sample --top-p 0.9
    --num-samples 25 --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0
    --short --out RUN/eval/base

evaluate.py --model RUN/model/02 --reference tiny/lm --ppl-model tiny/lm
    --prompts tiny/prompts/test.jsonl --reward toxicity --decode sample --top-p 0.9
    --num-samples 25 --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0
    --short --out RUN/eval/quark

evaluate.py --model RUN/model/02 --reference tiny/lm --ppl-model none
    --prompts tiny/prompts/test.jsonl --reward toxicity --decode sample --top-p 0.9
    --num-samples 6 --max-new-tokens 20 --min-new-tokens 3 --batch-size 256 --seed 0
    --reward-token all --out RUN/eval/dial

evaluate.py --compare RUN/eval/base.json RUN/eval/quark.json --report RUN --short
"""

# p0 explores by another nucleus than the later rounds, and no row is dropped for good.
REPETITION = """
explore.py --model tiny/lm --prompts tiny/prompts/train.jsonl --reward repetition
    --iteration 0 --num-prompts 192 --num-samples 5 --decode sample --top-p 0.6
    --max-new-tokens 64 --min-new-tokens 64 --batch-size 256 --seed 0 --out RUN/pool/00.jsonl

quantize.py RUN/pool/00.jsonl --quantiles 2 --per-prompt --last 1 --keep-p0
    --keep-top 0.75 --seed 0
    --out RUN/quantized/00.jsonl

learn.py --pool RUN/quantized/00.jsonl --model tiny/lm --reference tiny/lm
    --beta 0.2 --kl forward --entropy-coef 0 --steps 150 --total-steps 450 --batch-size 20
    --grad-accum 1 --lr 2e-3 --warmup 30 --clip 1 --reward-token-lr 10
    --reward-token-init ordered --seed 0 --out RUN/model/01

explore.py --model RUN/model/01 --prompts tiny/prompts/train.jsonl --reward repetition
    --iteration 1 --num-prompts 192 --num-samples 5 --decode sample --top-p 0.97
    --max-new-tokens 64 --min-new-tokens 64 --batch-size 256 --seed 0 --out RUN/pool/01.jsonl

quantize.py RUN/pool/00.jsonl RUN/pool/01.jsonl --quantiles 2 --per-prompt --last 1 --keep-p0
    --keep-top 0.75 --seed 0
    --out RUN/quantized/01.jsonl

learn.py --pool RUN/quantized/01.jsonl --model RUN/model/01 --reference tiny/lm
    --beta 0.2 --kl forward --entropy-coef 0 --steps 150 --total-steps 450 --batch-size 20
    --grad-accum 1 --lr 2e-3 --warmup 30 --clip 1 --reward-token-lr 10
    --reward-token-init ordered --seed 0 --out RUN/model/02

explore.py --model RUN/model/02 --prompts tiny/prompts/train.jsonl --reward repetition
    --iteration 2 --num-prompts 192 --num-samples 5 --decode sample --top-p 0.97
    --max-new-tokens 64 --min-new-tokens 64 --batch-size 256 --seed 0 --out RUN/pool/02.jsonl

quantize.py RUN/pool/00.jsonl RUN/pool/01.jsonl RUN/pool/02.jsonl --quantiles 2 --per-prompt
    --last 1 --keep-p0 --keep-top 0.75
    --seed 0 --out RUN/quantized/02.jsonl

learn.py --pool RUN/quantized/02.jsonl --model RUN/model/02 --reference tiny/lm
    --beta 0.2 --kl forward --entropy-coef 0 --steps 150 --total-steps 450 --batch-size 20
    --grad-accum 1 --lr 2e-3 --warmup 30 --clip 1 --reward-token-lr 10
    --reward-token-init ordered --seed 0 --out RUN/model/03

evaluate.py --model tiny/lm --reference tiny/lm --ppl-model tiny/lm
    --prompts tiny/prompts/test.jsonl --reward repetition --decode greedy --num-samples 1
    --max-new-tokens 64 --min-new-tokens 64 --batch-size 256 --seed 0 --short --out RUN/eval/base

evaluate.py --model RUN/model/03 --reference tiny/lm --ppl-model tiny/lm
    --prompts tiny/prompts/test.jsonl --reward repetition --decode greedy --num-samples 1
    --max-new-tokens 64 --min-new-tokens 64 --batch-size 256 --seed 0 --short --out RUN/eval/quark

evaluate.py --model tiny/lm --reference tiny/lm --ppl-model tiny/lm
    --prompts tiny/prompts/test.jsonl --reward repetition --decode sample --top-p 0.9
    --num-samples 2 --max-new-tokens 64 --min-new-tokens 64 --batch-size 256 --seed 0
    --short --out RUN/eval/base-nucleus

evaluate.py --model RUN/model/03 --reference tiny/lm --ppl-model tiny/lm
    --prompts tiny/prompts/test.jsonl --reward repetition --decode sample --top-p 0.9
    --num-samples 2 --max-new-tokens 64 --min-new-tokens 64 --batch-size 256 --seed 0
    --short --out RUN/eval/quark-nucleus

evaluate.py --model RUN/model/03 --reference tiny/lm --ppl-model none
    --prompts tiny/prompts/test.jsonl --reward repetition --decode greedy --num-samples 1
    --max-new-tokens 64 --min-new-tokens 64 --batch-size 256 --seed 0
    --reward-token all --out RUN/eval/dial

evaluate.py --compare RUN/eval/base.json RUN/eval/quark.json RUN/eval/base-nucleus.json
    RUN/eval/quark-nucleus.json --report RUN --short
"""

# Every setting has a value of its own here, so two that change places are seen. Names may hold
# blanks and stars, and options are split at their blanks.
EVERYTHING_SET = {
    "MODEL": "p0's *",
    "REWARD": "MINE/my *.py:f",
    "REWARD_MODEL": "the * judge",
    "PROMPTS": "MINE/to train.jsonl",
    "TEST_PROMPTS": "MINE/to test.jsonl",
    "PPL_MODEL": "a larger one",
    "SEED": "7",
    "ITERATIONS": "2",
    "NUM_PROMPTS": "11",
    "NUM_SAMPLES": "13",
    "NEW_TOKENS": "17",
    "MIN_TOKENS": "5",
    "SAMPLE_BATCH": "19",
    "EXPLORE_P0": "--top-k 23 --temperature *",
    "EXPLORE": "--top-k 29",
    "K": "31",
    "QUANTIZE": "--ties age",
    "FORGET": "",
    "BETA": "0.37",
    "KL": "reverse",
    "ENTROPY": "0.41",
    "STEPS": "43",
    "BATCH": "47",
    "GRAD_ACCUM": "53",
    "LR": "0.59",
    "WARMUP": "61",
    "CLIP": "67",
    "REWARD_TOKEN_LR": "71",
    "REWARD_TOKEN_INIT": "ordered",
    "LEARN": "--no-reward-token",
    "BF16": "--bf16",
    "EVALUATE": "--top-p 0.73 --num-samples 79",
    "DIAL_SAMPLES": "83",
}

WITH_EVERYTHING_SET = """
explore.py --model "p0's *" --prompts "MINE/to train.jsonl" --reward "MINE/my *.py:f"
    --reward-model "the * judge" --iteration 0 --num-prompts 11 --num-samples 13 --top-k 23
    --temperature "*" --max-new-tokens 17 --min-new-tokens 5 --batch-size 19 --bf16 --seed 7
    --out RUN/pool/00.jsonl

quantize.py RUN/pool/00.jsonl --quantiles 31 --ties age --seed 7 --out RUN/quantized/00.jsonl

learn.py --pool RUN/quantized/00.jsonl --model "p0's *" --reference "p0's *"
    --beta 0.37 --kl reverse --entropy-coef 0.41 --steps 43 --total-steps 86 --batch-size 47
    --grad-accum 53 --lr 0.59 --warmup 61 --clip 67 --reward-token-lr 71
    --reward-token-init ordered --bf16 --no-reward-token --seed 7 --out RUN/model/01

explore.py --model RUN/model/01 --prompts "MINE/to train.jsonl" --reward "MINE/my *.py:f"
    --reward-model "the * judge" --iteration 1 --num-prompts 11 --num-samples 13 --top-k 29
    --max-new-tokens 17 --min-new-tokens 5 --batch-size 19 --bf16 --seed 7
    --out RUN/pool/01.jsonl

quantize.py RUN/pool/00.jsonl RUN/pool/01.jsonl --quantiles 31 --ties age --seed 7
    --out RUN/quantized/01.jsonl

learn.py --pool RUN/quantized/01.jsonl --model RUN/model/01 --reference "p0's *"
    --beta 0.37 --kl reverse --entropy-coef 0.41 --steps 43 --total-steps 86 --batch-size 47
    --grad-accum 53 --lr 0.59 --warmup 61 --clip 67 --reward-token-lr 71
    --reward-token-init ordered --bf16 --no-reward-token --seed 7 --out RUN/model/02

evaluate.py --model "p0's *" --reference "p0's *" --ppl-model "a larger one"
    --prompts "MINE/to test.jsonl" --reward "MINE/my *.py:f" --reward-model "the * judge"
    --top-p 0.73 --num-samples 79 --max-new-tokens 17 --min-new-tokens 5 --batch-size 19 --bf16
    --seed 7 --short --out RUN/eval/base

evaluate.py --model RUN/model/02 --reference "p0's *" --ppl-model "a larger one"
    --prompts "MINE/to test.jsonl" --reward "MINE/my *.py:f" --reward-model "the * judge"
    --top-p 0.73 --num-samples 79 --max-new-tokens 17 --min-new-tokens 5 --batch-size 19 --bf16
    --seed 7 --short --out RUN/eval/quark

evaluate.py --model RUN/model/02 --reference "p0's *" --ppl-model none
    --prompts "MINE/to test.jsonl" --reward "MINE/my *.py:f" --reward-model "the * judge"
    --top-p 0.73 --num-samples 83 --max-new-tokens 17 --min-new-tokens 5 --batch-size 19 --bf16
    --seed 7 --reward-token all --out RUN/eval/dial

evaluate.py --compare RUN/eval/base.json RUN/eval/quark.json --report RUN --short
"""

# What settings/gpt2.sh says, of one round.
GPT2 = """
explore.py --model gpt2 --prompts tiny/prompts/train.jsonl --reward toxicity
    --reward-model unitary/toxic-bert --iteration 0 --num-samples 1 --decode sample --top-p 1
    --max-new-tokens 20 --min-new-tokens 3 --batch-size 128 --seed 0 --out RUN/pool/00.jsonl

quantize.py RUN/pool/00.jsonl --quantiles 5 --seed 0 --out RUN/quantized/00.jsonl

learn.py --pool RUN/quantized/00.jsonl --model gpt2 --reference gpt2
    --beta 0.05 --kl forward --entropy-coef 0 --steps 500 --total-steps 500 --batch-size 128
    --grad-accum 1 --lr 1e-5 --warmup 500 --clip 0 --reward-token-lr 1
    --reward-token-init normal --closed-form --seed 0 --out RUN/model/01

evaluate.py --model gpt2 --reference gpt2 --ppl-model gpt2
    --prompts tiny/prompts/test.jsonl --reward toxicity --reward-model unitary/toxic-bert
    --decode sample --top-p 0.9 --num-samples 25 --max-new-tokens 20 --min-new-tokens 3
    --batch-size 128 --seed 0 --short --out RUN/eval/base

evaluate.py --model RUN/model/01 --reference gpt2 --ppl-model gpt2
    --prompts tiny/prompts/test.jsonl --reward toxicity --reward-model unitary/toxic-bert
    --decode sample --top-p 0.9 --num-samples 25 --max-new-tokens 20 --min-new-tokens 3
    --batch-size 128 --seed 0 --short --out RUN/eval/quark

evaluate.py --compare RUN/eval/base.json RUN/eval/quark.json --report RUN --short
"""
PUBLIC = {"MODEL": "gpt2", "ITERATIONS": "1", "DIAL_SAMPLES": "0"}
PUBLIC |= {"PROMPTS": "tiny/prompts/train.jsonl", "TEST_PROMPTS": "tiny/prompts/test.jsonl"}


@pytest.mark.parametrize(
    "task, settings, commands",
    [
        ("sentiment", {"ITERATIONS": "3"}, SENTIMENT),
        ("toxicity", {"ITERATIONS": "2"}, TOXICITY),
        ("repetition", {"ITERATIONS": "3"}, REPETITION),
        ("toxicity", PUBLIC, GPT2),
    ],
    ids=["sentiment", "toxicity", "repetition", "gpt2"],
)
def test_the_commands_of_a_run(task, settings, commands, tmp_path):
    """Each in its place, with every option and value."""
    assert split(run_all(tmp_path, task, **settings)) == written_out(commands)


@pytest.mark.parametrize("commands", [SENTIMENT, TOXICITY, REPETITION, GPT2])
def test_the_stages_take_these_commands(commands):
    """The stand-in would take any option. The stages know all of these."""
    for command in commands.strip().split("\n\n"):
        script, *words = shlex.split(command)
        importlib.import_module(script.removesuffix(".py")).parse_options(words)


def test_every_setting_reaches_its_option(tmp_path):
    mine = tmp_path / "my files *"
    mine.mkdir()
    for name in ("my *.py", "to train.jsonl", "to test.jsonl"):
        (mine / name).touch()
    settings = {name: text.replace("MINE", str(mine)) for name, text in EVERYTHING_SET.items()}
    commands = WITH_EVERYTHING_SET.replace("MINE", str(mine))
    assert split(run_all(tmp_path, "sentiment", **settings)) == written_out(commands)


def test_launch_starts_the_two_stages_that_share_their_work(tmp_path):
    """The other two are single processes, by PYTHON."""
    launch = f"{python_of(tmp_path)} launched 2"
    commands = run_all(tmp_path, "toxicity", ITERATIONS="2", LAUNCH=launch)
    launched = {command[2] for command in commands if command[:2] == ["launched", "2"]}
    alone = {command[0] for command in commands} - {"launched"}
    assert launched == {"explore.py", "learn.py"}
    assert alone == {"quantize.py", "evaluate.py"}


# ------------------------------------------------------------------------------ what became of what


def test_where_the_last_model_comes_from(tmp_path):
    """Step by step back to p0, with FORGET: a round learns from the newest samples, and from what
    the round before learned from, so that what quantize.py left out once stays out.
    """
    run_all(tmp_path, "sentiment", ITERATIONS="3")
    p0 = "tiny/lm"
    first = {"quantized": [{"sampled by": p0}]}
    model_1 = {"learned from": first, "start": p0, "reference": p0}
    second = {"quantized": [first, {"sampled by": model_1}]}
    model_2 = {"learned from": second, "start": model_1, "reference": p0}
    third = {"quantized": [second, {"sampled by": model_2}]}
    model_3 = {"learned from": third, "start": model_2, "reference": p0}
    assert origin(tmp_path / "run/model/03/origin.json") == model_3
    base, quark = {"evaluated": p0, "under": p0}, {"evaluated": model_3, "under": p0}
    assert origin(tmp_path / "run/report.html") == {"compared": [base, quark]}
    assert origin(tmp_path / "run/eval/dial-none.json") == {"evaluated": model_3, "under": "none"}


@pytest.mark.parametrize(
    "task, settings", [("repetition", {}), ("sentiment", {"FORGET": "", "QUANTIZE": ""})]
)
def test_without_forget_every_round_sees_every_pool(task, settings, tmp_path):
    """As in the paper: all samples so far, those of p0 first."""
    run_all(tmp_path, task, ITERATIONS="3", **settings)
    p0 = "tiny/lm"
    pools = [{"sampled by": p0}]
    first = {"learned from": {"quantized": pools[:1]}, "start": p0, "reference": p0}
    pools.append({"sampled by": first})
    second = {"learned from": {"quantized": pools[:2]}, "start": first, "reference": p0}
    pools.append({"sampled by": second})
    third = {"learned from": {"quantized": pools}, "start": second, "reference": p0}
    assert origin(tmp_path / "run/model/03/origin.json") == third
    base, quark = {"evaluated": p0, "under": p0}, {"evaluated": third, "under": p0}
    results = [base, quark, base, quark] if task == "repetition" else [base, quark]
    assert origin(tmp_path / "run/report.html") == {"compared": results}


def test_a_finished_stage_is_skipped(tmp_path):
    """Started again, only what is missing is made, from what is there."""
    run_all(tmp_path, "sentiment", ITERATIONS="2")
    before = origin(tmp_path / "run/eval/quark.json")
    (tmp_path / "run/pool/01.jsonl").unlink()
    (tmp_path / "run/eval/quark.json").unlink()
    again = run_all(tmp_path, "sentiment", ITERATIONS="2")
    assert [command[0] for command in again] == ["explore.py", "evaluate.py", "evaluate.py"]
    assert origin(tmp_path / "run/eval/quark.json") == before
