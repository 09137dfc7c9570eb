"""Makes tiny/lm: a byte-level BPE of its own and a small GPT-2, trained from scratch on a folder of texts.

Reads    every *.jsonl, *.jsonl.xz ({"text": ...} a line) and *.txt (one text a file) that --texts names
Writes   --out: a plain Hugging Face GPT-2 folder in float16 (config.json, model.safetensors, vocab.json, merges.txt, ...)
         --work: the tokens and, every few minutes, the state of the training; start the same command again to go on

    python tiny/pretrain.py --texts reviews/train.jsonl.xz reviews/unsup.jsonl.xz --out tiny/lm --minutes 90
    python tiny/pretrain.py --mean one two --work /tmp/lm --out tiny/lm         # the mean of two models, or one alone, calibrated
    python tiny/pretrain.py --out tiny/lm --measure reviews/test.jsonl.xz       # bits per byte on held-out texts

On a CPU tokens are what is scarce, so every choice below buys loss per token or tokens per second: Muon on the
matrices (Adam on embeddings, gains and biases), contexts of 128 tokens first and 256 in the last two fifths, bfloat16
where the processor multiplies it natively, a fused graph from torch.compile, and a learning rate that falls to zero
at the end of the time there is. On a GPU (--device cuda) texts are what is scarce: minutes are many epochs, and larger
models, trained first, tell the small one how likely every token would have been (--teacher).
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

logging.set_verbosity_error()  # it would warn of ids that stand beyond a small vocabulary until they are set
EOS = "<|endoftext|>"
HELD_BACK = 65536  # tokens, the last of the shuffled texts, that no training sees


def read_texts(paths):
    """Every text of the files (or of the files of the folders) in `paths`, in order."""
    files = [f for p in map(Path, paths) for f in (sorted(p.iterdir()) if p.is_dir() else [p])]
    for file in files:
        if file.suffix == ".txt":
            yield file.read_text(encoding="utf-8")
        elif file.name.endswith((".jsonl", ".jsonl.xz")):
            with (lzma.open if file.suffix == ".xz" else open)(file, "rt", encoding="utf-8") as lines:
                yield from (json.loads(line)["text"] for line in lines)


def train_bpe(texts, vocab_size, folder):
    """Byte-level BPE in GPT-2's layout: 256 bytes, merges, <|endoftext|> last. Writes vocab.json and merges.txt."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # sorted = the order of GPT-2's first 256 ids
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet))
    vocab, merges = (json.loads(bpe.to_str())["model"][k] for k in ("vocab", "merges"))
    if len(merges) != len(vocab) - 256:
        sys.exit("two merges give the same token: ids would not be merge ranks; choose another --vocab-size")
    vocab[EOS] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")


def load_bpe(folder):
    bpe = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe


def tokenize(bpe, texts):
    """All texts as one (N,) uint16 array, <|endoftext|> in front of each."""
    eos, parts, batch = bpe.token_to_id(EOS), [], []
    for text in texts:
        batch.append(text)
        if len(batch) == 4096:
            parts += [np.array([eos, *e.ids], np.uint16) for e in bpe.encode_batch(batch)]
            batch = []
    parts += [np.array([eos, *e.ids], np.uint16) for e in bpe.encode_batch(batch)]
    return np.concatenate(parts)


def new_model(vocab_size, args):
    ids = {"bos_token_id": vocab_size - 1, "eos_token_id": vocab_size - 1, "pad_token_id": vocab_size - 1}
    config = GPT2Config(vocab_size=vocab_size, n_positions=args.context, n_embd=args.width, n_layer=args.layers,
                        n_head=args.heads, resid_pdrop=args.dropout, embd_pdrop=args.dropout, attn_pdrop=0.0, **ids)  # fmt: skip
    model = GPT2LMHeadModel(config)
    for block in model.transformer.h:  # residual branches start as zero: the stack starts as the identity
        torch.nn.init.zeros_(block.attn.c_proj.weight)
        torch.nn.init.zeros_(block.mlp.c_proj.weight)
    model.generation_config.update(**ids)
    return model


def distillation(logits, soft, y, share):
    """(what a pupil minimises, nats a token). logits (N, V), soft (N, V) the mean of its teachers' distributions, y (N,) the next
    tokens. `share` of the first is the cross-entropy with the teachers: a text read often is learned by heart, what they expect is not."""
    nats = F.cross_entropy(logits, y)
    return (1 - share) * nats + share * F.cross_entropy(logits, soft), nats


