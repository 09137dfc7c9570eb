"""The pool's rows: how a JSONL file is read, what makes a row valid, and how one is written again.

The formats are in the README, "The pool". Whatever a user's file gets wrong is reported as
BadInput, in one sentence that names the file, the line and the value.
"""

import json
import sys
from pathlib import Path

import numpy as np


class BadInput(Exception):
    """The user gave something unusable. The message is one sentence: place, value, remedy."""


def read_jsonl(path):
    """Yields (place, row) for every line that is not blank. place is "file:line", row a dict."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{path} is a folder; name a .jsonl file in it")
    try:
        # in binary mode lines end at \n only, not at U+2028 inside a string
        lines = path.open("rb")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; check the path") from None
    with lines:
        for number, line in enumerate(lines, 1):
            place = f"{path}:{number}"
            row = _parse(line, number, place)
            if row is not None:
                yield place, row


def _parse(line, number, place):
    """One line of a JSONL file as a dict; None if it is blank."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        row = json.loads(text) if text else None
        if "\\ud" in text or "\\uD" in text:  # half a surrogate pair is valid JSON, but not text
            dump_row(row).encode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{place}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    except UnicodeEncodeError:
        raise BadInput(f"{place}: half a surrogate pair, a lone \\ud...; remove it") from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "a number or the nesting is too large")
        cut = "" if line.endswith(b"\n") else " (the file ends within this line: is it cut off?)"
        raise BadInput(f"{place}: not valid JSON: {reason}{cut}; write one object a line") from None
    if text and not isinstance(row, dict):
        raise BadInput(f"{place}: is {shown(row)}, not an object; write one {{...}} a line")
    return row


def dump_row(row):
    """A row as one line of JSON, without the newline."""
    return json.dumps(row, ensure_ascii=False)


def shown(value, limit=60):
    """A value as JSON for an error message, cut to `limit` characters."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def text_of(row, field, place):
    """row[field], which must be a string."""
    if field not in row:
        raise BadInput(f'{place}: "{field}" is missing; every row needs it')
    if not isinstance(row[field], str):
        raise BadInput(f'{place}: "{field}" is {shown(row[field])}, not a string')
    return row[field]


def group_of(row, place):
    """The optional "group" of a prompt: a string or None."""
    group = row.get("group")
    if group is not None and not isinstance(group, str):
        raise BadInput(f'{place}: "group" is {shown(group)}, not a string')
    return group


def check_row(row, place):
    """Raises BadInput unless `row` is a valid pool row."""
    text_of(row, "prompt", place)
    text_of(row, "completion", place)
    _check_reward(row, place)
    _check_whole_number(row, "iteration", 0, place)
    _check_whole_number(row, "quantile", 1, place)
    for field in ("prompt_ids", "completion_ids"):
        ids = row.get(field, [])
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
            raise BadInput(f'{place}: "{field}" is {shown(ids)}, not a list of token ids')


def _check_reward(row, place):
    reward = row.get("reward")
    if "reward" not in row:
        raise BadInput(
            f'{place}: "reward" is missing; score the pool first: python rewards.py --help'
        )
    if isinstance(reward, bool) or not isinstance(reward, (int, float)):
        raise BadInput(f'{place}: "reward" is {shown(reward)}, not a number')
    if not abs(reward) <= sys.float_info.max:  # NaN, too
        raise BadInput(
            f'{place}: "reward" is {shown(reward)}; rewards must be finite, drop or rescore the row'
        )


def _check_whole_number(row, field, least, place):
    value = row.get(field, least)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise BadInput(f'{place}: "{field}" is {shown(value)}, not a whole number from {least}')


def read_pool(paths):
    """Yields (place, row) for every row of `paths` (files, or folders of *.jsonl), each checked."""
    for path in pool_files(paths):
        for place, row in read_jsonl(path):
            check_row(row, place)
            yield place, row


def pool_files(paths):
    """The .jsonl files that `paths` name. A file that is named twice counts once."""
    files = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise BadInput(
                f"{path} holds no .jsonl file; name the folder that explore.py writes to"
            )
        files += inside
    return list({file.resolve(): file for file in files}.values())


def read_prompts(path, limit=None, seed=0):
    """The prompts of a JSONL file: a list of {"prompt": str, "group": str or None}.

    "prompt" may be a string or {"text": ...}, the form of RealToxicityPrompts. limit: how many
    to draw, by `seed`; they stay in the order of the file.
    """
    prompts = []
    for place, row in read_jsonl(path):
        if isinstance(row.get("prompt"), dict):
            row = {**row, "prompt": row["prompt"].get("text")}
        prompts.append({"prompt": text_of(row, "prompt", place), "group": group_of(row, place)})
    if not prompts:
        raise BadInput(f'{path} holds no prompts; write one {{"prompt": "..."}} a line')
    if limit and limit < len(prompts):
        drawn = np.random.default_rng(seed).permutation(len(prompts))[:limit]
        prompts = [prompts[i] for i in sorted(drawn)]
    return prompts


def read_texts(path):
    """Rows that have a prompt and a completion; nothing else in them is checked."""
    rows = []
    for place, row in read_jsonl(path):
        text_of(row, "prompt", place)
        text_of(row, "completion", place)
        rows.append(row)
    if not rows:
        example = '{"prompt": "...", "completion": "..."}'
        raise BadInput(f"{path} holds no rows; write one {example} a line")
    return rows


def read_generations(path, policy):
    """Completions of any origin: rows with "prompt", "completion" and, optionally, "group".

    "completion_ids" are kept where they spell the completion; otherwise the text is encoded.
    """
    rows, numbers = [], {}
    for place, row in read_jsonl(path):
        prompt = text_of(row, "prompt", place)
        completion = text_of(row, "completion", place)
        group = group_of(row, place)
        ids = row.get("completion_ids")
        known = isinstance(ids, list) and all(
            type(i) is int and 0 <= i < policy.vocab_size for i in ids
        )
        if not known or policy.decode(policy.without_eos(ids)) != completion:
            ids = policy.encode(completion)
        rows.append(
            {
                "prompt": prompt,
                "completion": completion,
                "completion_ids": ids,
                "group": group,
                "prompt_number": numbers.setdefault((prompt, group), len(numbers)),
            }
        )
    if not rows:
        raise BadInput(f"{path} has no rows; each needs a prompt and a completion")
    return rows
