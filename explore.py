"""Stage 1, *explore*: sample completions y ~ p(. | x, r_K), score them, write them to the pool D.

Reads    --prompts, a JSONL file with "prompt"; --model, a GPT-2 folder or hub name
Writes   --out, one row a sample: {"prompt", "completion", "reward", "iteration", "prompt_ids", "completion_ids"}

    python explore.py --model tiny/lm --prompts tiny/prompts/train.jsonl --reward repetition --out runs/try/pool/00.jsonl
    python explore.py --model runs/try/model/01 --prompts my.jsonl --reward my_reward.py:shouting --iteration 1 --out runs/try/pool/01.jsonl

Algorithm 1 of the paper: "initialisation" when the model has no reward tokens (then it is p0, and no token is put in
front), "exploration" when it has. The authors' code samples from the 50 likeliest tokens without meaning to (--top-k 50),
and can generate reward tokens; here nothing is cut unless a flag says so, and a reward token is never generated.

This file also owns the policy: model, tokenizer and reward tokens, as a plain Hugging Face GPT-2 folder.
"""

from quantize import (BadInput, Growing, add_sampling_arguments, check_sampling_arguments, check_writable, dump_row, read_prompts,
                      run_stage, shown, whole_file, whole_folder)  # first: from here on Ctrl-C is one line  # fmt: skip

import argparse
import functools
import glob
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path


