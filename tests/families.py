"""Random small models of several families, each with a tokenizer made on the spot."""

import json

import torch
import transformers
from conftest import SENTENCES
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

CONTEXT = 64


def byte_level(*special, normalizer=None, **more):
    """A byte-level BPE like that of GPT-2 and Qwen. The special tokens follow the others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=310, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return wrapped(tokenizer, eos_token=special[0], **more)


def sentencepiece(blank=False, bytes_too=True):
    """Like Llama's and Gemma's: blanks are ▁, unknown characters are bytes, <s> comes first.

    blank: as Llama 2, with a ▁ in front of every text, which decoding drops.
    """
    special = ["<unk>", "<s>", "</s>"]
    in_bytes = [f"<0x{b:02X}>" for b in range(256)] if bytes_too else []
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=bytes_too))
    front = [normalizers.Prepend("▁")] if blank else []
    tokenizer.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", "▁")])
    trainer = BpeTrainer(vocab_size=330, special_tokens=special + in_bytes, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [decoders.Strip(" ", 1, 0)] if blank else []
    tokenizer.decoder = decoders.Sequence(steps)
    start = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=start)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return wrapped(tokenizer, **names)


def wrapped(tokenizer, **names):
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def opt_tokenizer():
    """OPT's puts its end-of-text token in front of every text."""
    tokenizer = byte_level("</s>", bos_token="</s>")
    start = [("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="</s> $A", special_tokens=start
    )
    return tokenizer


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"max_position_embeddings": CONTEXT}
GATED = {"intermediate_size": 48, "num_key_value_heads": 2}
ODD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "n_inner": 56}
ODD |= {"activation_function": "relu", "scale_attn_by_inverse_layer_idx": True}
ODD |= {"reorder_and_upcast_attn": True, "scale_attn_weights": False, "tie_word_embeddings": False}
FAMILIES = {  # name: (tokenizer, class of the config, its settings, rows beyond the tokens)
    "llama": (
        lambda: sentencepiece(blank=True),
        "LlamaConfig",
        {**SMALL, **GATED, "tie_word_embeddings": False},
        0,
    ),
    "qwen2": (
        lambda: byte_level("<|endoftext|>", "<|im_start|>", normalizer=normalizers.NFC()),
        "Qwen2Config",
        {**SMALL, **GATED, "tie_word_embeddings": True},
        71,
    ),
    "gpt_neox": (
        lambda: byte_level("<|endoftext|>", bos_token="<|endoftext|>"),
        "GPTNeoXConfig",
        {**SMALL, "intermediate_size": 48, "tie_word_embeddings": False},
        41,
    ),
    "opt": (opt_tokenizer, "OPTConfig", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 16}, 0),
    "gemma": (sentencepiece, "GemmaConfig", {**SMALL, **GATED, "head_dim": 8}, 0),
    "gpt_neo": (
        lambda: byte_level("<|endoftext|>", bos_token="<|endoftext|>"),
        "GPTNeoConfig",
        {**SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
        0,
    ),
    "gpt2": (lambda: byte_level("<|endoftext|>", bos_token="<|endoftext|>"), "GPT2Config", ODD, 0),
}
HYBRID = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
HYBRID |= {"intermediate_size": 48, "num_key_value_heads": 2}
HYBRID |= {"max_position_embeddings": CONTEXT, "layer_types": ["conv", "full_attention"]}
REFUSED = {
    "lfm2": (sentencepiece, "Lfm2Config", HYBRID, 0),
    "gemma2": (
        sentencepiece,
        "Gemma2Config",
        {**SMALL, **GATED, "head_dim": 8, "final_logit_softcapping": 2.0},
        0,
    ),
    "bert": (opt_tokenizer, "BertConfig", {**SMALL, "intermediate_size": 48}, 0),
}


def make_folder(path, name):
    """A random model of a family, its distributions far from uniform, and its tokenizer."""
    make_tokenizer, config_class, settings, more_rows = (FAMILIES | REFUSED)[name]
    tokenizer = make_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = {**settings, **ids, "pad_token_id": None}
    config = getattr(transformers, config_class)(vocab_size=len(tokenizer) + more_rows, **settings)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.15)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
