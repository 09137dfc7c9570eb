"""The policy p_theta, or p0: a decoder-only model, its tokenizer and its reward tokens, in a
Hugging Face folder.

Ordinary tokens have the ids 0 ... V - 1, <|endoftext|> among them. The reward tokens r_1 ... r_K
follow as V ... V + K - 1. V and K stand in config.json as base_vocab_size and n_quantiles.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import DynamicCache, GenerationConfig

from plumbing.families import check_config, check_network, leave_out_unused_rows, tokenizer_of
from plumbing.fast_cpu import tune_for_cpu
from plumbing.files import first_line, whole_folder
from plumbing.own_tokenizer import OwnTokenizer
from plumbing.pool import BadInput, shown
from plumbing.tokenizer import Gpt2Tokenizer

# What opening a folder that is damaged, or no model, can raise.
UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) + (
    ImportError,
    AssertionError,
    SafetensorError,
)


@dataclass
class Policy:
    """p(y | x) or p(y | x, r_k): the network, its vocabulary and its K reward tokens."""

    model: torch.nn.Module  # of transformers, such as GPT2LMHeadModel
    tokenizer: Gpt2Tokenizer | OwnTokenizer
    vocab_size: int  # V, without the reward tokens
    n_quantiles: int  # K; 0 for a plain language model
    in_bf16: bool = False  # multiply in bfloat16, as where the weights are stored so

    @property
    def device(self):
        return self.model.device

    @property
    def eos_id(self):
        return self.tokenizer.eos_id

    @property
    def context(self):
        """The longest input, in tokens."""
        return self.model.config.max_position_embeddings

    @property
    def bos(self):
        """The ids that every text begins with, such as Llama's <s>; GPT-2 has none."""
        return list(self.tokenizer.bos)

    @property
    def head(self):
        """The output layer: (..., d) last hidden states -> (..., V + K) logits."""
        return self.model.get_output_embeddings()

    def reward_token_id(self, k):
        """The id of r_k: V for r_1 ... V + K - 1 for r_K."""
        if not 1 <= k <= self.n_quantiles:
            raise BadInput(
                f"there is no reward token r_{k}: this model has {self.n_quantiles or 'none'}"
            )
        return self.vocab_size + k - 1

    def parse_reward_token(self, choice):
        """What --reward-token asks for: [(suffix of the output's name, k or None)]."""
        K = self.n_quantiles
        if choice == "none" or (choice == "K" and K == 0):
            return [("", None)]
        if choice == "K":
            return [("", K)]
        if choice == "all":
            return [(f"-r{k}", k) for k in range(1, K + 1)] + [("-none", None)]
        if choice.isdecimal() and 1 <= int(choice) <= K:
            return [("", int(choice))]
        raise BadInput(
            f"--reward-token {choice}: this model has {K or 'no'} reward tokens; write "
            + (f"K, none, all or a number from 1 to {K}" if K else "K or none")
        )

    def encode(self, text, goes_on=False):
        """Text -> ids. "<|endoftext|>" and "<|reward_5|>" in a text are ordinary characters.

        goes_on: the text goes on after another, as a completion does. It makes a difference for
        tokenizers that put a blank in front of a text.
        """
        return self.tokenizer.encode(text, goes_on)

    def decode(self, ids, goes_on=False):
        return self.tokenizer.decode(ids, goes_on)

    def room_for_prompt(self, max_new_tokens, n_reward_tokens):
        """How many tokens of a prompt fit into the context, beside a reward token and y."""
        room = self.context - max_new_tokens - n_reward_tokens - len(self.bos)
        if room < 1:
            raise BadInput(
                f"{max_new_tokens} new tokens leave no room for a prompt in a context of "
                f"{self.context}"
            )
        return room

    def start_of(self, prompt_ids, k=None):
        """What is read before y: r_k, if k is given, then the prompt.

        A model's <s>, if it has one, comes first. Without it an empty prompt is <|endoftext|>,
        because a model must read one token.
        """
        r_k = [self.reward_token_id(k)] if k else []
        return [*self.bos, *r_k, *(list(prompt_ids) or ([] if self.bos else [self.eos_id]))]

    def without_eos(self, ids):
        """The ids without a final <|endoftext|>."""
        return ids[:-1] if len(ids) and ids[-1] == self.eos_id else ids

    def hidden_states(self, sequences, bf16=False):
        """Lists of ids -> the last hidden states (B, T, d), in the dtype of the output layer.

        Padded on the right, where causal attention needs no mask.
        """
        bf16 = bf16 or self.in_bf16
        longest = max(map(len, sequences))
        padded = [[*ids, *[self.eos_id] * (longest - len(ids))] for ids in sequences]
        tokens = torch.tensor(padded, device=self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            hidden = self.model.base_model(tokens, use_cache=False).last_hidden_state
        return hidden.to(self.head.weight.dtype)

    def has_tokens_of(self, other):
        """Do both read a text as the same ids?"""
        return self.tokenizer.ordinary() == other.tokenizer.ordinary()

    def append_embeddings(self, rows):
        """Appends (K, d) rows to the embedding: the reward tokens r_1 ... r_K.

        The output layer grows by K rows as well; GPT-2's is the embedding itself, other models may
        have one of their own. Wherever logits are used, they are cut to the first V.
        """
        K = len(rows)
        self.model.resize_token_embeddings(self.vocab_size + K, mean_resizing=False)
        embedding = self.model.get_input_embeddings().weight
        self.head.weight.data[self.vocab_size :] = 0  # of an output layer of its own; never read
        embedding.data[self.vocab_size :] = rows.to(embedding)
        self.n_quantiles = K
        self.tokenizer = self.tokenizer.with_reward_tokens(K)

    def save(self, path, write_more=None):
        """Writes a folder that AutoModelForCausalLM, AutoTokenizer and pipeline can open.

        It appears whole or not at all. write_more(folder) may add files to it.
        """
        self.model.config.n_quantiles = self.n_quantiles
        self.model.config.base_vocab_size = self.vocab_size
        ids = [self.reward_token_id(k) for k in range(1, self.n_quantiles + 1)]
        self.model.generation_config = GenerationConfig(  # p0's own may hold what cannot be saved
            bos_token_id=self.model.config.bos_token_id,
            eos_token_id=self.eos_id,
            pad_token_id=self.eos_id,
            suppress_tokens=ids or None,  # read, never written
        )
        with whole_folder(path) as folder:
            try:
                self.tokenizer.save(folder, self.context)
                self.model.save_pretrained(folder)
                if write_more:
                    write_more(folder)
            except SafetensorError as error:
                raise OSError(str(error)) from error


def load_policy(path_or_hub_name, device="cpu", in_bf16=False):
    """Opens a decoder-only model, a folder or one of the hub, in float32 and without dropout.

    in_bf16: all matrices but the output layer's are stored in bfloat16, for reading only.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    name = str(path_or_hub_name)
    if not Path(name).is_dir() and _looks_like_a_path(name):
        raise BadInput(
            f"model folder {name} does not exist; name a folder or a hub model such as gpt2"
        )
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        check_config(config, name)
        K = getattr(config, "n_quantiles", 0)
        if type(K) is not int or K < 0:
            raise BadInput(f"{name}: n_quantiles in config.json is {shown(K)}, not a whole number")
        tokenizer, n_named = tokenizer_of(name, config.model_type, K)
        model, loading = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=torch.bfloat16 if in_bf16 else torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            # For short texts on a CPU, plain attention is faster than PyTorch's fused kernel.
            attn_implementation="eager" if str(device) == "cpu" else None,
        )
    except UNREADABLE as error:
        raise BadInput(
            f"cannot open the model {name}: {first_line(error)}; it needs config.json, "
            "model.safetensors and tokenizer.json, or vocab.json and merges.txt (with no network, "
            "a hub model must have been downloaded before)"
        ) from None
    if loading["missing_keys"]:  # transformers fills them with random numbers
        missing = shown(sorted(loading["missing_keys"]))
        raise BadInput(f"{name}: its model.safetensors lacks the weights {missing}; save it anew")
    model.eval()
    _keep_in_float32(model)
    if config.model_type != "gpt2":
        check_network(model, CachedModel(model), name)
    if not hasattr(config, "base_vocab_size"):  # no checkpoint of this project
        leave_out_unused_rows(model, name, tokenizer.n_vocab, max(n_named, tokenizer.n_vocab))
    V = getattr(config, "base_vocab_size", model.config.vocab_size)
    if tokenizer.n_vocab != V + K or model.config.vocab_size != V + K:
        raise BadInput(
            f"{name}: the tokenizer has {tokenizer.n_vocab - K} tokens, config.json {V}, with "
            f"{K} reward tokens, and the embedding {model.config.vocab_size} rows; "
            "they belong to different models, or the embedding was not resized"
        )
    pad = model.config.pad_token_id
    if pad is not None and not 0 <= pad < V:  # a row that was cut, or will be one of r_k's
        model.config.pad_token_id = model.get_input_embeddings().padding_idx = None
    if str(device) == "cpu":
        tune_for_cpu(model)
    return Policy(model.to(device), tokenizer, V, K, in_bf16)


def _keep_in_float32(model):
    """Converts the output layer, whose logits would have ties, and vectors, as of layer norms."""
    model.get_output_embeddings().float()
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.data = parameter.data.float()


def _looks_like_a_path(name):
    in_existing_folder = "/" in name and Path(name).parent.is_dir()
    return name.startswith((".", "/")) or name.count("/") > 1 or in_existing_folder


# ---------------------------------------------------------------------------- incremental decoding


class CachedModel:
    """The next token's logits by transformers' own forward pass, with its cache of keys and values.

    A batch begins with start(padding). Whatever else has next_logits and keep can be given to
    `sample` as its `network`; its start, if it has one, is called too.
    """

    def __init__(self, model):
        self.model = model

    def start(self, padding):
        """A new batch. padding (P,): how many columns at the left of each row are empty."""
        self.padding = padding
        self.columns = 0
        self.cache = DynamicCache(config=self.model.config)

    def next_logits(self, tokens):
        """(B, t) next tokens -> (B, V + K) logits of the token that follows them."""
        return self.logits_of(self.next_states(tokens)[:, -1])

    def next_states(self, tokens):
        """(B, t) next tokens -> the last hidden states (B, t, d), after the last layer norm."""
        self.columns += tokens.shape[1]
        column = torch.arange(self.columns, device=tokens.device)
        is_token = column >= self.padding[:, None]  # (B, columns)
        position = (column - self.padding[:, None]).clamp(min=0)  # the first real token is at 0
        output = self.model.base_model(
            input_ids=tokens,
            attention_mask=is_token.long(),
            position_ids=position[:, -tokens.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state

    def logits_of(self, hidden):
        """(..., d) hidden states -> (..., V + K) logits. bfloat16 would round them into ties."""
        with torch.autocast(hidden.device.type, enabled=False):
            head = self.model.get_output_embeddings()
            return head(hidden.to(head.weight.dtype))

    def keep(self, rows):
        """Keeps these rows, in this order. A row may be repeated."""
        self.padding = self.padding[rows]
        self.cache.batch_select_indices(rows)
