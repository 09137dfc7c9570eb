"""The policy: its vocabulary, its folder, and the network with a cache of keys and values."""

import json
import os
import shutil

import pytest
import torch
from conftest import (
    CONTEXT,
    EOS,
    SENTENCES,
    WIDTH,
    K,
    V,
    files_of,
    learn_merges,
    started,
    write_vocabulary,
)
from safetensors.torch import load_file, save_file

from explore import sample
from plumbing.policy import load_policy
from plumbing.pool import BadInput
from plumbing.tokenizer import build_encoding

TEXTS = [
    "The film was long",
    "",
    " then the",
    "I'd see it 1999 times!!",
    "naïve — 日本語 \U0001f600",
    "a\n\n b\t  c   ",
    "they'll've",
]

# ----------------------------------------------------------------------------------- the vocabulary


def test_the_sizes_are_those_of_the_folder(p0, quark):
    """V, K, d, and the id of r_k, V + k - 1. A plain model has no reward token."""
    assert (p0.vocab_size, p0.n_quantiles, p0.context, p0.eos_id) == (V, 0, CONTEXT, V - 1)
    assert (quark.vocab_size, quark.n_quantiles) == (V, K)
    assert quark.model.get_input_embeddings().weight.shape == (V + K, WIDTH)
    assert [quark.reward_token_id(k) for k in (1, 2, 3)] == [V, V + 1, V + 2]
    for policy, k in ((quark, 0), (quark, 4), (p0, 1)):
        with pytest.raises(BadInput, match=f"no reward token r_{k}"):
            policy.reward_token_id(k)


def test_room_for_a_prompt(p0):
    """A context of 64 less y and the reward tokens: at least one place must be left for x."""
    assert p0.room_for_prompt(20, 0) == 44
    assert p0.room_for_prompt(20, 1) == 43
    assert p0.room_for_prompt(63, 0) == p0.room_for_prompt(62, 1) == 1
    for new_tokens, reward_tokens in ((64, 0), (63, 1), (1000, 0)):
        message = f"{new_tokens} new tokens leave no room for a prompt in a context of 64"
        with pytest.raises(BadInput, match=message):
            p0.room_for_prompt(new_tokens, reward_tokens)


