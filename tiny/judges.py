"""Makes and measures the two judges in tiny/: is a piece of a film review positive, is it toxic?

    python tiny/judges.py toxicity --texts DIR --out tiny/toxicity
    python tiny/judges.py sentiment --texts DIR --out first
    python tiny/judges.py sentiment --texts DIR --out first --measure     # measure, do not train

tiny/README.md has the four commands that made tiny/sentiment.

Reads    DIR/*.jsonl.xz: imdb_train, imdb_unsup, sst2_train, rtp_public, davidson_offensive,
         sentiment_prompts_train; only to measure, imdb_test_public and sst2_dev. Rows of rtp_public
         whose index % 5 is 4 are held out as well.
Writes   --out: a DistilBERT folder of about 3 MB (two or three layers of 128) that AutoTokenizer
         and AutoModelForSequenceClassification open. Sentiment is a softmax over NEGATIVE and
         POSITIVE, toxicity the sigmoid of one logit.

The judges read what a small language model writes: 20 or 64 tokens that begin and end anywhere. So
they learn from random fragments, and the label of a fragment is noisy: most of a bad film's review
is plot. A CPU trains a transformer on few examples per minute. So hashed n-grams, which learn in
seconds, come first:

1. A logistic regression on labelled reviews (90 % right) labels 50,000 unlabelled ones.
2. Two more learn from fragments, each from one half of all reviews. Each labels the fragments of
   the other half. (Cross-fitting: a teacher that had seen a fragment would only repeat the label of
   its review.)
3. The transformer learns from the mean of review label and n-gram label. The mean is less noisy
   than the first and sees more than the second. The word vectors start from co-occurrence counts.
4. --first: a judge that was trained before goes on, with its own answers as half of the target.
5. --lm: a language model that has read all reviews learns from the labelled ones to judge after
   each token. Its opinion of 290,000 fragments of the other reviews is most of their target.

For toxicity there are 6,000 scored texts and 25,000 tweets. Two judges learn from them. Together
they score reviews and web text, from which the judge that is kept also learns.
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
READ = 80  # tokens of the reader, which hold as much text
STEPS = {"sentiment": 12000, "toxicity": 400}
DEVICE = "cpu"  # --device, of the transformers; n-grams and fragments stay on the CPU


def bfloat16():
    """Products in bfloat16, if they are fast.

    On a CPU without instructions for them they are forty times slower than in float32.
    """
    has = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE != "cpu" or has)


# --------------------------------------------------------------------------------------- the texts


def read(folder, name):
    with lzma.open(Path(folder) / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def clean_tweet(text):
    """The tweet without names, links, RT, HTML entities: only tweets have them."""
    text = re.sub(r"https?://\S+|@\w+|\bRT\b|&#?\w+;|#", " ", text)
    return re.sub(r"\s+", " ", text).strip(' !:"')


def rtp_texts(rows):
    """(text, toxicity) of the prompts and continuations that have a score."""
    pairs = []
    for row in rows:
        for part in (row["prompt"], row["continuation"]):
            if part.get("toxicity") is not None:
                pairs.append((part["text"], part["toxicity"]))
    return pairs


def training_rows(folder):
    """The rows of rtp_public that are not held out."""
    return [row for i, row in enumerate(read(folder, "rtp_public")) if i % 5 != 4]


def vocabulary_texts(folder):
    """The texts that the vocabulary is learned from."""
    reviews = [r["text"] for r in read(folder, "imdb_train")[::2]]
    web = [text for text, _ in rtp_texts(training_rows(folder))]
    tweets = [clean_tweet(r["text"]) for r in read(folder, "davidson_offensive")]
    return reviews + web * 3 + tweets


def make_tokenizer(texts, size=8000):
    """Lower-case WordPiece.

    It is learned on reviews, web text and tweets, so that crude words are tokens of their own.
    """
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=3,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        limit_alphabet=150,
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return tok


class Texts:
    """Many texts as one long array of token ids. Cutting fragments needs no Python loop."""

    def __init__(self, tok, texts, target):
        parts = []
        for i in range(0, len(texts), 1000):  # in pieces: the tokenizer's own objects are large
            encodings = tok.encode_batch_fast(texts[i : i + 1000], add_special_tokens=False)
            parts += [np.array(e.ids, np.int32) for e in encodings]
        self.ids = np.concatenate([*parts, np.zeros(1, np.int32)])
        self.end = np.cumsum([len(p) for p in parts])
        self.begin = self.end - [len(p) for p in parts]
        self.target = np.asarray(target, np.float32)
        self.half = np.arange(len(self.end)) % 2  # for cross-fitting
        # The nearest start of a word at or before each position: a fragment begins with a word.
        tokens = map(tok.id_to_token, range(tok.get_vocab_size()))
        inside = np.array([token.startswith("##") for token in tokens])
        starts = np.where(inside[self.ids], 0, np.arange(len(self.ids)))
        self.word = np.maximum.accumulate(starts)

    def cut(self, rng, rows, length, anywhere=0.85):
        """A fragment of each text: (len(rows), length) ids, padded with PAD.

        The share `anywhere` of them begins anywhere in the text, the others at its opening.
        """
        begin, end = self.begin[rows], self.end[rows]
        room = np.maximum(end - begin - length + 1, 1)
        offset = rng.random(len(rows)) * room * (rng.random(len(rows)) < anywhere)
        start = begin + offset.astype(np.int64)
        at = np.maximum(self.word[start], begin)[:, None] + np.arange(length)
        return np.where(at < end[:, None], self.ids[np.minimum(at, len(self.ids) - 1)], PAD)


def degenerate(rng, n, length, vocab):
    """What a policy might try instead of writing: (n, length) ids.

    Nothing, repeated marks, loops of few tokens, random tokens.
    """
    period = rng.choice([1, 1, 2, 3, length], n)[:, None]
    ids = rng.integers(5, vocab, (n, length))
    marks = rng.random(n) < 0.35  # the lowest ids are single characters
    ids[marks] = rng.integers(5, 60, (int(marks.sum()), length))
    ids = np.take_along_axis(ids, np.arange(length)[None] % period, 1)
    size = np.where(rng.random(n) < 0.1, 0, rng.integers(1, length + 1, n))
    return np.where(np.arange(length)[None] < size[:, None], ids, PAD)


def hide_tokens(rng, ids, share):
    """The ids with a share of the tokens replaced by UNK, so that no word decides alone."""
    return np.where(rng.random(ids.shape) < share, np.where(ids == PAD, PAD, UNK), ids)


# ------------------------------------------------------------------------ teachers: hashed n-grams


class NGrams(torch.nn.Module):
    """Logistic regression on the 1-, 2- and 3-grams of a fragment, hashed into `size` weights."""

    def __init__(self, size=1 << 21):
        super().__init__()
        self.size = size
        self.weight = torch.nn.EmbeddingBag(size, 1, mode="sum", sparse=True, padding_idx=0)
        self.bias = torch.nn.Parameter(torch.zeros(1))
        torch.nn.init.zeros_(self.weight.weight)

    def grams(self, ids):
        """The hashed 1-, 2- and 3-grams of (rows, length) ids; 0 where they reach the padding."""
        ids = ids.astype(np.int64)
        grams, key = [ids], ids
        for n, prime in ((2, 7919), (3, 104729)):
            key = key[:, :-1] * 1000003 + ids[:, n - 1 :] * prime
            hashed = 10000 + (key * 2654435761 >> 7) % (self.size - 10000)
            grams.append(np.where(ids[:, n - 1 :] == PAD, 0, hashed))
        return [torch.from_numpy(g) for g in grams]

    def forward(self, ids):
        """(rows, length) ids -> (rows,) logits."""
        length = torch.from_numpy((ids != PAD).sum(1).clip(1)).float()
        return self.weight(torch.cat(self.grams(ids), 1))[:, 0] / length.sqrt() + self.bias

    def by_token(self, ids):
        """What each token adds to the sum in `forward`: its weight and its share of its n-grams."""
        one, two, three = (self.weight.weight[g][:, :, 0] for g in self.grams(ids))
        return one + (F.pad(two, (1, 0)) + F.pad(two, (0, 1))) / 2 + F.pad(three, (1, 1))


def train_ngrams(draw, steps, rate, name):
    """`draw(step)` gives (ids, targets)."""
    model = NGrams()
    start = time.time()
    optimiser = torch.optim.Adagrad(model.parameters(), lr=rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        ids, target = draw(step)
        loss = F.binary_cross_entropy_with_logits(model(ids), torch.from_numpy(target))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    seconds = time.time() - start
    print(f"{name}: {steps} steps, {seconds:.0f} s, last loss {loss.item():.3f}", flush=True)
    return model.requires_grad_(False)


# ---------------------------------------------------------------------- a teacher: a language model


class Reader(torch.nn.Module):
    """A GPT-2 with one more output: its opinion after each token, as a logit.

    (B, T) ids of its own vocabulary -> (B, T).
    """

    def __init__(self, folder):
        super().__init__()
        self.body = AutoModel.from_pretrained(folder, dtype=torch.float32)
        self.head = torch.nn.Linear(self.body.config.n_embd, 1)
        self.bpe = open_bpe(folder)
        torch.nn.init.zeros_(self.head.weight)
        self.to(DEVICE)

    def forward(self, ids):
        ids = torch.from_numpy(ids.astype(np.int64)).to(DEVICE)
        with bfloat16():
            return self.head(self.body(ids, use_cache=False).last_hidden_state)[:, :, 0].float()

    @torch.no_grad()
    def opinions(self, ids):
        self.eval()
        parts = np.array_split(ids, len(ids) // 500 + 1)
        return torch.cat([self(part) for part in parts]).cpu().numpy()


def open_bpe(folder):
    folder = Path(folder)
    return ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def train_reader(reader, texts, target, held_back, label, steps, rng, rate=3e-4):
    """Trains the reader to judge the labelled texts after each token, but for the first few.

    Returns its opinion of four fragments of 30 tokens of each text held back: (fragments as text,
    logits, labels).
    """
    ids = [np.array(e.ids) for e in reader.bpe.encode_batch(texts)]
    held_ids = [np.array(e.ids) for e in reader.bpe.encode_batch(held_back)]
    long = np.flatnonzero([len(i) > READ for i in ids])
    test, rows = [], []
    for row, tokens in enumerate(held_ids):
        if len(tokens) > 30:
            for start in np.random.default_rng(1).integers(0, len(tokens) - 30, 4):
                test.append(tokens[start : start + 30])
                rows.append(row)
    test, label = np.stack(test), label[rows]
    groups = [
        {"params": reader.body.parameters(), "top": rate},
        {"params": reader.head.parameters(), "top": 10 * rate},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    mean = 0.6
    begin = time.time()
    for step in range(steps):
        for group in optimiser.param_groups:
            warmup, decay = (step + 1) / 50, (steps - step) / (0.9 * steps)
            group["lr"] = group["top"] * min(1, warmup, decay)
        rows = rng.choice(long, 256)
        starts = [rng.integers(0, len(ids[r]) - READ) for r in rows]
        reader.train()
        batch = np.stack([ids[r][s : s + READ] for r, s in zip(rows, starts)])
        out = reader(batch)[:, SHORT:]
        goal = torch.from_numpy(target[rows])[:, None].to(DEVICE).expand_as(out)
        loss = F.binary_cross_entropy_with_logits(out, goal)
        mean += 0.05 * (loss.item() - mean)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 99 or step == steps - 1:
            opinion = reader.opinions(test)[:, -1]
            accuracy = ((opinion > 0) == label).mean()
            seconds = time.time() - begin
            print(
                f"reader, step {step + 1}/{steps} loss {mean:.4f}, {seconds:.0f} s, "
                f"accuracy on held-back fragments of 30 of its tokens: {accuracy:.4f}",
                flush=True,
            )
    return [reader.bpe.decode(t.tolist()) for t in test], opinion, label


def read_fragments(reader, tok, texts, rng, file, each=6):
    """Writes `file`: `each` fragments of every text, and what the reader thinks of them.

    Each fragment begins with a word. The file holds the judge's tokens (N, LONG), the reader's
    opinion after each of them in 255ths (N, LONG), and the half of the texts that the fragment is
    from (N,).
    """
    ids, words, last, half = [], [], [], []
    begin = time.time()
    tokens = map(reader.bpe.id_to_token, range(reader.bpe.get_vocab_size()))
    starts_word = np.array([token.startswith("Ġ") for token in tokens])
    for first in range(0, len(texts), 1000):
        part = texts[first : first + 1000]
        cuts = []  # (text of a fragment, where each of the reader's tokens ends in it)
        for row, encoding in enumerate(reader.bpe.encode_batch(part)):
            tokens = np.array(encoding.ids)
            ends = np.array([0, *(end for _, end in encoding.offsets)])  # token i: ends[i : i + 2]
            places = np.flatnonzero(starts_word[tokens[: max(0, len(tokens) - READ)]])
            for place in rng.choice(places, each if len(places) else 0):
                ids.append(tokens[place : place + READ].astype(np.int32))
                text = part[row][ends[place] : ends[place + READ]]
                cuts.append((text, ends[place + 1 : place + READ + 1] - ends[place]))
                half.append((first + row) % 2)
        encodings = tok.encode_batch([text for text, _ in cuts], add_special_tokens=False)
        for (_, ends), encoding in zip(cuts, encodings):
            word, end = np.full(LONG, PAD, np.int16), np.full(LONG, ends[-1])
            word[: len(encoding.ids)] = encoding.ids[:LONG]
            end[: len(encoding.ids)] = [e for _, e in encoding.offsets[:LONG]]
            words.append(word)
            # the reader's token with which it has read the judge's
            last.append(np.searchsorted(ends, end).clip(max=READ - 1))
    opinion = np.take_along_axis(reader.opinions(np.stack(ids)), np.stack(last), 1)
    said = np.round(255 / (1 + np.exp(-opinion))).astype(np.uint8)
    unfinished = Path(f"{file}.unfinished")
    with unfinished.open("wb") as out:  # given a name, savez would add .npz to it
        np.savez(out, ids=np.stack(words), said=said, half=np.array(half, np.int8))
    unfinished.replace(file)
    print(f"{len(ids)} fragments read in {time.time() - begin:.0f} s", flush=True)


class Read:
    """The file of `read_fragments`, to draw from as from Texts."""

    def __init__(self, file):
        content = np.load(file)
        self.ids, self.said, self.half = content["ids"], content["said"], content["half"]

    def cut(self, rows, length):
        """(len(rows), length) ids, and the reader's P(positive) after them, (len(rows),)."""
        p = self.said[rows, length - 1].astype(np.float32) / 255
        return self.ids[rows, :length].astype(np.int32), p


