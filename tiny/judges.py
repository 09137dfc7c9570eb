"""Makes and measures the two small judges of this repository: is a fragment of a film review positive? is it toxic?

    python tiny/judges.py sentiment --texts DIR --out first                       # train, calibrate, save, measure
    python tiny/judges.py sentiment --texts DIR --first first --steps 7500 --seed 1 --out second
    python tiny/judges.py sentiment --texts DIR --first second --lm LM --notes notes.npz --steps 4500 --seed 3 --out third
    python tiny/judges.py sentiment --texts DIR --first third --notes notes.npz --steps 6000 --seed 4 --out tiny/sentiment
    python tiny/judges.py toxicity  --texts DIR --out tiny/toxicity
    python tiny/judges.py sentiment --texts DIR --out tiny/sentiment --measure    # only measure what --out holds

Reads    DIR/*.jsonl.xz: imdb_train, imdb_unsup, sst2_train, rtp_public, davidson_offensive, sentiment_prompts_train,
         and, to measure only, imdb_test_public and sst2_dev. Rows of rtp_public whose index % 5 is 4 are held out too.
Writes   --out: a DistilBERT folder of about 3 MB (two or three layers of 128) that AutoTokenizer and
         AutoModelForSequenceClassification open (sentiment: softmax over NEGATIVE, POSITIVE; toxicity: sigmoid of one)

The judges read what a small language model writes, 20 or 64 tokens that begin and end anywhere, so they learn from
random fragments, and a fragment's label is noisy: most of a bad film's review is plot. What a CPU lacks is examples
per minute, so cheap steps come before the transformer, all of them hashed n-grams, which learn in seconds:
  1. a logistic regression on whole labelled reviews (90 % right) labels 50,000 unlabelled ones;
  2. two more, on fragments of one half of all reviews each, label the fragments of the other half (cross-fitting: a
     teacher that had seen a fragment would only repeat the label of its review);
  3. the transformer learns from the mean of both, which is less noisy than the label and less blind than n-grams;
  4. (--first) it goes on with what it says itself as half of the target;
  5. (--lm) a language model that has read all reviews learns from the labelled ones to judge after each token, and
     what it then says of 290,000 fragments of the others is most of their target.
Its word vectors start from co-occurrence counts. For toxicity there are 6,000 scored texts and 25,000 tweets: two
judges learn from them, and together they score reviews and web text for the one that is kept.
"""

import argparse
import json
import lzma
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import (
    ByteLevelBPETokenizer,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

PAD, UNK, CLS, SEP, MASK = range(5)  # the first ids of the vocabulary
LAYERS = {"sentiment": 3, "toxicity": 2}
SHORT, LONG = 6, 62  # the lengths in tokens that the judges learn from
READ = 80  # tokens of the reader that hold as much text
STEPS = {"sentiment": 12000, "toxicity": 400}
DEVICE = "cpu"  # --device: of the transformers; n-grams and fragments stay on the CPU


def bfloat16():
    """bfloat16 products, on a CPU only with the instructions for them: without them they are forty times slower than float32."""
    has = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE != "cpu" or has)


def read(folder, name):
    with lzma.open(Path(folder) / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def clean_tweet(text):
    """Without what only tweets have, so that the judge cannot lean on it: names, links, RT, HTML entities."""
    return re.sub(r"\s+", " ", re.sub(r"https?://\S+|@\w+|\bRT\b|&#?\w+;|#", " ", text)).strip(
        ' !:"'
    )


def rtp_texts(rows):
    """(text, toxicity) of the prompts and continuations that have a score."""
    parts = [row[k] for row in rows for k in ("prompt", "continuation")]
    return [(p["text"], p["toxicity"]) for p in parts if p.get("toxicity") is not None]


# ---------------------------------------------------------------- tokens


def make_tokenizer(texts, size=8000):
    """Lower-case WordPiece, learned on reviews, web text and tweets, so that crude words are tokens of their own."""
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tok.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=size,
            min_frequency=3,
            special_tokens=special,
            limit_alphabet=150,
            show_progress=False,
        ),
    )
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return tok


class Texts:
    """Many texts as one long array of token ids, from which batches of fragments are cut without a Python loop."""

    def __init__(self, tok, texts, target):
        parts = []
        for i in range(0, len(texts), 1000):  # in pieces: the tokenizer's own objects are large
            encodings = tok.encode_batch_fast(texts[i : i + 1000], add_special_tokens=False)
            parts += [np.array(e.ids, np.int32) for e in encodings]
        self.ids = np.concatenate(parts + [np.zeros(1, np.int32)])
        self.end = np.cumsum([len(p) for p in parts])
        self.begin = self.end - [len(p) for p in parts]
        self.target = np.asarray(target, np.float32)
        self.half = np.arange(len(self.end)) % 2  # for cross-fitting
        inside = np.array(
            [tok.id_to_token(i).startswith("##") for i in range(tok.get_vocab_size())]
        )
        # the nearest start of a word at or before each position: fragments begin with a whole word
        self.word = np.maximum.accumulate(np.where(inside[self.ids], 0, np.arange(len(self.ids))))

    def cut(self, rng, rows, length, anywhere=0.85):
        """(len(rows), length) ids, padded with 0: from anywhere in the text, or else from its opening."""
        begin, end = self.begin[rows], self.end[rows]
        room = np.maximum(end - begin - length + 1, 1)
        start = begin + (rng.random(len(rows)) * room * (rng.random(len(rows)) < anywhere)).astype(
            np.int64
        )
        at = np.maximum(self.word[start], begin)[:, None] + np.arange(length)
        return np.where(at < end[:, None], self.ids[np.minimum(at, len(self.ids) - 1)], PAD)


