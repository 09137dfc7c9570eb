"""What an output may replace: nothing that the command reads, no link, nobody else's file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, one_sentence, quantized_rows, read_rows, stage, write_jsonl

from plumbing.files import check_outputs, check_own, check_replaceable
from plumbing.pool import BadInput

ROW = {"prompt": "The film", "completion": " was good", "reward": 0.5}
SHORT = ["--max-new-tokens", "3", "--device", "cpu"]


def snapshot(folder):
    """{path: content} of everything below a folder; a link's content is where it points to."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = path.read_bytes()
    return found


@pytest.fixture
def place(tmp_path, p0_folder, quark, monkeypatch):
    """A folder with a pool, prompts, a reward and two models; commands are run in it."""
    write_jsonl(tmp_path / "p.jsonl", [ROW, {**ROW, "reward": 0.7}])
    write_jsonl(tmp_path / "pool" / "00.jsonl", [ROW, {**ROW, "reward": 0.7}])
    write_jsonl(tmp_path / "q.jsonl", quantized_rows(quark))
    (tmp_path / "mine.py").write_text(
        "def reward(completions, **k): return [0.5 for _ in completions]\n"
    )
    shutil.copytree(p0_folder, tmp_path / "p0")
    quark.save(tmp_path / "quark")
    (tmp_path / "linked").symlink_to("pool", target_is_directory=True)
    (tmp_path / "link.jsonl").symlink_to("p.jsonl")
    os.link(tmp_path / "p.jsonl", tmp_path / "hard.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXPLORE = "explore.py --model p0 --prompts p.jsonl --reward mine.py:reward --out"
EVALUATE = "evaluate.py --model p0 --reference p0 --prompts p.jsonl --reward hash --out"
GENERATIONS = "evaluate.py --generations p.jsonl --reference p0 --reward hash --out"
LEARN = "learn.py --steps 1 --batch-size 2 --pool q.jsonl --out"

READ = [  # each output is one of the inputs, by some name
    f"{EXPLORE} p.jsonl",
    f"{EXPLORE} ./pool/../p.jsonl",
    f"{EXPLORE} hard.jsonl",
    f"{EXPLORE} link.jsonl",
    f"{EXPLORE} mine.py",
    f"{EXPLORE} p0/config.json",
    f"{EXPLORE} p0/new.jsonl",
    f"{EVALUATE} p",
    f"{EVALUATE} hard",
    f"{EVALUATE} p0/config",
    f"{GENERATIONS} p",
    "quantize.py p.jsonl --quantiles 1 --out p.jsonl",
    "quantize.py pool --quantiles 1 --out pool/00.jsonl",
    "quantize.py pool --quantiles 1 --out pool/new.jsonl",
    "quantize.py pool --quantiles 1 --out linked/new.jsonl",
    "quantize.py linked --quantiles 1 --out pool/new.jsonl",
    "quantize.py p.jsonl --quantiles 1 --out hard.jsonl",
    "rewards.py --reward mine.py:reward --pool p.jsonl --out p.jsonl",
    "rewards.py --reward mine.py:reward --pool p.jsonl --out mine.py",
    f"{LEARN} p0 --model p0 --reference p0",
    f"{LEARN} quark --model quark --reference p0",
    f"{LEARN} p0 --model quark --reference p0",
    f"{LEARN} p0/new --model quark --reference p0",
    f"{LEARN} pool/../quark --model quark --reference p0",
]


@pytest.mark.parametrize("line", READ)
def test_no_output_replaces_an_input(line, place, monkeypatch):
    """By whatever name: a path with .., a hard link, a link, a file or folder inside a model."""
    before = snapshot(place)
    more = SHORT if line.startswith(("explore", "evaluate.py --model")) else []
    exit = stage(monkeypatch, *line.split(), *more)
    assert one_sentence(exit), exit
    assert "this command reads" in exit or "is a link" in exit or "no checkpoint" in exit
    assert snapshot(place) == before


def test_links_pipes_and_devices(place, monkeypatch):
    """A link as the last part is refused, even one to nothing; folders before it are not."""
    (place / "other.jsonl").write_text("other\n")
    (place / "to_other.jsonl").symlink_to("other.jsonl")
    (place / "nowhere.jsonl").symlink_to("nothing.jsonl")
    (place / "folder").mkdir()
    (place / "to_folder").symlink_to("folder", target_is_directory=True)
    os.mkfifo(place / "pipe.jsonl")
    before = snapshot(place)
    quantize = "quantize.py p.jsonl --quantiles 1 --out"
    for line in (
        f"{quantize} to_other.jsonl",
        f"{quantize} nowhere.jsonl",
        f"{quantize} pipe.jsonl",
        f"{quantize} /dev/null",
        f"{quantize} /dev/stdout",
        "rewards.py --reward hash --pool p.jsonl --out to_other.jsonl",
        f"{EXPLORE} pipe.jsonl --max-new-tokens 3",
        f"{LEARN} to_folder --model quark --reference p0",
        f"{LEARN} pipe.jsonl --model quark --reference p0",
    ):
        exit = stage(monkeypatch, *line.split())
        assert one_sentence(exit), (line, exit)
        assert "cannot write" in exit or "is no checkpoint" in exit
        assert snapshot(place) == before
    assert (place / "pipe.jsonl").is_fifo()
    assert Path("/dev/null").is_char_device()
    assert stage(monkeypatch, *f"{quantize} to_folder/q.jsonl".split()) is None
    assert len(read_rows(place / "folder" / "q.jsonl")) == 2
    assert (place / "to_folder").is_symlink()


def test_files_beside_an_output(place, monkeypatch):
    """A user's own q.args.json, NAME.json or key stays. A stage's own are made anew."""
    mine = {"out": "elsewhere", "note": "mine"}
    for name in ("new.args.json", "table.json", "sheet.csv.key.json"):
        (place / name).write_text(json.dumps(mine))
    (place / "texts.jsonl").write_text("mine\n")
    before = snapshot(place)
    sheet = "evaluate.py --compare a.json b.json --human-sheet sheet.csv --pairs 1"
    for line in (
        "quantize.py p.jsonl --quantiles 1 --out new.jsonl",
        f"{EXPLORE} new.jsonl --max-new-tokens 3",
        f"{EVALUATE} table --max-new-tokens 3 --num-samples 1",
        f"{EVALUATE} texts --max-new-tokens 3 --num-samples 1",
        f"{GENERATIONS} new",
        sheet,
    ):
        exit = stage(monkeypatch, *line.split())
        assert one_sentence(exit), (line, exit)
        assert snapshot(place) == before
    for line in (
        "quantize.py p.jsonl --quantiles 1 --out out/q.jsonl",
        f"{GENERATIONS} out/theirs",
    ):
        for _ in range(2):  # the second time everything is there, and is replaced
            assert stage(monkeypatch, *line.split()) is None


def test_only_a_checkpoint_is_replaced(place, monkeypatch):
    """n_quantiles in config.json, and no file that no stage writes."""
    line = f"{LEARN} model --model quark --reference p0"
    assert stage(monkeypatch, *line.split()) is None
    assert stage(monkeypatch, *line.split()) is None  # one of ours: again
    spoil = {
        "a note of mine": lambda folder: (folder / "notes.txt").write_text("mine"),
        "a folder": lambda folder: (folder / "more").mkdir(),
        "a hidden file": lambda folder: (folder / ".git").write_text("x"),
        "no mark": lambda folder: (folder / "config.json").write_text("{}"),
        "no object": lambda folder: (folder / "config.json").write_text("5"),
        "no JSON": lambda folder: (folder / "config.json").write_text("n_quantiles"),
        "no config": lambda folder: (folder / "config.json").unlink(),
    }
    for what, change in spoil.items():
        shutil.rmtree(place / "model")
        shutil.copytree(place / "quark", place / "model")
        change(place / "model")
        before = snapshot(place)
        exit = stage(monkeypatch, *line.split())
        assert one_sentence(exit), (what, exit)
        assert "is no checkpoint of this project" in exit
        assert snapshot(place) == before
    shutil.rmtree(place / "model")
    shutil.copytree(place / "p0", place / "model")  # somebody's GPT-2, not of this project
    with pytest.raises(BadInput, match="no checkpoint of this project"):
        check_replaceable(place / "model")


def test_names_for_work_in_progress(place, monkeypatch):
    """Files that merely look like a stage's temporary ones stay."""
    for name in ("new.jsonl.tmp", "new.jsonl.part1", "new.jsonl.notes.part1", "new.jsonl.replaced"):
        (place / name).write_text("mine")
    for name in ("model.tmp", "model.replaced"):
        shutil.copytree(place / "quark", place / name)
    before = snapshot(place)
    assert stage(monkeypatch, *f"{EXPLORE} new.jsonl".split(), *SHORT) is None
    assert stage(monkeypatch, *f"{LEARN} model --model quark --reference p0".split()) is None
    after = snapshot(place)
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after if path.name.startswith(".")]