def test_encoding_is_the_folder_s_own_tokenizer(p0_folder, quark_folder, p0):
    """The ids are those of Hugging Face's tokenizer for the same folder, and spell the text again.

    English takes fewer tokens than bytes, so the merges are used.
    """
    from transformers import AutoTokenizer

    for folder in (p0_folder, quark_folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text in TEXTS + SENTENCES:
            ids = p0.encode(text)
            assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
            assert p0.decode(ids) == text
    for sentence in SENTENCES:
        assert len(p0.encode(sentence)) < 0.9 * len(sentence)


def test_control_tokens_in_a_text_are_text(quark):
    """A prompt that holds the characters <|endoftext|> or <|reward_3|> holds no control token."""
    for text in (EOS, "a<|reward_3|> b", "<|reward_1|>" + EOS):
        ids = quark.encode(text)
        assert max(ids) < V - 1
        assert len(ids) > 5
        assert quark.decode(ids) == text
    assert quark.decode([V - 1, V + 2]) == EOS + "<|reward_3|>"


def test_a_vocabulary_is_never_stale(p0_folder, tmp_path):
    """Other files under the same path: the new vocabulary is used. tiktoken's loader would not."""
    folder = tmp_path / "model"
    shutil.copytree(p0_folder, folder)
    text = "zebras quack quietly"
    before = load_policy(folder).encode(text)
    more = "where the quick zebras quit, and a quiet duck quacks at the lazy dog under a shady tree"
    write_vocabulary(folder, *learn_merges([f"{text} {more}"], 41))
    policy = load_policy(folder)
    after = policy.encode(text)
    assert len(after) < len(before)
    assert policy.decode(after) == text


def test_vocabularies_that_do_not_fit(p0_folder):
    """Each of these is refused in one sentence."""
    vocab = (p0_folder / "vocab.json").read_bytes()
    merges = (p0_folder / "merges.txt").read_bytes()
    table = json.loads(vocab)
    version, first, second, *rest = merges.decode().split("\n")
    swapped = "\n".join([version, second, first, *rest]).encode()
    cut = "\n".join([version, first, second, *rest[:-3]]).encode()
    eos_first = json.dumps({**table, EOS: 0, "!": V - 1}).encode()
    no_eos = json.dumps({token: i for token, i in table.items() if token != EOS}).encode()
    not_a_byte = '{"€": 0}'.encode()
    for v, m in [
        (vocab, swapped),
        (vocab, cut),
        (eos_first, merges),
        (no_eos, merges),
        (b"{", merges),
        (b"[]", merges),
        (not_a_byte, merges),
    ]:
        with pytest.raises(BadInput) as error:
            build_encoding(v, m)
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------ folders


def test_loads_in_float32_without_dropout(p0):
    """The file is float16; computing in it would lose three digits unseen. Dropout is off."""
    assert {p.dtype for p in p0.model.parameters()} == {torch.float32}
    assert not p0.model.training


def test_a_saved_folder_opens_everywhere(quark, quark_folder):
    """AutoModelForCausalLM, AutoTokenizer and pipeline open it, with the same weights and ids.

    On plain text, pipeline writes what we write. <|reward_2|> in a text is the control token there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model = AutoModelForCausalLM.from_pretrained(quark_folder)
    tokenizer = AutoTokenizer.from_pretrained(quark_folder)
    for mine, theirs in zip(quark.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert (model.config.n_quantiles, model.config.base_vocab_size) == (K, V)
    assert len(tokenizer) == V + K
    special = ["<|reward_1|>", "<|reward_2|>", "<|reward_3|>", EOS]
    assert tokenizer.convert_tokens_to_ids(special) == [V, V + 1, V + 2, V - 1]
    assert tokenizer.eos_token_id == model.config.eos_token_id == V - 1
    assert model.generation_config.eos_token_id == V - 1
    assert tokenizer.model_max_length == CONTEXT

    text = "The film was"
    x = quark.encode(text)
    y = quark.without_eos(sample(quark, [x], max_new_tokens=9, greedy=True)[0])
    assert len(y) > 3
    generator = pipeline("text-generation", model=str(quark_folder), device="cpu")
    (said,) = generator(text, max_new_tokens=9, do_sample=False, return_full_text=False)
    assert said["generated_text"] == quark.decode(y)
    conditioned = tokenizer("<|reward_2|>" + text, add_special_tokens=False)["input_ids"]
    assert conditioned == [V + 1, *x]


def test_save_and_load_give_the_policy_back(quark, tmp_path):
    """The weights bit for bit, K, V and the vocabulary files. An older checkpoint is replaced."""
    folder = tmp_path / "a" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"n_quantiles": 9}')
    (folder / "model-00001-of-00002.safetensors").write_text("of an older run")
    quark.model.get_input_embeddings().weight.data[V + 1] = 1 / 3
    quark.save(folder)
    again = load_policy(folder)
    assert (again.n_quantiles, again.vocab_size) == (K, V)
    assert again.tokenizer.files == quark.tokenizer.files
    for a, b in zip(quark.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert os.listdir(tmp_path / "a") == ["model"]
    assert not (folder / "model-00001-of-00002.safetensors").exists()


def test_save_is_all_or_nothing(quark, quark_folder, tmp_path):
    """A failure in the middle leaves the old folder as it was, and no half of a new one."""
    folder = tmp_path / "model"
    shutil.copytree(quark_folder, folder)
    before = files_of(folder)
    quark.model.get_input_embeddings().weight.data += 1

    def fails(inside):
        assert (inside / "config.json").exists()
        assert inside != folder
        raise OSError("disk full")

    with pytest.raises(Exception, match="disk full"):
        quark.save(folder, fails)
    assert files_of(folder) == before
    assert os.listdir(tmp_path) == ["model"]


def spoil(folder, fault):
    config, weights = folder / "config.json", folder / "model.safetensors"
    if fault == "missing":
        shutil.rmtree(folder)
    elif fault == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif fault == "no config":
        config.unlink()
    elif fault == "no vocabulary":
        (folder / "vocab.json").unlink()
    elif fault == "not gpt2":
        config.write_text(json.dumps({"model_type": "opt"}))
    elif fault == "other vocabulary":
        write_vocabulary(folder, *learn_merges(SENTENCES[:1], 20))
    elif fault == "cut-off weights":
        data = weights.read_bytes()
        weights.write_bytes(data[: len(data) // 2])
    elif fault == "other sizes":
        config.write_text(json.dumps({**json.loads(config.read_text()), "n_embd": 48}))


FAULTS = [
    ("missing", "does not exist"),
    ("empty", "cannot open the model"),
    ("no config", "cannot open the model"),
    ("no vocabulary", "it has no vocabulary"),
    ("not gpt2", "lacks the weights"),
    ("other vocabulary", "the tokenizer has 277 tokens, config.json 298"),
    ("cut-off weights", "cannot open the model"),
    ("other sizes", "cannot open the model"),
]


@pytest.mark.parametrize("fault, message", FAULTS)
def test_folders_that_are_no_model(fault, message, p0_folder, tmp_path):
    """One sentence says what is wrong with the folder: no traceback, and no random weights."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(p0_folder, folder)
    spoil(folder, fault)
    with pytest.raises(BadInput, match=message) as error:
        load_policy(folder)
    assert "\n" not in str(error.value)
    assert "checkpoint" in str(error.value)


def test_a_hub_model_that_is_not_there():
    """A hub name that was never downloaded, with no network: one sentence says so."""
    with pytest.raises(BadInput, match="cannot open the model nobody/nothing") as error:
        load_policy("nobody/nothing")
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- the network, token by token


def test_cached_model_is_the_network(quark):
    """The logits are those of transformers' own forward, each row alone, without padding or cache.

    Three left-padded rows are read, then one more column, then two more columns after the row in
    the middle has left the batch. All weights are moved first, since the layer norms of a new
    network are all alike, and attention is scaled differently in each layer, as GPT-2's option
    scale_attn_by_inverse_layer_idx does.
    """
    quark.model.double()
    generator = torch.Generator().manual_seed(0)
    for parameter in quark.model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for number, block in enumerate(quark.model.transformer.h):
        block.attn.scaling /= number + 1

    prompts = [[7, 8], [V + 1, 20, 30, 40, 50], [60]]
    further = [[11, 12, 13], [21, 22, 23], [31, 32, 33]]
    network = started(quark.model, [3, 0, 4])

    def check(tokens, rows, n_further):
        """Reads the tokens; row i must have the logits after its prompt and n_further tokens."""
        logits = network.next_logits(torch.tensor(tokens))
        for row, got in zip(rows, logits, strict=True):
            seen = torch.tensor([prompts[row] + further[row][:n_further]])
            with torch.no_grad():
                expected = quark.model(seen).logits[0, -1]
            assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)

    check([[0, 0, 0, 7, 8], [V + 1, 20, 30, 40, 50], [0, 0, 0, 0, 60]], [0, 1, 2], 0)
    check([[11], [21], [31]], [0, 1, 2], 1)
    network.keep(torch.tensor([0, 2]))
    check([[12, 13], [32, 33]], [0, 2], 3)


