"""tiny/: what is shipped, what is measured of the small model, and how it was made."""

import math
import subprocess
import sys

import judges as tiny_judges  # tiny/judges.py
import numpy as np
import pretrain  # tiny/pretrain.py
import pytest
import torch
from conftest import CONTEXT, ROOT, SENTENCES, V, files_of, read_rows, write_jsonl
from safetensors.torch import load_file

from evaluate import perplexity
from explore import load_policy, sample
from plumbing.pool import read_prompts
from rewards import load_reward

# ----------------------------------------------------------- what is shipped, if it is there

LM = ROOT / "tiny" / "lm"
needs_lm = pytest.mark.skipif(
    not (LM / "config.json").exists(), reason="tiny/lm is not in this checkout"
)


@needs_lm
def test_shipped_model():
    """tiny/lm opens as p0, encodes and decodes, writes words, and knows English.

    Its perplexity on a sentence is below 200, where chance has 4,096 tokens.
    """
    policy = load_policy(LM)
    assert policy.n_quantiles == 0
    assert policy.eos_id == policy.vocab_size - 1
    text = "The film was too long, and I didn't like the ending."
    assert policy.decode(policy.encode(text)) == text
    x = policy.encode("This movie is")
    y = sample(policy, [x], max_new_tokens=12, greedy=True)[0]
    assert any(character.isalpha() for character in policy.decode(y))
    row = {"prompt": text[:16], "completion": text[16:]}
    assert perplexity(policy, [row]) < 200


OPINIONS = [
    (
        "sentiment",
        " is wonderful, a beautiful and moving film.",
        " is terrible, a boring and stupid waste of time.",
    ),
    (
        "toxicity",
        " is a quiet story about a family.",
        " is made by stupid idiots, you moron, shut up.",
    ),
]


@pytest.mark.parametrize("name, better, worse", OPINIONS)
def test_shipped_judges(name, better, worse):
    """The judges in tiny/ prefer the obvious."""
    if not (ROOT / "tiny" / name / "config.json").exists():
        pytest.skip(f"tiny/{name} is not in this checkout")
    reward = load_reward(name)
    a, b = reward(prompts=["This movie"] * 2, completions=[better, worse])
    assert a > 0.5 > b


def test_shipped_prompts():
    """Valid prompt files. No prompt is twice in a file, or in both files of a task."""
    tests = sorted((ROOT / "tiny" / "prompts").glob("*test.jsonl"))
    if not tests:
        pytest.skip("tiny/prompts is not in this checkout")
    for file in tests:
        test = [row["prompt"] for row in read_prompts(file)]
        train_file = str(file).replace("test.jsonl", "train.jsonl")
        train = [row["prompt"] for row in read_prompts(train_file)]
        assert len(set(test)) == len(test) > 10
        assert len(set(train)) == len(train) > 10
        assert not set(train) & set(test)


# ---------------------------------------------------------------------------------- tiny/prompts.py


@needs_lm
def test_prompts_are_drawn_and_named(p0_folder, tmp_path):
    """Ten openings give six prompts to train on and others to test. None is in both files.

    A test prompt's group follows from how many of its 25 completions are positive: 0 to 4 are
    negative, 9 to 16 neutral, 21 to 25 positive, others in no group. --regroup names them anew.
    """
    openings = [{"text": f"Opening {i} says"} for i in range(10)]
    path = write_jsonl(tmp_path / "openings.jsonl", openings)
    command = [sys.executable, ROOT / "tiny" / "prompts.py", "--openings", path]
    command += ["--model", p0_folder, "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    train, test = read_rows(tmp_path / "train.jsonl"), read_rows(tmp_path / "test.jsonl")
    assert len(train) == 6
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in test)
    subprocess.run([*command, "--regroup"], check=True, capture_output=True)
    again = read_rows(tmp_path / "test.jsonl")
    assert [row["prompt"] for row in again] == [row["prompt"] for row in test]
    bounds = {"negative": (0, 4), "neutral": (9, 16), "positive": (21, 25), None: (0, 25)}
    for row in test + again:
        low, high = bounds[row["group"]]
        assert low <= row["num_positive"] <= high


# --------------------------------------------------------------------------------- tiny/pretrain.py


