"""Makes tiny/lm: its own byte-level BPE, and a small GPT-2 trained from scratch on a set of texts.

Reads    --texts: files or folders of *.jsonl, *.jsonl.xz ({"text": ...} a line) and *.txt (one text
         a file)
Writes   --out: a Hugging Face GPT-2 folder in float16
         --work: the tokens and, every few minutes, the state of the training. The same command
         again resumes it.

    python tiny/pretrain.py --texts reviews/train.jsonl.xz reviews/unsup.jsonl.xz --minutes 90
    python tiny/pretrain.py --mean one two --work /tmp/lm --out tiny/lm
    python tiny/pretrain.py --out tiny/lm --measure reviews/test.jsonl.xz

--mean averages the weights of models, or takes one alone, and scales the logits to texts that were
held back. --measure prints bits per byte on texts that were not trained on.

On a CPU few tokens can be read in the time there is, so every choice buys loss per token or tokens
per second: Muon for the matrices (Adam for embeddings, gains and biases); contexts of 128 tokens
first, and of 256 in the last two fifths; bfloat16 where the processor multiplies it natively; a
graph fused by torch.compile; and a learning rate that falls to zero at the end of the time. On a
GPU (--device cuda) texts are scarce instead, and a few minutes are many epochs. There the small
model also learns from larger ones that were trained first: how likely would each token have been
(--teacher)?
"""

import argparse
import json
import lzma
import math
import os
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

logging.set_verbosity_error()  # it warns of special ids outside the vocabulary until they are set
EOS = "<|endoftext|>"
HELD_BACK = 65536  # tokens, the last of the shuffled texts, that no training sees

# ---------------------------------------------------------------------------- texts and tokenizer


def read_texts(paths):
    """Every text of the files, or of the files in the folders, in order."""
    files = []
    for path in map(Path, paths):
        files += sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if file.suffix == ".txt":
            yield file.read_text(encoding="utf-8")
        elif file.name.endswith((".jsonl", ".jsonl.xz")):
            open_text = lzma.open if file.suffix == ".xz" else open
            with open_text(file, "rt", encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)["text"]
        elif str(file) in map(str, paths):  # in a folder, other files may lie beside the texts
            sys.exit(f"{file} is no text; name .txt, .jsonl or .jsonl.xz, or a folder of them")