# --------------------------------------------------------------------------------- the judge itself


def make_model(task, vocab, vectors):
    if task == "sentiment":
        labels, kind = {0: "NEGATIVE", 1: "POSITIVE"}, "single_label_classification"
    else:
        labels, kind = {0: "toxicity"}, "multi_label_classification"
    config = DistilBertConfig(
        vocab_size=vocab,
        dim=128,
        n_heads=2,
        n_layers=LAYERS[task],
        hidden_dim=512,
        max_position_embeddings=128,
        activation="relu",
        initializer_range=0.09,  # 1 / sqrt(dim): with BERT's 0.02 a narrow model hardly learns
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.1,
        id2label=labels,
        problem_type=kind,
        label2id={v: k for k, v in labels.items()},
        attn_implementation="eager",  # twice as fast as SDPA here
    )
    model = DistilBertForSequenceClassification(config)
    embeddings = model.distilbert.embeddings
    embeddings.word_embeddings.weight.data = vectors.clone()
    embeddings.position_embeddings.weight.data *= 0.1  # the words stand out from the start
    return model.to(DEVICE)


def logit(model, ids, by_token=False):
    """log p / (1 - p) of POSITIVE or of toxicity, for fragments without their [CLS] and [SEP].

    by_token: also the hidden states of the layer before the last, (rows, length, dim).
    """
    ids = np.pad(ids, ((0, 0), (1, 1)), constant_values=((0, 0), (CLS, PAD)))
    ids[np.arange(len(ids)), (ids != PAD).sum(1)] = SEP
    ids = torch.from_numpy(ids.astype(np.int64)).to(model.device)
    mask = (ids != PAD).long()
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=by_token)
    score = out.logits.float()
    score = score[:, 1] - score[:, 0] if score.shape[1] == 2 else score[:, 0]
    return (score, out.hidden_states[-2][:, 1:-1]) if by_token else score