def test_check_outputs(tmp_path):
    """The rule by itself: names that do not exist, other files, and folders around the input."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    check_outputs([tmp_path / "b"], [tmp_path / "a", None, "gpt2", ""])
    check_outputs([tmp_path / "ab"], [tmp_path / "a"])
    for out, read in (("a", "a"), ("a/y", "a"), ("a", "a/x"), ("gone", "gone"), ("a/x", "a/x")):
        with pytest.raises(BadInput, match="this command reads"):
            check_outputs([tmp_path / out], [tmp_path / read])


def test_check_own(tmp_path):
    """The mark of our own settings file is the output's name in "out"."""
    file = tmp_path / "q.args.json"
    check_own(file, tmp_path / "q.jsonl")
    for out in ("q.jsonl", "runs/try/q.jsonl"):
        file.write_text(json.dumps({"out": out, "seed": 0}))
        check_own(file, tmp_path / "q.jsonl")
    for content in ("", "[]", "{}", '{"out": 3}', '{"out": "r.jsonl"}'):
        file.write_text(content)
        with pytest.raises(BadInput, match="no stage wrote it"):
            check_own(file, tmp_path / "q.jsonl")


def test_what_belongs_to_another_stage(place, monkeypatch):
    """evaluate.py --out pool/00 would replace explore.py's pool/00.jsonl; and a name that begins
    like ours is not ours.
    """
    assert stage(monkeypatch, *f"{EXPLORE} out/00.jsonl".split(), *SHORT) is None
    assert stage(monkeypatch, *f"{GENERATIONS} out/longer".split()) is None
    before = snapshot(place)
    exit = stage(monkeypatch, *f"{EVALUATE} out/00 --num-samples 1".split(), *SHORT)
    assert one_sentence(exit)
    assert "no stage wrote it" in exit or "cannot write" in exit
    (place / "out" / "long.args.json").write_text('{"out": "longer"}')
    with pytest.raises(BadInput, match="no stage wrote it"):
        check_own(place / "out" / "long.args.json", place / "out" / "long")
    (place / "out" / "long.args.json").unlink()
    assert snapshot(place) == before
    shutil.copytree(place / "quark", place / "model")
    (place / "model" / "model-best-of-mine.safetensors").write_text("mine")
    with pytest.raises(BadInput, match="no checkpoint of this project"):
        check_replaceable(place / "model")


