"""Classifiers as judges: batches change nothing, and what is no usable classifier is refused."""

import shutil

import pytest
from conftest import JUDGE_WORDS, make_classifier
from safetensors.torch import load_file, save_file

from plumbing.pool import BadInput
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