def train_bpe(texts, vocab_size, folder):
    """Byte-level BPE in GPT-2's layout: 256 bytes, the merges, <|endoftext|> last.

    Writes vocab.json and merges.txt.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # the order of GPT-2's first 256 ids
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab, merges = model["vocab"], model["merges"]
    if len(merges) != len(vocab) - 256:
        sys.exit(
            "two merges give the same token: ids would not be merge ranks; "
            "choose another --vocab-size"
        )
    vocab[EOS] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    vocab_json = json.dumps(vocab, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocab_json, encoding="utf-8")
    lines = "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")


def load_bpe(folder):
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    bpe = Tokenizer(model)
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe


def tokenize(bpe, texts):
    """All texts as one (N,) uint16 array, with <|endoftext|> in front of each."""
    eos = bpe.token_to_id(EOS)
    parts, batch = [], []
    for text in texts:
        batch.append(text)
        if len(batch) == 4096:
            parts += [np.array([eos, *e.ids], np.uint16) for e in bpe.encode_batch(batch)]
            batch = []
    parts += [np.array([eos, *e.ids], np.uint16) for e in bpe.encode_batch(batch)]
    return np.concatenate(parts)


def write_tokens(args, work):
    """Trains the BPE on some of the texts, and writes the tokens of all to work/tokens.npy."""
    texts = list(read_texts(args.texts))
    random.Random(0).shuffle(texts)
    train_bpe(texts[:40_000], args.vocab_size, work)
    tokens = tokenize(load_bpe(work), texts)
    if len(tokens) < 2 * HELD_BACK:
        sys.exit(
            f"--texts have {len(tokens)} tokens, of which {HELD_BACK} are held back; "
            f"name at least {2 * HELD_BACK}, some 500 KB of text"
        )
    np.save(work / "tokens.tmp.npy", tokens)
    os.replace(work / "tokens.tmp.npy", work / "tokens.npy")
    print(f"{len(texts)} texts, {len(tokens) / 1e6:.1f} M tokens")


def load_tokens(work):
    return torch.from_numpy(np.load(work / "tokens.npy").astype(np.int32))


def held_back_rows(tokens, context):
    """The last HELD_BACK of the (N,) tokens as rows (n, context)."""
    return tokens[-(HELD_BACK // context * context) :].view(-1, context).long()


# -------------------------------------------------------------------------------------- the model


def new_model(vocab_size, args):
    eos = vocab_size - 1
    ids = {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=args.context,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.heads,
        resid_pdrop=args.dropout,
        embd_pdrop=args.dropout,
        attn_pdrop=0.0,
        **ids,
    )
    model = GPT2LMHeadModel(config)
    for block in model.transformer.h:  # residual branches start at zero: each block changes nothing
        torch.nn.init.zeros_(block.attn.c_proj.weight)
        torch.nn.init.zeros_(block.mlp.c_proj.weight)
    model.generation_config.update(**ids)
    return model


def open_model(folder):
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)


def save(model, work, out):
    """Writes float16 weights, configuration and vocabulary. `out` is never half a model."""
    beside = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(beside)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(work / name, beside / name)
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": EOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": EOS,
        "add_prefix_space": False,
        "model_max_length": model.config.n_positions,
    }
    (beside / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(beside, out)


# ----------------------------------------------------------------------------------- the training


def distillation(logits, soft, y, share):
    """What a student minimises, and nats per token: two means over N positions.

    logits (N, V); soft (N, V), the mean of the teachers' distributions; y (N,), the next tokens.
    `share` of the loss is the cross entropy with the teachers. A text that is read often is learned
    by heart, but what the teachers expect is not.
    """
    nats = F.cross_entropy(logits, y)
    return (1 - share) * nats + share * F.cross_entropy(logits, soft), nats


def make_optimisers(model, args):
    """Muon for the matrices of the blocks, Adam for all else."""
    matrices, embeddings, vectors = [], [], []
    for name, p in model.named_parameters():
        if p.ndim == 1:
            vectors.append(p)
        elif ".h." in name:
            matrices.append(p)
        else:
            embeddings.append(p)
    muon = torch.optim.Muon(
        matrices, lr=args.lr_matrix, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    groups = [
        {"params": embeddings, "lr": args.lr_embedding},
        {"params": vectors, "lr": args.lr_vector},
    ]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.95))
    for group in [*muon.param_groups, *adam.param_groups]:
        group["base_lr"] = group["lr"]
    return muon, adam


class State:
    """What a training resumes from: the model, both optimisers, tokens seen and seconds spent."""

    def __init__(self, path, model, muon, adam):
        self.path = path
        self.parts = {"model": model, "muon": muon, "adam": adam}
        self.seen = 0  # tokens
        self.spent = 0.0  # seconds of training

    def load(self, device):
        """Goes on from the file, if there is one."""
        if not self.path.exists():
            return
        saved = torch.load(self.path, map_location=device, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.seen = saved["seen"]
        self.spent = saved["spent"]
        print(f"going on at {self.seen / 1e6:.2f} M tokens, {self.spent / 60:.1f} minutes")

    def save(self):
        content = {name: part.state_dict() for name, part in self.parts.items()}
        unfinished = self.path.with_name("state.tmp.pt")
        torch.save({**content, "seen": self.seen, "spent": self.spent}, unfinished)
        os.replace(unfinished, self.path)


def logits_of(model, x):
    """(B, T + 1) tokens -> (B T, V) logits of the next tokens, in float32."""
    hidden = model.transformer(x[:, :-1], use_cache=False).last_hidden_state
    return model.lm_head(hidden).flatten(0, 1).float()


@torch.no_grad()
def nats_held_back(model, rows, args):
    """Nats per token on the rows that were held back."""
    model.eval()
    with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bfloat16):
        nats = []
        for x in rows.split(64):
            nats.append(F.cross_entropy(logits_of(model, x), x[:, 1:].flatten()).item())
    model.train()
    return np.mean(nats)


def draw_batch(tokens, rng, length, args):
    """Pieces of length + 1 tokens from anywhere in the texts: (n, length + 1)."""
    n = args.batch_tokens // length
    start = torch.from_numpy(rng.integers(0, len(tokens) - length - 1, n))
    return tokens[(start[:, None] + torch.arange(length + 1)).to(args.device)].long()


def train(args):
    work = Path(args.work)
    if not (work / "tokens.npy").exists():
        write_tokens(args, work)
    elif args.texts:
        print(f"{work / 'tokens.npy'} is there, so --texts and --vocab-size are not read again")
    tokens = load_tokens(work).to(args.device)
    tokens, held_back = tokens[:-HELD_BACK], held_back_rows(tokens, args.context)
    vocab = (work / "vocab.json").read_bytes()
    for folder in args.teacher + [args.start] * bool(args.start):
        if (Path(folder) / "vocab.json").read_bytes() != vocab:
            sys.exit(
                f"{folder} has another vocabulary than {work}: its token ids mean other words; "
                "train it on the same --texts"
            )
    vocab_size = len(json.loads(vocab))

    torch.manual_seed(args.seed)
    model = new_model(vocab_size, args).to(args.device)
    if args.start:
        model.load_state_dict(open_model(args.start).state_dict())
    muon, adam = make_optimisers(model, args)
    teachers = []
    for folder in args.teacher:
        teachers.append(open_model(folder).to(args.device).eval().requires_grad_(False))
    state = State(work / "state.pt", model, muon, adam)
    state.load(args.device)
    if state.spent >= args.minutes * 60:
        sys.exit(
            f"{state.path} has had its {args.minutes} minutes: "
            "name more to go on, or another --work to begin anew"
        )
    rng = np.random.default_rng([args.seed, state.seen])

    def loss_of(x):
        """(what is minimised, nats per token)."""
        logits = logits_of(model, x)
        y = x[:, 1:].flatten()
        if not teachers:
            nats = F.cross_entropy(logits, y)
            return nats, nats
        with torch.no_grad():
            soft = sum(logits_of(teacher, x).softmax(-1) for teacher in teachers) / len(teachers)
        return distillation(logits, soft, y, args.teacher_share)

    step_loss = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    n_parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{n_parameters:.2f} M parameters, {vocab_size} tokens in the vocabulary")
    total = args.minutes * 60
    last_save = time.time()
    losses = []
    step = 0
    while state.spent < total:
        start = time.time()
        progress = state.spent / total
        # The learning rate: a warm-up, a plateau, then linear to zero.
        warmup = (state.seen + 1) / (100 * args.batch_tokens)
        scale = min(1.0, warmup, (1 - progress) / args.decay)
        for group in [*muon.param_groups, *adam.param_groups]:
            group["lr"] = group["base_lr"] * scale
        length = args.context if progress >= args.long_from else args.context // 2
        x = draw_batch(tokens, rng, length, args)
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bfloat16):
            loss, nats = step_loss(x)
        loss.backward()
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        losses.append(nats.item())
        state.seen += x[:, 1:].numel()
        step += 1
        if step > 2 or not args.compile:  # building the graph is not training time
            state.spent += time.time() - start
        if step % 100 == 0:
            line = f"{state.spent / 60:6.1f} min  {state.seen / 1e6:7.2f} M tokens"
            line += f"  loss {np.mean(losses[-100:]):.3f} nats a token  lr x {scale:.2f}"
            if step % 500 == 0:
                line += f"  held back {nats_held_back(model, held_back, args):.3f}"
            print(line, flush=True)
        if time.time() - last_save > 60 * args.save_every or state.spent >= total:
            state.save()
            save(model, work, Path(args.out))
            last_save = time.time()


def mean(folders, work, out):
    """Writes the model whose weights are the mean of those in `folders`, with scaled logits.

    The models are ends of one training, and their mean is better than each of them. A model that
    has read its texts many times is too sure of itself on other texts. So the logits are scaled by
    the factor that fits the tokens held back best. For one folder, only this is done.
    """
    networks = [open_model(folder).eval() for folder in folders]
    model = networks[0]
    states = [network.state_dict() for network in networks]
    average = {}
    for name in states[0]:
        average[name] = sum(state[name] for state in states) / len(states)
    model.load_state_dict(average)
    rows = held_back_rows(load_tokens(work), model.config.n_positions)
    with torch.no_grad():
        parts = [model.transformer(x[:, :-1]).last_hidden_state for x in rows.split(32)]
        hidden = torch.cat(parts)

        def nats(scale):
            values = []
            for h, y in zip(hidden.split(32), rows[:, 1:].split(32)):
                logits = scale * model.lm_head(h).flatten(0, 1)
                values.append(F.cross_entropy(logits, y.flatten()).item())
            return np.mean(values)

        losses = {scale: nats(scale) for scale in (1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94)}
        scale = min(losses, key=losses.get)
        scaled = f"with logits times {scale}: {losses[scale]:.4f}"
        print(f"nats a token held back: {losses[1.0]:.4f}, {scaled}")
        # The output layer has no weights of its own. The last gain and bias scale the logits.
        model.transformer.ln_f.weight *= scale
        model.transformer.ln_f.bias *= scale
    save(model, work, out)


# ---------------------------------------------------------------------------------- the measuring


@torch.no_grad()
def bits_per_byte(folder, texts, stride=128, batch=32, device="cpu"):
    """Bits of -log2 p per byte of UTF-8. Each text stands alone behind <|endoftext|>.

    Every token is scored once, in windows of the full context that advance by `stride`. So a token
    late in a text is predicted from at least context - stride tokens.
    """
    folder = Path(folder)
    model = open_model(folder).eval().to(device)
    bpe = load_bpe(folder)
    context = model.config.n_positions
    eos = bpe.token_to_id(EOS)
    n_bytes = 0
    windows = []  # (ids, the first position that is scored)
    for text in texts:
        ids = [eos, *bpe.encode(text).ids]
        n_bytes += len(text.encode("utf-8"))
        for begin in range(0, max(1, len(ids) - 1 - (context - stride)), stride):
            window = ids[begin : begin + context + 1]
            windows.append((window, 0 if begin == 0 else context - stride))
    windows.sort(key=lambda w: len(w[0]))
    nats = 0.0
    for i in range(0, len(windows), batch):
        group = windows[i : i + batch]
        x = torch.full((len(group), max(len(w) for w, _ in group)), eos, device=device)
        score = torch.zeros(x.shape, dtype=torch.bool, device=device)
        for row, (window, first) in enumerate(group):
            x[row, : len(window)] = torch.tensor(window)
            score[row, first + 1 : len(window)] = True
        scored = score[:, 1:]
        hidden = model.transformer(x[:, :-1]).last_hidden_state[scored]  # (tokens to score, width)
        nats += F.cross_entropy(model.lm_head(hidden), x[:, 1:][scored], reduction="sum").item()
    return nats / math.log(2) / n_bytes


def has_bf16():
    """Whether the processor multiplies bfloat16 natively."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def parse_options(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--texts", nargs="+", help="files or folders to train on")
    add("--work", default="/tmp/tiny-lm", help="folder of the tokens and the training state")
    add("--out", default="tiny/lm", help="folder of the model")
    text = "no training: write the mean of these models, calibrated on what --work held back"
    add("--mean", nargs="+", help=text)
    add("--measure", nargs="+", help="no training: bits per byte of --out on these texts")
    add("--minutes", type=float, default=90, help="training time, without the start-up")
    add("--vocab-size", type=int, default=4096)
    add("--context", type=int, default=256)
    add("--layers", type=int, default=4)
    add("--width", type=int, default=256)
    add("--heads", type=int, default=4)
    add("--batch-tokens", type=int, default=4096)
    add("--lr-matrix", type=float, default=6e-3, help="Muon, scaled to Adam's update size")
    add("--lr-embedding", type=float, default=3e-3)
    add("--lr-vector", type=float, default=3e-3)
    text = "of the matrices, times the learning rate"
    add("--weight-decay", type=float, default=0.01, help=text)
    add("--dropout", type=float, default=0.0)
    text = "folders of larger models with the same vocabulary; the student learns from their mean"
    add("--teacher", nargs="+", default=[], help=text)
    text = "share of the loss that comes from the teachers"
    add("--teacher-share", type=float, default=0.5, help=text)
    add("--start", help="begin with the weights in this folder, of the same shape")
    text = "last part of the time, in which the learning rate falls to 0"
    add("--decay", type=float, default=0.5, help=text)
    text = "first part of the time, with half the context"
    add("--long-from", type=float, default=0.6, help=text)
    add("--save-every", type=float, default=4, help="minutes")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    text = "default: where the processor multiplies it natively"
    add("--bfloat16", action=argparse.BooleanOptionalAction, help=text)
    add("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    if args.bfloat16 is None:
        args.bfloat16 = args.device != "cpu" or has_bf16()
    if not (args.measure or args.mean or args.texts):
        parser.error("name --texts to train, --mean to join or --measure to measure")
    saved = {"config.json", "generation_config.json", "model.safetensors", "vocab.json"}
    saved |= {"merges.txt", "tokenizer_config.json"}
    others = {f.name for f in Path(args.out).glob("*")} - saved
    if others and not args.measure:
        parser.error(f"--out {args.out} holds {min(others)}, which is no part of a model")
    return args


def main(argv=None):
    args = parse_options(argv)
    if args.measure:
        bits = bits_per_byte(args.out, read_texts(args.measure), device=args.device)
        print(f"{bits:.4f} bits per byte")
    elif args.mean:
        mean([Path(folder) for folder in args.mean], Path(args.work), Path(args.out))
    else:
        train(args)


if __name__ == "__main__":
    main()