def test_a_folder_with_tokenizer_json_alone(quark, p0, p0_folder, tmp_path):
    """What transformers 5 saves, with merges as pairs or as strings: the same ids for each text."""
    folder = tmp_path / "tuned"
    shutil.copytree(p0_folder, folder)
    quark.save(tmp_path / "quark")  # its tokenizer.json has reward tokens, which p0 has not
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    saved = json.loads((tmp_path / "quark" / "tokenizer.json").read_text())
    pairs = saved["model"]["merges"]
    assert isinstance(pairs[0], list)
    for merges in (pairs, [" ".join(pair) for pair in pairs]):
        saved["model"]["merges"] = merges
        (folder / "tokenizer.json").write_text(json.dumps(saved))
        tuned = load_policy(folder)
        assert (tuned.vocab_size, tuned.n_quantiles, tuned.eos_id) == (V, 0, V - 1)
        for text in [*SENTENCES, "<|endoftext|> <|reward_1|>\n\t ü"]:
            assert tuned.encode(text) == p0.encode(text)
            assert tuned.decode(tuned.encode(text)) == text
        assert tuned.has_tokens_of(p0)
        assert p0.has_tokens_of(tuned)
    tuned.save(tmp_path / "again")
    assert load_policy(tmp_path / "again").encode(SENTENCES[0]) == p0.encode(SENTENCES[0])
    for change, message in (
        ({"type": "WordPiece"}, "its model is WordPiece, not BPE"),
        ({"vocab": {}}, "do not fit together"),
        ({"merges": None}, "not GPT-2's byte-level BPE"),
    ):
        bad = {**saved, "model": {**saved["model"], **change}}
        (folder / "tokenizer.json").write_text(json.dumps(bad))
        with pytest.raises(BadInput, match=message):
            load_policy(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="it has no vocabulary; it needs") as error:
        load_policy(folder)
    assert "huggingface.co" not in str(error.value)


