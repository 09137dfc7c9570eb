"""The pool's rows: how a JSONL file is read, what makes a row valid, and how one is written again.

The formats are in the README, "The pool". Whatever a user's file gets wrong is reported as
BadInput, in one sentence that names the file, the line and the value.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

# The fields of a row that stages write. All others are columns of the prompt file.
OPTIONAL = ("iteration", "quantile", "prompt_ids", "completion_ids")
OF_A_POOL = ("prompt", "completion", "reward", *OPTIONAL)
OF_OTHER_FILES = ("number", "prompt_number", "rewards")  # explore.py's log, evaluate.py's texts
FIELDS = (*OF_A_POOL, *OF_OTHER_FILES, "prompts", "completions")  # keywords of a reward


class BadInput(Exception):
    """The user gave something unusable. The message is one sentence: place, value, remedy."""


def read_jsonl(path):
    """Yields (place, row) for every line that is not blank. place is "file:line", row a dict."""
    path = Path(path)
    try:
        if path.is_dir():
            raise BadInput(f"{path} is a folder; name a .jsonl file in it")
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
    if number == 1 and line.startswith(b"\x1f\x8b"):
        raise BadInput(f"{place}: the file is compressed; unpack it with gunzip")
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


def prompt_of(row, place):
    """The prompt of a row: a string, or the "text" of an object, as in RealToxicityPrompts."""
    if isinstance(row.get("prompt"), dict):
        row = row["prompt"]
        return text_of(row, "text", f'{place}: "prompt"')
    return text_of(row, "prompt", place)


def _check_group(row, place):
    """The optional "group" of a prompt is a string."""
    if row.get("group") is not None and not isinstance(row["group"], str):
        raise BadInput(f'{place}: "group" is {shown(row["group"])}, not a string')


def checked_row(row, place):
    """The pool row, without optional fields that are null. Raises BadInput if it is not valid."""
    row = {k: v for k, v in row.items() if v is not None or k not in OPTIONAL}
    row["prompt"] = prompt_of(row, place)
    text_of(row, "completion", place)
    _check_reward(row, place)
    for field, least in (("iteration", 0), ("quantile", 1)):
        if field in row:
            row[field] = whole_number(row[field], least, f'{place}: "{field}"')
    for field in ("prompt_ids", "completion_ids"):
        _check_ids(row, field, place)
    return row


def _check_ids(row, field, place):
    ids = row.get(field)
    is_list = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**31 for i in ids)
    if ids is not None and not is_list:
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


def whole_number(value, least, place):
    """The value as an int; 3.0 is one, too."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value < 2**31 or value != int(value):
        raise BadInput(f"{place} is {shown(value)}, not a whole number from {least}")
    return int(value)


def read_pool(paths):
    """Yields (place, row) for every row of `paths` (files, or folders of *.jsonl), each checked."""
    for path in pool_files(paths):
        for place, row in read_jsonl(path):
            yield place, checked_row(row, place)


def pool_files(paths):
    """The .jsonl files that `paths` name. A file that is named twice counts once."""
    files = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.jsonl")) if os.path.isdir(path) else [path]
        if not inside:
            raise BadInput(
                f"{path} holds no .jsonl file; name the folder that explore.py writes to"
            )
        files += inside
    return list({os.path.realpath(file): file for file in files}.values())


def read_prompts(path, limit=None, seed=0):
    """The prompts of a JSONL file: dicts with "prompt" and all further columns, None if missing.

    "prompt" may be a string or {"text": ...}, the form of RealToxicityPrompts. The optional "group"
    splits evaluate.py's tables. limit: how many prompts to draw, by `seed`; they stay in the order
    of the file.
    """
    prompts, dropped = [], {}
    for place, row in read_jsonl(path):
        prompt = {"prompt": prompt_of(row, place)}
        _check_group(row, place)
        columns = {k: v for k, v in row.items() if k not in FIELDS}
        dropped |= dict.fromkeys(k for k in row if k not in columns and k != "prompt")
        prompts.append(prompt | columns)
    if not prompts:
        raise BadInput(f'{path} holds no prompts; write one {{"prompt": "..."}} a line')
    if dropped and os.environ.get("RANK", "0") == "0":
        print(f"{path}: left out {', '.join(dropped)}: the pool has fields of that name")
    names = dict.fromkeys(name for prompt in prompts for name in prompt)
    prompts = [{name: prompt.get(name) for name in names} for prompt in prompts]
    if limit and limit < len(prompts):
        drawn = np.random.default_rng(seed).permutation(len(prompts))[:limit]
        prompts = [prompts[i] for i in sorted(drawn)]
    return prompts


