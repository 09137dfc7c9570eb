"""The quantized pool as learn.py reads it: D^1 ... D^K, as token ids, each row checked."""

import numpy as np

from plumbing.pool import BadInput, read_pool


def load_quantized(path, policy, reward_tokens=True):
    """D^1 ... D^K: a list of K lists of (k, prompt_ids, completion_ids), ids as int32 arrays.

    The sampled ids are used where a row has them, <|endoftext|> included if it was produced.
    Otherwise the texts are encoded, and no <|endoftext|> is added: nothing is known about the
    completion's end. Without reward_tokens: one part with all rows, and k is None.
    """
    parts = {}
    for place, row in read_pool([path]):
        if reward_tokens and "quantile" not in row:
            raise BadInput(f'{place}: "quantile" is missing; run quantize.py on the pool first')
        x, y = ids_of(row, policy, place)
        k = row["quantile"] if reward_tokens else None
        part = parts.setdefault(k, [])
        if y:  # an empty completion has no token to learn from
            part.append((k, np.array(x, np.int32), np.array(y, np.int32)))
    if not any(parts.values()):
        raise BadInput(f"{path}: no rows to learn from; run explore.py and quantize.py first")
    if not reward_tokens:
        return [parts[None]]
    K = max(parts)
    for k in range(1, K + 1):
        if k not in parts:
            raise BadInput(
                f"{path}: no row has quantile {k} of {K}; choose fewer --quantiles in quantize.py"
            )
        if not parts[k]:
            raise BadInput(
                f"{path}: all completions of quantile {k} of {K} are empty, so nothing can be "
                "learned about it; sample with a higher --min-new-tokens"
            )
    return [parts[k] for k in range(1, K + 1)]


def ids_of(row, policy, place):
    """The ids of a row's prompt, cut from the left to fit the context, and of its completion."""
    x = _ids(row, "prompt", policy, place)
    y = _ids(row, "completion", policy, place)
    room = policy.context - 1 - len(policy.bos) - len(y)
    if room < 1:
        raise BadInput(
            f"{place}: the completion has {len(y)} tokens, which leaves no room for a prompt "
            f"in a context of {policy.context}"
        )
    return x[-room:], y


def _ids(row, field, policy, place):
    """The ids of a row's prompt or completion, checked against its text."""
    goes_on = field == "completion"
    ids = row.get(field + "_ids")
    if ids is None:
        return policy.encode(row[field], goes_on)
    remedy = "Remove the ids to have the text encoded again"
    if ids and max(ids) >= policy.vocab_size:
        raise BadInput(
            f'{place}: "{field}_ids" holds {max(ids)}, but the model has {policy.vocab_size} '
            f"tokens; sampled with another tokenizer? {remedy}"
        )
    text = policy.decode(policy.without_eos(ids), goes_on)
    if field == "prompt":
        # explore.py cuts off a long prompt's beginning, perhaps inside a character
        end = text.lstrip("\ufffd")
        fits = row["prompt"].endswith(end) and bool(ids) == bool(row["prompt"])
        if not fits:  # a tokenizer may compose accents, for example
            fits = bool(ids) and policy.decode(policy.encode(row["prompt"])).endswith(end)
    else:
        fits = text == row["completion"]
    if not fits:
        raise BadInput(
            f'{place}: "{field}_ids" do not spell "{field}"; sampled with another tokenizer, or '
            f"the text was edited? {remedy}"
        )
    return ids