def arguments(argv=None):
    """The stage's options, checked: what cannot be ends here with one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="p: a checkpoint folder or hub name")
    parser.add_argument("--prompts", required=True, help='X: JSONL with "prompt", a string or {"text": ...}')
    parser.add_argument("--reward", required=True, help="r: a built-in name or path/to/file.py:function (see rewards.py)")
    parser.add_argument("--out", required=True, help="pool file to write, e.g. pool/00.jsonl")
    parser.add_argument("--iteration", type=int, default=0, help="round number, written into the rows (default 0)")
    parser.add_argument("--num-prompts", type=int, help="take this many of the prompts, the same in every round of a --seed (default: all)")
    parser.add_argument("--reward-token", choices=["K", "none"], default="K", help="what stands in front of x: r_K, or nothing (default K)")
    parser.add_argument("--int8", action="store_true", help="sample with weights of 8 bits, on a CPU only: quicker still than --bf16 with AVX512-VNNI,\n"
                        "many times slower without; p is a little off: with tiny/lm 3 %% of the tokens are others (bench/explore.py)")  # fmt: skip
    add_sampling_arguments(parser, num_samples=1, top_p=1.0)
    args = parser.parse_args(argv)
    check_sampling_arguments(parser, args)
    return args


if __name__ == "__main__":
    arguments()  # --help and wrong options are answered here: the imports below take seconds

import numpy as np
import tiktoken
import torch
from tqdm import tqdm

from rewards import load_reward

EOS = "<|endoftext|>"

# ------------------------------------------------------------------------------------------------------- the policy


@dataclass
class Policy:
    """p(y | x) or p(y | x, r_k): the network and its vocabulary, V ordinary tokens and then K reward tokens."""

    model: torch.nn.Module  # a transformers GPT2LMHeadModel
    encoding: tiktoken.Encoding
    vocab_size: int  # V, <|endoftext|> included, reward tokens not
    n_quantiles: int  # K; 0 for a plain language model
    files: dict  # name -> bytes: vocab.json, merges.txt, which travel with the weights

    @property
    def device(self):
        return self.model.device

    @property
    def eos_id(self):
        return self.encoding.eot_token

    @property
    def context(self):
        return self.model.config.n_positions

    def reward_token_id(self, k):
        """The id of r_k: V for r_1 ... V + K - 1 for r_K."""
        if not 1 <= k <= self.n_quantiles:
            raise BadInput(f"there is no reward token r_{k}: this model has {self.n_quantiles or 'none'}")
        return self.vocab_size + k - 1

    def encode(self, text):
        """Text -> ids. Always plain text: "<|endoftext|>" or "<|reward_5|>" in it become ordinary characters."""
        return self.encoding.encode_ordinary(text)

    def decode(self, ids):
        return self.encoding.decode(list(ids))

    def start_of(self, prompt_ids):
        """What p0 reads before y: the prompt, or <|endoftext|> if it is empty (a model needs something to go on)."""
        return list(prompt_ids) or [self.eos_id]

    def add_reward_tokens(self, K, seed=0, ordered=False):
        """Appends r_1 ... r_K to the embedding, each dimension drawn from N(mean, std) of the existing rows (the authors).

        ordered: r_k = mean + z_k std * e, with one random direction e ~ N(0, I) for all and z_k from -3 to 3 in K steps.
        What the model learns of one token then carries over to its neighbours, and it heeds them after fewer steps.
        The embedding is tied to the output layer, so the softmax grows as well: every use of the logits cuts them to V.
        """
        old = self.model.get_input_embeddings().weight.detach()  # (V, d)
        self.model.resize_token_embeddings(self.vocab_size + K, mean_resizing=False)
        generator = torch.Generator().manual_seed(seed)
        if ordered:
            noise = torch.linspace(-3, 3, K)[:, None] * torch.randn(old.shape[1], generator=generator)
        else:
            noise = torch.randn(K, old.shape[1], generator=generator)
        new = old.mean(0).cpu() + old.std(0).cpu() * noise
        self.model.get_input_embeddings().weight.data[self.vocab_size :] = new.to(old)
        self.n_quantiles = K
        self.encoding = build_encoding(self.files["vocab.json"], self.files["merges.txt"], K)

    def save(self, path, write_more=None):
        """A folder that AutoModelForCausalLM, AutoTokenizer and pipeline open; appears whole or not at all.

        write_more(folder) may put further files into it (learn.py: the optimiser's state and the metrics).
        """
        from safetensors import SafetensorError
        from transformers import AddedToken, GPT2Tokenizer

        tokenizer = GPT2Tokenizer(vocab=json.loads(self.files["vocab.json"]), merges=merge_pairs(self.files["merges.txt"]),
                                  bos_token=EOS, eos_token=EOS, unk_token=EOS, pad_token=EOS)  # fmt: skip
        tokenizer.model_max_length = self.context
        reward_tokens = [AddedToken(reward_token(k), special=True) for k in range(1, self.n_quantiles + 1)]
        tokenizer.add_special_tokens({"additional_special_tokens": reward_tokens})
        self.model.config.n_quantiles, self.model.config.base_vocab_size = self.n_quantiles, self.vocab_size
        with whole_folder(path) as beside:
            try:
                tokenizer.save_pretrained(beside)
                self.model.save_pretrained(beside)
                for name, content in self.files.items():  # save_pretrained keeps only tokenizer.json: these must travel too
                    (beside / name).write_bytes(content)
                if write_more:
                    write_more(beside)
            except (SafetensorError, RuntimeError) as error:  # what these libraries raise when the disk is full
                raise OSError(str(error)) from error


def reward_token(k):
    return f"<|reward_{k}|>"


def load_policy(path_or_hub_name, device="cpu"):
    """Opens a GPT-2 folder or hub model as a Policy, in float32, in evaluation mode (dropout off)."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import cached_file, logging

    logging.disable_progress_bar(), logging.set_verbosity_error()
    name = str(path_or_hub_name)
    looks_like_path = name.startswith((".", "/")) or name.count("/") > 1 or "/" in name and Path(name).parent.is_dir()
    if not Path(name).is_dir() and looks_like_path:
        raise BadInput(f"model folder {name} does not exist; name a checkpoint folder or a hub model such as gpt2")
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "gpt2":
            raise BadInput(f"{name} is a {config.model_type} model; this project's tokenizer is GPT-2's, so only gpt2 models work")
        # On a CPU, at the lengths of this method, plain attention is quicker than PyTorch's fused one, mostly backwards.
        attention = "eager" if str(device) == "cpu" else "sdpa"
        model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32, use_safetensors=True,
                                                     attn_implementation=attention)  # fmt: skip
        files = {f: Path(cached_file(name, f)).read_bytes() for f in ("vocab.json", "merges.txt")}
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(f"cannot open the model {name}: {reason}; it needs config.json, model.safetensors, vocab.json and "
                       "merges.txt (with no network, a hub model must have been downloaded before)") from None  # fmt: skip
    K = getattr(config, "n_quantiles", 0)
    V = getattr(config, "base_vocab_size", config.vocab_size)
    encoding = build_encoding(files["vocab.json"], files["merges.txt"], K)
    if encoding.n_vocab != V + K or config.vocab_size != V + K:
        raise BadInput(f"{name}: vocab.json has {encoding.n_vocab - K} tokens, config.json {V}; they belong to different models")
    if str(device) == "cpu":
        multiply_with_onednn()
    return Policy(quicker(model).eval().to(device), encoding, V, K, files)


