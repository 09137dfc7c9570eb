"""Stage 1: the policy (vocabulary, reward tokens, folders), sampling against slow references, the pool that is written."""

import copy
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import CONTEXT, EOS, SENTENCES, WIDTH, K, V, learn_merges, one_sentence, read_rows, stage, write_jsonl
from transformers.pytorch_utils import Conv1D

import explore
from explore import CachedModel, draw, load_policy, sample, uniforms
from learn import add_reward_tokens
from plumbing.policy import build_encoding
from plumbing.pool import BadInput
from plumbing.fast_cpu import PrepackedLinear
from plumbing.fast_cpu import prepack
from plumbing.fast_cpu import use_onednn_for_float32

TEXTS = ["The film was long", "", " then the", "I'd see it 1999 times!!", "naïve — 日本語 \U0001f600", "a\n\n b\t  c   ", "they'll've"]


def ids_of(policy, *texts):
    return [policy.encode(t) for t in texts]


# -------------------------------------------------------------------------------------------------- the vocabulary


def test_the_sizes_are_those_of_the_folder(p0, quark):
    """V, K, d and the id of r_k = V + k - 1; a plain model has no reward token."""
    assert (p0.vocab_size, p0.n_quantiles, p0.context, p0.eos_id) == (V, 0, CONTEXT, V - 1)
    assert (quark.vocab_size, quark.n_quantiles) == (V, K)
    assert quark.model.get_input_embeddings().weight.shape == (V + K, WIDTH)
    assert [quark.reward_token_id(k) for k in (1, 2, 3)] == [V, V + 1, V + 2]
    for policy, k in ((quark, 0), (quark, 4), (p0, 1)):
        with pytest.raises(BadInput, match=f"no reward token r_{k}"):
            policy.reward_token_id(k)


