"""A sequence classifier as a judge: texts -> the probability of one label.

Any model of transformers' AutoModelForSequenceClassification works, as a folder or by its hub name.
"""

import torch
from safetensors import SafetensorError

from plumbing.files import first_line
from plumbing.pool import BadInput, shown

# What opening a folder that is damaged, or no classifier, can raise.
UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)


def classifier(model, label_names, device="cpu", batch_size=64):
    """A function texts -> P(label) for the first of `label_names` that the model knows.

    A text that is too long for the model loses its beginning: the completion is at the end.
    """
    net, tokenizer = _open(model)
    net.eval().to(device)
    column = _column(net.config, label_names, model)
    to_probabilities = _reading(net.config, model)
    positions = getattr(net.config, "max_position_embeddings", 512) - 2  # RoBERTa's start at 2
    longest = min(tokenizer.model_max_length, positions)

    @torch.no_grad()
    def probabilities(texts):
        scores = [0.0] * len(texts)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        for start in range(0, len(texts), batch_size):
            rows = by_length[start : start + batch_size]
            batch = tokenizer(
                [texts[i] or tokenizer.eos_token or "" for i in rows],  # GPT-2 needs a token
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            logits = net(**batch.to(device)).logits  # (rows, labels)
            for i, value in zip(rows, to_probabilities(logits)[:, column].tolist()):
                scores[i] = value
        return scores

    return probabilities


def _open(model):
    """(network, tokenizer) of a folder or hub name."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, truncation_side="left")
        tokenizer.padding_side = "right"
        net, loading = AutoModelForSequenceClassification.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (*UNREADABLE, SafetensorError) as error:
        raise BadInput(
            f"cannot open the reward model {model}: {first_line(error)}; "
            "name a folder or hub model with --reward-model"
        ) from None
    if loading["missing_keys"]:  # transformers fills them with random numbers
        raise BadInput(
            f"reward model {model} is no classifier: it has no weights for "
            f"{shown(sorted(loading['missing_keys']))}; name another"
        )
    if tokenizer.pad_token is None:  # a GPT-2 has none; its last token before the padding decides
        tokenizer.pad_token = tokenizer.eos_token
    net.config.pad_token_id = tokenizer.pad_token_id
    return net, tokenizer


def _reading(config, model):
    """logits (B, labels) -> probabilities, as the problem_type in config.json says.

    Without one: a single label gets a sigmoid, two a softmax. More get a softmax if one means "none
    of the others", such as "neutral".
    """
    kind, labels = config.problem_type, [str(name).lower() for name in config.id2label.values()]
    if kind is None and len(labels) > 1:
        if len(labels) > 2 and not any(name in REST for name in labels):
            raise BadInput(
                f"reward model {model} has the labels {shown(labels)}, and its config.json does "
                'not say whether a text can have several; add "problem_type" to it: '
                '"multi_label_classification" if it can, "single_label_classification" if not'
            )
        kind = "single_label_classification"
    if kind == "regression":
        return lambda logits: logits  # it was trained to be the score itself
    if kind == "single_label_classification" and len(labels) > 1:
        return lambda logits: logits.softmax(-1)
    if kind in (None, "multi_label_classification", "single_label_classification"):
        return lambda logits: logits.sigmoid()
    raise BadInput(f"reward model {model} has the problem_type {shown(kind)}, which nobody knows")


REST = {"neutral", "negative", "neg", "none", "normal", "other", "neither", "clean", "nothate"} | {
    f"{no}{joint}toxic" for no in ("non", "not") for joint in ("", "-", "_", " ")
}


def _column(config, label_names, model):
    """The column of the label that is asked for."""
    labels = {str(name).lower(): i for i, name in config.id2label.items()}
    if config.num_labels == 2:  # of two labels without names, the second one is meant
        label_names = [*label_names, "label_1"]
    for name in label_names:
        if name in labels:
            return labels[name]
    raise BadInput(
        f"reward model {model} has the labels {shown(sorted(labels))}, none of {shown(label_names)}"
    )