def multiply_with_onednn():
    """Float32 products on a CPU by oneDNN instead of MKL, which leaves half of an AMD processor unused.

    PyTorch calls that "medium" precision and would allow bfloat16 inside; only on processors with AMX does oneDNN take it, so
    there everything stays as it is, and elsewhere float32 stays float32 (tests/test_explore.py: test_float32_stays_float32).
    """
    has = torch.cpu.get_capabilities()
    if has.get("avx512_f") and not has.get("amx_bf16"):
        torch.set_float32_matmul_precision("medium")


def quicker(model):
    """The same network with its GELU in one kernel instead of eight."""
    if model.config.activation_function == "gelu_new":
        for block in model.transformer.h:
            block.mlp.act = torch.nn.GELU(approximate="tanh")
    return model


def matrices(model):
    """Every matrix product of the network: (module, name of the layer in it, (outputs, inputs) weight, bias or None)."""
    for block in model.transformer.h:
        for part, name in ((block.attn, "c_attn"), (block.attn, "c_proj"), (block.mlp, "c_fc"), (block.mlp, "c_proj")):
            yield part, name, getattr(part, name).weight.detach().T, getattr(part, name).bias.detach()
    yield model, "lm_head", model.lm_head.weight.detach(), None


def laid_out(model, bf16=False):
    """Every matrix of `model` in the order in which oneDNN multiplies it quickest, in place: to sample from only, it can be neither
    trained nor saved. bf16: in bfloat16, but for the output layer. The model as it was where PyTorch has no oneDNN, or no such order
    of bfloat16 on this processor (a CPU with AVX2 only)."""
    if hasattr(torch.ops.mkldnn, "_linear_pointwise") and (not bf16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        for part, name, weight, bias in matrices(model):
            setattr(part, name, LaidOut(weight, bias, torch.bfloat16 if bf16 and bias is not None else torch.float32))
        if model.config.activation_function == "gelu_new":
            for block in model.transformer.h:
                block.mlp.c_fc.activation, block.mlp.act = "gelu", torch.nn.Identity()
    return model


class LaidOut(torch.nn.Module):
    """x -> activation(x @ weight.T + bias) by oneDNN; the activation is done while the product is still in the processor's cache."""

    def __init__(self, weight, bias, dtype, rows=64):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), rows)
        self.bias, self.dtype, self.activation = None if bias is None else bias.to(dtype), dtype, "none"

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, self.activation, [], "tanh")


def in_int8(model):
    """Every matrix product of `model` in integers of 8 bits, in place: to sample from only, as after laid_out."""
    for part, name, weight, bias in matrices(model):
        setattr(part, name, Int8(weight, 0.0 if bias is None else bias))


class Int8(torch.nn.Module):
    """x -> x @ weight.T + bias, each row of x and of the (outputs, inputs) weight in steps of 1/127 of its largest number."""

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.steps, self.step = self.rounded(weight)
        self.bias = bias

    def rounded(self, rows):
        step = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        return (rows / step).round().to(torch.int8), step

    def forward(self, x):
        steps, step = self.rounded(x.flatten(0, -2))
        y = torch._int_mm(steps, self.steps.T) * (step * self.step.T) + self.bias
        return y.view(*x.shape[:-1], -1)


