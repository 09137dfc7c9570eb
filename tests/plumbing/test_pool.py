"""The rows of a pool: how files are read, and what a user is told about a bad line or row."""

import gzip
import json
import os
import re

import pytest
from conftest import V, one_sentence, stage, write_jsonl

import quantize
from plumbing.pool import BadInput, read_generations, read_pool, read_prompts, read_texts, shown


def row(reward, prompt="x", **more):
    return {"prompt": prompt, "completion": " y", "reward": reward, **more}


# ------------------------------------------------------------------------------ bad rows, bad lines

BAD_ROWS = [
    ({"completion": "y", "reward": 1}, '"prompt" is missing'),
    ({"prompt": "x", "reward": 1}, '"completion" is missing'),
    ({"prompt": "x", "completion": "y"}, '"reward" is missing'),
    ({"prompt": ["x"], "completion": "y", "reward": 1}, '"prompt" is .*not a string'),
    ({"prompt": "x", "completion": None, "reward": 1}, '"completion" is null, not a string'),
    (row(float("nan")), '"reward" is NaN; .*finite'),
    (row(float("-inf")), '"reward" is -Infinity'),
    (row(10**400), '"reward" is 1000.*finite'),
    (row("0.5"), '"reward" is "0.5", not a number'),
    (row(True), '"reward" is true, not a number'),
    (row(None), '"reward" is null, not a number'),
    (row(1, iteration=-1), '"iteration" is -1'),
    (row(1, iteration=1.5), '"iteration" is 1.5'),
    (row(1, iteration=2**40), '"iteration" is'),
    (row(1, quantile=0), '"quantile" is 0'),
    (row(1, quantile=-1), '"quantile" is -1'),
    (row(1, quantile=True), '"quantile" is true'),
    (row(1, completion_ids=[1, -2]), '"completion_ids" is'),
    (row(1, completion_ids=[1.0]), '"completion_ids" is'),
    (row(1, prompt_ids="12"), '"prompt_ids" is'),
]


@pytest.mark.parametrize("bad, message", BAD_ROWS, ids=[m for _, m in BAD_ROWS])
def test_bad_row(bad, message, tmp_path, monkeypatch):
    """The stage ends with one sentence that names the file, the line and the value. No output."""
    pool = write_jsonl(tmp_path / "pool.jsonl", [row(0.5), bad, row(0.7)])
    out = tmp_path / "out" / "q.jsonl"
    exit = stage(monkeypatch, "quantize.py", pool, "--quantiles", "2", "--out", out)
    assert one_sentence(exit)
    assert f"{pool}:2" in exit
    with pytest.raises(BadInput, match=message):
        list(read_pool([pool]))
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


BAD_LINES = [
    (b"not json\n", "not valid JSON"),
    (b'{"prompt": "x", "completion"', "ends within this line"),
    (b'["x"]\n', "not an object"),
    (b"3\n", "is 3, not an object"),
    (b'{"prompt": "\xff", "completion": "y", "reward": 1}\n', "byte 12 is not UTF-8"),
    (b'{"prompt": "\\ud83d", "completion": "y", "reward": 1}\n', "half a surrogate pair"),
    (b'{"prompt": "x", "completion": "y", "reward": ' + b"1" * 5000 + b"}\n", ":2"),
    (b"[" * 100000 + b"\n", ":2"),
]


@pytest.mark.parametrize("bad, message", BAD_LINES, ids=[m for _, m in BAD_LINES])
def test_bad_line(bad, message, tmp_path):
    """Not JSON, cut off, no object, not UTF-8, far too large: the line's number and its fault."""
    pool = tmp_path / "pool.jsonl"
    pool.write_bytes(json.dumps(row(0.5)).encode() + b"\n" + bad)
    argv = [str(pool), "--quantiles", "1", "--out", str(tmp_path / "q.jsonl")]
    with pytest.raises(BadInput, match=message) as error:
        quantize.main(argv)
    assert "pool.jsonl:2" in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["pool.jsonl"]


def test_shown_is_short():
    """A value of any size takes at most 60 characters in a message."""
    assert shown([1, "a"]) == '[1, "a"]'
    assert len(shown("x" * 10**6)) == 60


# ------------------------------------------------------------------------------------------ prompts


def test_read_prompts(tmp_path):
    """A prompt is a string or {"text": ...}, as in RealToxicityPrompts. Other columns stay.

    Blank lines, a byte-order mark and CRLF do no harm.
    """
    lines = [
        b'\xef\xbb\xbf{"prompt": "a", "group": "g"}\n',
        b"\n",
        b'{"prompt": {"text": "b", "toxicity": 0.1}, "x": 1}\r\n',
        b'{"prompt": ""}',
    ]
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"".join(lines))
    assert read_prompts(path) == [
        {"prompt": "a", "group": "g", "x": None},
        {"prompt": "b", "group": None, "x": 1},
        {"prompt": "", "group": None, "x": None},
    ]


