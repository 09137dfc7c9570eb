"""Decoder-only models other than GPT-2: which of them work, and with which tokenizer."""

import inspect
import math

import torch

from plumbing.own_tokenizer import OwnTokenizer
from plumbing.pool import BadInput
from plumbing.tokenizer import build_encoding, vocabulary_of

# What tokenizers read differently: contractions, digits, blanks, accents, other alphabets.
PROBE = "I'll see 12345 naïve  films,\n\n\tthey'd say: cafe\u0301, 日本語 (don't)."


def tokenizer_of(name, model_type, K):
    """(encoding, files of GPT-2's vocabulary or {}, number of ids that the folder's files name).

    tiktoken where the vocabulary and the splitting are GPT-2's, else the folder's own tokenizer.
    """
    if model_type == "gpt2":
        files, n_named = vocabulary_of(name)
        return build_encoding(files["vocab.json"], files["merges.txt"], K), files, n_named
    own = own_tokenizer(name, K)
    try:
        files, n_named = vocabulary_of(name)
        encoding = build_encoding(files["vocab.json"], files["merges.txt"], K)
    except (OSError, BadInput):
        return own, {}, own.n_vocab
    is_gpt2s = encoding.encode_ordinary(PROBE) == own.encode_ordinary(PROBE) and not own.bos
    return (encoding, files, n_named) if is_gpt2s else (own, {}, own.n_vocab)


def own_tokenizer(name, K):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    if not tokenizer.is_fast:
        raise BadInput(f"{name} has no tokenizer.json; choose a model with one")
    return OwnTokenizer(tokenizer, name, K)


def check_config(config, name):
    """Raises BadInput if the folder holds no decoder, before its weights are read."""
    if config.is_encoder_decoder:
        raise BadInput(
            f"{name} is an encoder-decoder ({config.model_type}); Quark needs a decoder-only model"
        )


@torch.no_grad()
def check_network(model, name):
    """Raises BadInput if the network cannot be read as GPT-2 is.

    Its base must take a cache and positions, must not read ahead, and the output layer alone must
    make the logits of its states.
    """
    takes = inspect.signature(model.base_model.forward).parameters
    kind = model.config.model_type
    if not {"past_key_values", "position_ids"} <= takes.keys():
        raise BadInput(f"{name}: a {kind} model takes no cache or no positions; choose another")
    tokens = torch.arange(1, 5)[None]
    head = model.get_output_embeddings()
    in_bf16 = any(p.dtype == torch.bfloat16 for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
        states, first = (
            model.base_model(ids, use_cache=False).last_hidden_state
            for ids in (tokens, tokens[:, :2])
        )
        logits = model(tokens, use_cache=False).logits
        own_logits = head(states)
    close = {"rtol": 0.05, "atol": 0.05} if in_bf16 else {"rtol": 1e-2, "atol": 1e-3}
    if not torch.allclose(states[:, :2], first, **close):
        raise BadInput(f"{name}: a {kind} model reads ahead; Quark needs a decoder-only model")
    if not torch.allclose(logits, own_logits, **close):
        raise BadInput(
            f"{name}: a {kind} model changes its logits after the output layer; choose another"
        )


def leave_out_unused_rows(model, name, n_tokens, n_named):
    """Cuts the embedding to the tokens that a text can have.

    More rows are usual: a padding token that somebody added, rows up to a multiple of 64. Models
    with a tokenizer of their own may have any number.
    """
    rows = model.config.vocab_size
    usual = [n_named, *(math.ceil(n_named / m) * m for m in (8, 64, 128))]
    if n_tokens < rows and (rows in usual or model.config.model_type != "gpt2"):
        unused = rows - n_tokens
        print(f"note: {name}: {unused} rows of the embedding belong to no text and are left out")
        model.resize_token_embeddings(n_tokens)