# GPT-2's rule for cutting text into words before the merges (contractions, letters, digits, other signs, blanks).
WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def merge_pairs(merges_txt):
    """The bytes of merges.txt -> [(left, right)], in order; its first line is a version."""
    return [tuple(line.split(" ")) for line in merges_txt.decode("utf-8").split("\n")[1:] if line]


@functools.lru_cache(maxsize=4)  # p0 and pθ share theirs
def build_encoding(vocab_json, merges_txt, K=0):
    """GPT-2's byte-level BPE as a tiktoken.Encoding, from the bytes of vocab.json and merges.txt, and K reward tokens.

    tiktoken needs the id of every token to be the rank of its merge, as GPT-2's are. Built from the files' content, not
    through tiktoken's loader, which keeps a copy of every file under its *path* and would serve a stale vocabulary.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2 writes each byte as one visible character
    byte_of = {chr(b): b for b in printable}
    byte_of |= {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in set(printable))}
    try:
        vocab = json.loads(vocab_json)
        merged = ["".join(pair) for pair in merge_pairs(merges_txt)]
        eos = vocab.pop(EOS)
        ranks = {bytes(byte_of[c] for c in token): i for token, i in vocab.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInput(f"vocab.json or merges.txt is not GPT-2's byte-level BPE: {type(error).__name__} {error}") from None
    if [vocab.get(token) for token in merged] != list(range(256, len(vocab))) or eos != len(vocab):
        raise BadInput("vocab.json and merges.txt do not fit together: ids must be 256 bytes, the merges in order, <|endoftext|>")
    special = {EOS: eos, **{reward_token(k): eos + k for k in range(1, K + 1)}}
    return tiktoken.Encoding("gpt2-layout", pat_str=WORDS, mergeable_ranks=ranks, special_tokens=special)


# --------------------------------------------------------------------------------------------------------- sampling


@torch.no_grad()
def sample(policy, prompt_ids, *, quantile=None, max_new_tokens, min_new_tokens=0, temperature=1.0, top_k=0, top_p=1.0, greedy=False,
           seed=0, iteration=0, keys=None, batch_size=64, bf16=False):  # fmt: skip
    """y ~ p(. | x, r_k) for every x in `prompt_ids`, a list of lists of ids; returns lists of ids in the same order.

    quantile: k of the reward token put in front, None for none. greedy: one bool, or one a row. A completion ends with
    <|endoftext|>, which is kept, or after `max_new_tokens`. Row i's random numbers depend on (seed, iteration, keys[i])
    alone, one uniform a token, so that neither batch size nor order changes what is drawn; keys: (prompt, sample) pairs.
    bf16: the network's matrix products in bfloat16; logits, softmax and drawing stay in float32.
    """
    N = len(prompt_ids)
    keys = keys if keys is not None else [(i, 0) for i in range(N)]
    greedy = [greedy] * N if isinstance(greedy, bool) else list(greedy)
    front = [] if quantile is None else [policy.reward_token_id(quantile)]
    room = policy.context - max_new_tokens
    if room < len(front) + 1:
        raise BadInput(f"{max_new_tokens} new tokens leave no room for a prompt in a context of {policy.context}")
    contexts = [front + policy.start_of(ids)[-(room - len(front)) :] for ids in prompt_ids]
    completions = [None] * N
    with torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=bf16):
        for rows in batches_by_length(contexts, batch_size):
            uniform = np.stack([uniforms(seed, iteration, *keys[i], max_new_tokens) for i in rows])  # (B, T)
            done = _sample_batch(policy, [contexts[i] for i in rows], uniform, [greedy[i] for i in rows],
                                 max_new_tokens, min_new_tokens, temperature, top_k, top_p)  # fmt: skip
            for i, ids in zip(rows, done):
                completions[i] = ids
    return completions


def batches_by_length(sequences, batch_size):
    """Row numbers in lists of `batch_size`: sequences of similar length together, so that little is padding."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def uniforms(seed, iteration, prompt, sample_number, T):
    """T numbers in [0, 1) from a counter-based generator: a function of its arguments, with no state between calls."""
    generator = np.random.Philox(key=[seed, iteration], counter=[0, 0, prompt, sample_number])
    return np.random.Generator(generator).random(T)