def optimisers(model, args):
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    embeddings = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." not in n]
    vectors = [p for n, p in model.named_parameters() if p.ndim == 1]
    muon = torch.optim.Muon(matrices, lr=args.lr_matrix, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam([{"params": embeddings, "lr": args.lr_embedding}, {"params": vectors, "lr": args.lr_vector}],
                            betas=(0.9, 0.95))  # fmt: skip
    for group in [*muon.param_groups, *adam.param_groups]:
        group["base_lr"] = group["lr"]
    return muon, adam


def held_back_rows(tokens, context):
    """The last HELD_BACK of the (N,) tokens as rows (n, context)."""
    return tokens[-(HELD_BACK // context * context) :].view(-1, context).long()


def train(args):
    work = Path(args.work)
    if not (work / "tokens.npy").exists():
        texts = list(read_texts(args.texts))
        random.Random(0).shuffle(texts)
        train_bpe(texts[:40_000], args.vocab_size, work)
        tokens = tokenize(load_bpe(work), texts)
        if len(tokens) < 2 * HELD_BACK:
            sys.exit(f"--texts have {len(tokens)} tokens, of which {HELD_BACK} are held back; name at least {2 * HELD_BACK}, some 500 KB of text")
        np.save(work / "tokens.tmp.npy", tokens)
        os.replace(work / "tokens.tmp.npy", work / "tokens.npy")
        print(f"{len(texts)} texts, {len(tokens) / 1e6:.1f} M tokens")
    tokens = torch.from_numpy(np.load(work / "tokens.npy").astype(np.int32)).to(args.device)
    tokens, held_back = tokens[:-HELD_BACK], held_back_rows(tokens, args.context)
    vocab = (work / "vocab.json").read_bytes()
    for folder in args.teacher + [args.start] * bool(args.start):
        if (Path(folder) / "vocab.json").read_bytes() != vocab:
            sys.exit(f"{folder} has another vocabulary than {work}: its token ids mean other words; train it on the same --texts")
    vocab_size = len(json.loads(vocab))

    torch.manual_seed(args.seed)
    model = new_model(vocab_size, args).to(args.device)
    if args.start:
        model.load_state_dict(GPT2LMHeadModel.from_pretrained(args.start, dtype=torch.float32).state_dict())
    muon, adam = optimisers(model, args)
    teachers = [GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).to(args.device).eval().requires_grad_(False)
                for folder in args.teacher]  # fmt: skip
    seen, spent = 0, 0.0  # tokens, seconds of training
    state = work / "state.pt"
    if state.exists():
        saved = torch.load(state, map_location=args.device, weights_only=True)
        model.load_state_dict(saved["model"])
        muon.load_state_dict(saved["muon"]), adam.load_state_dict(saved["adam"])
        seen, spent = saved["seen"], saved["spent"]
        print(f"going on at {seen / 1e6:.2f} M tokens, {spent / 60:.1f} minutes")
    if spent >= args.minutes * 60:
        sys.exit(f"{state} has had its {args.minutes} minutes: name more to go on, or another --work to begin anew")
    rng = np.random.default_rng([args.seed, seen])

    def logits_of(lm, x):  # x (B, T + 1) -> (B T, V)
        return lm.lm_head(lm.transformer(x[:, :-1], use_cache=False).last_hidden_state).flatten(0, 1).float()

    def loss_of(x):
        """(what is minimised, nats a token)."""
        logits, y = logits_of(model, x), x[:, 1:].flatten()
        if not teachers:
            nats = F.cross_entropy(logits, y)
            return nats, nats
        with torch.no_grad():
            soft = sum(logits_of(teacher, x).softmax(-1) for teacher in teachers) / len(teachers)
        return distillation(logits, soft, y, args.teacher_share)

    @torch.no_grad()
    def on_held_back():
        model.eval()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bfloat16):
            nats = np.mean([F.cross_entropy(logits_of(model, x), x[:, 1:].flatten()).item() for x in held_back.split(64)])
        model.train()
        return nats

    step_loss = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {vocab_size} tokens in the vocabulary")
    total, last_save, losses, step = args.minutes * 60, time.time(), [], 0
    while spent < total:
        start, progress = time.time(), spent / total
        scale = min(1.0, (seen + 1) / (100 * args.batch_tokens), (1 - progress) / args.decay)  # warm-up, plateau, linear to zero
        for group in [*muon.param_groups, *adam.param_groups]:
            group["lr"] = group["base_lr"] * scale
        length = args.context if progress >= args.long_from else args.context // 2
        at = torch.from_numpy(rng.integers(0, len(tokens) - length - 1, args.batch_tokens // length))
        x = tokens[(at[:, None] + torch.arange(length + 1)).to(args.device)].long()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bfloat16):
            loss, nats = step_loss(x)
        loss.backward()
        muon.step(), adam.step()
        model.zero_grad(set_to_none=True)
        losses.append(nats.item())
        seen, step = seen + x[:, 1:].numel(), step + 1
        if step > 2 or not args.compile:  # building the graph is not training time
            spent += time.time() - start
        if step % 100 == 0:
            print(f"{spent / 60:6.1f} min  {seen / 1e6:7.2f} M tokens  loss {np.mean(losses[-100:]):.3f} nats a token"
                  f"  lr x {scale:.2f}" + (f"  held back {on_held_back():.3f}" if step % 500 == 0 else ""), flush=True)  # fmt: skip
        if time.time() - last_save > 60 * args.save_every or spent >= total:
            torch.save({"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(),
                        "seen": seen, "spent": spent}, work / "state.tmp.pt")  # fmt: skip
            os.replace(work / "state.tmp.pt", state)
            save(model, work, Path(args.out))
            last_save = time.time()


def mean(folders, work, out):
    """Writes the model whose weights are the mean of those in `folders`, ends of one training: it is better than each; of one, the
    same. What has read its texts many times is too sure of itself elsewhere, so its logits are scaled for the tokens held back."""
    models = [GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders]
    model = models[0]
    model.load_state_dict({k: sum(m.state_dict()[k] for m in models) / len(models) for k in model.state_dict()})
    rows = held_back_rows(torch.from_numpy(np.load(work / "tokens.npy").astype(np.int32)), model.config.n_positions)
    with torch.no_grad():
        hidden = torch.cat([model.transformer(x[:, :-1]).last_hidden_state for x in rows.split(32)])

        def nats(scale):
            parts = zip(hidden.split(32), rows[:, 1:].split(32))
            return np.mean([F.cross_entropy(scale * model.lm_head(h).flatten(0, 1), y.flatten()).item() for h, y in parts])

        losses = {scale: nats(scale) for scale in (1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94)}
        scale = min(losses, key=losses.get)
        print(f"nats a token held back: {losses[1.0]:.4f}, with logits times {scale}: {losses[scale]:.4f}")
        model.transformer.ln_f.weight *= scale  # the output layer has no weights of its own: the last gain and bias scale the logits
        model.transformer.ln_f.bias *= scale
    save(model, work, out)


def save(model, work, out):
    """float16 weights, configuration and vocabulary; written beside and renamed, so `out` is never half a model."""
    beside = out.with_name(out.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(beside)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(work / name, beside / name)
    (beside / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": EOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS,
         "add_prefix_space": False, "model_max_length": model.config.n_positions}, indent=2) + "\n")  # fmt: skip
    shutil.rmtree(out, ignore_errors=True)
    os.replace(beside, out)


@torch.no_grad()
def bits_per_byte(folder, texts, stride=128, batch=32, device="cpu"):
    """Bits of -log2 p a byte of UTF-8, each text alone behind <|endoftext|>, every token scored once, in windows of the
    full context that advance by `stride` (so a token late in a text sees at least context - stride tokens)."""
    folder = Path(folder)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    bpe, context = load_bpe(folder), model.config.n_positions
    eos = bpe.token_to_id(EOS)
    nats, n_bytes, windows = 0.0, 0, []
    for text in texts:
        ids = [eos, *bpe.encode(text).ids]
        n_bytes += len(text.encode("utf-8"))
        for begin in range(0, max(1, len(ids) - 1 - (context - stride)), stride):
            window = ids[begin : begin + context + 1]
            windows.append((window, 0 if begin == 0 else context - stride))
    windows.sort(key=lambda w: len(w[0]))
    for i in range(0, len(windows), batch):
        group = windows[i : i + batch]
        x = torch.full((len(group), max(len(w) for w, _ in group)), eos, device=device)
        score = torch.zeros(x.shape, dtype=torch.bool, device=device)
        for row, (window, first) in enumerate(group):
            x[row, : len(window)] = torch.tensor(window)
            score[row, first + 1 : len(window)] = True
        hidden = model.transformer(x[:, :-1]).last_hidden_state[score[:, 1:]]  # (tokens to score, width)
        nats += F.cross_entropy(model.lm_head(hidden), x[:, 1:][score[:, 1:]], reduction="sum").item()
    return nats / math.log(2) / n_bytes


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", help="files or folders to train on")
    parser.add_argument("--work", default="/tmp/tiny-lm", help="tokens and training state")
    parser.add_argument("--out", default="tiny/lm")
    parser.add_argument("--mean", nargs="+", help="no training: write the mean of these models, calibrated on what --work held back")
    parser.add_argument("--measure", nargs="+", help="no training: bits per byte of --out on these texts")
    parser.add_argument("--minutes", type=float, default=90, help="training time, start-up not counted")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr-matrix", type=float, default=6e-3, help="Muon, scaled to Adam's update size")
    parser.add_argument("--lr-embedding", type=float, default=3e-3)
    parser.add_argument("--lr-vector", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01, help="of the matrices, times the rate")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--teacher", nargs="+", default=[], help="the --out of larger models of the same vocabulary and texts, to learn from their mean")
    parser.add_argument("--teacher-share", type=float, default=0.5, help="part of what is minimised that is the teachers'")
    parser.add_argument("--start", help="begin with the weights of this --out, of the same shape")
    parser.add_argument("--decay", type=float, default=0.5, help="last part of the time in which the rate falls to 0")
    parser.add_argument("--long-from", type=float, default=0.6, help="part of the time with half the context")
    parser.add_argument("--save-every", type=float, default=4, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, help="default: where the processor multiplies it natively")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    if args.bfloat16 is None:
        has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        args.bfloat16 = args.device != "cpu" or has_bf16
    if args.measure:
        print(f"{bits_per_byte(args.out, read_texts(args.measure), device=args.device):.4f} bits per byte")
    elif args.mean:
        mean([Path(folder) for folder in args.mean], Path(args.work), Path(args.out))
    elif args.texts:
        train(args)
    else:
        parser.error("name --texts to train, --mean to join or --measure to measure")


if __name__ == "__main__":
    main()
