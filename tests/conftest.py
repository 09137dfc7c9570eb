"""What the tests share: random models made on the spot, and small helpers. Nothing is downloaded.

No two dimensions are the same number, so a mix-up of axes cannot go unseen. The language model has
V = 256 bytes + 41 merges + 1 = 298 tokens, d = 32, a context of 64, 2 layers, 4 heads and K = 3
reward tokens.
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Set before anything imports transformers: a missing file must fail, not be downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
EOS = "<|endoftext|>"
SENTENCES = [
    "The film was long and the story was thin, but the actors were good.",
    "I was bored by the first hour; then the ghost in the cellar began to sing.",
    "She said that it's the best thing they've made, and I'd see it again in 1999.",
    "There is nothing to like here: the jokes are old, the songs are bad, the end is silly.",
]
N_MERGES = 41
V = 256 + N_MERGES + 1
CONTEXT, WIDTH, K = 64, 32, 3

# ---------------------------------------------------------------------------------- language models


def learn_merges(sentences, n_merges):
    """A byte-level BPE in GPT-2's layout, as the bytes of vocab.json and of merges.txt.

    The ids are the 256 bytes, then the merges in order, then <|endoftext|>.
    """
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        sentences,
        vocab_size=256 + n_merges,
        min_frequency=1,
        special_tokens=[],
        show_progress=False,
    )
    state = json.loads(tokenizer.to_str())["model"]
    assert len(state["vocab"]) == 256 + n_merges  # otherwise the sentences are too few
    vocab = {**state["vocab"], EOS: 256 + n_merges}
    merges = ["#version: 0.2"]
    for pair in state["merges"]:
        merges.append(pair if isinstance(pair, str) else " ".join(pair))
    return json.dumps(vocab, ensure_ascii=False).encode(), ("\n".join(merges) + "\n").encode()


def write_vocabulary(folder, vocab, merges):
    (folder / "vocab.json").write_bytes(vocab)
    (folder / "merges.txt").write_bytes(merges)


def make_model_folder(path, seed=5):
    """A random GPT-2 folder, float16 on disk.

    Its weights are large, so its distributions are far from uniform.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    path.mkdir(parents=True)
    write_vocabulary(path, *learn_merges(SENTENCES, N_MERGES))
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": CONTEXT}
    settings |= {"bos_token": EOS, "eos_token": EOS, "unk_token": EOS}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=V,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=V - 1,
        eos_token_id=V - 1,
        pad_token_id=V - 1,
    )
    model = GPT2LMHeadModel(config)
    table = model.get_input_embeddings().weight.detach()
    # One token in ten or so is then <|endoftext|>, so completions end early.
    model.transformer.ln_f.bias.data = 1.5 * table[V - 1]
    model.half().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def p0_folder(tmp_path_factory):
    """A plain language model: V tokens, no reward tokens."""
    return make_model_folder(tmp_path_factory.mktemp("models") / "p0")


@pytest.fixture(scope="session")
def quark_folder(p0_folder):
    """The same model with reward tokens r_1, r_2, r_3, as learn.py would save it."""
    from explore import load_policy
    from learn import add_reward_tokens

    policy = load_policy(p0_folder)
    add_reward_tokens(policy, K, seed=1)
    policy.save(p0_folder.parent / "quark")
    return p0_folder.parent / "quark"


@pytest.fixture
def p0(p0_folder):
    from explore import load_policy

    return load_policy(p0_folder)


@pytest.fixture
def quark(quark_folder):
    from explore import load_policy

    return load_policy(quark_folder)


def started(model, padding):
    """A CachedModel at the beginning of a batch. padding: empty columns at the left of each row."""
    from plumbing.policy import CachedModel

    network = CachedModel(model)
    network.start(torch.tensor(padding))
    return network


# -------------------------------------------------------------------------------------- classifiers

JUDGE_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "film", "was", "good", "bad", "fine"]
JUDGE_WORDS += ["long", "dull", "a", "b", "!", "."]