def _sample_batch(policy, contexts, uniform, greedy, max_new_tokens, min_new_tokens, temperature, top_k, top_p):
    """The sampling loop for B prompts, padded on the left so that all end in the same column."""
    device, V, B = policy.device, policy.vocab_size, len(contexts)
    tokens, padding, row_of = distinct(policy, contexts)
    precise = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs know no float64
    uniform, greedy = torch.from_numpy(uniform).to(device, precise), torch.tensor(greedy, device=device)
    network = Decoder(policy.model, padding, tokens.shape[1] + max_new_tokens)
    alive, completions = list(range(B)), [[] for _ in range(B)]
    for step in range(max_new_tokens):
        logits = network.next_logits(tokens)[:, :V]  # (B, V): reward tokens can be read, never written
        if step == 0:
            network.keep(row_of)
            logits = logits[row_of]
        if step < min_new_tokens:
            logits[:, policy.eos_id] = -torch.inf
        chosen = logits.argmax(-1) if greedy.any() else None
        if not greedy.all():
            drawn = draw(logits if temperature == 1 else logits / temperature, uniform[:, step], top_p, top_k)
            chosen = drawn if chosen is None else torch.where(greedy, chosen, drawn)
        for row, token in zip(alive, chosen.tolist()):
            completions[row].append(token)
        going = chosen != policy.eos_id
        if not going.all():  # finished rows leave the batch
            kept = going.nonzero().squeeze(1)
            alive = [alive[i] for i in kept.tolist()]
            if not alive:
                break
            network.keep(kept)
            chosen, uniform, greedy = (t[kept] for t in (chosen, uniform, greedy))
        tokens = chosen[:, None]
    return completions


def distinct(policy, contexts):
    """Lists of ids, each as often as it has samples -> (different ones, T) tokens, padded on the left so that all end in the same
    column; (different ones,) columns of padding; and for every context its row among them."""
    number = {context: i for i, context in enumerate(dict.fromkeys(map(tuple, contexts)))}
    longest = max(map(len, number))
    tokens = [[policy.eos_id] * (longest - len(c)) + list(c) for c in number]
    padding, row_of = [longest - len(c) for c in number], [number[tuple(c)] for c in contexts]
    return (torch.tensor(t, device=policy.device) for t in (tokens, padding, row_of))


