"""A sequence classifier as a judge: texts -> the probability of one label.

Any model of transformers' AutoModelForSequenceClassification works, as a folder or by its hub name.
"""

import torch
from safetensors import SafetensorError

from plumbing.pool import BadInput, shown


def classifier(model, label_names, device="cpu", batch_size=64):
    """A function texts -> P(label) for the first of `label_names` that the model knows.

    A text that is too long for the model loses its beginning: the completion is at the end.
    """
    net, tokenizer = _open(model)
    net.eval().to(device)
    column = _column(net.config, label_names, model)
    # A single logit, or labels that do not exclude each other: a sigmoid. Otherwise a softmax.
    multi_label = net.config.problem_type == "multi_label_classification"
    independent = net.config.num_labels == 1 or multi_label
    positions = getattr(net.config, "max_position_embeddings", 512) - 2  # RoBERTa's start at 2
    longest = min(tokenizer.model_max_length, positions)

    @torch.no_grad()
    def probabilities(texts):
        scores = [0.0] * len(texts)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        for start in range(0, len(texts), batch_size):
            rows = by_length[start : start + batch_size]
            batch = tokenizer(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            logits = net(**batch.to(device)).logits  # (rows, labels)
            p = logits.sigmoid() if independent else logits.softmax(-1)
            for i, value in zip(rows, p[:, column].tolist()):
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
        net, loading = AutoModelForSequenceClassification.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(
            f"cannot open the reward model {model}: {reason}; "
            "name a folder or hub model with --reward-model"
        ) from None
    if loading["missing_keys"]:  # transformers fills them with random numbers
        raise BadInput(
            f"reward model {model} is no classifier: it has no weights for "
            f"{shown(sorted(loading['missing_keys']))}; name another"
        )
    return net, tokenizer


def _column(config, label_names, model):
    """The column of the label that is asked for."""
    labels = {name.lower(): i for i, name in config.id2label.items()}
    if config.num_labels == 2:  # of two labels without names, the second one is meant
        label_names = [*label_names, "label_1"]
    for name in label_names:
        if name in labels:
            return labels[name]
    raise BadInput(
        f"reward model {model} has the labels {shown(sorted(labels))}, none of {shown(label_names)}"
    )
