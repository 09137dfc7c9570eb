"""Output files: whole or not at all. The append log: what was written before a crash is kept."""

import argparse
import json
import os

import pytest

from plumbing.append_log import AppendLog
from plumbing.files import whole_file
from plumbing.pool import BadInput


def test_whole_file_all_or_nothing(tmp_path):
    """An error while writing leaves the old file as it was, and no second file beside it."""
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.jsonl"]
    with whole_file(path) as file:
        file.write("new\n")
        assert path.read_text() == "old"  # the new file takes its name only once it is whole
    assert path.read_bytes() == b"new\n"
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_args_file_name(tmp_path):
    """pool/00.jsonl -> pool/00.args.json. A name with another dot in it keeps it."""
    for path in ("00.jsonl", "quark", "v1.5"):
        with whole_file(tmp_path / path, argparse.Namespace(seed=1)):
            pass
    names = {name for name in os.listdir(tmp_path) if "args" in name}
    assert names == {"00.args.json", "quark.args.json", "v1.5.args.json"}


def test_append_log_keeps_what_was_finished(tmp_path, monkeypatch):
    """Two processes write a file each. The next start reads both, whatever its number is.

    A last line that was cut off is dropped, and the next row takes its place.
    """
    path = tmp_path / "log.part"
    for rank, rows in (("0", [{"n": 1}, {"n": 2}]), ("1", [{"n": 3}])):
        monkeypatch.setenv("RANK", rank)
        AppendLog(path).append(rows)
    monkeypatch.delenv("RANK")
    assert sorted(os.listdir(tmp_path)) == ["log.part0", "log.part1"]
    with (tmp_path / "log.part0").open("a") as file:
        file.write('{"n": 4, "text": "cut o')
    log = AppendLog(path)
    assert log.rows == [{"n": 1}, {"n": 2}, {"n": 3}]
    log.append([{"n": 5}])
    lines = (tmp_path / "log.part0").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"n": 1}, {"n": 2}, {"n": 5}]


def test_append_log_has_one_writer(tmp_path):
    """A second process with the same log ends with one sentence, and nothing is mixed up."""
    first, second = AppendLog(tmp_path / "log"), AppendLog(tmp_path / "log")
    first.append([{"n": 1}])
    with pytest.raises(BadInput, match="another process is writing .*log0"):
        second.append([{"n": 2}])
    with pytest.raises(BadInput, match="another process is writing .*log0"):
        second.append([{"n": 2}])  # another thread may ask once more
    assert (tmp_path / "log0").read_text() == '{"n": 1}\n'


def test_an_error_in_opening_the_log_removes_nothing(tmp_path, monkeypatch):
    """Its rows were written by an earlier start; the disk fails while they are looked at."""
    AppendLog(tmp_path / "log").append([{"n": 1}])

    def fail(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("plumbing.append_log._lock", fail)
    with pytest.raises(BadInput, match="cannot write .*log0: Input/output error"):
        AppendLog(tmp_path / "log").append([{"n": 2}])
    assert (tmp_path / "log0").read_text() == '{"n": 1}\n'