def test_encoding_is_the_folder_s_own_tokenizer(p0_folder, quark_folder, p0):
    """tiktoken's ids are those of Hugging Face's tokenizer for the same files, and decode to the same text."""
    from transformers import AutoTokenizer

    for folder in (p0_folder, quark_folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text in TEXTS + SENTENCES:
            assert p0.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
            assert p0.decode(p0.encode(text)) == text
    assert max(len(p0.encode(s)) / len(s) for s in SENTENCES) < 0.9  # the merges are used


def test_control_tokens_in_a_text_are_text(quark):
    """A prompt that holds the characters <|endoftext|> or <|reward_3|> holds no control token, and survives."""
    for text in (EOS, "a<|reward_3|> b", "<|reward_1|>" + EOS):
        ids = quark.encode(text)
        assert max(ids) < V - 1 and len(ids) > 5 and quark.decode(ids) == text
    assert quark.decode([V - 1, V + 2]) == EOS + "<|reward_3|>"


def test_a_vocabulary_is_never_stale(p0_folder, tmp_path):
    """Other files under the same path: the new vocabulary is used (tiktoken's own loader would serve the old one)."""
    folder = tmp_path / "model"
    shutil.copytree(p0_folder, folder)
    text = "zebras quack quietly"
    before = load_policy(folder).encode(text)
    vocab, merges = learn_merges([f"{text} where {text} the quick zebras quit, and a quiet duck quacks at the lazy dog under a shady tree"], 41)
    (folder / "vocab.json").write_bytes(vocab), (folder / "merges.txt").write_bytes(merges)
    after = load_policy(folder)
    assert len(after.encode(text)) < len(before) and after.decode(after.encode(text)) == text


def test_vocabularies_that_do_not_fit(p0_folder):
    """Merges in another order, an <|endoftext|> that is missing or not last, no JSON: refused in one sentence."""
    vocab, merges = (p0_folder / "vocab.json").read_bytes(), (p0_folder / "merges.txt").read_bytes()
    lines, table = merges.decode().split("\n"), json.loads(vocab)
    swapped = "\n".join([lines[0], lines[2], lines[1], *lines[3:]]).encode()
    no_eos = {t: i for t, i in table.items() if t != EOS}
    moved = {**table, EOS: 0, "!": V - 1}
    for v, m in [(vocab, swapped), (vocab, "\n".join(lines[:-3]).encode()), (json.dumps(moved).encode(), merges),
                 (json.dumps(no_eos).encode(), merges), (b"{", merges), (b"[]", merges), (b'{"\xe2\x82\xac": 0}', merges)]:  # fmt: skip
        with pytest.raises(BadInput) as error:
            build_encoding(v, m)
        assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------- reward tokens


def test_new_rows_follow_the_old_rows_statistics(p0):
    """Dimension j of the old rows has mean j and standard deviation 1 + j / 8; so have 4000 new ones. Old rows stay."""
    table = p0.model.get_input_embeddings().weight
    j = torch.arange(WIDTH)
    torch.manual_seed(0)
    old = torch.randn(V, WIDTH)
    old = (old - old.mean(0)) / old.std(0) * (1 + j / 8) + j
    table.data.copy_(old)
    add_reward_tokens(p0, 4000, seed=3)
    table = p0.model.get_input_embeddings().weight.detach()
    assert table.shape == (V + 4000, WIDTH) and torch.equal(table[:V], old)
    new = table[V:]
    assert ((new.mean(0) - j).abs() < 5 * (1 + j / 8) / 4000**0.5).all()
    assert ((new.std(0) / (1 + j / 8) - 1).abs() < 0.06).all()
    assert (torch.corrcoef(new.T) - torch.eye(WIDTH)).abs().max() < 0.1  # dimensions are drawn independently
    assert p0.model.get_output_embeddings().weight is p0.model.get_input_embeddings().weight  # still tied


def test_reward_tokens_depend_on_the_seed_alone(p0_folder):
    """Same seed: the same rows, whatever was drawn before; another seed: others."""
    rows = []
    for seed in (1, 1, 2):
        policy = load_policy(p0_folder)
        torch.rand(seed + len(rows))
        add_reward_tokens(policy, K, seed=seed)
        rows.append(policy.model.get_input_embeddings().weight.data[V:].clone())
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_ordered_rows_lie_on_a_line(p0_folder):
    """r_k = mean + z_k std e, one e for all, z from -3 to 3 in even steps; another seed: another e."""
    lines = []
    for seed in (1, 2):
        policy = load_policy(p0_folder)
        old = policy.model.get_input_embeddings().weight.detach()
        mean, std = old.mean(0), old.std(0)
        add_reward_tokens(policy, 5, seed, init="ordered")
        z_e = (policy.model.get_input_embeddings().weight.detach()[V:] - mean) / std
        for k, z in enumerate((-3, -1.5, 0, 1.5, 3)):
            assert torch.allclose(z_e[k], z_e[4] * z / 3, atol=1e-5)
        lines.append(z_e[4] / 3)
    assert not torch.allclose(*lines) and 0.3 < lines[0].std() < 2


def test_reward_tokens_do_not_change_p0(p0, quark):
    """Without a reward token in front, the enlarged model gives the same ordinary logits."""
    ids = torch.tensor([quark.encode(SENTENCES[0])])
    with torch.no_grad():
        assert torch.allclose(p0.model(ids).logits, quark.model(ids).logits[..., :V], atol=1e-5)


# --------------------------------------------------------------------------------------------------------- folders


def test_loads_in_float32_without_dropout(p0):
    """The file is float16; computing in it would lose three digits without a word. Dropout is off in evaluation mode."""
    assert {p.dtype for p in p0.model.parameters()} == {torch.float32} and not p0.model.training


def test_a_saved_folder_opens_everywhere(quark, quark_folder):
    """AutoModelForCausalLM, AutoTokenizer and pipeline: the same ids and the same greedy text as ours, on plain text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model = AutoModelForCausalLM.from_pretrained(quark_folder)
    tokenizer = AutoTokenizer.from_pretrained(quark_folder)
    for mine, theirs in zip(quark.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert (model.config.n_quantiles, model.config.base_vocab_size) == (K, V)
    assert len(tokenizer) == V + K
    assert tokenizer.convert_tokens_to_ids([f"<|reward_{k}|>" for k in (1, 2, 3)] + [EOS]) == [V, V + 1, V + 2, V - 1]
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == V - 1
    assert tokenizer.model_max_length == CONTEXT
    text = "The film was"
    y = quark.without_eos(sample(quark, ids_of(quark, text), max_new_tokens=9, greedy=True)[0])
    assert len(y) > 3
    generator = pipeline("text-generation", model=str(quark_folder), device="cpu")
    said = generator(text, max_new_tokens=9, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert said == quark.decode(y)
    conditioned = tokenizer("<|reward_2|>" + text, add_special_tokens=False)["input_ids"]
    assert conditioned == [V + 1, *quark.encode(text)]


def test_save_and_load_give_the_policy_back(quark, tmp_path):
    """Weights bit for bit, K, V, the vocabulary files; a second save over the first one, too."""
    quark.model.get_input_embeddings().weight.data[V + 1] = 1 / 3
    (tmp_path / "a" / "model").mkdir(parents=True)
    for name in ("stale.bin", "config.json"):
        (tmp_path / "a" / "model" / name).write_text("of an older run")
    quark.save(tmp_path / "a" / "model")
    again = load_policy(tmp_path / "a" / "model")
    assert (again.n_quantiles, again.vocab_size, again.files) == (K, V, quark.files)
    assert all(torch.equal(a, b) for a, b in zip(quark.model.parameters(), again.model.parameters(), strict=True))
    assert os.listdir(tmp_path / "a") == ["model"] and not (tmp_path / "a" / "model" / "stale.bin").exists()


def test_save_is_all_or_nothing(quark, quark_folder, tmp_path):
    """A failure in the middle leaves the old folder as it was, and no half of a new one."""
    folder = tmp_path / "model"
    shutil.copytree(quark_folder, folder)
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    quark.model.get_input_embeddings().weight.data += 1

    def fails(inside):
        assert (inside / "config.json").exists() and inside != folder
        raise OSError("disk full")

    with pytest.raises(Exception, match="disk full"):
        quark.save(folder, fails)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("fault, message", [
    ("missing", "does not exist"), ("empty", "cannot open the model"), ("no config", "cannot open the model"), ("no vocabulary", "vocab.json"),
    ("not gpt2", "is a opt model"), ("other vocabulary", "vocab.json has 277 tokens, config.json 298"),
    ("cut-off weights", "cannot open the model"), ("other sizes", "cannot open the model")])  # fmt: skip
def test_folders_that_are_no_model(fault, message, p0_folder, tmp_path):
    """One sentence each: what is wrong with the folder, never a traceback or random weights."""
    folder = tmp_path / "checkpoint"
    if fault == "empty":
        folder.mkdir()
    elif fault != "missing":
        shutil.copytree(p0_folder, folder)
    if fault == "no config":
        (folder / "config.json").unlink()
    elif fault == "no vocabulary":
        (folder / "vocab.json").unlink()
    elif fault == "not gpt2":
        (folder / "config.json").write_text(json.dumps({"model_type": "opt"}))
    elif fault == "other vocabulary":
        vocab, merges = learn_merges(SENTENCES[:1], 20)
        (folder / "vocab.json").write_bytes(vocab), (folder / "merges.txt").write_bytes(merges)
    elif fault == "cut-off weights":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif fault == "other sizes":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "n_embd": 48}))
    with pytest.raises(BadInput, match=message) as error:
        load_policy(folder)
    assert "\n" not in str(error.value) and "checkpoint" in str(error.value)


def test_a_hub_model_that_is_not_there():
    """A hub name that was never downloaded, with no network: one sentence that says so."""
    with pytest.raises(BadInput, match="cannot open the model nobody/nothing") as error:
        load_policy("nobody/nothing")
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------- drawing a token


def logits_of(*p):
    return torch.tensor([[math.log(x) if x else -math.inf for x in p]])


def drawn(logits, u, top_p=1.0, top_k=0):
    """draw for many u at once, the same logits in each row."""
    u = torch.tensor(u, dtype=torch.float64)
    return draw(logits.expand(len(u), -1).clone(), u, top_p, top_k).tolist()


def test_draw_by_hand():
    """p = .1 .2 .3 .4, cumulated .1 .3 .6 1: u = .05 -> 0, .15 and .29 -> 1, .31 and .59 -> 2, .61 and .99 -> 3."""
    assert drawn(logits_of(0.1, 0.2, 0.3, 0.4), [0.05, 0.15, 0.29, 0.31, 0.59, 0.61, 0.99]) == [0, 1, 1, 2, 2, 3, 3]


def test_draw_at_the_ends():
    """u = 0 and u just below 1 give the first and the last token that has any probability, never one that has none."""
    ends = [0.0, 1 - 2**-53]
    assert drawn(logits_of(0, 0, 0.5, 0.5, 0), ends) == [2, 3]
    assert drawn(logits_of(0.3, 0.7), ends) == [0, 1]
    assert drawn(logits_of(0, 1, 0), ends) == [1, 1]
    assert drawn(logits_of(0, 0.5, 0.2, 0.3, 0), ends, top_p=0.7) == [1, 3]  # likeliest first: .5, then .3
    rounded = torch.tensor([1 - 1e-9]).float()  # as on Apple's GPUs: exactly 1
    assert rounded == 1 and draw(logits_of(0.3, 0.7, 0), rounded).tolist() == [1]
    assert draw(logits_of(0.3, 0.7, 0), rounded, 0.5).tolist() == [1]


def test_top_p_by_hand():
    """p = .1 .4 .2 .3, cumulated .1 .5 .7 1. Likeliest first: token 1 (.4), 3 (.3), 2 (.2), 0 (.1).

    top_p = .6: .4 is not enough, .4 + .3 is: {1, 3}, border at .4 / .7 = .571. So u in [.1, .5) gives 1 and from .7 on 3; below
    .1 it is at 10 u of token 0's stretch, and draws from {1, 3} with that; in [.5, .7) at 5 (u - .5) of token 2's.
    top_p = .3: {1} alone. top_p = .8: {1, 3, 2}, borders at .4 / .9 = .444 and .7 / .9 = .778 for token 0's stretch.
    """
    p = logits_of(0.1, 0.4, 0.2, 0.3)
    assert drawn(p, [0.2, 0.8, 0.05, 0.056, 0.058, 0.09, 0.51, 0.613, 0.615, 0.69], 0.6) == [1, 3, 1, 1, 3, 3, 1, 1, 3, 3]
    assert drawn(p, [0.01, 0.3, 0.6, 0.99], 0.3) == [1, 1, 1, 1]
    assert drawn(p, [0.2, 0.6, 0.8, 0.043, 0.046, 0.077, 0.079], 0.8) == [1, 2, 3, 1, 3, 3, 2]
    assert set(drawn(p, np.linspace(0, 0.999, 50).tolist(), 1.0)) == {0, 1, 2, 3}


def test_top_k_by_hand():
    """p = .1 .4 .2 .3: the two likeliest are 1 (.4) and 3 (.3), border at .4 / .7 = .571; of those a nucleus of .5 leaves 1. 0 and 4: all."""
    p = logits_of(0.1, 0.4, 0.2, 0.3)
    assert drawn(p, [0.0, 0.57, 0.572, 0.99], top_k=2) == [1, 1, 3, 3]
    assert drawn(p, [0.0, 0.57, 0.58, 0.99], 0.5, 2) == [1, 1, 1, 1]
    for k in (0, 4, 9):
        assert drawn(p, [0.05, 0.15, 0.6, 0.8], top_k=k) == [0, 1, 2, 3]


def slow_draw(p, u, top_p):
    """The inverse CDF over all tokens; then, if that token is outside the nucleus, over the nucleus with what is left of u."""

    def first(order, u):
        below = 0.0
        for v in order:
            if below + p[v] > u * sum(p[w] for w in order):
                return v, (u * sum(p[w] for w in order) - below) / p[v]
            below += p[v]

    nucleus = []
    for v in sorted(range(len(p)), key=lambda v: -p[v]):
        if sum(p[w] for w in nucleus) < top_p:
            nucleus.append(v)
    token, rest = first(range(len(p)), u)
    return token if token in nucleus else first(nucleus, rest)[0]


@pytest.mark.parametrize("top_p", [1.0, 0.75])
def test_draw_is_the_softmax(top_p):
    """100,000 evenly spaced u: each token is drawn as often as it is likely, to the width of the grid; rows do not mix."""
    torch.manual_seed(2)
    logits = 2 * torch.randn(2, 7)
    grid = [(j + 0.5) / 100_000 for j in range(100_000)]
    for row in logits:
        weights = [math.exp(z) for z in row.tolist()]
        p = [w / sum(weights) for w in weights]
        kept, mass = set(), 0.0
        for v in sorted(range(7), key=lambda v: -p[v]):
            if mass < top_p:
                kept.add(v)
                mass += p[v]
        counts = np.bincount(drawn(row[None], grid, top_p), minlength=7) / 100_000
        for v in range(7):
            assert counts[v] == pytest.approx(p[v] / mass if v in kept else 0, abs=2e-4)
    both = draw(logits, torch.tensor([0.3, 0.3], dtype=torch.float64), top_p).tolist()
    assert both == [drawn(row[None], [0.3], top_p)[0] for row in logits]


def test_top_p_of_a_large_vocabulary():
    """Where the 1,024 likeliest tokens hold the nucleus, and where they do not: as slowly drawn."""
    generator = torch.Generator().manual_seed(0)
    flat, peaked = torch.randn(8, 1500, generator=generator), torch.randn(8, 1500, generator=generator) * 4
    u = torch.rand(8, generator=generator, dtype=torch.float64)
    for logits in (flat, peaked, torch.cat([flat[:4], peaked[:4]])):
        for top_p in (0.95, 0.5, 0.05):
            expected = [slow_draw(row.tolist(), x, top_p) for row, x in zip(logits.double().softmax(-1), u.tolist())]
            assert draw(logits, u, top_p).tolist() == expected
    assert (flat.softmax(-1).topk(1024).values.sum(-1) < 0.95).all() and (peaked.softmax(-1).topk(1024).values.sum(-1) > 0.95).all()


def test_draw_from_many_and_from_rare_tokens():
    """50,000 equal tokens: u = (j + 0.5) / 50,000 gives token j. And one token of nearly 1 before 20 of 2e-8 each, of which
    token j owns the 2e-8 of u below 1 - (20 - j) 2e-8: sums rounded to float32, whose steps are 6e-8 there, would lose most."""
    n = 50_000
    u = [(j + 0.5) / n for j in range(0, n, 997)]
    assert drawn(torch.zeros(1, n), u) == list(range(0, n, 997))
    rare = logits_of(1 - 20 * 2e-8, *[2e-8] * 20)
    assert drawn(rare, [1 - (20 - j + 0.5) * 2e-8 for j in range(1, 21)]) == list(range(1, 21))


# -------------------------------------------------------------------------------------------------------- sampling


def slow_sample(policy, ids, key, *, quantile=None, n, temperature=1.0, top_p=1.0, seed=0, iteration=0, min_new=0, greedy=False):
    """One prompt, no batch, no padding, no cache, and the inverse CDF in plain Python."""
    x = ([] if quantile is None else [V + quantile - 1]) + (list(ids) or [V - 1])
    u = np.random.Generator(np.random.Philox(key=[seed, iteration], counter=[0, 0, *key])).random(n)
    y = []
    for step in range(n):
        with torch.no_grad():
            logits = policy.model(torch.tensor([x + y])).logits[0, -1, :V].double().tolist()
        if step < min_new:
            logits[V - 1] = -math.inf
        if greedy:
            token = max(range(V), key=lambda v: logits[v])
        else:
            top = max(logits)
            weights = [math.exp((z - top) / temperature) for z in logits]
            p = [w / sum(weights) for w in weights]
            token = slow_draw(p, u[step], top_p)
        y.append(token)
        if token == V - 1:
            break
    return y


def bias_eos(policy, bias):
    """Adds `bias` to the logit of <|endoftext|> from now on."""

    def hook(module, args, output):
        output[..., V - 1] += bias

    policy.model.lm_head.register_forward_hook(hook)


SETTINGS = [dict(), dict(quantile=2), dict(quantile=3, temperature=0.6, top_p=0.8), dict(greedy=True, quantile=1),
            dict(seed=4, iteration=2, top_p=0.5), dict(temperature=1.7)]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_sample_is_the_slow_sampler(quark, setting):
    """Every option against the slow reference: prompts of several lengths, completions that end early, one batch."""
    prompts = ids_of(quark, *TEXTS, SENTENCES[2][:40])
    keys = [(5 * i, i % 3) for i in range(len(prompts))]
    slow = [slow_sample(quark, ids, key, n=11, min_new=2, **setting) for ids, key in zip(prompts, keys)]
    fast = sample(quark, prompts, keys=keys, max_new_tokens=11, min_new_tokens=2, **setting)
    assert fast == slow
    if not setting.get("greedy"):
        assert len({len(y) for y in fast}) > 1  # some ended early, so rows did leave the batch


def started(model, padding):
    """A CachedModel at the beginning of a batch."""
    network = CachedModel(model)
    network.start(torch.tensor(padding))
    return network


def test_cached_model_is_the_network(quark):
    """Logits of transformers' own forward, row by row without padding or cache: after the prompt, a column, a row's end, two columns."""
    quark.model.double()
    generator = torch.Generator().manual_seed(0)
    for parameter in quark.model.parameters():  # a new network's layer norms are all alike
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for number, block in enumerate(quark.model.transformer.h):
        block.attn.scaling /= number + 1  # as scale_attn_by_inverse_layer_idx does
    rows = [[7, 8], [V + 1, 20, 30, 40, 50], [60]]
    further = torch.tensor([[11, 12, 13], [21, 22, 23], [31, 32, 33]])
    network = started(quark.model, [3, 0, 4])
    kept = [0, 1, 2]
    for tokens in (torch.tensor([[0] * (5 - len(r)) + r for r in rows]), further[:, :1], further[[0, 2], 1:]):
        if len(tokens) < len(kept):
            network.keep(torch.tensor([0, 2]))
            kept = [0, 2]
        logits = network.next_logits(tokens)
        for row, known in zip(kept, logits):
            seen = rows[row] + further[row, : network.columns - 5].tolist()
            with torch.no_grad():
                assert torch.allclose(known, quark.model(torch.tensor([seen])).logits[0, -1], rtol=1e-9, atol=1e-9)


def test_float32_stays_float32():
    """What load_policy sets for speed leaves products as exact as float32 is, forwards and backwards; bfloat16 errs by 1e-3."""
    use_onednn_for_float32()
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in ((64, 256), (1024, 256)))
    for a, b in ((x, weight.T), (x @ weight.T, weight), ((x @ weight.T).T, x)):  # y, d / dx, d / dweight
        exact = a @ b
        assert ((a.float() @ b.float() - exact).abs().max() / exact.abs().max()).item() < 3e-6


def test_sampling_in_bfloat16_is_close(quark):
    """--bf16: the logits move a little, and most samples stay; without it nothing moves."""
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        exact = started(quark.model, [0]).next_logits(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = started(quark.model, [0]).next_logits(tokens)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert torch.allclose(rough, exact, atol=0.05 * exact.std().item())
    prompts = ids_of(quark, *SENTENCES)
    plain, bent = (sample(quark, prompts, max_new_tokens=4, bf16=bf16) for bf16 in (False, True))
    assert sum(a == b for a, b in zip(plain, bent)) >= len(prompts) / 2


def test_prepacking_is_the_network(quark, monkeypatch):
    """PrepackedLinear is activation(x W' + b), its GELU the network's; in float32 the same logits, in bfloat16 near ones, all but the output
    layer in bfloat16. Where PyTorch has no oneDNN, or oneDNN no bfloat16, everything stays."""
    W, b, x = torch.randn(6, 4), torch.randn(6), torch.randn(2, 3, 4)
    layer = PrepackedLinear(W, b, torch.float32)
    assert torch.allclose(layer(x), x @ W.T + b, atol=1e-5)
    layer.activation = "gelu"
    assert torch.allclose(layer(x), torch.nn.functional.gelu(x @ W.T + b, approximate="tanh"), atol=1e-5)
    assert torch.allclose(PrepackedLinear(W, None, torch.float32)(x), x @ W.T, atol=1e-5)
    tokens = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
    models = {bf16: prepack(copy.deepcopy(quark.model), bf16) for bf16 in (False, True)}
    with torch.no_grad():
        plain, same = (started(m, [0, 1]).next_logits(tokens) for m in (quark.model, models[False]))
    assert torch.allclose(same, plain, atol=1e-5)
    assert not any(isinstance(m, (Conv1D, torch.nn.Linear)) for m in models[False].modules())
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            bent, rough = (started(m, [0, 1]).next_logits(tokens) for m in (quark.model, models[True]))
        assert rough.dtype == torch.float32 and 0 < (rough - plain).std() < 2 * (bent - plain).std()
        kinds = [m.dtype for m in models[True].modules() if isinstance(m, PrepackedLinear)]
        assert kinds == [torch.bfloat16] * 4 * quark.model.config.n_layer + [torch.float32]
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    for bf16, replaced in ((False, True), (True, False)):
        model = prepack(copy.deepcopy(quark.model), bf16)
        assert replaced != any(isinstance(m, Conv1D) for m in model.modules())
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert any(isinstance(m, Conv1D) for m in prepack(copy.deepcopy(quark.model)).modules())


def test_batch_size_and_padding_change_no_sample(quark):
    """One at a time, in fours, all at once: the same completions in the order given, though rows end at different times."""
    prompts = ids_of(quark, *[s[: 3 + 7 * i] for i, s in enumerate(SENTENCES * 3)])
    runs = [sample(quark, prompts, quantile=2, max_new_tokens=13, batch_size=size, seed=1) for size in (1, 4, 64)]
    assert runs[0] == runs[1] == runs[2]
    assert len({len(y) for y in runs[0]}) > 2


def test_random_numbers_belong_to_the_key(quark):
    """Prompts in another order, or fewer of them: each key keeps its completion. Other seed, round or sample: another."""
    prompts = ids_of(quark, "The", "A good", "I see the", "Then it was")
    keys = [(i, 1) for i in range(4)]
    options = dict(max_new_tokens=8, quantile=1)
    first = sample(quark, prompts, keys=keys, **options)
    assert sample(quark, prompts[::-1], keys=keys[::-1], **options) == first[::-1]
    assert sample(quark, prompts[2:3], keys=keys[2:3], **options) == first[2:3]
    for change in (dict(seed=1), dict(iteration=1), dict(keys=[(i, 2) for i in range(4)]), dict(keys=[(i + 4, 1) for i in range(4)])):
        other = sample(quark, prompts, **{"keys": keys, **options, **change})
        assert all(a != b for a, b in zip(first, other))
    same = sample(quark, prompts[:1] * 3, keys=[(0, 0), (0, 1), (0, 0)], **options)
    assert same[0] == same[2] != same[1]
    assert sample(quark, prompts, **options) == sample(quark, prompts, keys=[(i, 0) for i in range(4)], **options)


def test_uniforms():
    """A function of its arguments, none of them interchangeable; a longer row begins with the shorter one; uniform on [0, 1)."""
    base = uniforms(3, 1, 7, 2, 5)
    assert base.shape == (5,) and (uniforms(3, 1, 7, 2, 9)[:5] == base).all()
    others = [uniforms(*key, 5) for key in [(1, 3, 7, 2), (3, 1, 2, 7), (4, 1, 7, 2), (3, 2, 7, 2), (3, 1, 8, 2), (3, 1, 7, 3)]]
    numbers = np.concatenate([base, *others])
    assert len(set(numbers.tolist())) == 35  # no row is another one shifted
    many = np.concatenate([uniforms(0, 0, i, j, 25) for i in range(40) for j in range(3)])
    assert 0 <= many.min() and many.max() < 1 and abs(many.mean() - 0.5) < 0.03 and len(set(many.tolist())) == len(many)


@pytest.mark.parametrize("quantile", [None, 2])
def test_greedy_is_generate(quark, quark_folder, quantile):
    """Greedy decoding is Hugging Face's generate, prompt by prompt, with and without a reward token in front."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(quark_folder, dtype=torch.float32)
    prompts = ids_of(quark, "The", "I was bored by", "She said that it's")
    ours = sample(quark, prompts, quantile=quantile, max_new_tokens=12, min_new_tokens=7, greedy=True)
    for ids, y in zip(prompts, ours):
        x = torch.tensor([([] if quantile is None else [V + quantile - 1]) + ids])
        theirs = model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=12, min_new_tokens=7, do_sample=False,
                                suppress_tokens=list(range(V, V + K)))  # fmt: skip
        assert theirs[0, x.shape[1] :].tolist() == y
    assert len({tuple(y) for y in ours}) > 1


class Script:
    """A network that reads nothing: row i of the batch says its own token, then <|endoftext|>."""

    def __init__(self, says):
        self.says = torch.tensor(says)
        self.step = 0

    def next_logits(self, tokens):
        said = self.says if self.step == 0 else torch.full_like(self.says, V - 1)
        self.step += 1
        return torch.nn.functional.one_hot(said, V) * 1e4

    def keep(self, rows):
        self.says = self.says[rows]


def test_another_network_in_the_policy_s_place(quark, monkeypatch):
    """`network` alone decides; it sees each different prompt once, and is told which rows go on. The policy's model is not asked."""
    monkeypatch.setattr(quark.model, "forward", None)
    prompts = [[5, 6], [7], [5, 6]]  # sorted by length, and each once: [7], [5, 6]
    drawn = sample(quark, prompts, max_new_tokens=4, network=Script([40, 50]))
    assert drawn == [[50, V - 1], [40, V - 1], [50, V - 1]]


def test_greedy_row_by_row(quark):
    """greedy may be given a row: those rows are the greedy ones, the others are drawn, in one batch."""
    prompts = ids_of(quark, "The film", "A", "I see it")
    flags = [True, False, True]
    options = dict(max_new_tokens=7, quantile=1)
    mixed, greedy, free = (sample(quark, prompts, greedy=g, **options) for g in (flags, True, False))
    assert mixed == [greedy[0], free[1], greedy[2]] and greedy[1] != free[1]


def test_reward_tokens_are_never_generated(quark):
    """Even where the model gives them every probability, greedy or drawn, they are left out of the vocabulary."""
    seen = []

    def hook(module, args, output):
        output[..., V:] += 1e4
        seen.append(output.shape)

    plain = [sample(quark, ids_of(quark, "The film", "A"), quantile=3, max_new_tokens=6, greedy=g) for g in (True, False)]
    quark.model.lm_head.register_forward_hook(hook)
    for top_p in (1.0, 0.9):
        for greedy in (True, False):
            for y in sample(quark, ids_of(quark, "The film", "A"), quantile=3, max_new_tokens=6, greedy=greedy, top_p=top_p):
                assert y and max(y) < V
    assert [sample(quark, ids_of(quark, "The film", "A"), quantile=3, max_new_tokens=6, greedy=g) for g in (True, False)] == plain
    assert seen


def test_end_of_text_ends_and_is_kept(quark):
    """A model that only wants to stop: nothing but <|endoftext|>; with min_new_tokens = 2, two others before it."""
    bias_eos(quark, 1e4)
    prompts = ids_of(quark, "The film", "A")
    for greedy in (True, False):
        assert sample(quark, prompts, max_new_tokens=6, greedy=greedy) == [[V - 1], [V - 1]]
        for y in sample(quark, prompts, max_new_tokens=6, min_new_tokens=2, greedy=greedy):
            assert len(y) == 3 and y[2] == V - 1 and V - 1 not in y[:2]


def test_no_end_no_more_than_max_new_tokens(quark):
    """A model that never stops gets max_new_tokens tokens, and no <|endoftext|> is added."""
    bias_eos(quark, -1e4)
    assert [len(y) for y in sample(quark, ids_of(quark, "The", "A film"), max_new_tokens=5)] == [5, 5]
    assert all(V - 1 not in y for y in sample(quark, ids_of(quark, "The", "A film"), max_new_tokens=5))


def test_long_prompts_are_cut_from_the_left(quark):
    """Context 64, 10 new tokens: 54 places, one of them for the reward token. What is nearest to y stays."""
    long = quark.encode(" ".join(SENTENCES))
    assert len(long) > 100
    for quantile, room in ((None, 54), (2, 53)):
        options = dict(quantile=quantile, max_new_tokens=10)
        assert sample(quark, [long], **options) == sample(quark, [long[-room:]], **options)
        assert sample(quark, [long], **options) != sample(quark, [long[-room + 3 :]], **options)
        assert sample(quark, [long], **options)[0] == slow_sample(quark, long[-room:], (0, 0), n=10, quantile=quantile)


def test_an_empty_prompt_starts_with_end_of_text(quark):
    """A language model needs something to go on."""
    options = dict(quantile=1, max_new_tokens=6)
    assert sample(quark, [[]], **options) == sample(quark, [[V - 1]], **options)
    assert sample(quark, [], **options) == []


def test_too_many_new_tokens(quark):
    """63 new tokens leave one place: enough for a prompt's last token, not for a reward token as well."""
    assert len(sample(quark, [[5, 6]], max_new_tokens=63)[0]) <= 63
    for quantile, n in ((1, 63), (None, 64)):
        with pytest.raises(BadInput, match="no room for a prompt in a context of 64"):
            sample(quark, [[5, 6]], quantile=quantile, max_new_tokens=n)


# -------------------------------------------------------------------------------------------------------- the stage


def prompts_file(tmp_path, texts=("The film", "I was", "She said that")):
    return write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": t} for t in texts])


def run(model, prompts, out, *options, reward="hash"):
    explore.main(["--model", str(model), "--prompts", str(prompts), "--reward", reward, "--out", str(out), "--max-new-tokens", "6",
                  "--device", "cpu", *map(str, options)])  # fmt: skip
    return read_rows(out)


def test_main_writes_a_pool(quark_folder, quark, tmp_path, capsys):
    """Rows prompt by prompt, each with the very ids that `sample` gives for (prompt, sample) and r_K, and its reward."""
    from rewards import hash_reward

    rows = run(quark_folder, prompts_file(tmp_path), tmp_path / "pool" / "02.jsonl", "--num-samples", 2, "--iteration", 2, "--seed", 7,
               "--temperature", 0.7, "--top-p", 0.8, "--min-new-tokens", 1)  # fmt: skip
    texts = ["The film", "I was", "She said that"]
    keys = [(i, j) for i in range(3) for j in range(2)]
    ids = sample(quark, [quark.encode(texts[i]) for i, _ in keys], keys=keys, quantile=K, max_new_tokens=6, min_new_tokens=1, seed=7, iteration=2,
                 temperature=0.7, top_p=0.8)  # fmt: skip
    for row, (i, _), y in zip(rows, keys, ids, strict=True):
        text = quark.decode(y[:-1] if y[-1] == V - 1 else y)
        assert row == {"prompt": texts[i], "completion": text, "reward": hash_reward([texts[i]], [text])[0], "iteration": 2,
                       "prompt_ids": quark.encode(texts[i]), "completion_ids": y}  # fmt: skip
    assert json.loads((tmp_path / "pool" / "02.args.json").read_text())["seed"] == 7
    assert sorted(os.listdir(tmp_path / "pool")) == ["02.args.json", "02.jsonl"]
    out = capsys.readouterr().out
    assert f"6 samples; reward mean {sum(r['reward'] for r in rows) / 6:.4f}" in out


def test_main_uses_no_token_in_the_first_round(p0_folder, p0, tmp_path):
    """p0 has no reward tokens: nothing is put in front, not even of an empty prompt (which <|endoftext|> stands for)."""
    rows = run(p0_folder, prompts_file(tmp_path, ["The film", ""]), tmp_path / "00.jsonl")
    assert [r["completion_ids"] for r in rows] == sample(p0, [p0.encode("The film"), [V - 1]], max_new_tokens=6, min_new_tokens=3)
    assert rows[1]["prompt"] == "" and rows[1]["prompt_ids"] == []


def test_main_without_the_reward_token(quark_folder, quark, tmp_path):
    """--reward-token none: a model that has reward tokens reads none; other samples than r_K's. --top-k 1: the likeliest token."""
    path = prompts_file(tmp_path)
    ids = [quark.encode(x) for x in ("The film", "I was", "She said that")]
    rows = run(quark_folder, path, tmp_path / "none.jsonl", "--reward-token", "none")
    assert [r["completion_ids"] for r in rows] == sample(quark, ids, max_new_tokens=6, min_new_tokens=3)
    assert rows != run(quark_folder, path, tmp_path / "K.jsonl")
    rows = run(quark_folder, path, tmp_path / "top.jsonl", "--top-k", 1)
    assert [r["completion_ids"] for r in rows] == sample(quark, ids, quantile=K, max_new_tokens=6, min_new_tokens=3, greedy=True)


def test_main_some_of_the_prompts(quark_folder, tmp_path):
    """--num-prompts 2 of 4: two prompts in the file's order, the same in the next round, others for some other seed."""
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": x} for x in ("The", "film", "was", "good")])

    def prompts(name, *options):
        rows = run(quark_folder, path, tmp_path / f"{name}.jsonl", "--num-prompts", 2, "--num-samples", 2, *options)
        return [r["prompt"] for r in rows]

    chosen = prompts("a")
    assert len(chosen) == 4 and chosen[0] == chosen[1] != chosen[2] == chosen[3] and "The film was good".index(chosen[0]) < "The film was good".index(chosen[2])
    assert prompts("b", "--iteration", 1) == chosen and any(prompts(f"s{i}", "--seed", i) != chosen for i in range(1, 6))
    assert len(run(quark_folder, path, tmp_path / "all.jsonl", "--num-prompts", 9)) == 4


def test_main_mixed_decoding(quark_folder, quark, tmp_path):
    """--decode mixed: greedy and drawn alternate over prompts and samples, and change places in the next round."""
    for iteration in (0, 1):
        rows = run(quark_folder, prompts_file(tmp_path), tmp_path / "m.jsonl", "--decode", "mixed", "--num-samples", 2, "--iteration", iteration)
        for n, row in enumerate(rows):
            i, j = divmod(n, 2)
            greedy = sample(quark, [row["prompt_ids"]], quantile=K, max_new_tokens=6, min_new_tokens=3, greedy=True)[0]
            assert (row["completion_ids"] == greedy) == ((i + j + iteration) % 2 == 0)


def test_main_cuts_and_counts_long_prompts(quark_folder, quark, tmp_path, capsys):
    """Context 64, 6 new tokens, one place for r_k: 57 ids of the prompt are read and stored; the text stays whole."""
    long = " ".join(SENTENCES)
    rows = run(quark_folder, prompts_file(tmp_path, ["The film", long]), tmp_path / "c.jsonl")
    assert rows[1]["prompt"] == long and rows[1]["prompt_ids"] == quark.encode(long)[-57:]
    assert rows[1]["completion_ids"] == sample(quark, [quark.encode(long)[-57:]], keys=[(1, 0)], quantile=K, max_new_tokens=6, min_new_tokens=3)[0]
    assert "1 of 2 prompts are longer than 57 tokens" in capsys.readouterr().out


def test_main_control_tokens_in_prompts(quark_folder, tmp_path):
    """<|reward_1|> in a prompt is text: no control id reaches the pool."""
    rows = run(quark_folder, prompts_file(tmp_path, ["<|reward_1|>x<|endoftext|>"]), tmp_path / "c.jsonl")
    assert max(rows[0]["prompt_ids"]) < V - 1


def test_main_drops_what_has_no_score(quark_folder, tmp_path, capsys):
    """None drops the sample and is counted, 0 does not; the reward is handed the ids that the pool keeps."""
    reward = tmp_path / "r.py"
    reward.write_text("def half(prompts, completions, completion_ids, **kwargs):\n"
                      "    return [None if x == 'I was' else sum(i) * (x != 'The film') for x, i in zip(prompts, completion_ids)]\n"
                      "def none(prompts, completions): return [None] * len(prompts)\n")  # fmt: skip
    rows = run(quark_folder, prompts_file(tmp_path), tmp_path / "d.jsonl", reward=f"{reward}:half")
    assert [(r["prompt"], r["reward"]) for r in rows] == [("The film", 0), ("She said that", sum(rows[1]["completion_ids"]))]
    assert "2 samples, 1 without a score dropped" in capsys.readouterr().out
    with pytest.raises(BadInput, match="scored none of the 3"):
        run(quark_folder, prompts_file(tmp_path), tmp_path / "e.jsonl", reward=f"{reward}:none")
    assert not [f for f in os.listdir(tmp_path) if f.startswith("e.")]


def test_main_same_seed_same_bytes(quark_folder, tmp_path):
    """Twice the same, and another batch size too; another seed gives another pool."""
    prompts = prompts_file(tmp_path)
    for name, options in [("a", []), ("b", []), ("c", ["--batch-size", 1]), ("d", ["--seed", 1])]:
        run(quark_folder, prompts, tmp_path / f"{name}.jsonl", *options)
    a, b, c, d = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abcd")
    assert a == b == c != d


def test_main_bad_input(quark_folder, tmp_path, monkeypatch):
    """Missing prompts or model, a reward that fails, no room: one sentence, non-zero, nothing new on the disk."""
    prompts = prompts_file(tmp_path)
    (tmp_path / "bad.py").write_text("def nan(prompts, completions): return [float('nan')] * len(prompts)\n"
                                     "def short(prompts, completions): return []\n")  # fmt: skip
    (tmp_path / "cut.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b')
    good = {"--model": quark_folder, "--prompts": prompts, "--reward": "hash", "--max-new-tokens": 6}
    for option, value, message in [
        ("--prompts", tmp_path / "none.jsonl", "cannot read"), ("--prompts", tmp_path / "cut.jsonl", "cut.jsonl:2"),
        ("--model", tmp_path / "none", "does not exist"), ("--model", tmp_path, "cannot open"),
        ("--reward", "nothing", "no reward is called"), ("--reward", f"{tmp_path}/bad.py:nan", "returned nan at index 0"),
        ("--reward", f"{tmp_path}/bad.py:short", "returned 0 values for 3"), ("--max-new-tokens", 63, "no room for a prompt"),
    ]:  # fmt: skip
        argv = [x for pair in {**good, option: value}.items() for x in pair]
        exit = stage(monkeypatch, "explore.py", *argv, "--out", tmp_path / "out" / "o.jsonl", "--device", "cpu")
        assert one_sentence(exit) and message in exit
        assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("option", [("--num-samples", 0), ("--max-new-tokens", 0), ("--min-new-tokens", 7), ("--temperature", 0), ("--top-p", 0),
                                    ("--top-p", 1.5), ("--batch-size", 0), ("--seed", -1), ("--temperature", "nan"), ("--iteration", -1)], ids=str)  # fmt: skip
def test_bad_options(option, tmp_path, quark_folder):
    """argparse's exit status 2, before anything is opened."""
    with pytest.raises(SystemExit) as exit:
        run(quark_folder, prompts_file(tmp_path), tmp_path / "o.jsonl", *option)
    assert exit.value.code == 2 and not (tmp_path / "o.jsonl").exists()


def test_kept_samples_are_used_by_the_same_settings_only(quark_folder, tmp_path, monkeypatch):
    """A reward that fails in its third batch leaves two batches behind. Another seed, other prompts or another reward file start
    afresh; the same settings go on from there, and score nothing twice."""
    source = "def f(prompts, completions, **kwargs):\n    open(r'{0}/asked', 'a').write('x' * len(prompts))\n    {1}\n    return [0.5] * len(prompts)\n"
    fails, works = (source.format(tmp_path, line) for line in (f"import os; assert os.path.getsize(r'{tmp_path}/asked') < 5 or os.path.exists(r'{tmp_path}/mended'), 'out of money'", "pass"))
    (tmp_path / "my.py").write_text(fails)
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": x} for x in ("The", "film", "was", "good", "it", "is")])
    out, asked = tmp_path / "pool" / "00.jsonl", tmp_path / "asked"
    explore = lambda *more: stage(monkeypatch, "explore.py", "--model", quark_folder, "--prompts", prompts, "--reward", f"{tmp_path}/my.py:f",
                                  "--batch-size", 2, "--max-new-tokens", 5, "--device", "cpu", "--out", out, *more)  # fmt: skip
    assert "out of money" in explore()
    part = next((tmp_path / "pool").iterdir())
    kept = part.read_bytes()
    assert len(kept.splitlines()) == 4 and [json.loads(line)["reward"] for line in kept.splitlines()] == [0.5] * 4
    (tmp_path / "mended").touch()
    for other in (["--seed", 1], ["--top-p", 0.5]):
        asked.unlink()
        assert explore(*other) is None and len(asked.read_text()) == 6 and len(read_rows(out)) == 6
        part.write_bytes(kept)
    asked.unlink()
    assert explore() is None and len(asked.read_text()) == 2 and sorted(os.listdir(out.parent)) == ["00.args.json", "00.jsonl"]
    assert [row["prompt"] for row in read_rows(out)] == ["The", "film", "was", "good", "it", "is"]
    part.write_bytes(kept)
    (tmp_path / "my.py").write_text(works)
    asked.unlink()
    assert explore() is None and len(asked.read_text()) == 6