def make_classifier(path, labels, seed, **more):
    """A random DistilBERT folder over JUDGE_WORDS, with positions for 24 tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    numbers = {word: i for i, word in enumerate(JUDGE_WORDS)}
    core = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=22,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(seed)
    config = DistilBertConfig(
        vocab_size=len(JUDGE_WORDS),
        dim=20,
        hidden_dim=28,
        n_layers=1,
        n_heads=2,
        max_position_embeddings=24,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        **more,
    )
    DistilBertForSequenceClassification(config).half().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def judges(tmp_path_factory):
    """A folder of four classifiers.

    sentiment has three labels, and POSITIVE is column 0 on purpose; two has the usual two;
    toxicity has a single logit; labels has several that do not exclude each other.
    """
    folder = tmp_path_factory.mktemp("judges")
    make_classifier(folder / "sentiment", ["POSITIVE", "neutral", "NEGATIVE"], 1)
    make_classifier(folder / "two", ["NEGATIVE", "POSITIVE"], 2)
    make_classifier(folder / "toxicity", ["toxic"], 3)
    several = {"problem_type": "multi_label_classification"}
    make_classifier(folder / "labels", ["insult", "toxicity", "threat"], 4, **several)
    return folder


# -------------------------------------------------------------------------------------- rows, files


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


def files_of(folder):
    """{name: bytes} of the files in a folder, to see whether anything has changed."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def quantized_rows(policy, per_part=(4, 2, 3)):
    """Quantized rows with ids, K = 3, parts of uneven sizes.

    The first completion of each part ends with <|endoftext|>.
    """
    words = ["good", "bad film", "long and silly", "the end is old", " then it was"]
    rows = []
    for k, n in enumerate(per_part, 1):
        for i in range(n):
            prompt, completion = words[(i + k) % 5], " " + words[(2 * i + k) % 5]
            row = {"prompt": prompt, "completion": completion, "reward": k + i / 10}
            row |= {"iteration": 0, "quantile": k, "prompt_ids": policy.encode(prompt)}
            row["completion_ids"] = policy.encode(completion) + [V - 1] * (i == 0)
            rows.append(row)
    return rows


def write_reward(tmp_path, body, name="mine.py"):
    """Writes a Python file that defines `reward`, and returns what --reward takes."""
    (tmp_path / name).write_text(body)
    return f"{tmp_path / name}:reward"


# ------------------------------------------------------------------------------------------- stages


def stage(monkeypatch, name, *argv):
    """Runs `python NAME argv` in this process, to its very last line.

    Returns what it exits with: None, or the message.
    """
    monkeypatch.setattr(sys, "argv", [str(ROOT / name), *map(str, argv)])
    try:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as exit:
        return exit.code
    return None


def execute(*command, cwd=ROOT, **environment):
    """Runs a command of its own process in the repository. Returns what subprocess.run does."""
    return subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def one_sentence(message):
    """Whether `message` is what a user should read: one line, after the name of the stage."""
    if not isinstance(message, str) or "\n" in message:
        return False
    return ".py: error: " in message and "Traceback" not in message


EVALUATED = [
    {"prompt": "The film", "group": "neutral"},
    {"prompt": "I was bored", "group": "negative"},
    {"prompt": "songs"},
    {"prompt": "A good", "group": "neutral"},
    {"prompt": "It"},
]


def run_evaluate(
    tmp_path, model, reference, *options, name="quark", reward=("hash", "length"), prompts=EVALUATED
):
    """evaluate.py on these prompts, three samples each. Returns tmp_path/eval/NAME.json.

    None if there is no such file, as with --reward-token all.
    """
    import evaluate

    path = write_jsonl(tmp_path / "prompts.jsonl", prompts)
    out = tmp_path / "eval" / name
    argv = ["--model", model, "--reference", reference, "--prompts", path, "--out", out]
    argv += ["--num-samples", 3, "--max-new-tokens", 6, "--device", "cpu", "--reward", *reward]
    evaluate.main([str(a) for a in [*argv, *options]])
    table = out.with_name(name + ".json")
    return json.loads(table.read_text()) if table.exists() else None
