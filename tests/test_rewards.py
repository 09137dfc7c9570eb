"""The reward: repetition by hand, classifiers against an independent computation, loading and checking of one's own."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, one_sentence, read_rows, stage, write_jsonl
from safetensors.torch import load_file, save_file

import rewards
from plumbing.pool import BadInput
from rewards import diversity, load_reward, rep_n, repetition

# ------------------------------------------------------------------------------------------------------ repetition


def test_rep_n_by_hand():
    """a b a b a: 2-grams ab ba ab ba, 2 of 4 unique: rep-2 = 1/2. 3-grams aba bab aba, 2 of 3: 1/3. 4-grams abab baba: 0.

    diversity = (1 - 1/2)(1 - 1/3)(1 - 0) = 1/3.
    """
    tokens = "a b a b a".split()
    assert rep_n(tokens, 2) == pytest.approx(1 / 2)
    assert rep_n(tokens, 3) == pytest.approx(1 / 3)
    assert rep_n(tokens, 4) == 0
    assert diversity(tokens) == pytest.approx(1 / 3)


def test_rep_n_of_a_loop_and_of_too_little():
    """Ten equal tokens: 1 of 9 2-grams is unique, 1 of 8, 1 of 7. No n-gram at all: 0."""
    assert diversity([4] * 10) == pytest.approx(1 / 9 / 8 / 7)
    assert rep_n([], 2) == rep_n([1], 2) == rep_n([1, 2, 3], 4) == 0
    assert diversity([1, 2, 3, 4, 5]) == 1


def test_ngrams_keep_their_order():
    """1 2 1: the 2-grams (1, 2) and (2, 1) are two."""
    assert rep_n([1, 2, 1], 2) == 0


def test_repetition_counts_ids_when_it_has_them():
    """Ids if given, else words; fewer than four tokens get 0, so that saying nothing does not pay."""
    texts = ["a b c d e", "a a a a a a", "a b c", ""]
    assert repetition(None, texts) == pytest.approx([1, 1 / 5 / 4 / 3, 0, 0])
    assert repetition(None, ["one", "two"], completion_ids=[[5, 5, 5, 5], [1, 2, 3, 4]]) == pytest.approx([1 / 3 / 2, 1])
    assert repetition(None, ["a b c d"], completion_ids=[[1, 2, 3]]) == [0]
    assert load_reward("repetition")(prompts=["x"], completions=["a b c d"], completion_ids=[[7, 7, 7, 7]]) == pytest.approx([1 / 6])


# ------------------------------------------------------------------------------------------------------- the dummies


def test_length():
    """A character is worth 0.01, up to 1."""
    assert load_reward("length")(prompts=[""] * 3, completions=["", "a" * 30, "a" * 250]) == pytest.approx([0, 0.3, 1])


def test_hash():
    """The first 48 bits of sha256(prompt NUL completion), as a fraction: the same on every machine, prompt and y not swapped."""
    digest = hashlib.sha256("é\0 b".encode()).hexdigest()
    reward = load_reward("hash")
    values = reward(prompts=["é", "é", " b"], completions=[" b", "b", "é"])
    assert values[0] == pytest.approx(int(digest[:12], 16) / 2**48)
    assert len(set(values)) == 3 and all(0 <= v < 1 for v in values)


# ------------------------------------------------------------------------------------------------ loading and checking


def custom(tmp_path, body, name="mine.py"):
    (tmp_path / name).write_text(body)
    return f"{tmp_path / name}:reward"


def test_own_reward_from_a_file(tmp_path):
    """path/to/file.py:function; called by keyword, in the order given, and prompts are not mixed up with completions."""
    spec = custom(tmp_path, "def reward(completions, prompts, **kwargs):\n    return [len(x) - 10 * len(y) for x, y in zip(prompts, completions)]\n")
    assert load_reward(spec)(prompts=["a", "bcd"], completions=["ef", ""]) == [-19, 3]


def test_reward_as_written_for_trl(tmp_path):
    """TRL passes prompts, completions, completion_ids and more, by keyword; a function may take what it wants of it."""
    spec = custom(tmp_path, "def reward(prompts, completions, completion_ids, **kwargs):\n"
                            "    return [float(len(i)) for i in completion_ids]\n")  # fmt: skip
    assert load_reward(spec)(prompts=["a"], completions=["b"], completion_ids=[[1, 2, 3]], trainer_state=None) == [3]
    spec = custom(tmp_path, "def reward(completions, **kwargs):\n    assert not set(kwargs) - {'prompts', 'completion_ids'}, kwargs\n"
                            "    return [len(y) for y in completions]\n", "kw.py")  # fmt: skip
    assert load_reward(spec)(prompts=["a"], completions=["bb"], completion_ids=[[1]]) == [2]


def test_reward_without_kwargs(tmp_path):
    """def reward(prompts, completions) must not be handed completion_ids."""
    spec = custom(tmp_path, "def reward(prompts, completions):\n    return [1, 0.5]\n")
    assert load_reward(spec)(prompts=["a", "b"], completions=["c", "d"], completion_ids=[[1], [2]]) == [1, 0.5]


def test_what_may_be_returned(tmp_path):
    """None stays None; tuples, arrays, tensors, NumPy and Python numbers and booleans become floats."""
    for value in ("[None, 2]", "(None, True + 1)", "[None, numpy.float32(2)]", "[None, torch.tensor(2.0)]"):
        reward = load_reward(custom(tmp_path, f"import numpy, torch\ndef reward(prompts, completions): return {value}\n"))
        values = reward(prompts=["a", "b"], completions=["c", "d"])
        assert values == [None, 2] and type(values[1]) is float
    for value in ("numpy.array([1, 2])", "torch.tensor([1.0, 2.0])"):
        reward = load_reward(custom(tmp_path, f"import numpy, torch\ndef reward(prompts, completions): return {value}\n"))
        assert reward(prompts=["a", "b"], completions=["c", "d"]) == [1, 2]


BAD_REWARDS = [
    ("return [0.5]", "returned 1 values for 2 completions"),
    ("return [0.5, 1, 2]", "returned 3 values for 2"),
    ("return 0.5", "returned float for 2"),
    ("return None", "returned NoneType for 2"),
    ("return {0: 1, 1: 2}", "returned dict for 2"),
    ("return (1.0 for y in completions)", "returned generator for 2"),
    ("return [0.5, float('nan')]", 'nan at index 1, for "second"'),
    ("return [float('inf'), 0.5]", 'inf at index 0, for "first"'),
    ("return [0.5, '0.5']", "'0.5' at index 1, for \"second\""),
    ("return [0.5, [1]]", r"\[1\] at index 1"),
    ("return [1 / 0, 1]", "raised ZeroDivisionError: division by zero"),
    ("return [kwargs['score']]", "raised NameError"),
]


@pytest.mark.parametrize("body, message", BAD_REWARDS, ids=[m for _, m in BAD_REWARDS])
def test_bad_rewards_are_reported(body, message, tmp_path):
    """The function's name, the index and the text are in the one sentence that the user reads."""
    spec = custom(tmp_path, f"def reward(prompts, completions):\n    {body}\n")
    with pytest.raises(BadInput, match=message) as error:
        load_reward(spec)(prompts=["x", "z"], completions=["first", "second"])
    assert spec in str(error.value) and "\n" not in str(error.value)


