"""Models of other families: each is read, sampled, trained and saved as a GPT-2 is."""

import json
import shutil
import unicodedata

import pytest
import torch
from conftest import ROOT, SENTENCES, write_jsonl
from families import CONTEXT, FAMILIES, REFUSED, byte_level, make_folder, sentencepiece, wrapped
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, pipeline

import evaluate
import explore
import learn
import quantize
from explore import sample
from learn import add_reward_tokens, batch_loss
from plumbing.fast_cpu import prepack
from plumbing.files import check_replaceable
from plumbing.own_tokenizer import OwnTokenizer
from plumbing.policy import load_policy
from plumbing.pool import BadInput

TEXTS = [
    "The film was long",
    " then the",
    "",
    "it",
    "I'd see it 1999 times!!",
    "naïve — 日本語 \U0001f600",
    "a\n\n b\t  c   ",
    "<s>x</s><|endoftext|><|im_start|>",
    "cafe\u0301 films",
]
PROMPTS = ["The film was", "", "I was bored by the first hour; then"]
HAS_START = {"llama", "gemma", "opt"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {name: make_folder(folder / name, name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def policy(folders, family):
    return load_policy(folders[family])


def test_a_text_is_a_text(policy, folders, family):
    """Ids spell the text, as a start and as what goes on after another; no control token is read.

    What the folder's own tokenizer puts in front is `bos`, its other ids are ours.
    """
    theirs = PreTrainedTokenizerFast.from_pretrained(folders[family])
    for text in TEXTS + SENTENCES:
        for goes_on in (False, True):
            ids = policy.encode(text, goes_on)
            assert policy.decode(ids, goes_on) in (text, unicodedata.normalize("NFC", text))
            assert policy.eos_id not in ids and not set(policy.bos) & set(ids)
        if text and "<" not in text:
            assert theirs(text)["input_ids"] == [*policy.bos, *policy.encode(text)]
    assert bool(policy.bos) == (family in HAS_START)
    start, more = policy.encode("The film"), policy.encode(" was", goes_on=True)
    assert theirs.decode([*start, *more]) == "The film was"


def test_greedy_text_is_that_of_generate(policy, family):
    """Token by token, from prompts of different lengths in one batch, padded on the left."""
    ids = [policy.encode(x) for x in PROMPTS]
    for x, y in zip(ids, sample(policy, ids, max_new_tokens=16, greedy=True), strict=True):
        read = torch.tensor([policy.start_of(x)])
        settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": policy.eos_id}
        settings |= {"eos_token_id": policy.eos_id}
        assert policy.model.generate(read, **settings)[0, read.shape[1] :].tolist() == y


def test_the_perplexity_is_the_loss_of_the_library(policy):
    rows = [{"prompt": x, "completion": " it was good."} for x in PROMPTS]
    found = evaluate.completion_nll(policy, rows)
    for row, (nll, n) in zip(rows, found, strict=True):
        x = policy.start_of(policy.encode(row["prompt"]))
        y = policy.encode(row["completion"], goes_on=True)
        labels = torch.tensor([[*[-100] * len(x), *y]])
        with torch.no_grad():
            loss = policy.model(torch.tensor([[*x, *y]]), labels=labels).loss.item()
        assert n == len(y) and nll / n == pytest.approx(loss, rel=1e-4)


def test_rows_without_a_token_are_neither_drawn_nor_in_the_kl(folders, family, capsys):
    """The embedding is cut to the tokens; the logits of these are those of the library's model."""
    policy = load_policy(folders[family])
    theirs = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32)
    unused = theirs.config.vocab_size - policy.vocab_size
    assert unused >= FAMILIES[family][3]
    assert (f"{unused} rows of the embedding" in capsys.readouterr().out) == (unused > 0)
    ids = policy.start_of(policy.encode(PROMPTS[0]))
    with torch.no_grad():
        mine = policy.model(torch.tensor([ids])).logits[0, -1]
        full = theirs(torch.tensor([ids])).logits[0, -1]
    assert len(mine) == policy.vocab_size
    torch.testing.assert_close(mine, full[: policy.vocab_size], atol=1e-4, rtol=1e-4)


def test_reward_tokens_are_read_and_never_written(policy, tmp_path, family):
    """r_k stands behind the <s>, if there is one, and before the prompt; p0's logits stay.

    The rows of r_1 and r_2 in the output layer are large and opposite, so that one of them would be
    the likeliest token.
    """
    ids = policy.encode(PROMPTS[0])
    before = sample(policy, [ids], max_new_tokens=8, greedy=True)
    V = policy.vocab_size
    add_reward_tokens(policy, 3, seed=1)
    assert policy.vocab_size == V and policy.model.config.vocab_size == V + 3
    assert policy.start_of(ids, 2) == [*policy.bos, V + 1, *ids]
    large = 100 * policy.head.weight.data[0]
    policy.head.weight.data[V : V + 2] = torch.stack([large, -large])
    assert sample(policy, [ids], max_new_tokens=8, greedy=True) == before
    assert max(map(max, sample(policy, [ids] * 50, max_new_tokens=4, quantile=3))) < V
    policy.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    assert (again.n_quantiles, again.vocab_size, again.bos) == (3, V, policy.bos)
    assert again.has_tokens_of(policy)
    write = pipeline("text-generation", model=str(tmp_path / "saved"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.convert_tokens_to_ids("<|reward_2|>") == V + 1
    settings = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    texts = write(PROMPTS[0], **settings)
    own = policy.decode(policy.without_eos(before[0]), goes_on=True)
    assert texts[0]["generated_text"].strip() == own.strip()


def test_two_rounds(folders, family, tmp_path, judges):
    """Explore, quantize, learn, twice, with a judge of another family, then an evaluation."""
    rows = [{"prompt": x} for x in ("The film was", "cafe\u0301 films", "songs", "")]
    prompts = ["--prompts", write_jsonl(tmp_path / "prompts.jsonl", rows)]
    judge = ["--reward", "sentiment", "--reward-model", judges / "two"]
    lengths = ["--num-samples", 3, "--max-new-tokens", 6]
    own = ["--bf16-weights"] if family in ("qwen2", "opt", "gpt_neo") else []
    lengths += own
    p0 = model = folders[family]
    for t in range(2):
        pool, quantized = tmp_path / "pool" / f"{t}.jsonl", tmp_path / f"quantized-{t}.jsonl"
        learned = tmp_path / f"model-{t}"
        run(explore, "--model", model, *prompts, *judge, *lengths, "--iteration", t, "--out", pool)
        run(quantize, tmp_path / "pool", "--quantiles", 3, "--out", quantized)
        by = ["--model", model, "--reference", p0, "--pool", quantized, "--out", learned]
        run(learn, *by, "--steps", 2, "--total-steps", 4, "--batch-size", 4, "--lr", 1e-3, *own)
        model = learned
    by = ["--model", model, "--reference", p0, *prompts, *judge, *lengths]
    run(evaluate, *by, "--out", tmp_path / "eval")
    table = json.loads((tmp_path / "eval.json").read_text())
    assert table["perplexity"]["value"] > 1
    trained, plain = load_policy(model), load_policy(p0)
    batch = [(3, plain.encode("The film was"), plain.encode(" good", goes_on=True))]
    sums, n = batch_loss(trained, plain, batch, beta=1)
    assert sums[2].item() / n > 1e-5  # it has moved


def run(stage, *argv):
    stage.main([str(a) for a in argv])


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2", "opt", "gpt_neo", "tiny/lm"])
def test_weights_in_bfloat16(folders, name):
    """All but the output layer, which may be the embedding. The logits are those of float32, to

    bfloat16's rounding, and stay in float32; sampling and the perplexity run.
    """
    folder = folders.get(name, ROOT / name)
    precise, policy = load_policy(folder), load_policy(folder, in_bf16=True)
    kinds = {p.dtype for p in policy.model.parameters()}
    assert kinds == {torch.bfloat16, torch.float32}
    assert policy.head.weight.dtype == torch.float32
    ids = [policy.start_of(policy.encode(x)) for x in PROMPTS[:1]]
    with torch.no_grad():
        found, expected = (p.head(p.hidden_states(ids)) for p in (policy, precise))
    assert found.dtype == torch.float32
    assert 1e-4 < (found - expected).abs().max() < 0.1 * expected.std()
    prepack(policy.model, policy.in_bf16)
    assert sample(policy, ids, max_new_tokens=6) and sample(policy, ids * 2, max_new_tokens=2)
    rows = [{"prompt": x, "completion": " it was good."} for x in PROMPTS]
    found, expected = (evaluate.perplexity(p, rows) for p in (policy, precise))
    assert found == pytest.approx(expected, rel=0.05)


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma2", "are not its output layer's"),
        ("bert", "reads ahead"),
        ("lfm2", "cannot read rows with a cache"),
    ],
)
def test_what_cannot_work_is_refused(name, message, tmp_path):
    assert name in REFUSED
    with pytest.raises(BadInput, match=message) as error:
        load_policy(make_folder(tmp_path / name, name))
    assert "\n" not in str(error.value)


def test_an_encoder_decoder_is_refused(tmp_path):
    config = {"model_type": "t5", "vocab_size": 10, "is_encoder_decoder": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="is an encoder-decoder"):
        load_policy(tmp_path)


def test_a_text_that_cannot_be_spelled_is_refused():
    own = OwnTokenizer(sentencepiece(bytes_too=False), "x")
    assert own.decode(own.encode("The film was")) == "The film was"
    with pytest.raises(BadInput, match='cannot spell "~"'):
        own.encode("~")
    lossy = Tokenizer(models.BPE({"a": 0, "</s>": 1}, []))  # no unknown token: b is left out
    with pytest.raises(BadInput, match='cannot spell "ab"'):
        OwnTokenizer(wrapped(lossy, eos_token="</s>"), "x").encode("ab")


def test_tokenizer_json_is_used_as_it_stands(tmp_path):
    """Not the splitting of the class that tokenizer_config.json names, and without the truncation

    and padding that it was saved with.
    """
    tokenizer = byte_level("<|endoftext|>")
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    make_folder(tmp_path / "x", "gpt_neox")
    tokenizer.save_pretrained(tmp_path / "x")
    settings = json.loads((tmp_path / "x" / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "GPT2Tokenizer"
    (tmp_path / "x" / "tokenizer_config.json").write_text(json.dumps(settings))
    fast = Tokenizer.from_file(str(tmp_path / "x" / "tokenizer.json"))
    fast.no_truncation()
    fast.no_padding()
    policy = load_policy(tmp_path / "x")
    for text in ("in 1999, a  5 and the film", "list:\n\n1."):
        assert policy.encode(text) == fast.encode(text).ids


def test_a_folder_without_a_tokenizer_is_refused(folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path / "x")
    (tmp_path / "x" / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="has no tokenizer.json"):
        load_policy(tmp_path / "x")
    (tmp_path / "x" / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(BadInput, match="cannot read tokenizer.json"):
        load_policy(tmp_path / "x")


def test_what_a_folder_brings_along_does_not_stop_saving(folders, tmp_path):
    """Settings of generation that do not fit together, a template for chats, a padding token that

    is cut off or would become one of the reward tokens.
    """
    folder = tmp_path / "x"
    shutil.copytree(folders["qwen2"], folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6}')
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 330}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    policy = load_policy(folder)
    add_reward_tokens(policy, 3)
    assert policy.model.get_input_embeddings().padding_idx is None
    for _ in range(2):  # the second time over the first
        check_replaceable(tmp_path / "saved")
        policy.save(tmp_path / "saved")
    assert load_policy(tmp_path / "saved").n_quantiles == 3


def test_ids_with_gaps_and_no_end_are_refused():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 2}, unk_token="a"))
    with pytest.raises(BadInput, match="without gaps"):
        OwnTokenizer(wrapped(words, eos_token="b"), "x")
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(BadInput, match="no end-of-text token"):
        OwnTokenizer(wrapped(words), "x")


def test_a_long_prompt_keeps_its_start_token(folders):
    """It is cut at the left, behind <s>; the longest context is used.

    In sampling there is room for all new tokens. In the perplexity y's last token is not read.
    """
    policy = load_policy(folders["gemma"])
    ids = policy.encode("The film was long. " * 30)
    seen = []

    class Spy:
        def next_logits(self, tokens):
            seen.append(tokens[0].tolist())
            return torch.zeros(len(tokens), policy.vocab_size)

        def keep(self, rows):
            pass

    sample(policy, [ids], max_new_tokens=4, network=Spy())
    assert seen[0] == [*policy.bos, *ids[-(CONTEXT - 5) :]] and len(seen[0]) == CONTEXT - 4

    read = []
    policy.model.base_model.register_forward_pre_hook(lambda _, args: read.extend(args[0].tolist()))
    row = {"prompt": "The film was long. " * 30, "completion": " it was good."}
    y = policy.encode(row["completion"], goes_on=True)
    evaluate.completion_nll(policy, [row])
    assert read == [[*policy.bos, *ids[-(CONTEXT - len(y)) :], *y[:-1]]]
    assert len(read[0]) == CONTEXT