def test_the_dial_is_replaced_by_its_like(place, monkeypatch):
    """NAME-r1 ... NAME-none belong to --out NAME: the second time they are made anew."""
    line = "evaluate.py --model quark --reference p0 --prompts p.jsonl --reward hash --out e/dial"
    line += " --reward-token all --num-samples 1 --ppl-model none"
    for _ in range(2):
        assert stage(monkeypatch, *line.split(), *SHORT) is None
    (place / "e" / "dial-r2.args.json").write_text('{"mine": 1}')
    exit = stage(monkeypatch, *line.split(), *SHORT)
    assert one_sentence(exit)
    assert "dial-r2" in exit


def test_a_report_replaces_only_a_report(place, monkeypatch):
    """A page of one's own, a link or a file in the place of figures/: one sentence, all stays."""
    line = ["evaluate.py", "--report", place]
    (place / "report.html").write_text("<title>my own page</title>")
    exit = stage(monkeypatch, *line)
    assert one_sentence(exit)
    assert (place / "report.html").read_text() == "<title>my own page</title>"
    (place / "report.html").unlink()
    assert stage(monkeypatch, *line) is None
    assert stage(monkeypatch, *line) is None  # our own: again
    shutil.rmtree(place / "figures")
    (place / "elsewhere").mkdir()
    (place / "figures").symlink_to("elsewhere", target_is_directory=True)
    assert one_sentence(stage(monkeypatch, *line))
    (place / "figures").unlink()
    (place / "figures").write_text("mine")
    assert one_sentence(stage(monkeypatch, *line))
    assert os.listdir(place / "elsewhere") == []


def test_names_that_are_no_files(place, monkeypatch):
    """A folder, the root, a name that is too long, a file as a folder, a loop of links."""
    (place / "loop").symlink_to("loop")
    before = snapshot(place)
    quantize = "quantize.py p.jsonl --quantiles 1 --out"
    for out in (".", "/", "pool", "x" * 300, "p.jsonl/x", "/proc/x", "loop", "loop/x"):
        for line in (
            quantize,
            EVALUATE,
            LEARN,
            EXPLORE,
            "rewards.py --reward hash --pool q.jsonl --out",
        ):
            if out in ("pool", "loop") and line == EVALUATE:
                continue  # makes pool.json and loop.json
            more = " --model quark --reference p0" if line == LEARN else ""
            exit = stage(monkeypatch, *f"{line} {out}{more}".split())
            assert one_sentence(exit), (line, out, exit)
            assert "learning:" not in exit
    assert snapshot(place) == before
    for source in ("loop", "x" * 300, "."):
        exit = stage(monkeypatch, "quantize.py", source, "--quantiles", 1, "--out", "new.jsonl")
        assert one_sentence(exit), (source, exit)


def test_an_unfinished_name_that_is_a_link(place, monkeypatch):
    """The hidden name of an unfinished file is checked as the output is."""
    (place / "precious").write_text("mine")
    (place / ".new.jsonl.unfinished").symlink_to("precious")
    exit = stage(monkeypatch, *["quantize.py", "p.jsonl", "--quantiles", "1", "--out", "new.jsonl"])
    assert one_sentence(exit)
    assert (place / "precious").read_text() == "mine"


def test_names_that_are_not_utf_8(place):
    """Such a name in the settings costs nothing."""
    name = b"caf\xe9.jsonl"
    command = [sys.executable, ROOT / "quantize.py", "p.jsonl", "--quantiles", "1", "--out", name]
    done = subprocess.run(command, cwd=place, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert name in os.listdir(os.fsencode(place))
