"""What the tests share: a random GPT-2 of 46,000 weights made on the spot, and small helpers. No network, no downloads.

No two dimensions are the same number (V = 256 bytes + merges + 1, d = 32, context = 64, 2 layers, 4 heads, K = 3), so that
a mix-up of axes cannot pass unseen.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a missing file must fail, not be downloaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pytest
import torch

torch.set_num_threads(1)

EOS = "<|endoftext|>"
SENTENCES = [
    "The film was long and the story was thin, but the actors were good.",
    "I was bored by the first hour; then the ghost in the cellar began to sing.",
    "She said that it's the best thing they've made, and I'd see it again in 1999.",
    "There is nothing to like here: the jokes are old, the songs are bad, the end is silly.",
]
N_MERGES = 41
V = 256 + N_MERGES + 1  # 298
CONTEXT, WIDTH, K = 64, 32, 3


def learn_merges(sentences, n_merges):
    """vocab.json and merges.txt as bytes, in GPT-2's layout: 256 bytes, the merges in order, <|endoftext|> last."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(sentences, vocab_size=256 + n_merges, min_frequency=1, special_tokens=[], show_progress=False)
    state = json.loads(tokenizer.to_str())["model"]
    assert len(state["vocab"]) == 256 + n_merges  # else the sentences are too few
    vocab = {**state["vocab"], EOS: 256 + n_merges}
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["merges"]]
    return json.dumps(vocab, ensure_ascii=False).encode(), ("#version: 0.2\n" + "\n".join(pairs) + "\n").encode()


def make_model_folder(path, sentences=SENTENCES, seed=5):
    """A random GPT-2 folder, float16 on disk. Its weights are large, so that its distributions are far from uniform."""
    from transformers import GPT2Config, GPT2LMHeadModel

    path.mkdir(parents=True)
    vocab, merges = learn_merges(sentences, N_MERGES)
    (path / "vocab.json").write_bytes(vocab)
    (path / "merges.txt").write_bytes(merges)
    (path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "GPT2Tokenizer", "model_max_length": CONTEXT, "bos_token": EOS, "eos_token": EOS, "unk_token": EOS}))  # fmt: skip
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=V, n_positions=CONTEXT, n_embd=WIDTH, n_layer=2, n_head=4, initializer_range=0.3,
                        bos_token_id=V - 1, eos_token_id=V - 1, pad_token_id=V - 1)  # fmt: skip
    model = GPT2LMHeadModel(config)
    table = model.get_input_embeddings().weight.detach()
    model.transformer.ln_f.bias.data = 1.5 * table[V - 1]  # one token in ten or so is <|endoftext|>: completions end early
    model.half().save_pretrained(path)
    return path


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: kills and restarts processes, or trains, for minutes; left out by `bash run_all.sh test`")


@pytest.fixture(scope="session")
def p0_folder(tmp_path_factory):
    """A plain language model, V tokens, no reward tokens."""
    return make_model_folder(tmp_path_factory.mktemp("models") / "p0")


@pytest.fixture(scope="session")
def quark_folder(p0_folder):
    """The same with reward tokens r_1, r_2, r_3, as learn.py would save it."""
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


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


def stage(monkeypatch, name, *argv):
    """Runs `python NAME argv` in this process, to its very last line. Returns what it exits with: None, or the message."""
    import runpy

    monkeypatch.setattr(sys, "argv", [str(ROOT / name), *map(str, argv)])
    try:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as exit:
        return exit.code
    return None


def one_sentence(message):
    """Whether `message` is what a user should read: one line, that begins with the stage's name."""
    return isinstance(message, str) and "\n" not in message and ".py: error: " in message and "Traceback" not in message