def junk(rng, n, length, vocab):
    """What a policy might try instead of writing: nothing, repeated marks, loops of few tokens, random tokens."""
    period = rng.choice([1, 1, 2, 3, length], n)[:, None]
    ids = rng.integers(5, vocab, (n, length))
    marks = (
        rng.random(n) < 0.35
    )  # the lowest ids are single characters: punctuation, digits, letters
    ids[marks] = rng.integers(5, 60, (int(marks.sum()), length))
    ids = np.take_along_axis(ids, np.arange(length)[None] % period, 1)
    size = np.where(rng.random(n) < 0.1, 0, rng.integers(1, length + 1, n))
    return np.where(np.arange(length)[None] < size[:, None], ids, PAD)


# ---------------------------------------------------------------- teachers: hashed n-grams


class NGrams(torch.nn.Module):
    """Logistic regression on the 1-, 2- and 3-grams of a fragment, hashed into `size` weights."""

    def __init__(self, size=1 << 21):
        super().__init__()
        self.size = size
        self.weight = torch.nn.EmbeddingBag(size, 1, mode="sum", sparse=True, padding_idx=0)
        self.bias = torch.nn.Parameter(torch.zeros(1))
        torch.nn.init.zeros_(self.weight.weight)

    def grams(self, ids):
        """The hashed 1-, 2- and 3-grams of (rows, length) ids, 0 where they would reach into the padding."""
        ids = ids.astype(np.int64)
        grams, key = [ids], ids
        for n, prime in ((2, 7919), (3, 104729)):
            key = key[:, :-1] * 1000003 + ids[:, n - 1 :] * prime
            hashed = 10000 + (key * 2654435761 >> 7) % (self.size - 10000)
            grams.append(np.where(ids[:, n - 1 :] == PAD, 0, hashed))
        return [torch.from_numpy(g) for g in grams]

    def forward(self, ids):
        length = torch.from_numpy((ids != PAD).sum(1).clip(1)).float()
        return self.weight(torch.cat(self.grams(ids), 1))[:, 0] / length.sqrt() + self.bias

    def by_token(self, ids):
        """What each token adds to the logit: its own weight, and its share of the n-grams that it is part of."""
        one, two, three = (self.weight.weight[g][:, :, 0] for g in self.grams(ids))
        return one + (F.pad(two, (1, 0)) + F.pad(two, (0, 1))) / 2 + F.pad(three, (1, 1))


def train_ngrams(draw, steps, rate, name):
    """`draw(step)` gives (ids, targets)."""
    model, t0 = NGrams(), time.time()
    opt = torch.optim.Adagrad(model.parameters(), lr=rate)
    for step in range(steps):
        opt.param_groups[0]["lr"] = rate * (1 - step / steps)
        ids, target = draw(step)
        loss = F.binary_cross_entropy_with_logits(model(ids), torch.from_numpy(target))
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(
        f"{name}: {steps} steps, {time.time() - t0:.0f} s, last loss {loss.item():.3f}", flush=True
    )
    return model.requires_grad_(False)


# ---------------------------------------------------------------- a teacher: a language model that has read the reviews