class Decoder:
    """The network of `model` one column of tokens after the other, keys and values of the columns before in a cache.

    It computes what model(...) does, in fewer and larger operations: the cache has its full length T from the beginning,
    where transformers copies it to lengthen it, which takes half of the time at 64 tokens. padding: (B,) columns that are
    empty at the left of each row.
    """

    def __init__(self, model, padding, T):
        self.model, self.padding, self.T, self.columns, self.cache = model, padding, T, 0, []

    def keep(self, rows):
        """These rows (a tensor of numbers, the same one several times if need be) go on, and no others."""
        self.padding = self.padding[rows]
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]

    def next_logits(self, tokens):
        """(B, t) further tokens -> (B, V + K) logits of the token after the last one."""
        x = self.hidden(tokens)
        with torch.autocast(x.device.type, enabled=False):  # with bf16's three digits many logits would be equal
            return self.model.lm_head(self.model.transformer.ln_f(x[:, -1]))

    def hidden(self, tokens):
        """(B, t) further tokens -> (B, t, d), what leaves the last block."""
        transformer, config, (B, t) = self.model.transformer, self.model.config, tokens.shape
        old, new = self.columns, self.columns + t
        wide = min(self.T, -(-new // 32) * 32)  # attention reads 32 columns more at a time: shapes that recur reuse their memory
        column = torch.arange(wide, device=tokens.device)
        # the first real token is at 0, whatever the padding; columns before it, or beyond the context, hold padding
        position = (column[old:new] - self.padding[:, None]).clamp(0, config.n_positions - 1)
        seen = (column <= column[old:new, None]) & (column >= self.padding[:, None, None])  # (B, t, wide): not the future, no padding
        barred = torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, -1e9)[:, None]
        x = transformer.wte(tokens) + transformer.wpe(position)  # (B, t, d)
        for number, block in enumerate(transformer.h):
            q, k, v = (part.view(B, t, config.n_head, -1).transpose(1, 2) for part in block.attn.c_attn(block.ln_1(x)).chunk(3, dim=-1))
            if old == 0:
                self.cache.append((k.new_zeros(*k.shape[:2], k.shape[3], self.T), v.new_zeros(*v.shape[:2], self.T, v.shape[3])))
            keys, values = self.cache[number]  # (B, heads, d / heads, T), and the last two the other way round
            keys[..., old:new], values[:, :, old:new] = k.transpose(2, 3), v
            attention = ((q * block.attn.scaling) @ keys[..., :wide] + barred).softmax(-1).to(v.dtype) @ values[:, :, :wide]
            x = x + block.attn.c_proj(attention.transpose(1, 2).reshape(B, t, -1))
            x = x + block.mlp.c_proj(block.mlp.act(block.mlp.c_fc(block.ln_2(x))))
        self.columns = new
        return x


def draw(logits, uniform, top_p=1.0, top_k=0):
    """Inverse CDF: the first token at which the cumulative probability exceeds u. (B, V) logits, (B,) u -> (B,) ids.

    top_p < 1 draws from the nucleus, the smallest set of likeliest tokens that holds at least that much probability. Most rows
    need no sorting for it: a token is inside where the tokens likelier than it hold less than top_p. Where it is outside, u's
    place within that token's stretch of the CDF is again uniform from 0 to 1, and draws from the nucleus alone.
    top_k > 0 leaves only the k likeliest tokens in p, and what is as likely as the last of them.
    """
    if 0 < top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    p = logits.softmax(-1)
    if top_p < 1 and uniform.dtype != torch.float64:  # of a float32 too little would be left for a second draw
        return _draw_from_nucleus(p, uniform, top_p)
    cdf, ids = _inverse_cdf(p, uniform)
    if top_p < 1:
        own = p.gather(1, ids)
        outside = (torch.where(p > own, p, 0.0).sum(-1) >= top_p).nonzero().squeeze(1)
        if len(outside):
            start, stretch = (cdf.gather(1, ids) - own)[outside, 0], own[outside, 0]
            place = (uniform[outside] * cdf[outside, -1] - start) / stretch
            ids[outside, 0] = _draw_from_nucleus(p[outside], place.clamp(0, 1 - 2**-53), top_p)
    return ids.squeeze(1)


def _inverse_cdf(p, uniform):
    """(B, V) probabilities, whatever their sum, (B,) u -> their cumulative sums (B, V), and ids (B, 1)."""
    cdf = p.cumsum(-1, dtype=uniform.dtype)  # in float64 no sum of 50,000 terms rounds a token away
    return cdf, torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).clamp(max=p.shape[1] - 1)


def _draw_from_nucleus(p, uniform, top_p):
    p, order = _likeliest(p, top_p)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)  # cut where the tokens before already hold top_p
    return order.gather(1, _inverse_cdf(p, uniform)[1]).squeeze(1)


def _likeliest(p, mass, first=1024):
    """(p, ids) in descending order, at least so many that every row holds `mass`; to sort all V is most of sampling's time."""
    if p.shape[1] > first:
        top, order = p.topk(first)
        if (top.sum(-1) >= mass).all():
            return top, order
    return p.sort(dim=-1, descending=True)


# ---------------------------------------------------------------------------------------------------------- stage 1