@pytest.mark.parametrize("rows", [V + 1, 304, 320])
def test_rows_of_the_embedding_that_no_text_has(rows, p0, tmp_path, capsys):
    """A padding token that somebody added, and rows up to a multiple of 64, are left out."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    folder = tmp_path / "padded"
    p0.save(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = GPT2LMHeadModel.from_pretrained(folder)
    model.resize_token_embeddings(rows)
    for name in ("base_vocab_size", "n_quantiles"):  # as transformers would have written it
        delattr(model.config, name)
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    padded = load_policy(folder)
    assert f"{rows - V} rows of the embedding belong to no text" in capsys.readouterr().out
    assert padded.vocab_size == V
    assert padded.encode("[PAD] it") == p0.encode("[PAD] it")
    ours, theirs = (p.model.get_input_embeddings().weight for p in (padded, p0))
    assert torch.equal(ours, theirs)


def test_generate_never_writes_a_reward_token(quark, p0_folder, tmp_path):
    """suppress_tokens holds them in the saved folder; without them they would be written."""
    from transformers import AutoModelForCausalLM

    embedding = quark.model.get_input_embeddings().weight
    embedding.data[V:] = 2 * embedding.data[:V].mean(0) + 3 * torch.eye(32)[:3]
    quark.model.transformer.ln_f.bias.data += embedding.data[V:].sum(0)
    quark.save(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model.generation_config.suppress_tokens == [V, V + 1, V + 2]
    prompts = torch.arange(60, 124)[:, None]

    def written(**how):
        torch.manual_seed(0)
        out = model.generate(prompts, max_new_tokens=8, pad_token_id=V - 1, **how)
        return int((out >= V).sum())

    for how in ({"do_sample": False}, {"do_sample": True}, {"do_sample": True, "top_k": 0}):
        assert written(**how) == 0
        assert written(**how, suppress_tokens=None) > 0
    plain = load_policy(p0_folder)
    plain.save(tmp_path / "plain")
    assert not load_policy(tmp_path / "plain").model.generation_config.suppress_tokens


@pytest.mark.parametrize("fault", ["_orig_mod.", "module.", "a layer"])
def test_missing_weights_are_not_made_up(fault, p0_folder, tmp_path):
    """transformers would draw them at random: a compiled or wrapped model, a lost layer."""
    shutil.copytree(p0_folder, tmp_path / "m")
    weights = load_file(p0_folder / "model.safetensors")
    if fault == "a layer":
        weights = {name: w for name, w in weights.items() if ".h.1." not in name}
    else:
        weights = {fault + name: w for name, w in weights.items()}
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="lacks the weights"):
        load_policy(tmp_path / "m")


@pytest.mark.parametrize("value", ["3", None, -1, 1.5, 2])
def test_a_number_of_quantiles_that_does_not_fit(value, quark_folder, tmp_path):
    """n_quantiles of config.json: not a whole number, or not the embedding's."""
    shutil.copytree(quark_folder, tmp_path / "m")
    config = json.loads((quark_folder / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "n_quantiles": value}))
    message = "2 reward tokens, and the embedding 301 rows" if value == 2 else "n_quantiles"
    with pytest.raises(BadInput, match=message):
        load_policy(tmp_path / "m")