def test_rewards_that_cannot_be_loaded(tmp_path):
    """No such name, file or function, a file that is not Python or fails at import: each says which."""
    (tmp_path / "a.txt").write_text("def reward(): pass")
    (tmp_path / "broken.py").write_text("def reward(:\n")
    (tmp_path / "value.py").write_text("reward = 3\n")
    for spec, message in [
        ("nonsense", "no reward is called 'nonsense'; built in: repetition, .*toxicity"),
        (f"{tmp_path}/none.py:reward", "none.py does not exist"),
        (f"{tmp_path}:reward", "does not exist"),
        (f"{tmp_path}/a.txt:reward", "not a .py file"),
        (f"{tmp_path}/broken.py:reward", "cannot be imported: SyntaxError"),
        (f"{tmp_path}/value.py:reward", "no function 'reward'"),
        (f"{tmp_path}/value.py:other", "no function 'other'"),
    ]:
        with pytest.raises(BadInput, match=message):
            load_reward(spec)


# -------------------------------------------------------------------------------------------------------- classifiers

WORDS = "[PAD] [UNK] [CLS] [SEP] the film was good bad fine long dull a b ! .".split()


def make_classifier(path, labels, seed, **config):
    """A random DistilBERT folder over sixteen words; positions for 24 tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=22, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                            sep_token="[SEP]").save_pretrained(path)  # fmt: skip
    torch.manual_seed(seed)
    config = DistilBertConfig(vocab_size=len(WORDS), dim=20, hidden_dim=28, n_layers=1, n_heads=2, max_position_embeddings=24,
                              initializer_range=0.5, id2label=dict(enumerate(labels)), **config)  # fmt: skip
    DistilBertForSequenceClassification(config).half().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def judges(tmp_path_factory):
    """sentiment: POSITIVE is column 0 on purpose, of 3; toxicity: one logit; labels: several independent ones."""
    folder = tmp_path_factory.mktemp("judges")
    make_classifier(folder / "sentiment", ["POSITIVE", "neutral", "NEGATIVE"], 1)
    make_classifier(folder / "two", ["NEGATIVE", "POSITIVE"], 2)
    make_classifier(folder / "toxicity", ["toxic"], 3)
    make_classifier(folder / "labels", ["insult", "toxicity", "threat"], 4, problem_type="multi_label_classification")
    return folder


def slow_logits(folder, text):
    """One text alone, no padding: the logits as plain numbers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    net = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [2] + AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"][-20:] + [3]
    with torch.no_grad():
        return net(torch.tensor([ids])).logits[0].tolist()


