"""The options that stages share: numbers within bounds, and what --help says."""

import argparse
import math
import re
import sys

import pytest
from conftest import execute

import evaluate
import explore
import learn
import quantize
import rewards
from plumbing.options import COUNT, NATURAL, number

# ----------------------------------------------------------------------------------------- numbers


def test_number_within_bounds():
    """`least` and `most` belong to the numbers that are allowed, `above` and `below` do not."""
    closed = number(int, least=2, most=5)
    assert [closed(text) for text in ("2", "3", "5")] == [2, 3, 5]
    opened = number(float, above=0, below=1)
    assert opened("0.25") == 0.25
    assert opened("1e-300") == 1e-300
    half_open = number(float, above=0, most=1)
    assert half_open("1") == 1.0
    assert (COUNT("1"), NATURAL("0"), NATURAL("2147483647")) == (1, 0, 2**31 - 1)
    assert type(closed("3")) is int
    assert type(half_open("1")) is float
    assert number(float)("-inf") == -math.inf  # no bounds


OUTSIDE = [
    (number(int, least=2, most=5), "1", "1 must be at least 2 and at most 5"),
    (number(int, least=2, most=5), "6", "6 must be at least 2 and at most 5"),
    (number(float, above=0, below=1), "0", "0 must be above 0 and below 1"),
    (number(float, above=0, below=1), "1.0", "1.0 must be above 0 and below 1"),
    (number(float, above=0, most=1), "-0.0", "-0.0 must be above 0 and at most 1"),
    (number(float, least=0, below=math.inf), "inf", "inf must be at least 0 and below inf"),
    (COUNT, "0", "0 must be at least 1"),
    (NATURAL, "-1", "-1 must be at least 0 and below 2147483648"),
    (NATURAL, "2147483648", "2147483648 must be at least 0 and below 2147483648"),
]


@pytest.mark.parametrize("parse, text, message", OUTSIDE, ids=[m for _, _, m in OUTSIDE])
def test_number_outside_its_bounds(parse, text, message):
    """The message names the value as it was written, and the rule."""
    with pytest.raises(argparse.ArgumentTypeError) as error:
        parse(text)
    assert str(error.value) == message


@pytest.mark.parametrize("bound", ["least", "above", "most", "below"])
def test_nan_is_outside_of_every_bound(bound):
    """NaN is not less than, equal to or greater than anything."""
    with pytest.raises(argparse.ArgumentTypeError, match="^nan must be "):
        number(float, **{bound: 0})("nan")


def test_number_in_a_command_line(capsys):
    """argparse puts the option's name in front. What is no number has argparse's own message."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=COUNT)
    assert parser.parse_args(["--steps", "7"]).steps == 7
    for text, message in [
        ("0", "argument --steps: 0 must be at least 1"),
        ("two", "argument --steps: invalid int value: 'two'"),
        ("1.5", "argument --steps: invalid int value: '1.5'"),
    ]:
        with pytest.raises(SystemExit):
            parser.parse_args(["--steps", text])
        assert capsys.readouterr().err.strip().endswith(message)


# ------------------------------------------------------------------------------------------ --help

STAGES = [quantize, explore, learn, evaluate, rewards]


def actions_of(stage, monkeypatch):
    """A stage's parser, as its parse_options makes it, and its options."""
    parsers = []

    def remember(parser, argv=None):
        parsers.append(parser)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", remember)
        stage.parse_options([])
    (parser,) = parsers
    return parser, [action for action in parser._actions if action.dest != "help"]


def squeezed(text):
    """Without white space: argparse breaks lines, at hyphens too."""
    return "".join(text.split())


@pytest.mark.parametrize("stage", STAGES, ids=[stage.__name__ for stage in STAGES])
def test_help_shows_each_default(stage, monkeypatch):
    """Behind the text of every option that has one. Flags have none, nor has what must be given.

    Every option has a text.
    """
    parser, actions = actions_of(stage, monkeypatch)
    page = squeezed(parser.format_help())
    with_default = 0
    for action in actions:
        assert action.help, action.dest
        text = squeezed(action.help % vars(action))
        default = squeezed(f"(default {action.default})")
        if action.default is None or action.default is False:
            assert text in page, action.dest
            assert text + default not in page, action.dest
        else:
            assert text + default in page, action.dest
            with_default += 1
    assert with_default >= (0 if stage is rewards else 3)


DEFAULTS = [
    (quantize, "--quantiles", "5"),
    (quantize, "--ties", "random"),
    (explore, "--num-samples", "1"),
    (explore, "--top-p", "1.0"),
    (explore, "--max-new-tokens", "20"),
    (learn, "--beta", "0.05"),
    (learn, "--kl", "forward"),
    (learn, "--lr", "1e-05"),
    (evaluate, "--num-samples", "25"),
    (evaluate, "--top-p", "0.9"),
    (evaluate, "--reward-token", "K"),
]


@pytest.mark.parametrize("stage, option, default", DEFAULTS)
def test_help_as_printed(stage, option, default, capsys):
    """The first "(default ...)" after the option's entry is the option's own."""
    with pytest.raises(SystemExit) as exit:
        stage.main(["--help"])
    assert exit.value.code == 0
    page = capsys.readouterr().out.split("\noptions:\n")[1]
    entry = page.split(f"\n  {option} ")[1]
    assert re.search(r"\(default\s+(.*?)\)", entry)[1] == default


def test_output_that_nobody_can_read(tmp_path):
    """A closed pipe, a closed or a full standard output: no traceback, and the file is whole."""
    row = '{"prompt": "a", "completion": " b", "reward": 1}\n'
    (tmp_path / "p.jsonl").write_text(row)
    for shell, code in ((" | true", "141"), (" >&-", "0"), (" >/dev/full", "1")):
        out = tmp_path / "q.jsonl"
        command = f"{sys.executable} quantize.py {tmp_path}/p.jsonl --quantiles 1 --out {out}"
        done = execute("bash", "-c", f"{command}{shell}; echo ${{PIPESTATUS[0]}} >&2")
        lines = done.stderr.splitlines()
        assert lines[-1] == code, done.stderr
        assert "Traceback" not in done.stderr
        assert len(out.read_text().splitlines()) == 1
        out.unlink()