def explore(policy, prompts, reward, args):
    """Samples and scores args.num_samples completions a prompt, batch by batch: {number: pool row}, all on process 0.

    Each batch, once scored, is kept in OUT.*.part; a start after a crash, with the same settings, goes on from there.
    """
    part, rows = Growing(f"{args.out}.{_fingerprint(policy, prompts, args)}.part"), {}
    for row in part.rows:
        rows[row.pop("number")] = row
    rank, world = processes()
    if world > 1:
        torch.distributed.barrier()  # nobody writes before all have read
    if rows and rank == 0:
        print(f"going on: {len(rows)} of {len(prompts) * args.num_samples} samples were kept in {part.own}", flush=True)
    k = policy.n_quantiles if args.reward_token == "K" and policy.n_quantiles else None  # r_K; p0 has none
    for batch in sample_prompts(policy, prompts, args, args.seed, args.iteration, k, rows, rank, world):
        for row, value in zip(batch.values(), score(list(batch.values()), reward)):
            row["reward"] = value  # None: no score
        part.add([{**row, "number": number} for number, row in batch.items()])
        rows |= batch
    return gather(rows)


def _fingerprint(policy, prompts, args):
    """Equal only if the same samples would be drawn and scored: settings, prompts, reward file, model."""
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "device")}
    service = [os.environ.get("REMOTE_URL"), os.environ.get("REMOTE_ATTRIBUTE")] if args.reward == "remote" else None
    digest = hashlib.sha256(json.dumps([settings, prompts, service], sort_keys=True).encode())
    if ":" in args.reward:
        digest.update(Path(args.reward.rsplit(":", 1)[0]).read_bytes())
    digest.update(policy.model.transformer.ln_f.weight.detach().cpu().numpy().tobytes())  # no training leaves it as it was
    return digest.hexdigest()[:8]


def generate(policy, prompts, args, seed, iteration=0, quantile=None):
    """Samples args.num_samples completions a prompt. Returns pool rows without rewards, prompt by prompt."""
    rows = {}
    for batch in sample_prompts(policy, prompts, args, seed, iteration, quantile):
        rows |= batch
    return [rows[number] for number in sorted(rows)]


def sample_prompts(policy, prompts, args, seed, iteration=0, quantile=None, known=(), rank=0, world=1):
    """Yields {number: pool row without a reward}, a batch at a time; number = prompt's number * num_samples + sample's.

    Batches are formed before they are dealt out to the `world` processes, so that their number changes no sample. Those
    whose numbers are all `known` are left out.
    """
    encoded = [policy.encode(p["prompt"]) for p in prompts]
    room = policy.context - args.max_new_tokens - 1  # the reward token's place is always kept free
    if room < 1:
        raise BadInput(f"--max-new-tokens {args.max_new_tokens} leaves no room for a prompt in a context of {policy.context}")
    if (cut := sum(len(ids) > room for ids in encoded)) and rank == 0:
        print(f"{cut} of {len(prompts)} prompts are longer than {room} tokens and were cut from the left")
    encoded = [ids[-room:] for ids in encoded]
    keys = [(i, j) for i in range(len(prompts)) for j in range(args.num_samples)]
    if args.decode == "mixed":  # half the samples greedy, half drawn, alternating over prompts, samples and rounds
        greedy = [(i + j + iteration) % 2 == 0 for i, j in keys]
    else:
        greedy = [args.decode == "greedy"] * len(keys)
    batches = batches_by_length([encoded[i] for i, _ in keys], args.batch_size)
    todo = [batch for batch in batches[rank::world] if not all(n in known for n in batch)]
    with tqdm(total=sum(map(len, todo)), desc="sampling", unit="sample", disable=rank > 0) as bar:
        for batch in todo:
            completions = sample(
                policy, [encoded[keys[n][0]] for n in batch], quantile=quantile, max_new_tokens=args.max_new_tokens,
                min_new_tokens=args.min_new_tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
                greedy=[greedy[n] for n in batch], seed=seed, iteration=iteration, keys=[keys[n] for n in batch],
                batch_size=len(batch), bf16=args.bf16)  # fmt: skip
            yield {n: {"prompt": prompts[keys[n][0]]["prompt"], "completion": policy.decode(without_eos(policy, ids)),
                       "iteration": iteration, "prompt_ids": encoded[keys[n][0]], "completion_ids": ids}
                   for n, ids in zip(batch, completions)}  # fmt: skip
            bar.update(len(batch))


