"""Classifiers as judges: batches change nothing, and what is no usable classifier is refused."""

import json
import shutil

import pytest
import torch
from conftest import JUDGE_WORDS, N_MERGES, SENTENCES, V, learn_merges, make_classifier
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Tokenizer,
)

from plumbing.pool import BadInput
from plumbing.tokenizer import merge_pairs
from rewards import load_reward


def test_batches_by_length_give_the_input_order_back(judges):
    """Whatever the batch size and the padding, value i belongs to text i. 0 to 16 words a text."""
    words = JUDGE_WORDS[4:]
    texts = []
    for i in range(23):
        texts.append(" ".join(words[(i * j) % 12] for j in range(1, 1 + (7 * i) % 17)))

    def values(**batch_size):
        reward = load_reward("toxicity", judges / "toxicity", **batch_size)
        return reward(prompts=texts, completions=texts)

    whole = values()
    assert values(batch_size=1) == pytest.approx(whole, abs=1e-5)
    assert values(batch_size=4) == pytest.approx(whole, abs=1e-5)
    assert len({round(value, 4) for value in whole}) > 15


@pytest.mark.parametrize("of_tokenizer, longest", [(50, 22), (10, 10)])
def test_how_much_of_a_long_text_is_read(judges, tmp_path, of_tokenizer, longest):
    """At most what the tokenizer says, and two less than the network's 24 positions.

    [CLS] and [SEP] are among these tokens. The other places go to the last words of the text.
    """
    shutil.copytree(judges / "toxicity", tmp_path / "j")
    file = tmp_path / "j" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": of_tokenizer}))
    reward = load_reward("toxicity", tmp_path / "j")
    words = JUDGE_WORDS[4:] * 2
    texts = [" ".join(words[-n:]) for n in (24, longest - 2, longest - 3)]
    long, fitting, shorter = reward(prompts=texts, completions=texts)
    assert long == pytest.approx(fitting, abs=1e-5)
    assert abs(long - shorter) > 1e-3


def test_labels_without_names(tmp_path):
    """Of LABEL_0 and LABEL_1 the second one is the better. Of three, nobody knows which one is."""
    make_classifier(tmp_path / "two", ["LABEL_0", "LABEL_1"], 5)
    named = make_classifier(tmp_path / "named", ["NEGATIVE", "POSITIVE"], 5)  # the same weights
    given = {"prompts": ["the film"], "completions": [" was good"]}
    unnamed = load_reward("sentiment", tmp_path / "two")(**given)
    assert unnamed == load_reward("sentiment", named)(**given)
    make_classifier(tmp_path / "three", ["LABEL_0", "LABEL_1", "LABEL_2"], 5)
    with pytest.raises(BadInput, match="none of .*positive"):
        load_reward("sentiment", tmp_path / "three")


def test_classifiers_that_cannot_be_used(judges, tmp_path):
    """No such folder, no label of that name, a model without a classifier's head, cut-off weights.

    A language model has no such head. transformers would fill it with random numbers.
    """
    with pytest.raises(BadInput, match="cannot open the reward model .*nowhere"):
        load_reward("sentiment", tmp_path / "nowhere")
    with pytest.raises(BadInput, match="none of .*positive"):
        load_reward("sentiment", judges / "labels")

    folder = tmp_path / "headless"
    shutil.copytree(judges / "two", folder)
    weights = load_file(folder / "model.safetensors")
    headless = {name: w for name, w in weights.items() if not name.startswith("classifier")}
    save_file(headless, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="is no classifier: it has no weights for .*classifier"):
        load_reward("sentiment", folder)

    data = (judges / "two" / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(BadInput, match="cannot open the reward model"):
        load_reward("sentiment", folder)


def logits_of(folder, text):
    net = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return net(**tokenizer(text, return_tensors="pt")).logits[0]


def toxicity_of(folder):
    return 1 - load_reward("toxicity", folder)(prompts=["x"], completions=["the film was bad"])[0]


SIX = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


def test_logits_are_read_as_the_config_says(tmp_path):
    """Softmax, sigmoid, or the logit itself. Six labels that may all hold need a problem_type."""
    cases = {
        "single_label_classification": (SIX, lambda z: z.softmax(-1)),
        "multi_label_classification": (SIX, torch.sigmoid),
        "regression": (["toxic"], lambda z: z),
    }
    for kind, (labels, expected) in cases.items():
        folder = make_classifier(tmp_path / kind, labels, 7, problem_type=kind)
        p = expected(logits_of(folder, "the film was bad"))[0].item()
        assert toxicity_of(folder) == pytest.approx(p, abs=1e-6)
    with_rest = make_classifier(tmp_path / "rest", [*SIX, "neutral"], 7)
    p = logits_of(with_rest, "the film was bad").softmax(-1)[0].item()
    assert toxicity_of(with_rest) == pytest.approx(p, abs=1e-6)
    silent = make_classifier(tmp_path / "silent", SIX, 7)
    with pytest.raises(BadInput, match='add "problem_type" to it: "multi_label_classification"'):
        load_reward("toxicity", silent)


def make_gpt2_judge(folder, **settings):
    """A random GPT-2 with two labels and without a padding token."""
    tokenizer = GPT2Tokenizer(
        vocab=json.loads(learn_merges(SENTENCES, N_MERGES)[0]),
        merges=merge_pairs(learn_merges(SENTENCES, N_MERGES)[1]),
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=V, n_positions=64, n_embd=32, n_layer=1, n_head=2, **settings)
    config.id2label = {0: "toxic", 1: "fine"}
    config.initializer_range = 0.3
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_gpt2_as_judge(tmp_path):
    """It has no padding token, and its last real token decides: batches change nothing."""
    folder = make_gpt2_judge(tmp_path / "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token is None
    texts = ["a", "The film was long", "", "I was bored by the first hour;", "it's"]
    reward = load_reward("toxicity", folder)
    together = reward(prompts=texts, completions=texts)
    alone = [reward(prompts=[t], completions=[t])[0] for t in texts]
    assert together == pytest.approx(alone, abs=1e-5)
    for text, value in zip(texts, together):
        p = logits_of(folder, text or tokenizer.eos_token).softmax(-1)[0].item()
        assert 1 - value == pytest.approx(p, abs=1e-5)
    assert len({round(value, 4) for value in together}) == 5


def test_a_padding_token_that_config_names_otherwise(tmp_path):
    """The tokenizer pads, so its token counts: a text scores the same beside a longer one."""
    folder = make_gpt2_judge(tmp_path / "gpt2", pad_token_id=5)
    reward = load_reward("toxicity", folder)
    texts = ["a b", "The film was long and silly"]
    together = reward(prompts=texts, completions=texts)
    alone = [reward(prompts=[t], completions=[t])[0] for t in texts]
    assert together == pytest.approx(alone, abs=1e-5)


def test_configs_that_make_no_sense(judges, tmp_path):
    """A problem_type that nobody knows, a list instead of an object: one sentence."""
    shutil.copytree(judges / "two", tmp_path / "j")
    config = json.loads((judges / "two" / "config.json").read_text())
    for content in ({**config, "problem_type": "banana"}, [config], {**config, "id2label": [1]}):
        (tmp_path / "j" / "config.json").write_text(json.dumps(content))
        with pytest.raises(BadInput) as error:
            load_reward("sentiment", tmp_path / "j")
        assert "\n" not in str(error.value)
