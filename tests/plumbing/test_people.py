"""What people prefer: the sheet of blinded pairs, and the count of its answers."""

import csv
import os

import pytest
from conftest import one_sentence, stage, write_jsonl

import evaluate
from plumbing.people import sign_test
from plumbing.pool import BadInput


def test_sign_test_by_hand():
    """8 : 2 is 2 (1 + 10 + 45) / 2^10 = 112 / 1024, and 5 : 0 is 2 / 2^5. An even split is 1."""
    assert sign_test(8, 2) == sign_test(2, 8) == 112 / 1024
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(4, 4) == sign_test(0, 0) == 1


def make_sheet(a, b, sheet, pairs):
    argv = ["--compare", a, b, "--human-sheet", sheet, "--pairs", pairs]
    evaluate.main([str(x) for x in argv])
    with open(sheet, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save_sheet(sheet, rows):
    with open(sheet, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def printed_tally(sheet, capsys):
    """{first word of a line: the others} of what --tally prints."""
    capsys.readouterr()
    evaluate.main(["--tally", str(sheet)])
    lines = {}
    for line in capsys.readouterr().out.splitlines():
        first, *others = line.split()
        lines[first] = others
    return lines


def sheet_of_two(tmp_path, pairs=30):
    """base against quark: 40 prompts with three completions each. Every text begins with =."""
    for name in ("base", "quark"):
        rows = []
        for i in range(40):
            rows += [{"prompt": f"={i}", "completion": f"={name}, {j}"} for j in range(3)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    return make_sheet(tmp_path / "base.json", tmp_path / "quark.json", tmp_path / "s.csv", pairs)


def test_human_sheet_is_blind_and_the_tally_knows(tmp_path, capsys):
    """30 prompts, quark's text on the left or on the right by the toss of a coin.

    A reader who always prefers quark's gets 0 : 30. Ties and empty cells are counted apart. No cell
    begins with =, which a spreadsheet would take for a formula. Blanks and capital letters in an
    answer do no harm.
    """
    rows = sheet_of_two(tmp_path)
    assert len({row["prompt"] for row in rows}) == 30
    for row in rows:
        assert not any(cell.startswith("=") for cell in row.values())
        assert ("base" in row["left"]) != ("base" in row["right"])
    assert 5 < sum("quark" in row["left"] for row in rows) < 25
    for i, row in enumerate(rows):
        left = "quark" in row["left"]
        row["better"] = "left" if left else " RIGHT "
        row["fluent"] = "right" if left else "left"
        if i < 10:
            row["fluent"] = "same"
    save_sheet(tmp_path / "s.csv", rows)
    lines = printed_tally(tmp_path / "s.csv", capsys)
    assert lines["better"] == ["0", "30", "0", "0", "0.0000"]
    assert lines["fluent"][:4] == ["20", "0", "10", "0"]
    assert lines["on_topic"] == ["0", "0", "0", "30", "1.0000"]
    save_sheet(tmp_path / "s.csv", rows[:10])
    lines = printed_tally(tmp_path / "s.csv", capsys)
    assert lines["better"][:2] == ["0", "10"]
    assert lines["note:"][:3] == ["20", "of", "30"]


def test_no_sheet_without_its_key(tmp_path, monkeypatch):
    """The disk is full when the key is written: nothing is there, and the command works again."""

    def fail(path, value):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("plumbing.people.write_json", fail)
        with pytest.raises((OSError, BadInput), match="No space left"):
            sheet_of_two(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["base.jsonl", "quark.jsonl"]
    assert len(sheet_of_two(tmp_path)) == 30


def test_a_sheet_saved_with_semicolons(tmp_path, capsys):
    """As spreadsheets do where a comma is in numbers."""
    rows = sheet_of_two(tmp_path)
    for row in rows:
        row["better"] = "left" if "quark" in row["left"] else "right"
    save_sheet(tmp_path / "s.csv", rows)
    with_commas = printed_tally(tmp_path / "s.csv", capsys)
    with open(tmp_path / "s.csv", encoding="utf-8", newline="") as file:
        cells = list(csv.reader(file))
    with open(tmp_path / "s.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=";").writerows(cells)
    assert printed_tally(tmp_path / "s.csv", capsys) == with_commas
    assert with_commas["better"][:2] == ["0", "30"]


def test_human_sheet_of_two_runs(tmp_path, capsys):
    """Both results are called quark.json. The key and the tally tell them apart by their paths."""
    results = []
    for run in ("a", "b"):
        rows = [{"prompt": str(i), "completion": f"by {run}"} for i in range(10)]
        write_jsonl(tmp_path / run / "quark.jsonl", rows)
        results.append(str(tmp_path / run / "quark.json"))
    rows = make_sheet(*results, tmp_path / "s.csv", 10)
    for row in rows:
        row["better"] = "left" if row["left"].endswith("by a") else "right"
    save_sheet(tmp_path / "s.csv", rows)
    lines = printed_tally(tmp_path / "s.csv", capsys)
    assert lines[results[0]][0] == results[1]  # the heading
    assert lines["better"] == ["10", "0", "0", "0", "0.0020"]


def test_human_sheet_bad_input(tmp_path, monkeypatch):
    """An answer that is none, a pair that is not in the key, no key, more pairs than prompts ..."""
    rows = sheet_of_two(tmp_path)
    sheet, base, quark = (tmp_path / name for name in ("s.csv", "base.json", "quark.json"))

    def refused(*argv):
        exit = stage(monkeypatch, "evaluate.py", *argv)
        assert one_sentence(exit)
        return exit

    save_sheet(sheet, [{**rows[0], "better": "A"}, *rows[1:]])
    assert 'row 2: better is "a"' in refused("--tally", sheet)
    save_sheet(sheet, [{**rows[0], "pair": "77"}, *rows[1:]])
    assert 'row 2: pair "77"' in refused("--tally", sheet)
    assert "other.csv.key.json" in refused("--tally", tmp_path / "other.csv")

    another = tmp_path / "t.csv"
    many = ("--compare", base, quark, "--human-sheet", another, "--pairs", 41)
    assert "40 prompts" in refused(*many)
    assert "twice" in refused("--compare", base, base, "--human-sheet", another)
    assert not another.exists()
    before = sheet.read_bytes()
    assert "s.csv exists" in refused("--compare", base, quark, "--human-sheet", sheet)
    assert sheet.read_bytes() == before


def test_a_pair_that_stands_twice(tmp_path, monkeypatch):
    """Counted twice it would look like more people."""
    rows = sheet_of_two(tmp_path)
    save_sheet(tmp_path / "s.csv", [*rows, rows[0]])
    exit = stage(monkeypatch, "evaluate.py", "--tally", tmp_path / "s.csv")
    assert one_sentence(exit)
    assert "stands there twice" in exit


def test_a_key_that_is_none(tmp_path, monkeypatch):
    """{} or a list of numbers in the place of the key: one sentence."""
    sheet_of_two(tmp_path)
    for content in ("{}", '{"pairs": [1], "a": "x", "b": "y"}'):
        (tmp_path / "s.csv.key.json").write_text(content)
        exit = stage(monkeypatch, "evaluate.py", "--tally", tmp_path / "s.csv")
        assert one_sentence(exit)
        assert "is no key" in exit
