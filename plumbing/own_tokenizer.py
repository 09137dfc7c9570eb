"""A folder's own tokenizer, where its vocabulary is not GPT-2's, behind the same few functions.

Ids 0 ... V - 1 are its tokens; the reward tokens follow. Text is always text: what looks like a
special token in it is split. Some tokenizers (Llama 2's) put a blank in front of every text. For
these, a completion is encoded after a line break, whose ids are then cut off.
"""

import copy
import json

from tokenizers import AddedToken

from plumbing.pool import BadInput, shown
from plumbing.tokenizer import reward_token

BREAK = "\n"


class OwnTokenizer:
    """What policy.py needs of a tokenizer, by the tokenizers library."""

    def __init__(self, tokenizer, name, K=0):
        self.tokenizer, self.name = tokenizer, name
        self.fast = tokenizer.backend_tokenizer
        self.fast.encode_special_tokens = True
        self.fast.no_truncation()  # a folder may have been saved with them
        self.fast.no_padding()
        ids = self.fast.get_vocab(with_added_tokens=True).values()
        self.n_vocab = max(ids) + 1
        if len(set(ids)) < self.n_vocab:
            raise BadInput(
                f"{name}: its tokenizer names {len(set(ids))} tokens with ids up to "
                f"{self.n_vocab - 1}; reward tokens need ids without gaps"
            )
        self.eos_id = tokenizer.eos_token_id
        if self.eos_id is None:
            raise BadInput(f"{name}: its tokenizer has no end-of-text token (eos_token)")
        self.bos = self._in_front()
        self.K = K
        line = self._tokens(BREAK)
        goes_on = self._tokens(BREAK + "x")[len(line) :]
        has_break = tokenizer.unk_token_id not in line
        self.has_blank = has_break and goes_on != self._tokens("x")

    def _in_front(self):
        """What the tokenizer puts in front of a text, such as Llama's <s>: a list of ids."""
        with_special, text = self.fast.encode("x", add_special_tokens=True).ids, self._tokens("x")
        for n in range(len(with_special) - len(text) + 1):
            if with_special[n : n + len(text)] == text:
                return with_special[:n]
        return []

    def _tokens(self, text):
        return self.fast.encode(text, add_special_tokens=False).ids

    def encode(self, text, goes_on=False):
        """Text -> ids. goes_on: the text goes on after another, as a completion does."""
        if goes_on and self.has_blank:
            ids = self._tokens(BREAK + text)[len(self._tokens(BREAK)) :]
        else:
            ids = self._tokens(text) if text else []  # no blank in front of nothing
        if self._normal(self.decode(ids, goes_on)) != self._normal(text):
            raise BadInput(
                f"the tokenizer of {self.name} cannot spell {shown(text)}; choose a model whose "
                "tokenizer falls back to bytes"
            )
        return ids

    def _normal(self, text):
        """The text as the tokenizer reads it: some compose accents first, for example."""
        return self.fast.normalizer.normalize_str(text) if self.fast.normalizer else text

    def decode(self, ids, goes_on=False):
        if goes_on and self.has_blank:
            before = self._tokens(BREAK)
            return self._text([*before, *ids])[len(self._text(before)) :]
        return self._text(list(ids))

    def _text(self, ids):
        return self.fast.decode(ids, skip_special_tokens=False)

    def splits_as_gpt2(self):
        """Is a text cut into words as GPT-2 does it, unchanged, with nothing in front?"""
        state = json.loads(self.fast.to_str())
        splits = state["pre_tokenizer"] or {}
        as_gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        is_same = {key: splits.get(key) for key in as_gpt2} == as_gpt2
        return is_same and state["normalizer"] is None and not self.bos

    def with_reward_tokens(self, K):
        """A copy that knows r_1 ... r_K, as special tokens."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokens = [AddedToken(reward_token(k), special=True) for k in range(1, K + 1)]
        tokenizer.add_tokens(tokens, special_tokens=True)
        return OwnTokenizer(tokenizer, self.name, K)

    def ordinary(self):
        """{token: id} without the reward tokens, and the merges: what two models compare."""
        state = json.loads(self.fast.to_str())
        vocab = {t: i for t, i in self.fast.get_vocab().items() if i < self.n_vocab - self.K}
        return vocab, state["model"].get("merges")

    def save(self, folder, context):
        self.tokenizer.model_max_length = context
        self.tokenizer.save_pretrained(folder)