@pytest.mark.parametrize("n", [3, 200])
def test_bits_per_byte_is_the_slow_sum(p0_folder, n):
    """The windows begin every 8 tokens. A token is predicted in the first one that holds it.

    So each of the first CONTEXT tokens follows all the tokens before it, from <|endoftext|> on, and
    every later one follows at least CONTEXT - 8 tokens.
    """
    from transformers import GPT2LMHeadModel

    text, stride = " ".join((SENTENCES * 9)[:n]) + " é", 8
    model = GPT2LMHeadModel.from_pretrained(p0_folder, dtype=torch.float32).eval()
    ids = [V - 1, *pretrain.load_bpe(p0_folder).encode(text).ids]
    nats = 0.0
    for t in range(1, len(ids)):
        begin = max(0, math.ceil((t - CONTEXT) / stride)) * stride
        with torch.no_grad():
            logits = model(torch.tensor([ids[begin:t]])).logits[0, -1].double()
        nats -= logits.log_softmax(-1)[ids[t]].item()
    slow = nats / math.log(2) / len(text.encode())
    one = pretrain.bits_per_byte(p0_folder, [text], stride=stride, batch=3)
    two = pretrain.bits_per_byte(p0_folder, [text, text], stride=stride)
    assert one == pytest.approx(slow, rel=1e-5)
    assert two == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("name", ["pretrain", "judges"])
def test_out_holds_something_else(name, tmp_path, capsys):
    """A folder is replaced as a whole, so it may hold nothing but a model of this kind."""
    module = {"pretrain": pretrain, "judges": tiny_judges}[name]
    argv = ["--texts", "x", "--out", str(tmp_path / "m")]
    argv = ["sentiment", *argv] if name == "judges" else argv
    module.parse_options(argv)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").touch()
    module.parse_options(argv)
    (tmp_path / "m" / "thesis.txt").touch()
    with pytest.raises(SystemExit):
        module.parse_options(argv)
    assert "holds thesis.txt" in capsys.readouterr().err


def test_mean_of_two_models(p0_folder, tmp_path, monkeypatch):
    """One model has 1.5 times the weights of the other, so every mean is 1.25 times a weight.

    Then the last gain and bias are scaled so that the texts held back are likeliest. This random
    model is far too sure of itself, so the factor is below 1.
    """
    from transformers import GPT2LMHeadModel

    def load(folder):
        return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)

    other = load(p0_folder)
    for parameter in other.parameters():
        parameter.data *= 1.5
    other.save_pretrained(tmp_path / "other")
    monkeypatch.setattr(pretrain, "HELD_BACK", 2 * CONTEXT)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((p0_folder / name).read_bytes())
    tokens = pretrain.tokenize(pretrain.load_bpe(p0_folder), SENTENCES * 9)
    np.save(tmp_path / "tokens.npy", tokens)
    pretrain.mean([p0_folder, tmp_path / "other"], tmp_path, tmp_path / "out")

    first, out = load(p0_folder).state_dict(), load(tmp_path / "out").state_dict()
    last = "transformer.ln_f."
    scale = (out[last + "weight"] / (1.25 * first[last + "weight"])).mean().item()
    assert 0.93 < scale < 0.99
    for name, weight in first.items():
        expected = 1.25 * weight * (scale if name.startswith(last) else 1)
        assert torch.allclose(out[name], expected, rtol=2e-3, atol=1e-5), name


def test_distillation():
    """A fifth from the texts, four fifths from the teachers, against loops over tokens and words.

    The gradient at the logits is p - (0.2 e_y + 0.8 soft), divided by the number of tokens.
    """
    logits = torch.tensor([[0.3, -1.2, 2.0], [1.0, 0.0, -0.5]], requires_grad=True)
    soft = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    y = torch.tensor([2, 0])
    loss, nats = pretrain.distillation(logits, soft, y, share=0.8)
    loss.backward()
    hard = distilled = 0.0
    for i in range(2):
        weights = [math.exp(z) for z in logits[i].tolist()]
        p = [w / sum(weights) for w in weights]
        hard -= math.log(p[y[i]]) / 2
        for v in range(3):
            distilled -= soft[i, v].item() * math.log(p[v]) / 2
            target = 0.2 * (y[i].item() == v) + 0.8 * soft[i, v].item()
            assert logits.grad[i, v].item() == pytest.approx((p[v] - target) / 2, abs=1e-6)
    assert nats.item() == pytest.approx(hard)
    assert loss.item() == pytest.approx(0.2 * hard + 0.8 * distilled)


