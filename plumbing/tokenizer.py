"""GPT-2's byte-level BPE with reward tokens: a tiktoken encoding of a folder's own files."""

import functools
import json
from pathlib import Path

import tiktoken

from plumbing.pool import BadInput

EOS = "<|endoftext|>"


def reward_token(k):
    return f"<|reward_{k}|>"


class Gpt2Tokenizer:
    """What policy.py needs of a tokenizer, by tiktoken; own_tokenizer.py has the other one.

    files: the bytes of vocab.json and merges.txt, which are saved with the weights.
    """

    bos = ()  # nothing stands in front of every text

    def __init__(self, files, K=0):
        self.files, self.K = files, K
        self.encoding = build_encoding(files["vocab.json"], files["merges.txt"], K)
        self.n_vocab, self.eos_id = self.encoding.n_vocab, self.encoding.eot_token

    def encode(self, text, goes_on=False):
        """Text -> ids, in which whatever looks like a special token is ordinary characters."""
        return self.encoding.encode_ordinary(text)

    def decode(self, ids, goes_on=False):
        return self.encoding.decode(list(ids))

    def with_reward_tokens(self, K):
        return Gpt2Tokenizer(self.files, K)

    def ordinary(self):
        """{token: id} without the reward tokens, and the merges: what two models compare."""
        return json.loads(self.files["vocab.json"]), merge_pairs(self.files["merges.txt"])

    def save(self, folder, context):
        """Writes it as transformers opens it, with the reward tokens as special tokens."""
        from transformers import AddedToken, GPT2Tokenizer

        vocab, merges = self.ordinary()
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), EOS)
        tokenizer = GPT2Tokenizer(vocab=vocab, merges=merges, **names)
        tokenizer.model_max_length = context
        tokens = [AddedToken(reward_token(k), special=True) for k in range(1, self.K + 1)]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        tokenizer.save_pretrained(folder)
        for name, content in self.files.items():  # transformers writes tokenizer.json only
            (folder / name).write_bytes(content)


# How GPT-2 splits a text before the merges: contractions, letters, digits, punctuation, whitespace.
PRETOKENS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def merge_pairs(merges_txt):
    """The bytes of merges.txt -> [(left, right)] in order. The first line is a version."""
    lines = merges_txt.decode("utf-8").split("\n")
    return [tuple(line.split(" ")) for line in lines[1:] if line]


def vocabulary_of(name):
    """vocab.json and merges.txt of a folder or hub model, from its tokenizer.json if it has none.

    Returns {name: bytes}, and the number of ids that its files name, added tokens included. Raises
    OSError if there are no such files.
    """
    from transformers.utils import cached_file

    def content(file):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        return path and Path(path).read_bytes()

    files = {file: content(file) for file in ("vocab.json", "merges.txt")}
    tokenizer_json = content("tokenizer.json")
    if not all(files.values()):
        if not tokenizer_json:
            raise OSError("it has no vocabulary")
        files = _from_tokenizer_json(tokenizer_json)
    added = json.loads(tokenizer_json or "{}").get("added_tokens") or []
    ids = [token["id"] for token in added]
    ids += json.loads(content("added_tokens.json") or "{}").values()
    return files, max(ids, default=-1) + 1


def _from_tokenizer_json(tokenizer_json):
    """The content of {vocab.json, merges.txt}, from a tokenizer.json: transformers 5 saves no more.

    Of its added tokens only <|endoftext|> is a part of the vocabulary: no text holds the others.
    """
    try:
        tokenizer = json.loads(tokenizer_json)
        model = tokenizer["model"]
        if model["type"] != "BPE":
            raise ValueError(f"its model is {model['type']}, not BPE")
        added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
        vocab = {token: i for token, i in model["vocab"].items() if token not in added}
        vocab[EOS] = added[EOS] if EOS in added else model["vocab"][EOS]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInput(
            f"tokenizer.json is not GPT-2's byte-level BPE: {type(error).__name__} {error}"
        ) from None
    merges_txt = "\n".join(["#version: 0.2", *merges, ""])
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": merges_txt.encode(),
    }


@functools.lru_cache(maxsize=4)  # a stage opens the same files several times
def build_encoding(vocab_json, merges_txt, K=0):
    """GPT-2's byte-level BPE with K reward tokens, from the bytes of vocab.json and merges.txt.

    tiktoken needs the id of every token to be the rank of its merge, as in GPT-2's files. We do not
    use tiktoken's own loader: it caches by the *path* of a file and would return an outdated
    vocabulary.
    """
    byte_of = _byte_of_character()
    try:
        vocab = json.loads(vocab_json)
        merged = ["".join(pair) for pair in merge_pairs(merges_txt)]
        eos = vocab.pop(EOS)
        ranks = {bytes(byte_of[c] for c in token): i for token, i in vocab.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInput(
            "vocab.json or merges.txt is not GPT-2's byte-level BPE: "
            f"{type(error).__name__} {error}"
        ) from None
    if [vocab.get(token) for token in merged] != list(range(256, len(vocab))) or eos != len(vocab):
        raise BadInput(
            "vocab.json and merges.txt do not fit together: ids must be the 256 bytes, "
            "then the merges in order, then <|endoftext|>"
        )
    special = {EOS: eos}
    for k in range(1, K + 1):
        special[reward_token(k)] = eos + k
    return tiktoken.Encoding(
        "gpt2-layout", pat_str=PRETOKENS, mergeable_ranks=ranks, special_tokens=special
    )


def _byte_of_character():
    """GPT-2's files write each byte as one visible character: {character: byte}."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + n): b for n, b in enumerate(others)}