def without_eos(policy, ids):
    return ids[:-1] if ids and ids[-1] == policy.eos_id else ids


def score(rows, reward, chunk=4096):
    """The reward of every row, a list of float or None."""
    scores = []
    for start in tqdm(range(0, len(rows), chunk), desc="scoring", disable=len(rows) <= chunk):
        part = rows[start : start + chunk]
        scores += reward(prompts=[r["prompt"] for r in part], completions=[r["completion"] for r in part],
                         completion_ids=[r["completion_ids"] for r in part])  # fmt: skip
    return scores


# ----------------------------------------------------------------------------------------- many processes, by torchrun


def processes():
    """(rank, how many) of this process under torchrun; (0, 1) without it."""
    if "RANK" not in os.environ:
        return 0, 1
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(days=1))  # torchrun ends all if one dies
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def gather(rows):
    """The union of all processes' dicts, on process 0; on the others {}."""
    rank, world = processes()
    if world == 1:
        return rows
    everyone = [None] * world if rank == 0 else None
    torch.distributed.gather_object(rows, everyone)
    return {number: row for one in everyone or [] for number, row in one.items()}


def finish():
    """Waits for all processes: none leaves while process 0 is still writing."""
    if processes()[1] > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


# ------------------------------------------------------------------------------------------------- the command line


def pick_device(name):
    """The device called `name`; auto: a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available() or name == "mps" and not torch.backends.mps.is_available():
        raise BadInput(f"--device {name}: this machine or this build of PyTorch has none; use --device cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())  # a GPU a process
    return name


def main(argv=None):
    args = arguments(argv)
    prompts = read_prompts(args.prompts)
    if args.num_prompts and args.num_prompts < len(prompts):
        chosen = np.random.default_rng(args.seed).permutation(len(prompts))[: args.num_prompts]
        prompts = [prompts[i] for i in sorted(chosen)]
    if processes()[0] == 0:
        check_writable(args.out)
    device = pick_device(args.device)
    if args.int8 and device != "cpu":
        raise BadInput(f"--int8 is for CPUs, and this would run on {device}; add --device cpu, or use --bf16")
    reward = load_reward(args.reward, args.reward_model, cache=Path(args.out).parent / "remote.cache", device=device)
    policy = load_policy(args.model, device)
    if args.int8:
        in_int8(policy.model)
    elif device == "cpu":
        laid_out(policy.model, args.bf16)

    rows = explore(policy, prompts, reward, args)
    if processes()[0] == 0:
        _write(rows, args)
    finish()
    _remove_parts(args.out)  # every process's samples are in the pool now


def _remove_parts(out):
    for part in Path(out).parent.glob(glob.escape(Path(out).name) + ".*.part*"):
        part.unlink(missing_ok=True)


def _write(rows, args):
    """The pool file, in the prompts' order, and a few words about it."""
    rows = [rows[number] for number in sorted(rows)]
    kept = [row for row in rows if row["reward"] is not None]
    if not kept:
        _remove_parts(args.out)  # the next start shall try again
        raise BadInput(f"reward {args.reward} scored none of the {len(rows)} samples; nothing was written")
    with whole_file(args.out, args) as file:
        for row in kept:
            file.write(dump_row(row) + "\n")
    values = np.array([row["reward"] for row in kept])
    dropped = f", {len(rows) - len(kept)} without a score dropped" if len(kept) < len(rows) else ""
    print(f"{len(kept)} samples{dropped}; reward mean {values.mean():.4f}, from {values.min():.4f} to {values.max():.4f}")
    for row in kept[:2]:
        print(f"  {row['reward']:.3f}  {shown(row['prompt'] + ' |' + row['completion'], 150)}")


if __name__ == "__main__":
    run_stage(main)