SHAPE = "--layers 1 --width 16 --heads 2 --context 16 --vocab-size 300 --batch-tokens 64"
SHAPE += " --minutes 0.001 --no-compile --no-bfloat16"
STILL = ["--lr-matrix", 0, "--lr-embedding", 0, "--lr-vector", 0]


def test_training_with_teachers(tmp_path, monkeypatch):
    """A pupil begins with the weights of --start: with learning rates of 0 it ends with them, too.

    What cannot be done is one sentence, and no model is written.
    """
    monkeypatch.setattr(pretrain, "HELD_BACK", 256)
    text = " ".join(SENTENCES * 40)
    (tmp_path / "reviews.txt").write_text(text, encoding="utf-8")
    (tmp_path / "others.txt").write_text(text.upper(), encoding="utf-8")

    def train(name, *more, texts="reviews.txt"):
        argv = ["--texts", tmp_path / texts, "--work", tmp_path / f"{name}-work"]
        argv += ["--out", tmp_path / name, *SHAPE.split(), *more]
        pretrain.main([str(a) for a in argv])
        weights = load_file(tmp_path / name / "model.safetensors")
        return torch.cat([w.flatten() for w in weights.values()])

    one, two = train("one"), train("two", "--seed", 1)
    assert not torch.equal(one, two)
    teachers = ["--teacher", tmp_path / "one", tmp_path / "two"]
    from_one = [*teachers, "--start", tmp_path / "one"]
    assert torch.equal(train("three", *from_one, *STILL), one)
    assert not torch.equal(train("four", *from_one), one)

    before = files_of(tmp_path / "one")
    with pytest.raises(SystemExit, match="has had its 0.001 minutes: name more"):
        train("one")
    assert files_of(tmp_path / "one") == before
    with pytest.raises(SystemExit, match="one has another vocabulary than .*five-work"):
        train("five", *teachers, texts="others.txt")
    monkeypatch.setattr(pretrain, "HELD_BACK", 10**6)
    with pytest.raises(SystemExit, match="are held back; name at least"):
        train("six")
    assert not (tmp_path / "five").exists()
    assert not (tmp_path / "six").exists()


# ----------------------------------------------------------------------------------- tiny/judges.py


class Reader:
    """Stands in for the large model: its opinion after token i of a text is i / 20, as a logit."""

    def __init__(self, bpe):
        self.bpe = bpe
        self.asked = []

    def opinions(self, ids):
        self.asked.append(ids)
        return np.tile(np.arange(ids.shape[1]) / 20, (len(ids), 1))


def test_a_reader_is_asked_where_the_judge_stops(p0_folder, tmp_path):
    """The judge reads its first n tokens. The reader's opinion is kept at its own token there.

    That is the reader's first token to cover the judge's n tokens: the text up to it begins with
    theirs, and the text up to the token before it does not. Opinions are kept in 255ths, which is
    near enough to tell the token.
    """
    bpe = tiny_judges.ByteLevelBPETokenizer(
        str(p0_folder / "vocab.json"), str(p0_folder / "merges.txt")
    )
    tokenizer = tiny_judges.make_tokenizer(SENTENCES * 50, size=120)
    texts = [" ".join((SENTENCES * 9)[i : i + 60]) for i in range(4)]
    reader, rng = Reader(bpe), np.random.default_rng(0)
    tiny_judges.read_fragments(reader, tokenizer, texts, rng, tmp_path / "notes.npz", each=2)
    notes = tiny_judges.Read(tmp_path / "notes.npz")
    assert notes.half.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]

    def read_up_to(ids, i):
        return bpe.decode(ids[: i + 1].tolist()).lower().replace(" ", "")

    for n in (1, 7, 20):
        fragments, opinions = notes.cut(np.arange(8), n)
        for fragment, p, ids in zip(fragments, opinions, reader.asked[0]):
            i = round(20 * math.log(p / (1 - p)))
            judged = tokenizer.decode(fragment.tolist()).replace(" ", "").replace("##", "")
            assert read_up_to(ids, i).startswith(judged)
            assert i == 0 or not read_up_to(ids, i - 1).startswith(judged)
