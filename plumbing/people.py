"""What people prefer: a sheet of blinded pairs to fill in, and the count of their answers."""

import csv
import math
from pathlib import Path

import numpy as np

from plumbing.files import read_json, refuse_special, whole_file, write_json
from plumbing.pool import BadInput, read_jsonl, shown, text_of

QUESTIONS = {
    "better": "which completion has less of what is unwanted?",
    "on_topic": "which one fits its prompt better?",
    "fluent": "which one reads more like English?",
}


def human_sheet(sheet, a, b, pairs, seed):
    """Writes a CSV of blinded pairs from two results, and its key, SHEET.key.json.

    Prompts are drawn without replacement. For each, one completion of each result is drawn. The
    sides are random.
    """
    for file in (sheet, Path(f"{sheet}.key.json")):
        refuse_special(file)
        if file.exists():
            raise BadInput(
                f"{file} exists, and people may have filled the sheet in; "
                "remove it or choose another --human-sheet"
            )
    names = (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))  # two runs' quark.json
    if names[0] == names[1]:
        raise BadInput(f"--compare names {a} twice; a sheet needs two results")
    sides = [_completions_by_prompt(file.with_suffix(".jsonl")) for file in (a, b)]
    shared = [prompt for prompt in sides[0] if prompt in sides[1]]
    if len(shared) < pairs:
        raise BadInput(
            f"{a} and {b} share {len(shared)} prompts, fewer than --pairs {pairs}; ask for fewer"
        )
    rng = np.random.default_rng(seed)
    rows, key = [], []
    for number, i in enumerate(rng.choice(len(shared), pairs, replace=False), 1):
        texts = [side[shared[i]][rng.integers(len(side[shared[i]]))] for side in sides]
        a_left = bool(rng.integers(2))
        left, right = texts if a_left else texts[::-1]
        # The dots also keep spreadsheets from reading a text that begins with = as a formula.
        cells = ["... " + text for text in (shared[i], left, right)]
        rows.append([number, *cells, *[""] * len(QUESTIONS)])
        key.append({"pair": number, "left": names[0] if a_left else names[1]})
    with whole_file(sheet) as file:
        file.write("\ufeff")  # tells spreadsheets that this is UTF-8
        writer = csv.writer(file)
        writer.writerow(["pair", "prompt", "left", "right", *QUESTIONS])
        writer.writerows(rows)
        # Before the sheet appears: without its key it would be worth nothing.
        write_json(f"{sheet}.key.json", {"a": names[0], "b": names[1], "pairs": key})
    print(f"{sheet}: {pairs} pairs. Answer each question with left, right or same:")
    for name, question in QUESTIONS.items():
        print(f"  {name:10s}{question}")
    print(f"Keep {sheet}.key.json from the readers. Then: python evaluate.py --tally {sheet}")


def _completions_by_prompt(path):
    by_prompt = {}
    for place, row in read_jsonl(path):
        completion = text_of(row, "completion", place)
        by_prompt.setdefault(text_of(row, "prompt", place), []).append(completion)
    return by_prompt


def tally(sheet):
    """Counts a filled sheet: who was preferred, and the sign test of "neither is preferred"."""
    key = read_json(f"{sheet}.key.json", "the key that --human-sheet wrote beside the sheet")
    try:
        left = {str(pair["pair"]): pair["left"] for pair in key["pairs"]}
        other = {key["a"]: key["b"], key["b"]: key["a"]}
    except (KeyError, TypeError):
        raise BadInput(f"{sheet}.key.json is no key that --human-sheet wrote") from None
    counts = {q: {key["a"]: 0, key["b"]: 0, "same": 0, "empty": 0} for q in QUESTIONS}
    counted = set()
    for line, row in enumerate(_read_sheet(sheet), 2):
        pair = row.get("pair")
        if pair not in left:
            raise BadInput(
                f"{sheet}: row {line}: pair {shown(pair)} is not in the key; "
                "leave the first column as it was"
            )
        if pair in counted:
            raise BadInput(f"{sheet}: row {line}: pair {pair} stands there twice; remove one")
        counted.add(pair)
        meaning = {"left": left[pair], "right": other[left[pair]], "same": "same", "": "empty"}
        for question in QUESTIONS:
            answer = (row.get(question) or "").strip().lower()
            if answer not in meaning:
                raise BadInput(
                    f"{sheet}: row {line}: {question} is {shown(answer)}; write left, right or same"
                )
            counts[question][meaning[answer]] += 1
    _print_counts(counts, key["a"], key["b"])
    if len(counted) < len(left):
        print(f"note: {len(left) - len(counted)} of {len(left)} pairs are not in {sheet}")


def _read_sheet(sheet):
    try:
        with open(sheet, encoding="utf-8-sig", newline="") as file:
            header = file.readline()  # where a comma is in numbers, spreadsheets save semicolons
            file.seek(0)
            delimiter = ";" if header.count(";") > header.count(",") else ","
            return list(csv.DictReader(file, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read {sheet}: {error}; save it as CSV in UTF-8") from None


def _print_counts(counts, a, b):
    columns = list(counts["better"])
    width = max(12, *(len(name) + 2 for name in columns))
    print(f"{'':10s}" + "".join(f"{name:>{width}s}" for name in columns) + f"{'sign test p':>14s}")
    for question, count in counts.items():
        cells = "".join(f"{n:{width}d}" for n in count.values())
        print(f"{question:10s}{cells}{sign_test(count[a], count[b]):14.4f}")


def sign_test(a, b):
    """P(a split at least as uneven as a : b | a fair coin), two-sided, ties left out."""
    n = a + b
    most = max(a, b)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(most, n + 1)) / 2**n)