def read_texts(path):
    """Rows of any origin that have a prompt and a completion, or a list of "generations".

    Such a list, of strings or of {"text": ...}, becomes a row for each of its completions. They
    share a "prompt_number": the lines of the file are the prompts.
    """
    rows, n_lists, n_empty = [], 0, 0
    for n, (place, row) in enumerate(read_jsonl(path)):
        row = {**row, "prompt": prompt_of(row, place)}
        _check_group(row, place)
        if row.get("prompt_number") is not None:
            row["prompt_number"] = whole_number(
                row["prompt_number"], 0, f'{place}: "prompt_number"'
            )
        if row.get("completion") is not None or row.get("generations") is None:
            text_of(row, "completion", place)
            _check_ids(row, "completion_ids", place)
            if row["completion"] and row.get("completion_ids") == []:
                del row["completion_ids"]
            rows.append(row)
        else:
            generations = row.pop("generations")
            if not isinstance(generations, list):
                raise BadInput(f'{place}: "generations" is {shown(generations)}, not a list')
            row.setdefault("prompt_number", n)
            for y in generations:
                y = y if isinstance(y, dict) else {"text": y}
                rows.append({**row, "completion": text_of(y, "text", f'{place}: "generations"')})
            n_lists, n_empty = n_lists + 1, n_empty + (not generations)
        if n_lists not in (0, n + 1):
            raise BadInput(
                f'{place}: some lines have a "completion" and some a list of "generations"; '
                "use one of these forms"
            )
    if n_empty:
        print(f"{path}: {n_empty} prompts have no generations")
    if not rows:
        example = '{"prompt": "...", "completion": "..."}'
        raise BadInput(f"{path} holds no rows; write one {example} a line")
    return rows


def read_generations(path, policy):
    """The rows of read_texts with "completion_ids" and "prompt_number", for evaluate.py.

    Ids that spell the completion are kept; whether it begins with a blank is then as in the ids.
    Otherwise the text is encoded. Rows without a "prompt_number" belong to one prompt if "prompt"
    and "group" are equal.
    """
    rows, numbers = read_texts(path), {}
    numbered = sum(row.get("prompt_number") is not None for row in rows)
    if numbered not in (0, len(rows)):
        raise BadInput(
            f'{path}: {numbered} of {len(rows)} rows have a "prompt_number"; give it to all or none'
        )
    for row in rows:
        ids, known = row.get("completion_ids"), None
        if ids is not None and all(i < policy.vocab_size for i in ids):
            known = policy.decode(policy.without_eos(ids), goes_on=True)
        if known is not None and known.strip() == row["completion"].strip():
            row["completion"] = known
        else:
            row["completion_ids"] = policy.encode(row["completion"], goes_on=True)
        if not numbered:
            key = (row["prompt"], row.get("group"))
            row["prompt_number"] = numbers.setdefault(key, len(numbers))
    if not numbered and len(numbers) < len(rows):
        print(
            f"{path}: {len(rows)} rows of {len(numbers)} prompts; rows with the same prompt are "
            'samples of one prompt (a "prompt_number" in the rows would keep them apart)'
        )
    glued = sum(row["prompt"][-1:].isalpha() and row["completion"][:1].isalpha() for row in rows)
    if 2 * glued > len(rows):
        row = next(r for r in rows if r["prompt"][-1:].isalpha() and r["completion"][:1].isalpha())
        print(
            f"warning: {path}: {glued} of {len(rows)} completions begin with a letter and their "
            f"prompts end in one, so they are scored as one word: "
            f"{shown(row['prompt'][-20:] + row['completion'][:20])}; begin them with a blank"
        )
    return rows