def test_columns_with_the_name_of_a_field(tmp_path, capsys):
    """They are dropped, each named once: a pool that serves as a prompt file."""
    rows = [
        {"prompt": "a", "reward": 1, "completion": "b", "answer": 3},
        {"prompt": "c", "reward": 2},
    ]
    prompts = read_prompts(write_jsonl(tmp_path / "p.jsonl", rows))
    assert prompts == [{"prompt": "a", "answer": 3}, {"prompt": "c", "answer": None}]
    out = capsys.readouterr().out
    assert out.count("reward") == out.count("completion") == 1
    read_prompts(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "answer": 3}]))
    assert not capsys.readouterr().out
    keywords = [{"prompt": "a", "completions": [], "prompts": 1, "completion_ids": [1]}]
    assert read_prompts(write_jsonl(tmp_path / "p.jsonl", keywords)) == [{"prompt": "a"}]


BAD_PROMPTS = [
    ('{"text": "a"}', '"prompt" is missing'),
    ('{"prompt": {"toxicity": 1}}', '"prompt": "text" is missing'),
    ('{"prompt": {"text": null}}', '"prompt": "text" is null'),
    ('{"prompt": 3}', "not a string"),
    ('{"prompt": "a", "group": 3}', '"group" is 3'),
    ("", "no prompts"),
]


@pytest.mark.parametrize("line, message", BAD_PROMPTS)
def test_bad_prompts(line, message, tmp_path):
    """What is wrong with a prompt file is said in one sentence."""
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(BadInput, match=message):
        read_prompts(tmp_path / "p.jsonl")


# ---------------------------------------------------------------------- completions of other origin


def test_generations_without_ids(p0, tmp_path):
    """No ids, another tokenizer's, or ids outside the vocabulary: the text is encoded.

    Ids that spell the text are kept, even where the tokenizer would choose others.
    """
    letters = [p0.encode(letter)[0] for letter in " good"]
    good = p0.encode(" good")
    assert letters != good
    base = {"prompt": "I", "completion": " good"}
    rows = [base]
    for ids in (p0.encode(" bad"), [V + 7], letters):
        rows.append({**base, "completion_ids": ids})
    read = read_generations(write_jsonl(tmp_path / "g.jsonl", rows), p0)
    assert [r["completion_ids"] for r in read] == [good, good, good, letters]
    assert [r["prompt_number"] for r in read] == [0, 0, 0, 0]


def test_generations_that_lost_their_blank(p0, tmp_path, capsys):
    """The ids give the blank back. Without ids, gluing most of them together is warned of."""
    rows = []
    for prompt in ("The film", "It", "A good"):
        rows.append({"prompt": prompt, "completion": "was good"})
    with_ids = [{**row, "completion_ids": p0.encode(" was good")} for row in rows]
    read = read_generations(write_jsonl(tmp_path / "g.jsonl", with_ids), p0)
    assert [row["completion"] for row in read] == [" was good"] * 3
    assert "warning" not in capsys.readouterr().out
    ended = [{**row, "completion_ids": [*p0.encode(" was good"), V - 1]} for row in rows]
    assert (
        read_generations(write_jsonl(tmp_path / "g.jsonl", ended), p0)[0]["completion"]
        == " was good"
    )
    read = read_generations(write_jsonl(tmp_path / "g.jsonl", rows), p0)
    assert [row["completion"] for row in read] == ["was good"] * 3
    out = capsys.readouterr().out
    assert "3 of 3 completions begin with a letter" in out
    assert "The filmwas good" in out
    half = [{**rows[0], "completion": " was"}, rows[1]]  # one of two is not most
    read_generations(write_jsonl(tmp_path / "g.jsonl", half), p0)
    dots = [{**row, "prompt": row["prompt"] + "."} for row in rows]
    read_generations(write_jsonl(tmp_path / "g.jsonl", dots), p0)
    assert "warning" not in capsys.readouterr().out