TEXTS = ["the film was good", "bad !", "", "the film was long . a b a b a b a b a b a b a b a b a b a b a b a b a b good", "a dull film"]


def test_sentiment_is_the_softmax_of_the_positive_label(judges):
    """The column is found by name, not by place; prompt and completion are judged together, in that order."""
    prompts = [t[: len(t) // 2] for t in TEXTS]
    completions = [t[len(t) // 2 :] for t in TEXTS]
    for name, column in (("sentiment", 0), ("two", 1)):
        got = load_reward("sentiment", judges / name)(prompts=prompts, completions=completions)
        for text, value in zip(TEXTS, got):
            z = [math.exp(v) for v in slow_logits(judges / name, text)]
            assert value == pytest.approx(z[column] / sum(z), abs=1e-5)
    labels = load_reward("sentiment_label", judges / "two")(prompts=prompts, completions=completions)
    assert labels == [float(v >= 0.5) for v in got] and 0 < sum(labels) < len(labels)


def test_toxicity_is_one_minus_the_sigmoid(judges):
    """One logit, or independent labels: a sigmoid, not a softmax (which would be 1 for a single label); the prompt is not blamed."""
    for name, column in (("toxicity", 0), ("labels", 1)):
        got = load_reward("toxicity", str(judges / name))(prompts=["bad bad bad !"] * len(TEXTS), completions=TEXTS)
        for text, value in zip(TEXTS, got):
            assert value == pytest.approx(1 - 1 / (1 + math.exp(-slow_logits(judges / name, text)[column])), abs=1e-5)


def test_batches_by_length_give_the_input_order_back(judges):
    """Whatever the batch size and the padding, value i belongs to text i."""
    texts = [" ".join(WORDS[4 + (i * j) % 12] for j in range(1, 1 + (7 * i) % 17)) for i in range(23)]
    whole = load_reward("toxicity", judges / "toxicity")(prompts=texts, completions=texts)
    for batch_size in (1, 4):
        parts = load_reward("toxicity", judges / "toxicity", batch_size=batch_size)(prompts=texts, completions=texts)
        assert parts == pytest.approx(whole, abs=1e-5)
    assert len({round(v, 4) for v in whole}) > 15


def test_classifiers_that_cannot_be_used(judges, tmp_path):
    """No such folder, no label of that name, no classifier, or one that was cut off."""
    with pytest.raises(BadInput, match="cannot open the reward model .*nowhere"):
        load_reward("sentiment", tmp_path / "nowhere")
    with pytest.raises(BadInput, match="none of .*positive"):
        load_reward("sentiment", judges / "labels")
    for n, reason in ((2, None), (3, "none of .*positive")):  # LABEL_1 is the better one of two, the middle one of three
        make_classifier(tmp_path / str(n), [f"LABEL_{i}" for i in range(n)], 5)
        with pytest.raises(BadInput, match=reason) if reason else contextlib.nullcontext():
            load_reward("sentiment", tmp_path / str(n))
    headless = tmp_path / "headless"  # a language model: its head as a classifier would be random
    shutil.copytree(judges / "two", headless)
    weights = {k: v for k, v in load_file(headless / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="is no classifier: it has no weights for .*classifier"):
        load_reward("sentiment", headless)
    (headless / "model.safetensors").write_bytes((judges / "two" / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(BadInput, match="cannot open the reward model"):
        load_reward("sentiment", headless)


# ------------------------------------------------------------------------------------------------------ the command


def test_main_scores_a_file(tmp_path, capsys):
    """The rows come back with their rewards, other fields untouched; the screen shows mean, quartiles, worst and best."""
    rows = [{"prompt": "p", "completion": "a" * n, "note": n} for n in (10, 50, 30, 20, 40)]
    rows[0]["reward"] = 77
    pool = write_jsonl(tmp_path / "p.jsonl", rows)
    rewards.main(["--reward", "length", "--pool", str(pool), "--out", str(tmp_path / "o.jsonl")])
    assert read_rows(tmp_path / "o.jsonl") == [{**r, "reward": r["note"] / 100} for r in rows]
    out = capsys.readouterr().out
    assert "5 of 5 scored" in out and "mean 0.3000" in out
    assert out.split("max: ")[1].split("\n")[0].split() == ["0.1000", "0.2000", "0.3000", "0.4000", "0.5000"]
    assert out.index("worst 0.1000") < out.index("best 0.5000")


def test_main_leaves_out_what_has_no_score(tmp_path, capsys):
    """None: counted, and not written."""
    spec = custom(tmp_path, "def reward(prompts, completions):\n    return [None if y == 'b' else 1 for y in completions]\n")
    pool = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "p", "completion": y} for y in "abc"])
    rewards.main(["--reward", spec, "--pool", str(pool), "--out", str(tmp_path / "o.jsonl")])
    assert [r["completion"] for r in read_rows(tmp_path / "o.jsonl")] == ["a", "c"]
    assert "2 of 3 scored" in capsys.readouterr().out


def test_main_bad_input(tmp_path, monkeypatch):
    """A missing file, a row without completion, an empty file, a reward that fails: one sentence and no output."""
    good = write_jsonl(tmp_path / "good.jsonl", [{"prompt": "p", "completion": "c"}])
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "p", "completion": "c"}, {"prompt": "p"}])
    (tmp_path / "empty.jsonl").write_text("")
    nan = custom(tmp_path, "def reward(prompts, completions):\n    return [float('nan')]\n")
    for pool, reward, message in [(tmp_path / "no.jsonl", "length", "cannot read"), (bad, "length", 'bad.jsonl:2: "completion"'),
                                  (tmp_path / "empty.jsonl", "length", "no rows"), (good, "lenght", "no reward is called"),
                                  (good, nan, "returned nan at index 0")]:  # fmt: skip
        exit = stage(monkeypatch, "rewards.py", "--reward", reward, "--pool", pool, "--out", tmp_path / "o.jsonl")
        assert one_sentence(exit) and message in exit
    assert not [name for name in os.listdir(tmp_path) if name.startswith("o.")]


def test_exit_status_and_no_torch(tmp_path):
    """python rewards.py with a plain reward: status 0, and torch is never imported (it takes seconds)."""
    pool = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "p", "completion": "a b c d"}])
    code = ("import runpy, sys\n"
            f"sys.argv = ['rewards.py', '--reward', 'repetition', '--pool', {json.dumps(str(pool))}]\n"
            "runpy.run_path('rewards.py', run_name='__main__'); print('torch' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False"
    done = subprocess.run([sys.executable, "rewards.py", "--reward", "x", "--pool", str(pool)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and one_sentence(done.stderr.strip()) and done.stdout == ""