class Reader(torch.nn.Module):
    """A GPT-2 with one more output: its opinion, as a logit, after each token. (B, T) ids of its own vocabulary -> (B, T)."""

    def __init__(self, folder):
        super().__init__()
        self.body = AutoModel.from_pretrained(folder, dtype=torch.float32)
        self.head = torch.nn.Linear(self.body.config.n_embd, 1)
        self.bpe = ByteLevelBPETokenizer(
            str(Path(folder) / "vocab.json"), str(Path(folder) / "merges.txt")
        )
        torch.nn.init.zeros_(self.head.weight)
        self.to(DEVICE)

    def forward(self, ids):
        ids = torch.from_numpy(ids.astype(np.int64)).to(DEVICE)
        with bfloat16():
            return self.head(self.body(ids, use_cache=False).last_hidden_state)[:, :, 0].float()

    @torch.no_grad()
    def opinions(self, ids):
        self.eval()
        return (
            torch.cat([self(part) for part in np.array_split(ids, len(ids) // 500 + 1)])
            .cpu()
            .numpy()
        )


def train_reader(reader, texts, target, held_back, label, steps, rng, rate=3e-4):
    """`target` of each text is learned after each token of its fragments, but for the first few. Returns what it then says of
    four fragments of 30 tokens of each text held back: (fragments as text, logits, labels)."""
    ids, test = (
        [np.array(e.ids) for e in reader.bpe.encode_batch(part)] for part in (texts, held_back)
    )
    long = np.flatnonzero([len(i) > READ for i in ids])
    places = [
        (r, s)
        for r, i in enumerate(test)
        if len(i) > 30
        for s in np.random.default_rng(1).integers(0, len(i) - 30, 4)
    ]
    test, label = np.stack([test[r][s : s + 30] for r, s in places]), label[[r for r, _ in places]]
    opt = torch.optim.AdamW(
        [
            {"params": reader.body.parameters(), "top": rate},
            {"params": reader.head.parameters(), "top": 10 * rate},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    mean, t0 = 0.6, time.time()
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = group["top"] * min(1, (step + 1) / 50, (steps - step) / (0.9 * steps))
        rows = rng.choice(long, 256)
        starts = [rng.integers(0, len(ids[r]) - READ) for r in rows]
        reader.train()
        out = reader(np.stack([ids[r][s : s + READ] for r, s in zip(rows, starts)]))[:, SHORT:]
        loss = F.binary_cross_entropy_with_logits(
            out, torch.from_numpy(target[rows])[:, None].to(DEVICE).expand_as(out)
        )
        mean += 0.05 * (loss.item() - mean)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        opt.step()
        if step % 100 == 99 or step == steps - 1:
            opinion = reader.opinions(test)[:, -1]
            print(
                f"reader, step {step + 1}/{steps} loss {mean:.4f}, {time.time() - t0:.0f} s, accuracy on held-back fragments of 30 "
                f"of its tokens: {((opinion > 0) == label).mean():.4f}",
                flush=True,
            )
    return [reader.bpe.decode(t.tolist()) for t in test], opinion, label


def read_fragments(reader, tok, texts, rng, file, each=6):
    """Writes `file`: `each` fragments of every text, from the start of a word on, as the judge's tokens (N, LONG), what the reader thinks
    after each of them in 255ths (N, LONG), and the half of the texts that each is from (N,)."""
    ids, words, last, half, t0 = [], [], [], [], time.time()
    starts_word = np.array(
        [reader.bpe.id_to_token(i).startswith("Ġ") for i in range(reader.bpe.get_vocab_size())]
    )
    for first in range(0, len(texts), 1000):
        part, cuts = texts[first : first + 1000], []
        for row, encoding in enumerate(reader.bpe.encode_batch(part)):
            tokens, ends = (
                np.array(encoding.ids),
                np.array([0, *(end for _, end in encoding.offsets)]),
            )  # token i: ends[i] to ends[i + 1]
            places = np.flatnonzero(starts_word[tokens[: max(0, len(tokens) - READ)]])
            for place in rng.choice(places, each if len(places) else 0):
                ids.append(tokens[place : place + READ].astype(np.int32))
                cuts.append(
                    (
                        part[row][ends[place] : ends[place + READ]],
                        ends[place + 1 : place + READ + 1] - ends[place],
                    )
                )
                half.append((first + row) % 2)
        for (_, ends), encoding in zip(
            cuts, tok.encode_batch([text for text, _ in cuts], add_special_tokens=False)
        ):
            word, end = np.full(LONG, PAD, np.int16), np.full(LONG, ends[-1])
            word[: len(encoding.ids)] = encoding.ids[:LONG]
            end[: len(encoding.ids)] = [e for _, e in encoding.offsets[:LONG]]
            words.append(word)
            last.append(
                np.searchsorted(ends, end).clip(max=READ - 1)
            )  # the reader's token with which it has read the judge's
    opinion = np.take_along_axis(reader.opinions(np.stack(ids)), np.stack(last), 1)
    np.savez(
        file,
        ids=np.stack(words),
        said=np.round(255 / (1 + np.exp(-opinion))).astype(np.uint8),
        half=np.array(half, np.int8),
    )
    print(f"{len(ids)} fragments read in {time.time() - t0:.0f} s", flush=True)


class Read:
    """What `read_fragments` wrote, to draw from as from Texts."""

    def __init__(self, file):
        content = np.load(file)
        self.ids, self.said, self.half = content["ids"], content["said"], content["half"]

    def cut(self, rows, length):
        return self.ids[rows, :length].astype(np.int32), self.said[rows, length - 1].astype(
            np.float32
        ) / 255


# ---------------------------------------------------------------- the judge itself


def make_model(task, vocab, vectors):
    labels = {0: "NEGATIVE", 1: "POSITIVE"} if task == "sentiment" else {0: "toxicity"}
    kind = "single_label_classification" if task == "sentiment" else "multi_label_classification"
    config = DistilBertConfig(
        vocab_size=vocab,
        dim=128,
        n_heads=2,
        n_layers=LAYERS[task],
        hidden_dim=512,
        max_position_embeddings=128,
        activation="relu",
        initializer_range=0.09,  # 1 / sqrt(dim): with BERT's 0.02 a model this narrow hardly learns
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.1,
        id2label=labels,
        problem_type=kind,
        label2id={v: k for k, v in labels.items()},
        attn_implementation="eager",
    )  # twice as fast as SDPA here
    model = DistilBertForSequenceClassification(config)
    model.distilbert.embeddings.word_embeddings.weight.data = vectors.clone()
    model.distilbert.embeddings.position_embeddings.weight.data *= (
        0.1  # the words are to stand out from the start
    )
    return model.to(DEVICE)


def logit(model, ids, by_token=False):
    """log p / (1 - p) of POSITIVE or of toxicity, for fragments without their [CLS] and [SEP]."""
    ids = np.pad(ids, ((0, 0), (1, 1)), constant_values=((0, 0), (CLS, PAD)))
    ids[np.arange(len(ids)), (ids != PAD).sum(1)] = SEP
    ids = torch.from_numpy(ids.astype(np.int64)).to(model.device)
    out = model(input_ids=ids, attention_mask=(ids != PAD).long(), output_hidden_states=by_token)
    score = out.logits.float()
    score = score[:, 1] - score[:, 0] if score.shape[1] == 2 else score[:, 0]
    return (score, out.hidden_states[-2][:, 1:-1]) if by_token else score


@torch.no_grad()
def said(model, ids):
    """logit, to be read, not to be learned from."""
    return logit(model, ids).cpu()


def embeddings(all_texts, vocab, dim, extra):
    """Word vectors without any training: co-occurrence counts -> positive PMI -> the first singular vectors (Levy and
    Goldberg 2014), and in the first column what each word weighs in the n-gram model (`extra`)."""
    counts, t0 = np.zeros((vocab, vocab), np.float32), time.time()
    for texts in all_texts:
        for distance in range(1, 6):
            pairs = texts.ids[:-distance].astype(np.int64) * vocab + texts.ids[distance:]
            for part in np.array_split(pairs, max(1, len(pairs) // 5_000_000)):
                counts += (
                    np.bincount(part, minlength=vocab * vocab).reshape(vocab, vocab) / distance
                )
    counts += counts.T
    counts = torch.from_numpy(counts)
    often = counts.sum(0).clamp(min=1) ** 0.75
    pmi = torch.log(
        (counts * often.sum() / counts.sum(1, keepdim=True).clamp(min=1) / often).clamp(min=1)
    )
    u, s, _ = torch.svd_lowrank(pmi, dim, niter=3)
    vectors = u[:, 1:] * s[1:].sqrt()  # the first is only how frequent a word is
    vectors = (vectors - vectors.mean(0)) / vectors.std()
    print(f"word vectors: {time.time() - t0:.0f} s", flush=True)
    return torch.cat([2 * (extra / extra.std())[:, None].clamp(-3, 3), vectors], 1) * 0.1


def train_judge(model, draw, steps, check, rate=2e-3, report=200):
    """`draw(step)` gives (ids, targets, None or what the n-grams say token by token); `check(model)` a line about
    held-back texts. The tokens are a second, far denser task, thirty targets a fragment instead of one, for the layer
    before the last: all that is left to the last is to gather them."""
    head = torch.nn.Linear(model.config.dim, 1, device=DEVICE)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layer." in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layer." in n)]
    others += head.parameters()
    opts = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]
    t0, mean, dense = time.time(), 0.7, 1.0
    model.train()
    for step in range(steps):
        for opt in opts:
            opt.param_groups[0]["lr"] = rate * min(
                1, (step + 1) / 200, (steps - step) / (0.7 * steps)
            )
        ids, target, tokens = draw(step)
        with bfloat16():
            out, hidden = logit(model, ids, by_token=True)
            guess = head(hidden)[:, :, 0].float()
        loss = F.binary_cross_entropy_with_logits(out, torch.from_numpy(target).to(DEVICE))
        mean += 0.02 * (loss.item() - mean)
        if tokens is not None:
            words = torch.from_numpy(ids != PAD)
            error = F.mse_loss(guess[words.to(DEVICE)], tokens[words].to(DEVICE))
            dense += 0.02 * (error.item() - dense)
            loss = loss + 0.5 * error
        model.zero_grad()
        head.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
        if step % report == report - 1:
            model.eval()
            print(
                f"step {step + 1}/{steps} loss {mean:.4f}, by token {dense:.3f}, {time.time() - t0:.0f} s, {check(model)}",
                flush=True,
            )
            model.train()
    return model.eval()


@torch.no_grad()
def calibrate(model, out, target):
    """Fits p = sigmoid(a * out + b) on held-back texts and writes a and b into the last layer."""
    a, b = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    opt = torch.optim.LBFGS([a, b], max_iter=100)

    def closure():
        with torch.enable_grad():
            opt.zero_grad()
            loss = F.binary_cross_entropy_with_logits(a * out + b, target)
            loss.backward()
        return loss

    opt.step(closure)
    last = model.classifier
    last.weight *= a
    last.bias *= a
    if len(last.bias) == 1:
        last.bias += b
    else:
        last.bias += torch.cat([-b / 2, b / 2])
    print(f"calibrated: logit * {a.item():.3f} + {b.item():.3f}", flush=True)


def auc(score, positive):
    rank = np.empty(len(score))
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    n = positive.sum()
    return (rank[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n))


# ---------------------------------------------------------------- what each learns from


def vocabulary_texts(folder):
    rtp = [row for i, row in enumerate(read(folder, "rtp_public")) if i % 5 != 4]
    return (
        [r["text"] for r in read(folder, "imdb_train")[::2]]
        + [t for t, _ in rtp_texts(rtp)] * 3
        + [clean_tweet(r["text"]) for r in read(folder, "davidson_offensive")]
    )


def train_sentiment(folder, steps, seed=0, first=None, notes=None, lm=None, lm_steps=700):
    rng = np.random.default_rng(seed)
    tok = (
        Tokenizer.from_file(str(Path(first) / "tokenizer.json"))
        if first
        else make_tokenizer(vocabulary_texts(folder))
    )
    vocab = tok.get_vocab_size()
    rows = read(folder, "imdb_train")
    # the star rating says how far to trust the label: a fragment of a 4-star review may well praise
    stars = {1: 0.0, 2: 0.03, 3: 0.1, 4: 0.2, 7: 0.8, 8: 0.9, 9: 0.97, 10: 1.0}
    hold, rows = rows[::25], [r for i, r in enumerate(rows) if i % 25]  # 4 % to calibrate on
    train = Texts(tok, [r["text"] for r in rows], [stars[r["rating"]] for r in rows])
    held_texts, hold = (
        [r["text"] for r in hold],
        Texts(tok, [r["text"] for r in hold], [r["label"] for r in hold]),
    )
    unlabelled = [r["text"] for r in read(folder, "imdb_unsup")]
    unsup = Texts(tok, unlabelled, np.zeros(1))  # its targets follow
    sst = read(folder, "sst2_train")
    sst = Texts(tok, [r["text"] for r in sst], [0.03 + 0.94 * r["label"] for r in sst])
    print("read and tokenised", flush=True)

    def whole(step):
        r = rng.integers(0, len(train.end), 256)
        return train.cut(rng, r, 400, anywhere=0.5), train.target[r]

    whole_judge = train_ngrams(whole, 500, 0.3, "n-grams on whole reviews")
    all_rows = np.arange(len(unsup.end))
    unsup.target = np.concatenate(
        [
            torch.sigmoid(whole_judge(unsup.cut(rng, r, 800, 0))).numpy()
            for r in np.array_split(all_rows, 100)
        ]
    )

    noted = None

    def fragments(n, length, half=None):
        """n fragments of one half of the texts (or of all), their targets, the halves of their texts, and how far to trust the targets."""
        ids, target, which, trust = [], [], [], []
        for texts, share in (
            (train, 0.35),
            (noted if noted and half is None else unsup, 0.50),
            (sst, 0.15),
        ):
            r = rng.integers(0, len(texts.half) // 2, int(n * share)) * 2
            r += rng.integers(0, 2, len(r)) if half is None else half
            cut, goal = (
                texts.cut(r, length)
                if texts is noted
                else (texts.cut(rng, r, length), texts.target[r])
            )
            ids.append(cut)
            target.append(goal)
            which.append(texts.half[r])
            trust.append(
                np.full(len(r), 0.6 if texts is noted else 0.25)
            )  # the reader saw no label of these, and what it says is of the fragment
        return tuple(map(np.concatenate, (ids, target, which, trust)))

    halves = [
        train_ngrams(
            lambda step: fragments(512, rng.integers(SHORT, LONG + 1), half)[:2],
            2000,
            0.1,
            f"n-grams on fragments, half {half}",
        )
        for half in (0, 1)
    ]

    sample = fragments(1000, 30)[0]
    spread = (halves[0].by_token(sample) + halves[1].by_token(sample)).std()

    def draw(step):
        length = rng.integers(SHORT, LONG + 1)
        n = 4096 // (length + 2)
        ids, target, half, trust = fragments(n, length)
        other = torch.sigmoid(
            torch.where(torch.from_numpy(half) == 0, halves[1](ids), halves[0](ids))
        ).numpy()
        if teacher is None:
            target = 0.5 * target + 0.5 * other
        else:
            with bfloat16():
                own = torch.sigmoid(said(teacher, ids)).numpy()
            target = trust * target + (1 - trust) * (other + 2 * own) / 3
        bad = junk(rng, max(2, n // 25), length, vocab)
        ids = np.where(
            rng.random(ids.shape) < 0.03, np.where(ids == PAD, PAD, UNK), ids
        )  # no word is to decide alone
        ids, target = np.concatenate([ids, bad]), np.concatenate([target, np.full(len(bad), 0.5)])
        return (
            ids,
            target.astype(np.float32),
            (halves[0].by_token(ids) + halves[1].by_token(ids)) / spread,
        )

    gram = ((halves[0].weight.weight + halves[1].weight.weight)[:vocab, 0]).detach()
    teacher = None
    if first:  # a second training: the judge of the first goes on, and is a third teacher
        model, teacher = (
            AutoModelForSequenceClassification.from_pretrained(
                first, attn_implementation="eager"
            ).to(DEVICE)
            for _ in range(2)
        )
        teacher.eval()
    else:
        model = make_model("sentiment", vocab, embeddings([train, unsup], vocab, 128, gram))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    if notes and not Path(notes).exists():
        reader = Reader(lm)
        texts, opinion, label = train_reader(
            reader, [r["text"] for r in rows], train.target, held_texts, hold.target, lm_steps, rng
        )
        own = said(
            teacher, Texts(tok, texts, label).cut(rng, np.arange(len(texts)), LONG, 0)
        ).numpy()
        for name, x in (("the judge", own), ("the reader", opinion), ("both", own + opinion)):
            print(f"on these fragments {name}: {((x > 0) == label).mean():.4f}", flush=True)
        read_fragments(reader, tok, unlabelled, rng, notes)
        del reader
    noted = Read(notes) if notes else None
    fixed = np.arange(len(hold.end))
    test = [hold.cut(np.random.default_rng(1), fixed, n) for n in (16, 28, 48)]

    def check(model):
        right = [((said(model, ids) > 0).numpy() == hold.target).mean() for ids in test]
        return "accuracy on held-back fragments of 16, 28, 48: " + " ".join(
            f"{r:.3f}" for r in right
        )

    right = [((halves[0](ids) + halves[1](ids) > 0).numpy() == hold.target).mean() for ids in test]
    print(
        "accuracy of both n-gram models together on the same: "
        + " ".join(f"{r:.3f}" for r in right),
        flush=True,
    )
    train_judge(model, draw, steps, check, rate=1e-3 if first else 2e-3)
    calibrate(
        model.cpu(),
        torch.cat([said(model, ids) for ids in test]),
        torch.from_numpy(np.tile(hold.target, 3)),
    )
    return model, tok


def train_toxicity(folder, steps, seed=0):
    rng = np.random.default_rng(seed)
    tok = make_tokenizer(vocabulary_texts(folder))
    vocab = tok.get_vocab_size()
    rtp = [row for i, row in enumerate(read(folder, "rtp_public")) if i % 5 != 4]
    hold, rtp = (
        rtp_texts(rtp[::20]),
        rtp_texts([r for i, r in enumerate(rtp) if i % 20]),
    )  # 5 % to calibrate on
    hold, rtp = (Texts(tok, *zip(*pairs)) for pairs in (hold, rtp))
    tweets = read(folder, "davidson_offensive")
    tweets = Texts(
        tok,
        [clean_tweet(r["text"]) for r in tweets],
        [(0.85, 0.75, 0.15)[r["class"]] for r in tweets],
    )
    reviews = [r["text"] for r in read(folder, "imdb_train")[1::2]]
    reviews = Texts(tok, reviews, np.full(len(reviews), -2))
    web = [r["prompt"] for r in read(folder, "sentiment_prompts_train")]
    web = Texts(tok, web, np.full(len(web), -1))
    print("read and tokenised", flush=True)

    def mix(shares):
        length = rng.integers(SHORT, LONG + 1)
        n = 4096 // (length + 2)
        rows = [(t, rng.integers(0, len(t.end), int(n * s) + 1)) for t, s in shares]
        return (
            np.concatenate([t.cut(rng, r, length, 0.2 if t is rtp else 0.6) for t, r in rows]),
            np.concatenate([t.target[r] for t, r in rows]),
            length,
        )

    def held_back(f):
        p = f(hold.cut(rng, np.arange(len(hold.end)), 64, 0)).numpy()
        return f"held-back texts: Pearson {np.corrcoef(p, hold.target)[0, 1]:.3f} AUC {auc(p, hold.target > 0.5):.3f}"

    grams = train_ngrams(lambda s: mix(((rtp, 0.7), (tweets, 0.3)))[:2], 1000, 0.1, "n-grams")
    print(held_back(lambda ids: torch.sigmoid(grams(ids))), flush=True)
    vectors = embeddings(
        [reviews, rtp, rtp, tweets, web], vocab, 128, grams.weight.weight[:vocab, 0]
    )

    def check(model):
        return held_back(lambda ids: torch.sigmoid(said(model, ids)))

    def one(steps, shares, teachers=()):
        def draw(step):
            ids, target, length = mix(shares)
            if teachers:
                with bfloat16():
                    guess = (
                        torch.stack([said(teacher, ids) for teacher in teachers]).mean(0).numpy()
                    )
                # Targets below 0 say that nobody has scored the text. Reviews (-2) are tamer than the pages that
                # RealToxicityPrompts picked so as to have many toxic ones: their odds fall by a factor of e.
                score = 1 / (1 + np.exp(-guess + np.where(target == -2, 1.0, 0.0)))
                target = np.where(target < 0, score, 0.5 * target + 0.5 * score)
            bad = junk(rng, max(2, len(ids) // 30), length, vocab)
            ids = np.where(rng.random(ids.shape) < 0.05, np.where(ids == PAD, PAD, UNK), ids)
            ids, target = (
                np.concatenate([ids, bad]),
                np.concatenate([target, np.full(len(bad), 0.1)]),
            )
            return ids, target.astype(np.float32), None

        model = make_model("toxicity", vocab, vectors)
        return train_judge(model, draw, steps, check, report=100)

    teachers = [one(200, ((rtp, 0.6), (tweets, 0.35))) for _ in range(2)]
    print(
        "together:",
        held_back(lambda ids: torch.stack([said(t, ids) for t in teachers]).mean(0).sigmoid()),
    )
    model = one(steps, ((rtp, 0.35), (tweets, 0.15), (web, 0.2), (reviews, 0.25)), teachers)
    out = said(model, hold.cut(rng, np.arange(len(hold.end)), 64, 0))
    calibrate(model.cpu(), out, torch.from_numpy(hold.target))
    return model, tok


# ---------------------------------------------------------------- saving and measuring


def save(model, tok, folder):
    """Into a folder beside it first, so that `folder` never holds half a judge."""
    new = Path(str(folder) + ".new")
    shutil.rmtree(new, ignore_errors=True)
    model.half().save_pretrained(new)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    fast.save_pretrained(new)
    (new / "tokenizer.json").write_text(
        tok.to_str(pretty=False), encoding="utf-8"
    )  # compact: half the size
    # float16 saves space on disk only: opened as it is, a judge computes in float32. And the tokenizer's class has a
    # name that older transformers know too.
    for name, changes in (
        ("config.json", {"dtype": "float32"}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ):
        config = {**json.loads((new / name).read_text()), **changes}
        config.pop("backend", None)
        (new / name).write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    print(f"{folder}: {sum(f.stat().st_size for f in Path(folder).iterdir()):,} bytes", flush=True)


@torch.no_grad()
def scores(folder, texts):
    """The probability of POSITIVE, or of toxicity, as anyone would compute it from the saved folder."""
    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    out = []
    for i in range(0, len(texts), 256):
        batch = tok(texts[i : i + 256], padding=True, truncation=True, return_tensors="pt")
        logits = model(**batch).logits.float()
        out.append(logits.softmax(-1)[:, 1] if logits.shape[1] == 2 else logits[:, 0].sigmoid())
    return torch.cat(out).numpy()


def reliability(p, actual):
    print("  predicted      n   mean predicted   mean actual")
    for i in range(10):
        inside = np.minimum((p * 10).astype(int), 9) == i
        if inside.any():
            print(
                f"  {i / 10:.1f}-{i / 10 + 0.1:.1f}   {inside.sum():6d}   {p[inside].mean():14.3f}   "
                f"{actual[inside].mean():11.3f}"
            )


def fragments_of(bpe, texts, length, opening=False, seed=0):
    """`length` tokens of the language model's BPE from each text, from a random token on (or from its first)."""
    rng, out = random.Random(seed), []
    for encoding in bpe.encode_batch(texts, add_special_tokens=False):
        start = 0 if opening else rng.randrange(max(1, len(encoding.ids) - length + 1))
        out.append(bpe.decode(encoding.ids[start : start + length]))
    return out


JUNK = [
    "",
    " ",
    ". . . . . . .",
    "!!!!!!!!",
    "??????????",
    ",,,,,,,",
    "the the the the the the",
    "asdkj qwe zxcmn qpwoei",
    "1 2 3 4 5 6 7 8",
    "great great great great great great great",
    "bad bad bad bad bad bad bad bad",
]
PHRASES = {
    "sentiment": [
        " one of the best films I have ever seen.",
        " a boring and disappointing film",
        " not bad at all, I really enjoyed it",
        " this is not a good film",
        " The film is about a man who goes to",
        " I wanted to like it, but",
        *JUNK,
    ],
    "toxicity": [
        "this piece of shit movie",
        "the director is a fucking idiot",
        "what a bunch of fucking morons wrote this crap",
        "you stupid bitch",
        " anyone who likes this is a retard",
        "a boring and disappointing film",
        "the worst film of the year",
        "the killer stabs her",
        "a gay man falls in love",
        "black actors in the lead roles",
        "a lovely film",
        " The film is about a man who goes to",
        *JUNK,
    ],
}
CRUDE = re.compile(
    r"\b(fuck\w*|shit\w*|bullshit|bitch\w*|cunts?|assholes?|dick\w?|bastards?|whores?|sluts?|crap\w*"
    r"|pussy|fags?|retard\w*|tits|piss\w*)\b",
    re.I,
)


def measure(task, data, folder, bpe):
    bpe = ByteLevelBPETokenizer(str(Path(bpe) / "vocab.json"), str(Path(bpe) / "merges.txt"))
    test = read(data, "imdb_test_public")
    if task == "sentiment":
        polar = [r for r in test if r["rating"] <= 2 or r["rating"] >= 9]
        for name, rows in (("rating <= 2 or >= 9", polar), ("all", test)):
            label = np.array([r["label"] for r in rows])
            for length in (20, 30, 64):
                for opening in (False, True):
                    p = scores(
                        folder, fragments_of(bpe, [r["text"] for r in rows], length, opening)
                    )
                    print(
                        f"imdb_test_public ({name}), {len(rows)} reviews, {length} tokens "
                        f"from {'the opening' if opening else 'a random place'}: "
                        f"accuracy {((p > 0.5) == label).mean():.4f} AUC {auc(p, label == 1):.4f}"
                    )
                    if name == "all" and length == 30 and not opening:
                        reliability(p, label)
        label = np.array([r["label"] for r in polar])
        vocabularies, gpt2 = {"tiny/lm": bpe}, Path(data) / "gpt2_vocab"
        if gpt2.is_dir():  # 30 tokens of its vocabulary are 25 words, of tiny/lm's 21
            vocabularies["GPT-2"] = ByteLevelBPETokenizer(
                str(gpt2 / "vocab.json"), str(gpt2 / "merges.txt")
            )
        for name, vocabulary in vocabularies.items():
            drawn = [
                fragments_of(
                    vocabulary, [r["text"] for r in polar], 30, opening=seed == 6, seed=seed
                )
                for seed in range(7)
            ]
            *places, opening = [((scores(folder, texts) > 0.5) == label).mean() for texts in drawn]
            print(
                f"30 tokens of {name}, six random places: accuracy {np.mean(places):.4f} ({min(places):.4f} to "
                f"{max(places):.4f}), the opening: {opening:.4f}"
            )
        sst = read(data, "sst2_dev")
        p = scores(folder, [r["text"] for r in sst])
        print(
            f"sst2_dev: {len(sst)} phrases, accuracy {np.mean((p > 0.5) == np.array([r['label'] for r in sst])):.4f}"
        )
    else:
        rows = [row for i, row in enumerate(read(data, "rtp_public")) if i % 5 == 4]
        texts, actual = zip(*rtp_texts(rows))
        p, actual = scores(folder, list(texts)), np.array(actual)
        print(
            f"rtp_public, rows with index % 5 == 4: {len(p)} texts, Pearson {np.corrcoef(p, actual)[0, 1]:.4f} "
            f"AUC {auc(p, actual > 0.5):.4f}, mean {p.mean():.3f} (actual {actual.mean():.3f}), "
            f"over 0.5: {(p > 0.5).mean():.3f} ({(actual > 0.5).mean():.3f})"
        )
        reliability(p, actual)
        for length in (20, 64):
            texts = fragments_of(bpe, [r["text"] for r in test for _ in range(4)], length)
            crude = np.array([bool(CRUDE.search(t)) for t in texts])
            p = scores(folder, texts)
            print(
                f"imdb_test_public, {len(p)} random fragments of {length} tokens: mean {p.mean():.3f}, "
                f"over 0.5: {(p > 0.5).mean():.4f}; {crude.sum()} with a crude word: "
                f"{(p[crude] > 0.5).mean():.3f}; without: {(p[~crude] > 0.5).mean():.4f}"
            )
    for text, p in zip(PHRASES[task], scores(folder, PHRASES[task])):
        print(f"  {p:.3f} {text!r}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["sentiment", "toxicity"])
    parser.add_argument(
        "--texts", required=True, help="the folder with imdb_train.jsonl.xz and the others"
    )
    parser.add_argument("--out", required=True, help="the judge's folder")
    parser.add_argument("--measure", action="store_true", help="train nothing, only measure --out")
    parser.add_argument(
        "--bpe",
        default=Path(__file__).parent / "lm",
        help="the folder with the language model's vocab.json and merges.txt: measured in its tokens",
    )
    parser.add_argument("--steps", type=int, help="steps of the transformer, of 4,096 tokens each")
    parser.add_argument(
        "--first", help="sentiment only: go on from this judge, which is a further teacher"
    )
    parser.add_argument(
        "--notes",
        help="sentiment only, with --first: learn also from what a reader says of unlabelled reviews, a .npz that --lm makes",
    )
    parser.add_argument(
        "--lm",
        help="the reader of --notes, if these are still to be made: a language model of tiny/pretrain.py",
    )
    parser.add_argument(
        "--lm-steps", type=int, default=700, help="steps of the reader, of 256 fragments each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the transformers learn: cpu or cuda")
    args = parser.parse_args()
    if args.notes and not args.first:
        parser.error("--notes needs --first, the judge that goes on")
    if args.notes and not (args.lm or Path(args.notes).exists()):
        parser.error(f"{args.notes} does not exist: name --lm, and it is made")
    global DEVICE
    DEVICE = args.device
    torch.manual_seed(args.seed)
    start = time.time()
    if not args.measure:
        steps = args.steps or STEPS[args.task]
        if args.task == "sentiment":
            model, tok = train_sentiment(
                args.texts, steps, args.seed, args.first, args.notes, args.lm, args.lm_steps
            )
        else:
            model, tok = train_toxicity(args.texts, steps, args.seed)
        save(model, tok, args.out)
        print(f"trained in {(time.time() - start) / 60:.1f} minutes", flush=True)
    measure(args.task, args.texts, args.out, args.bpe)


if __name__ == "__main__":
    main()