def test_prompt_numbers_decide(p0, tmp_path, capsys):
    """Equal prompts are one prompt, which a line says, unless the rows number them."""
    row = {"prompt": "It", "completion": " was"}
    rows = [row, {**row, "prompt": "The"}, row]
    read = read_generations(write_jsonl(tmp_path / "g.jsonl", rows), p0)
    assert [r["prompt_number"] for r in read] == [0, 1, 0]
    assert "3 rows of 2 prompts" in capsys.readouterr().out
    numbered = [{**r, "prompt_number": n} for r, n in zip(rows, (7, 2.0, 3))]
    read = read_generations(write_jsonl(tmp_path / "g.jsonl", numbered), p0)
    assert [r["prompt_number"] for r in read] == [7, 2, 3]
    read_generations(write_jsonl(tmp_path / "g.jsonl", rows[:2]), p0)
    assert not capsys.readouterr().out
    for bad, message in (
        ([numbered[0], row], "1 of 2 rows have"),
        ([{**row, "prompt_number": -1}], "g.jsonl:1.* is -1, not a whole number"),
        ([numbered[0], {**row, "prompt_number": "1"}], 'g.jsonl:2.* is "1", not a whole number'),
    ):
        with pytest.raises(BadInput, match=message):
            read_generations(write_jsonl(tmp_path / "g.jsonl", bad), p0)


def test_lists_of_generations(p0, tmp_path, capsys):
    """Files as others publish them: {"prompt": {"text": ...}, "generations": [{"text": ...}]}.

    Each line is a prompt, even if two are equal. Other columns go to each completion.
    """
    lines = [
        {
            "prompt": {"text": "It"},
            "generations": [{"text": " was", "toxicity": 0.1}, {"text": " is"}],
        },
        {"prompt": "It", "generations": [" had"], "answer": 3},
    ]
    path = write_jsonl(tmp_path / "g.jsonl", lines)
    read = read_generations(path, p0)
    assert [(r["prompt"], r["completion"], r["prompt_number"]) for r in read] == [
        ("It", " was", 0),
        ("It", " is", 0),
        ("It", " had", 1),
    ]
    assert read[2]["answer"] == 3
    assert [row["completion"] for row in read_texts(path)] == [" was", " is", " had"]
    for bad, message in (
        ({"prompt": "a", "generations": "b"}, '"generations" is "b", not a list'),
        ({"prompt": "a", "generations": [3]}, '"generations": "text" is 3'),
        ({"prompt": "a", "generations": [{"txt": "b"}]}, '"generations": "text" is missing'),
        ({"prompt": "a", "generations": []}, "holds no rows"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            read_texts(write_jsonl(tmp_path / "g.jsonl", [bad]))


def test_optional_fields_that_are_null_or_floats(tmp_path):
    """null is absent, 3.0 is 3, {"text": ...} is a prompt. What is unknown passes through."""
    row = {"prompt": {"text": "It"}, "completion": " was", "reward": 1, "iteration": 2.0}
    row |= {"quantile": None, "prompt_ids": None, "completion_ids": None, "note": None}
    ((_, read),) = read_pool([write_jsonl(tmp_path / "p.jsonl", [row])])
    assert read == {"prompt": "It", "completion": " was", "reward": 1, "iteration": 2, "note": None}
    assert type(read["iteration"]) is int
    for value in (2.5, True, "2", -1.0, 1e30):
        with pytest.raises(BadInput, match='"iteration" is .* not a whole number'):
            list(read_pool([write_jsonl(tmp_path / "p.jsonl", [{**row, "iteration": value}])]))


def test_a_compressed_file(tmp_path):
    """The sentence says what it is, and not that it is no UTF-8."""
    (tmp_path / "p.jsonl").write_bytes(gzip.compress(b'{"prompt": "a"}'))
    with pytest.raises(BadInput, match="compressed; unpack it with gunzip"):
        read_prompts(tmp_path / "p.jsonl")


def test_ids_that_are_none(tmp_path, p0):
    """rewards.py counts them, so they are checked; [] beside a text is no ids."""
    row = {"prompt": "a", "completion": " b c"}
    for ids in ("abc", [0.5], {"a": 1}, [-1]):
        with pytest.raises(BadInput, match="not a list of token ids"):
            read_texts(write_jsonl(tmp_path / "p.jsonl", [{**row, "completion_ids": ids}]))
    (read,) = read_texts(write_jsonl(tmp_path / "p.jsonl", [{**row, "completion_ids": []}]))
    assert read == row


def test_two_forms_in_one_file(tmp_path, capsys):
    """Lines with a completion and lines with a list: one sentence. A null is absent."""
    rows = [{"prompt": "a", "completion": None, "generations": ["b"]}]
    assert read_texts(write_jsonl(tmp_path / "p.jsonl", rows))[0]["completion"] == "b"
    rows.append({"prompt": "a", "generations": []})
    assert len(read_texts(write_jsonl(tmp_path / "p.jsonl", rows))) == 1
    assert "1 prompts have no generations" in capsys.readouterr().out
    for mixed in (
        [*rows, {"prompt": "a", "completion": "b"}],
        [{"prompt": "a", "completion": "b"}, *rows],
    ):
        with pytest.raises(BadInput, match="use one of these forms"):
            read_texts(write_jsonl(tmp_path / "p.jsonl", mixed))