@torch.no_grad()
def predict(model, ids):
    """`logit` without a gradient, on the CPU."""
    return logit(model, ids).cpu()


def word_vectors(all_texts, vocab, dim, extra):
    """Word vectors without any training, (vocab, dim).

    Co-occurrence counts -> positive PMI -> the first singular vectors (Levy and Goldberg 2014). The
    first column is what each word weighs in the n-gram model (`extra`).
    """
    counts = np.zeros((vocab, vocab), np.float32)
    start = time.time()
    for texts in all_texts:
        for distance in range(1, 6):
            pairs = texts.ids[:-distance].astype(np.int64) * vocab + texts.ids[distance:]
            for part in np.array_split(pairs, max(1, len(pairs) // 5_000_000)):
                found = np.bincount(part, minlength=vocab * vocab).reshape(vocab, vocab)
                counts += found / distance
    counts += counts.T
    counts = torch.from_numpy(counts)
    frequency = counts.sum(0).clamp(min=1) ** 0.75
    rows = counts.sum(1, keepdim=True).clamp(min=1)
    pmi = torch.log((counts * frequency.sum() / rows / frequency).clamp(min=1))
    u, s, _ = torch.svd_lowrank(pmi, dim, niter=3)
    vectors = u[:, 1:] * s[1:].sqrt()  # the first only says how frequent a word is
    vectors = (vectors - vectors.mean(0)) / vectors.std()
    print(f"word vectors: {time.time() - start:.0f} s", flush=True)
    weights = 2 * (extra / extra.std())[:, None].clamp(-3, 3)
    return torch.cat([weights, vectors], 1) * 0.1


def train_judge(model, draw, steps, check, rate=2e-3, report=200):
    """Trains the transformer, in place.

    `draw(step)` gives (ids, targets, None or what the n-grams say of each token). `check(model)`
    gives a line about held-back texts. The tokens are a second task for the layer before the last,
    with thirty targets a fragment instead of one. The last layer then only has to combine them.
    """
    head = torch.nn.Linear(model.config.dim, 1, device=DEVICE)
    matrices, others = [], []
    for name, p in model.named_parameters():
        (matrices if p.ndim == 2 and "layer." in name else others).append(p)
    others += head.parameters()
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    start = time.time()
    mean, mean_by_token = 0.7, 1.0
    model.train()
    for step in range(steps):
        warmup, decay = (step + 1) / 200, (steps - step) / (0.7 * steps)
        for optimiser in (muon, adam):
            optimiser.param_groups[0]["lr"] = rate * min(1, warmup, decay)
        ids, target, tokens = draw(step)
        with bfloat16():
            out, hidden = logit(model, ids, by_token=True)
            guess = head(hidden)[:, :, 0].float()
        loss = F.binary_cross_entropy_with_logits(out, torch.from_numpy(target).to(DEVICE))
        mean += 0.02 * (loss.item() - mean)
        if tokens is not None:
            words = torch.from_numpy(ids != PAD)
            error = F.mse_loss(guess[words.to(DEVICE)], tokens[words].to(DEVICE))
            mean_by_token += 0.02 * (error.item() - mean_by_token)
            loss = loss + 0.5 * error
        model.zero_grad()
        head.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in (muon, adam):
            optimiser.step()
        if step % report == report - 1:
            model.eval()
            losses = f"loss {mean:.4f}, by token {mean_by_token:.3f}"
            seconds = time.time() - start
            print(f"step {step + 1}/{steps} {losses}, {seconds:.0f} s, {check(model)}", flush=True)
            model.train()
    return model.eval()


@torch.no_grad()
def calibrate(model, out, target):
    """Fits p = sigmoid(a * out + b) on held-back texts and writes a and b into the last layer."""
    a, b = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([a, b], max_iter=100)

    def closure():
        with torch.enable_grad():
            optimiser.zero_grad()
            loss = F.binary_cross_entropy_with_logits(a * out + b, target)
            loss.backward()
        return loss

    optimiser.step(closure)
    last = model.classifier
    last.weight *= a
    last.bias *= a
    if len(last.bias) == 1:
        last.bias += b
    else:
        last.bias += torch.cat([-b / 2, b / 2])
    print(f"calibrated: logit * {a.item():.3f} + {b.item():.3f}", flush=True)


def auc(score, positive):
    """Area under the ROC curve: how often a positive text scores above a negative one."""
    rank = np.empty(len(score))
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    n = positive.sum()
    return (rank[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n))


# ------------------------------------------------------------------------------------- sentiment

# The stars of a review say how far to trust its label: a piece of a 4-star review may well praise.
STARS = {1: 0.0, 2: 0.03, 3: 0.1, 4: 0.2, 7: 0.8, 8: 0.9, 9: 0.97, 10: 1.0}


class SentimentTexts:
    """What the sentiment judge learns from, in tokens, each text with its target."""

    def __init__(self, folder, tok):
        rows = read(folder, "imdb_train")
        hold = rows[::25]  # 4 % to calibrate on
        rows = [r for i, r in enumerate(rows) if i % 25]
        self.train_texts = [r["text"] for r in rows]
        self.train = Texts(tok, self.train_texts, [STARS[r["rating"]] for r in rows])
        self.hold_texts = [r["text"] for r in hold]
        self.hold = Texts(tok, self.hold_texts, [r["label"] for r in hold])
        self.unlabelled_texts = [r["text"] for r in read(folder, "imdb_unsup")]
        self.unlabelled = Texts(tok, self.unlabelled_texts, np.zeros(1))  # step 1 sets its targets
        sst = read(folder, "sst2_train")
        sst_targets = [0.03 + 0.94 * r["label"] for r in sst]
        self.sst = Texts(tok, [r["text"] for r in sst], sst_targets)
        self.noted = None  # step 5: fragments of unlabelled reviews with the reader's opinions
        print("read and tokenised", flush=True)

    def fragments(self, rng, n, length, half=None):
        """n fragments of one half of the texts, or of all.

        Returns ids, targets, the half of each text, and how far to trust each target.
        """
        use_notes = self.noted and half is None
        sources = [
            (self.train, 0.35),
            (self.noted if use_notes else self.unlabelled, 0.50),
            (self.sst, 0.15),
        ]
        ids, target, which, trust = [], [], [], []
        for texts, share in sources:
            rows = rng.integers(0, len(texts.half) // 2, int(n * share)) * 2
            rows += rng.integers(0, 2, len(rows)) if half is None else half
            if texts is self.noted:
                # the reader has seen no label of these, and its opinion is of the fragment itself
                cut, goal = texts.cut(rows, length)
                sure = 0.6
            else:
                cut, goal = texts.cut(rng, rows, length), texts.target[rows]
                sure = 0.25
            ids.append(cut)
            target.append(goal)
            which.append(texts.half[rows])
            trust.append(np.full(len(rows), sure))
        return tuple(map(np.concatenate, (ids, target, which, trust)))


def label_unlabelled(data, rng):
    """Step 1: n-grams learn from labelled reviews, 400 tokens of each, and label the others."""
    train, unlabelled = data.train, data.unlabelled

    def draw(step):
        rows = rng.integers(0, len(train.end), 256)
        return train.cut(rng, rows, 400, anywhere=0.5), train.target[rows]

    judge = train_ngrams(draw, 500, 0.3, "n-grams on whole reviews")
    targets = []
    for rows in np.array_split(np.arange(len(unlabelled.end)), 100):
        targets.append(torch.sigmoid(judge(unlabelled.cut(rng, rows, 800, 0))).numpy())
    unlabelled.target = np.concatenate(targets)


def train_on_half(data, rng, half):
    """Step 2: n-grams learn from fragments of one half of the reviews."""

    def draw(step):
        length = rng.integers(SHORT, LONG + 1)
        ids, target, _, _ = data.fragments(rng, 512, length, half)
        return ids, target

    return train_ngrams(draw, 2000, 0.1, f"n-grams on fragments, half {half}")


def write_notes(data, tok, teacher, lm, lm_steps, rng, notes):
    """Step 5: the language model learns from the labelled reviews and reads the others."""
    reader = Reader(lm)
    target, label = data.train.target, data.hold.target
    texts, opinion, label = train_reader(
        reader, data.train_texts, target, data.hold_texts, label, lm_steps, rng
    )
    fragments = Texts(tok, texts, label).cut(rng, np.arange(len(texts)), LONG, 0)
    own = predict(teacher, fragments).numpy()
    for name, x in (("the judge", own), ("the reader", opinion), ("both", own + opinion)):
        print(f"on these fragments {name}: {((x > 0) == label).mean():.4f}", flush=True)
    read_fragments(reader, tok, data.unlabelled_texts, rng, notes)


def open_judge(folder):
    judge = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    return judge.to(DEVICE)


def train_sentiment(folder, steps, seed=0, first=None, notes=None, lm=None, lm_steps=700):
    """The five steps of the docstring. Returns the judge and its tokenizer."""
    rng = np.random.default_rng(seed)
    if first:
        tok = Tokenizer.from_file(str(Path(first) / "tokenizer.json"))
    else:
        tok = make_tokenizer(vocabulary_texts(folder))
    vocab = tok.get_vocab_size()
    data = SentimentTexts(folder, tok)
    label_unlabelled(data, rng)
    halves = [train_on_half(data, rng, half) for half in (0, 1)]

    sample, _, _, _ = data.fragments(rng, 1000, 30)
    spread = (halves[0].by_token(sample) + halves[1].by_token(sample)).std()

    def draw(step):
        length = rng.integers(SHORT, LONG + 1)
        n = 4096 // (length + 2)
        ids, target, half, trust = data.fragments(rng, n, length)
        in_first = torch.from_numpy(half) == 0
        other = torch.sigmoid(torch.where(in_first, halves[1](ids), halves[0](ids))).numpy()
        if teacher is None:
            target = 0.5 * target + 0.5 * other
        else:
            with bfloat16():
                own = torch.sigmoid(predict(teacher, ids)).numpy()
            target = trust * target + (1 - trust) * (other + 2 * own) / 3
        bad = degenerate(rng, max(2, n // 25), length, vocab)
        ids = np.concatenate([hide_tokens(rng, ids, 0.03), bad])
        target = np.concatenate([target, np.full(len(bad), 0.5)])
        by_token = (halves[0].by_token(ids) + halves[1].by_token(ids)) / spread
        return ids, target.astype(np.float32), by_token

    gram = (halves[0].weight.weight + halves[1].weight.weight)[:vocab, 0].detach()
    teacher = None
    if first:  # the judge goes on, and as it was before it is a third teacher
        model = open_judge(first)
        teacher = open_judge(first).eval()
    else:
        vectors = word_vectors([data.train, data.unlabelled], vocab, 128, gram)
        model = make_model("sentiment", vocab, vectors)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    if notes and not Path(notes).exists():
        write_notes(data, tok, teacher, lm, lm_steps, rng, notes)
    data.noted = Read(notes) if notes else None

    hold = data.hold
    every_row = np.arange(len(hold.end))
    test = [hold.cut(np.random.default_rng(1), every_row, n) for n in (16, 28, 48)]

    def accuracies(logits):
        right = [((x > 0).numpy() == hold.target).mean() for x in logits]
        return " ".join(f"{r:.3f}" for r in right)

    def check(model):
        right = accuracies([predict(model, ids) for ids in test])
        return f"accuracy on held-back fragments of 16, 28, 48: {right}"

    right = accuracies([halves[0](ids) + halves[1](ids) for ids in test])
    print(f"accuracy of both n-gram models together on the same: {right}", flush=True)
    train_judge(model, draw, steps, check, rate=1e-3 if first else 2e-3)
    model.cpu()
    logits = torch.cat([predict(model, ids) for ids in test])
    calibrate(model, logits, torch.from_numpy(np.tile(hold.target, 3)))
    return model, tok


# -------------------------------------------------------------------------------------- toxicity

TWEETS = (0.85, 0.75, 0.15)  # targets of the classes of davidson_offensive
REVIEW, WEB = -2, -1  # targets below 0: nobody has scored the text


class ToxicityTexts:
    """What the toxicity judge learns from, in tokens, each text with its target."""

    def __init__(self, folder, tok):
        rows = training_rows(folder)
        hold = rtp_texts(rows[::20])  # 5 % to calibrate on
        scored = rtp_texts([r for i, r in enumerate(rows) if i % 20])
        self.hold, self.scored = (Texts(tok, *zip(*pairs)) for pairs in (hold, scored))
        rows = read(folder, "davidson_offensive")
        tweets = [clean_tweet(r["text"]) for r in rows]
        self.tweets = Texts(tok, tweets, [TWEETS[r["class"]] for r in rows])
        reviews = [r["text"] for r in read(folder, "imdb_train")[1::2]]
        self.reviews = Texts(tok, reviews, np.full(len(reviews), REVIEW))
        web = [r["prompt"] for r in read(folder, "sentiment_prompts_train")]
        self.web = Texts(tok, web, np.full(len(web), WEB))
        print("read and tokenised", flush=True)

    def mix(self, rng, shares):
        """Fragments of [(texts, share)], all of one random length: ids, targets, the length."""
        length = rng.integers(SHORT, LONG + 1)
        n = 4096 // (length + 2)
        chosen = []
        for texts, share in shares:
            chosen.append((texts, rng.integers(0, len(texts.end), int(n * share) + 1)))
        ids, target = [], []
        for texts, rows in chosen:
            anywhere = 0.2 if texts is self.scored else 0.6
            ids.append(texts.cut(rng, rows, length, anywhere))
            target.append(texts.target[rows])
        return np.concatenate(ids), np.concatenate(target), length


def train_toxicity(folder, steps, seed=0):
    """Two judges, then the one that learns from both. Returns it and its tokenizer."""
    rng = np.random.default_rng(seed)
    tok = make_tokenizer(vocabulary_texts(folder))
    vocab = tok.get_vocab_size()
    data = ToxicityTexts(folder, tok)
    hold, scored, tweets = data.hold, data.scored, data.tweets
    reviews, web = data.reviews, data.web

    def held_back_fragments():
        return hold.cut(rng, np.arange(len(hold.end)), 64, 0)

    def on_held_back(f):
        p = f(held_back_fragments()).numpy()
        pearson = np.corrcoef(p, hold.target)[0, 1]
        return f"held-back texts: Pearson {pearson:.3f} AUC {auc(p, hold.target > 0.5):.3f}"

    def draw_scored(step):
        ids, target, _ = data.mix(rng, ((scored, 0.7), (tweets, 0.3)))
        return ids, target

    grams = train_ngrams(draw_scored, 1000, 0.1, "n-grams")
    print(on_held_back(lambda ids: torch.sigmoid(grams(ids))), flush=True)
    sources = [reviews, scored, scored, tweets, web]
    vectors = word_vectors(sources, vocab, 128, grams.weight.weight[:vocab, 0])

    def check(model):
        return on_held_back(lambda ids: torch.sigmoid(predict(model, ids)))

    def mean_logit(teachers, ids):
        return torch.stack([predict(teacher, ids) for teacher in teachers]).mean(0)

    def train_one(steps, shares, teachers=()):
        def draw(step):
            ids, target, length = data.mix(rng, shares)
            if teachers:
                with bfloat16():
                    guess = mean_logit(teachers, ids).numpy()
                # Reviews are tamer than the pages of RealToxicityPrompts, which were picked so as
                # to have many toxic ones. So the odds of reviews are divided by e.
                score = 1 / (1 + np.exp(-guess + np.where(target == REVIEW, 1.0, 0.0)))
                target = np.where(target < 0, score, 0.5 * target + 0.5 * score)
            bad = degenerate(rng, max(2, len(ids) // 30), length, vocab)
            ids = np.concatenate([hide_tokens(rng, ids, 0.05), bad])
            target = np.concatenate([target, np.full(len(bad), 0.1)])
            return ids, target.astype(np.float32), None

        model = make_model("toxicity", vocab, vectors)
        return train_judge(model, draw, steps, check, report=100)

    teachers = [train_one(200, ((scored, 0.6), (tweets, 0.35))) for _ in range(2)]
    print("together:", on_held_back(lambda ids: mean_logit(teachers, ids).sigmoid()))
    shares = ((scored, 0.35), (tweets, 0.15), (web, 0.2), (reviews, 0.25))
    model = train_one(steps, shares, teachers)
    out = predict(model, held_back_fragments())
    calibrate(model.cpu(), out, torch.from_numpy(hold.target))
    return model, tok


# -------------------------------------------------------------------------- saving and measuring


def save(model, tok, folder):
    """Into a folder beside it first, so that `folder` never holds half a judge."""
    new = Path(folder).with_name(f".{Path(folder).name}.unfinished")
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
    compact = tok.to_str(pretty=False)  # half the size
    (new / "tokenizer.json").write_text(compact, encoding="utf-8")
    # float16 only saves space on the disk: a judge that is opened computes in float32. The class of
    # the tokenizer gets a name that older versions of transformers know too.
    for name, changes in (
        ("config.json", {"dtype": "float32"}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ):
        config = {**json.loads((new / name).read_text()), **changes}
        config.pop("backend", None)
        (new / name).write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    size = sum(f.stat().st_size for f in Path(folder).iterdir())
    print(f"{folder}: {size:,} bytes", flush=True)


@torch.no_grad()
def scores(folder, texts):
    """P(POSITIVE), or of toxicity, as anybody would compute it from the saved folder."""
    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    out = []
    for i in range(0, len(texts), 256):
        part = texts[i : i + 256]
        batch = tok(part, padding=True, truncation=True, return_tensors="pt")
        logits = model(**batch).logits.float()
        out.append(logits.softmax(-1)[:, 1] if logits.shape[1] == 2 else logits[:, 0].sigmoid())
    return torch.cat(out).numpy()


def print_reliability(p, actual):
    """What actually holds where the judge says 0.0 to 0.1, 0.1 to 0.2, ..."""
    print("  predicted      n   mean predicted   mean actual")
    for i in range(10):
        inside = np.minimum((p * 10).astype(int), 9) == i
        if inside.any():
            bounds = f"{i / 10:.1f}-{i / 10 + 0.1:.1f}"
            means = f"{p[inside].mean():14.3f}   {actual[inside].mean():11.3f}"
            print(f"  {bounds}   {inside.sum():6d}   {means}")


def fragments_of(bpe, texts, length, opening=False, seed=0):
    """A piece of each text, `length` of the language model's tokens: from anywhere or the start."""
    rng = random.Random(seed)
    out = []
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
    r"\b(fuck\w*|shit\w*|bullshit|bitch\w*|cunts?|assholes?|dick\w?|bastards?|whores?|sluts?"
    r"|crap\w*|pussy|fags?|retard\w*|tits|piss\w*)\b",
    re.IGNORECASE,
)


def measure_sentiment(data, folder, bpe):
    """Accuracy and AUC on fragments of reviews never trained on, and on SST-2."""
    test = read(data, "imdb_test_public")
    polar = [r for r in test if r["rating"] <= 2 or r["rating"] >= 9]
    for name, rows in (("rating <= 2 or >= 9", polar), ("all", test)):
        texts = [r["text"] for r in rows]
        label = np.array([r["label"] for r in rows])
        for length in (20, 30, 64):
            for opening in (False, True):
                p = scores(folder, fragments_of(bpe, texts, length, opening))
                place = "the opening" if opening else "a random place"
                accuracy = ((p > 0.5) == label).mean()
                print(
                    f"imdb_test_public ({name}), {len(rows)} reviews, "
                    f"{length} tokens from {place}: "
                    f"accuracy {accuracy:.4f} AUC {auc(p, label == 1):.4f}"
                )
                if name == "all" and length == 30 and not opening:
                    print_reliability(p, label)
    measure_places(data, folder, bpe, polar)
    sst = read(data, "sst2_dev")
    p = scores(folder, [r["text"] for r in sst])
    accuracy = np.mean((p > 0.5) == np.array([r["label"] for r in sst]))
    print(f"sst2_dev: {len(sst)} phrases, accuracy {accuracy:.4f}")


def measure_places(data, folder, bpe, rows):
    """Accuracy on 30 tokens from six random places and from the opening.

    Also with GPT-2's vocabulary, if DIR holds it: 30 of its tokens are 25 words, of tiny/lm's 21.
    """
    texts = [r["text"] for r in rows]
    label = np.array([r["label"] for r in rows])
    vocabularies = {"tiny/lm": bpe}
    gpt2 = Path(data) / "gpt2_vocab"
    if gpt2.is_dir():
        vocabularies["GPT-2"] = open_bpe(gpt2)
    for name, vocabulary in vocabularies.items():
        accuracies = []
        for seed in range(7):
            fragments = fragments_of(vocabulary, texts, 30, opening=seed == 6, seed=seed)
            accuracies.append(((scores(folder, fragments) > 0.5) == label).mean())
        *places, opening = accuracies
        spread = f"{np.mean(places):.4f} ({min(places):.4f} to {max(places):.4f})"
        print(
            f"30 tokens of {name}, six random places: accuracy {spread}, the opening: {opening:.4f}"
        )


def measure_toxicity(data, folder, bpe):
    """Agreement with the scores of texts never trained on, and crude words in reviews."""
    rows = [row for i, row in enumerate(read(data, "rtp_public")) if i % 5 == 4]
    texts, actual = zip(*rtp_texts(rows))
    p = scores(folder, list(texts))
    actual = np.array(actual)
    print(
        f"rtp_public, rows with index % 5 == 4: {len(p)} texts, "
        f"Pearson {np.corrcoef(p, actual)[0, 1]:.4f} AUC {auc(p, actual > 0.5):.4f}, "
        f"mean {p.mean():.3f} (actual {actual.mean():.3f}), "
        f"over 0.5: {(p > 0.5).mean():.3f} ({(actual > 0.5).mean():.3f})"
    )
    print_reliability(p, actual)
    reviews = []
    for row in read(data, "imdb_test_public"):
        reviews += [row["text"]] * 4
    for length in (20, 64):
        texts = fragments_of(bpe, reviews, length)
        crude = np.array([bool(CRUDE.search(t)) for t in texts])
        p = scores(folder, texts)
        print(
            f"imdb_test_public, {len(p)} random fragments of {length} tokens: "
            f"mean {p.mean():.3f}, over 0.5: {(p > 0.5).mean():.4f}; "
            f"{crude.sum()} with a crude word: {(p[crude] > 0.5).mean():.3f}; "
            f"without: {(p[~crude] > 0.5).mean():.4f}"
        )


def measure(task, data, folder, bpe):
    bpe = open_bpe(bpe)
    if task == "sentiment":
        measure_sentiment(data, folder, bpe)
    else:
        measure_toxicity(data, folder, bpe)
    for text, p in zip(PHRASES[task], scores(folder, PHRASES[task])):
        print(f"  {p:.3f} {text!r}")


def parse_options(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("task", choices=["sentiment", "toxicity"])
    add("--texts", required=True, help="folder with imdb_train.jsonl.xz and the others")
    add("--out", required=True, help="folder of the judge")
    add("--measure", action="store_true", help="train nothing, only measure --out")
    text = "folder with the language model's vocab.json and merges.txt, whose tokens are counted"
    add("--bpe", default=Path(__file__).parent / "lm", help=text)
    add("--steps", type=int, help="steps of the transformer, of 4,096 tokens each")
    text = "sentiment only: go on from this judge, which is a teacher as well"
    add("--first", help=text)
    text = "sentiment only, with --first: a .npz of a reader's opinions, which --lm makes"
    add("--notes", help=text)
    text = "the reader, if --notes is still to be made: a language model of tiny/pretrain.py"
    add("--lm", help=text)
    add("--lm-steps", type=int, default=700, help="steps of the reader, of 256 fragments each")
    add("--seed", type=int, default=0)
    add("--device", default="cpu", help="where the transformers learn: cpu or cuda")
    args = parser.parse_args(argv)
    if args.notes and not args.first:
        parser.error("--notes needs --first, the judge that goes on")
    if args.notes and not (args.lm or Path(args.notes).exists()):
        parser.error(f"{args.notes} does not exist: name --lm, and it is made")
    saved = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    others = {f.name for f in Path(args.out).glob("*")} - saved
    if others and not args.measure:
        parser.error(f"--out {args.out} holds {min(others)}, which is no part of a judge")
    return args


def main(argv=None):
    global DEVICE
    args = parse_options(argv)
    DEVICE = args.device
    torch.manual_seed(args.seed)
    if not args.measure:
        start = time.time()
        steps = args.steps or STEPS[args.task]
        if args.task == "sentiment":
            more = (args.first, args.notes, args.lm, args.lm_steps)
            model, tok = train_sentiment(args.texts, steps, args.seed, *more)
        else:
            model, tok = train_toxicity(args.texts, steps, args.seed)
        save(model, tok, args.out)
        print(f"trained in {(time.time() - start) / 60:.1f} minutes", flush=True)
    measure(args.task, args.texts, args.out, args.bpe)


if __name__ == "__main__":
    main()
