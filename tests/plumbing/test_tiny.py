"""tiny/: what is measured of the small model, and how it and its judge were made."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import CONTEXT, ROOT, SENTENCES, V
from safetensors.torch import load_file

sys.path.insert(0, str(ROOT / "tiny"))
import judges  # noqa: E402
import pretrain  # noqa: E402


@pytest.mark.parametrize("n", [3, 200])
def test_bits_per_byte_is_the_slow_sum(p0_folder, n):
    """One token at a time: the first CONTEXT behind <|endoftext|>, then each behind at least CONTEXT - stride tokens."""
    from transformers import GPT2LMHeadModel

    text, stride = " ".join((SENTENCES * 9)[:n]) + " é", 8
    model = GPT2LMHeadModel.from_pretrained(p0_folder, dtype=torch.float32).eval()
    ids = [V - 1, *pretrain.load_bpe(p0_folder).encode(text).ids]
    nats = 0.0
    for t in range(1, len(ids)):
        begin = max(0, math.ceil((t - CONTEXT) / stride)) * stride  # the first window, of those that begin each `stride` tokens, to hold t
        with torch.no_grad():
            logits = model(torch.tensor([ids[begin:t]])).logits[0, -1].double()
        nats -= logits.log_softmax(-1)[ids[t]].item()
    slow = nats / math.log(2) / len(text.encode())
    assert pretrain.bits_per_byte(p0_folder, [text], stride=stride, batch=3) == pytest.approx(slow, rel=1e-5)
    assert pretrain.bits_per_byte(p0_folder, [text, text], stride=stride) == pytest.approx(slow, rel=1e-5)


def test_mean_of_two_models(p0_folder, tmp_path, monkeypatch):
    """Every weight is the mean, but the last gain and bias, which are scaled so that the texts held back are likelier."""
    from transformers import GPT2LMHeadModel

    def weights(folder):
        return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).state_dict()

    other = GPT2LMHeadModel.from_pretrained(p0_folder, dtype=torch.float32)
    for p in other.parameters():
        p.data *= 1.5
    other.save_pretrained(tmp_path / "other")
    monkeypatch.setattr(pretrain, "HELD_BACK", 2 * CONTEXT)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((p0_folder / name).read_bytes())
    tokens = pretrain.tokenize(pretrain.load_bpe(p0_folder), SENTENCES * 9)
    np.save(tmp_path / "tokens.npy", tokens)
    pretrain.mean([p0_folder, tmp_path / "other"], tmp_path, tmp_path / "out")
    first, out, last = weights(p0_folder), weights(tmp_path / "out"), "transformer.ln_f."
    scale = (out[last + "weight"] / (1.25 * first[last + "weight"])).mean().item()
    assert 0.93 < scale < 0.99  # this model is far too sure of its random opinions
    for name, weight in first.items():
        wanted = 1.25 * weight * (scale if name.startswith(last) else 1)
        assert torch.allclose(out[name], wanted, rtol=2e-3, atol=1e-5), name


def test_a_reader_is_asked_where_the_judge_stops(p0_folder, tmp_path):
    """The opinion kept for the first n tokens of the judge is that after the reader's first token to cover them."""
    bpe = judges.ByteLevelBPETokenizer(str(p0_folder / "vocab.json"), str(p0_folder / "merges.txt"))
    tok = judges.make_tokenizer(SENTENCES * 50, size=120)
    texts = [" ".join((SENTENCES * 9)[i : i + 60]) for i in range(4)]
    asked = []

    class Fake:
        def opinions(self, ids):
            asked.append(ids)
            return np.tile(np.arange(ids.shape[1]) / 20, (len(ids), 1))

    reader = Fake()
    reader.bpe = bpe
    judges.read_fragments(reader, tok, texts, np.random.default_rng(0), tmp_path / "notes.npz", each=2)
    notes = judges.Read(tmp_path / "notes.npz")
    assert notes.half.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    for n in (1, 7, 20):
        fragments, said = notes.cut(np.arange(8), n)
        for fragment, p, ids in zip(fragments, said, asked[0]):
            at = round(20 * math.log(p / (1 - p)))  # the reader's token; 255ths are near enough
            words = tok.decode(fragment.tolist()).replace(" ", "").replace("##", "")
            read = [bpe.decode(ids[: i + 1].tolist()).lower().replace(" ", "") for i in (at - 1, at)]
            assert read[1].startswith(words) and (at == 0 or not read[0].startswith(words))


def test_distillation():
    """A fifth from the texts, four from the teachers: against a loop over tokens and words, with the gradient at the logits p - (0.2 e_y + 0.8 soft)."""
    logits = torch.tensor([[0.3, -1.2, 2.0], [1.0, 0.0, -0.5]], requires_grad=True)
    soft, y = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), torch.tensor([2, 0])
    loss, nats = pretrain.distillation(logits, soft, y, share=0.8)
    p = [[math.exp(z) / sum(map(math.exp, row)) for z in row] for row in logits.tolist()]
    hard = -sum(math.log(p[i][y[i]]) for i in range(2)) / 2
    wanted = 0.2 * hard - 0.8 * sum(soft[i, v].item() * math.log(p[i][v]) for i in range(2) for v in range(3)) / 2
    assert nats.item() == pytest.approx(hard) and loss.item() == pytest.approx(wanted)
    loss.backward()
    target = 0.2 * torch.nn.functional.one_hot(y, 3) + 0.8 * soft
    assert torch.allclose(logits.grad, (torch.tensor(p) - target) / 2, atol=1e-6)


def test_training_with_teachers(tmp_path, monkeypatch):
    """A pupil begins with the weights of --start; what cannot be done is one sentence and writes no model."""
    monkeypatch.setattr(pretrain, "HELD_BACK", 256)
    (tmp_path / "reviews.txt").write_text(" ".join(SENTENCES * 40), encoding="utf-8")
    (tmp_path / "others.txt").write_text(" ".join(SENTENCES * 40).upper(), encoding="utf-8")

    def train(name, *more, texts="reviews.txt"):
        shape = "--layers 1 --width 16 --heads 2 --context 16 --vocab-size 300 --batch-tokens 64 --minutes 0.001 --no-compile --no-bfloat16"
        pretrain.main(["--texts", str(tmp_path / texts), "--work", str(tmp_path / f"{name}-work"), "--out", str(tmp_path / name),
                       *shape.split(), *map(str, more)])  # fmt: skip
        return torch.cat([w.flatten() for w in load_file(tmp_path / name / "model.safetensors").values()])

    one, two = train("one"), train("two", "--seed", 1)
    teachers = ["--teacher", tmp_path / "one", tmp_path / "two"]
    still = "--lr-matrix 0 --lr-embedding 0 --lr-vector 0".split()
    assert not torch.equal(one, two) and torch.equal(train("three", *teachers, "--start", tmp_path / "one", *still), one)
    assert not torch.equal(train("four", *teachers, "--start", tmp_path / "one"), one)
    with pytest.raises(SystemExit, match="has had its 0.001 minutes: name more"):
        train("one")
    with pytest.raises(SystemExit, match="one has another vocabulary than .*five-work"):
        train("five", *teachers, texts="others.txt")
    with pytest.raises(SystemExit, match="are held back; name at least"):
        monkeypatch.setattr(pretrain, "HELD_BACK", 10**6)
        train("six")
    assert not (tmp_path / "five").exists() and not (tmp_path / "six").exists()
