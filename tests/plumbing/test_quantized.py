"""The quantized pool as learn.py reads it: ids or texts, long prompts, and rows that do not fit."""

import os

import pytest
from conftest import CONTEXT, V, quantized_rows, write_jsonl

import learn
from plumbing.pool import BadInput
from plumbing.quantized import load_quantized


def as_lists(part):
    return [(k, list(x), list(y)) for k, x, y in part]


def test_load_quantized(p0, tmp_path):
    """The parts come in the order of k, whatever the order of the file.

    Sampled ids are taken as they are, <|endoftext|> included. A row without ids is encoded, and
    gets no <|endoftext|>, since nobody knows whether it ended.
    """
    rows = quantized_rows(p0)
    bare = {"prompt": "a<|reward_1|>", "completion": " b", "reward": 0, "quantile": 2}
    path = write_jsonl(tmp_path / "q.jsonl", [bare, *rows[::-1]])
    parts = [as_lists(part) for part in load_quantized(path, p0)]
    assert [len(part) for part in parts] == [4, 3, 3]
    assert parts[1][0] == (2, p0.encode("a<|reward_1|>"), p0.encode(" b"))
    for row in rows:
        example = (row["quantile"], row["prompt_ids"], row["completion_ids"])
        assert example in parts[row["quantile"] - 1]
    ended = [y for part in parts for _, _, y in part if y[-1] == V - 1]
    assert len(ended) == 3


def test_load_quantized_cuts_long_prompts_and_skips_empty_completions(p0, tmp_path):
    """A context of 64 less 5 tokens of y and the place of r_k: the last 58 tokens of x stay.

    An empty completion has no token to learn from. One that is only <|endoftext|> has.
    """
    y = [40, 50, 60, 70, 80]
    long = "".join(map(chr, range(35, 120)))  # 85 different characters, most of them a token
    assert len(p0.encode(long)) > 70
    rows = [
        {"prompt": long, "completion": p0.decode(y), "completion_ids": y},
        {"prompt": "a", "completion": "", "completion_ids": []},
        {"prompt": "a", "completion": "", "completion_ids": [V - 1]},
    ]
    for row in rows:
        row |= {"reward": 0, "quantile": 1}
    (part,) = load_quantized(write_jsonl(tmp_path / "q.jsonl", rows), p0)
    expected = [(1, p0.encode(long)[-58:], y), (1, p0.encode("a"), [V - 1])]
    assert as_lists(part) == expected


def spoil(rows, fault):
    """Changes the third row, or all of them."""
    row = rows[2]
    if fault == "no quantile":
        del row["quantile"]
    elif fault == "hole":
        rows[:] = [r for r in rows if r["quantile"] != 2]
    elif fault == "two quantiles":
        rows[:] = [r for r in rows if r["quantile"] < 3]
    elif fault == "id too large":
        row["prompt_ids"] = [5, V]
    elif fault == "reward token in y":
        row["completion_ids"] = [V + 1]
    elif fault == "other tokenizer":
        row["completion_ids"] = [i + 1 for i in row["completion_ids"]]
    elif fault == "edited text":
        row["completion"] += "!"
    elif fault == "edited prompt":
        row["prompt"] += "!"
    elif fault == "no ids of the prompt":
        row["prompt_ids"] = []
    elif fault == "a large quantile":
        row["quantile"] = 2**31 - 1
    elif fault == "too long":
        row |= {"completion": "a" * CONTEXT, "completion_ids": [64] * CONTEXT}
    elif fault == "nan":
        row["reward"] = float("nan")
    elif fault == "nothing said":
        for r in rows:
            r |= {"completion": "", "completion_ids": []}
    elif fault == "no rows":
        rows.clear()


FAULTS = [
    ("no quantile", ':3: "quantile" is missing'),
    ("hole", "no row has quantile 2 of 3"),
    ("two quantiles", "2 quantiles, but .* 3 reward tokens"),
    ("id too large", ':3: "prompt_ids" holds 298, but the model has 298'),
    ("reward token in y", ':3: "completion_ids" holds 299'),
    ("other tokenizer", ':3: "completion_ids" do not spell'),
    ("edited text", ':3: "completion_ids" do not spell'),
    ("edited prompt", ':3: "prompt_ids" do not spell'),
    ("no ids of the prompt", ':3: "prompt_ids" do not spell'),
    ("a large quantile", "no row has quantile 4 of 2147483647"),
    ("too long", ":3: the completion has 64 tokens"),
    ("nan", ':3: "reward" is NaN'),
    ("nothing said", "no rows to learn from"),
    ("no rows", "no rows to learn from"),
]


@pytest.mark.parametrize("fault, message", FAULTS)
def test_bad_pools(fault, message, quark_folder, p0_folder, p0, tmp_path):
    """One sentence with the file, the line and the value, and no checkpoint, not half of one."""
    rows = quantized_rows(p0)
    spoil(rows, fault)
    pool = write_jsonl(tmp_path / "q.jsonl", rows)
    argv = ["--pool", pool, "--model", quark_folder, "--reference", p0_folder, "--device", "cpu"]
    argv += ["--out", tmp_path / "out", "--steps", 1, "--batch-size", 5]
    with pytest.raises(BadInput, match=message) as error:
        learn.main([str(a) for a in argv])
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["q.jsonl"]


def test_a_part_of_empty_completions(p0, tmp_path):
    """D^K that holds only empty completions does not become D^(K-1): it is refused by its name."""
    rows = quantized_rows(p0)
    empty = {"prompt": "a", "completion": "", "completion_ids": [], "reward": 9}
    for k, message in ((4, "quantile 4 of 4 are empty"), (5, "no row has quantile 4 of 5")):
        path = write_jsonl(tmp_path / "q.jsonl", [*rows, {**empty, "quantile": k}])
        with pytest.raises(BadInput, match=message):
            load_quantized(path, p0)
    path = write_jsonl(tmp_path / "q.jsonl", [*rows, {**empty, "quantile": 2}])
    assert [len(part) for part in load_quantized(path, p0)] == [4, 2, 3]
