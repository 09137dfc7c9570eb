"""Decoder-only models other than GPT-2: which of them work, and with which tokenizer."""

import math

import torch

from plumbing.files import first_line
from plumbing.own_tokenizer import OwnTokenizer
from plumbing.pool import BadInput
from plumbing.processes import processes
from plumbing.tokenizer import Gpt2Tokenizer, vocabulary_of


def tokenizer_of(name, model_type, K):
    """The folder's tokenizer, and how many ids its files name, added tokens included.

    By tiktoken where the vocabulary and the splitting are GPT-2's.
    """
    if model_type == "gpt2":
        files, n_named = vocabulary_of(name)
        return Gpt2Tokenizer(files, K), n_named
    own = own_tokenizer(name, K)
    if not own.splits_as_gpt2():
        return own, own.n_vocab
    try:
        files, n_named = vocabulary_of(name)
        return Gpt2Tokenizer(files, K), n_named
    except (OSError, BadInput):  # other ids than GPT-2's
        return own, own.n_vocab


def own_tokenizer(name, K):
    """tokenizer.json as it stands. AutoTokenizer rebuilds some, which then split otherwise."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    files = {file: has_file(name, file) for file in ("tokenizer.json", "vocab.json", "merges.txt")}
    if files["tokenizer.json"]:
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
        except Exception as error:  # the tokenizers library raises nothing more special
            reason = first_line(error)
            raise BadInput(f"{name}: cannot read tokenizer.json: {reason}; save it anew") from error
        return OwnTokenizer(tokenizer, name, K)
    if files["vocab.json"] and files["merges.txt"]:
        return OwnTokenizer(AutoTokenizer.from_pretrained(name, trust_remote_code=False), name, K)
    raise BadInput(
        f"{name} has no tokenizer.json, nor vocab.json with merges.txt; add its tokenizer"
    )


def has_file(name, file):
    from transformers.utils import cached_file

    return cached_file(name, file, _raise_exceptions_for_missing_entries=False) is not None


def check_config(config, name):
    """Raises BadInput, before the weights are read, if the model is no single decoder."""
    kind = config.model_type
    if config.is_encoder_decoder:
        raise BadInput(f"{name} is an encoder-decoder ({kind}); Quark needs a decoder-only model")
    for field in ("vocab_size", "max_position_embeddings"):
        if not hasattr(config, field):
            raise BadInput(
                f"{name}: the config.json of this {kind} model has no {field}; choose another"
            )


@torch.no_grad()
def check_network(model, cached, name):
    """Raises BadInput if the network cannot be read as GPT-2 is.

    It must not read ahead; rows with padding and a cache (`cached`) must have the states of each
    row alone; and the output layer alone must make the logits of its states.
    """
    kind = model.config.model_type
    long, short, last = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[3, 4]]), torch.tensor([[1]])
    in_bf16 = any(p.dtype == torch.bfloat16 for p in model.parameters())
    share = 0.05 if in_bf16 else 0.01

    def states(tokens):
        return model.base_model(tokens, use_cache=False).last_hidden_state

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
        whole, alone = states(torch.cat([long, last], 1)), states(torch.cat([short, last], 1))
        if not near(whole[:, :4], states(long), share):
            raise BadInput(f"{name}: a {kind} model reads ahead; Quark needs a decoder-only model")
        try:
            cached.start(torch.tensor([2, 0]))
            cached.next_states(torch.cat([torch.cat([last, last, short], 1), long]))
            cached.keep(torch.tensor([1, 0, 1]))
            found = cached.next_states(last.expand(3, 1))
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{name}: a {kind} model cannot read rows with a cache ({first_line(error)}); "
                "choose another"
            ) from None
        expected = torch.stack([whole[0, -1:], alone[0, -1:], whole[0, -1:]])
        if not near(found, expected, share):
            raise BadInput(f"{name}: a {kind} model reads padded rows otherwise; choose another")
        logits = model(long, use_cache=False).logits
        own_logits = model.get_output_embeddings()(states(long))
    if not near(logits, own_logits, share):
        raise BadInput(
            f"{name}: the logits of a {kind} model are not its output layer's; choose another"
        )


def near(a, b, share=0.01):
    return (a - b).norm() < share * b.norm()


def leave_out_unused_rows(model, name, n_tokens, n_named):
    """Cuts the embedding to the tokens that a text can have.

    More rows are usual: a padding token that somebody added, rows up to a multiple of 64. Models
    with a tokenizer of their own may have any number.
    """
    rows = model.config.vocab_size
    usual = [n_named, *(math.ceil(n_named / m) * m for m in (8, 64, 128))]
    if n_tokens < rows and (rows in usual or model.config.model_type != "gpt2"):
        unused = rows - n_tokens
        if processes()[0] == 0:
            print(
                f"note: {name}: {unused} rows of the embedding belong to no text and are left out"
            )
        model.resize_token_embeddings(n_tokens)
