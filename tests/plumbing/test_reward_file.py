"""A reward of one's own: how its file is found, how it is called, and what it may return."""

import importlib
import sys

import pytest
from conftest import ROOT, execute, read_rows, stage, write_jsonl, write_reward

from plumbing.pool import BadInput
from rewards import load_reward

# --------------------------------------------------------------------------------- how it is called


def test_own_reward_from_a_file(tmp_path):
    """path/to/file.py:function is called by keyword, in the order given.

    Prompts and completions are not exchanged, although this function names them the other way
    round: 1 - 10 * 2 = -19, and 3 - 10 * 0 = 3.
    """
    body = """
def reward(completions, prompts, **kwargs):
    return [len(x) - 10 * len(y) for x, y in zip(prompts, completions)]
"""
    reward = load_reward(write_reward(tmp_path, body))
    assert reward(prompts=["a", "bcd"], completions=["ef", ""]) == [-19, 3]


FOR_TRL = """
def reward(prompts, completions, completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]
"""
FOR_TRL_BY_KEYWORD = """
def reward(completions, **kwargs):
    assert set(kwargs) <= {"prompts", "completion_ids"}, kwargs
    return [len(y) for y in completions]
"""


def test_reward_as_written_for_trl(tmp_path):
    """TRL passes prompts, completions, completion_ids and more, by keyword. All are optional.

    A value that is None is left out.
    """
    ids = load_reward(write_reward(tmp_path, FOR_TRL, "ids.py"))
    given = {"prompts": ["a"], "completions": ["bb"], "completion_ids": [[1, 2, 3]]}
    assert ids(**given, trainer_state=None) == [3]
    texts = load_reward(write_reward(tmp_path, FOR_TRL_BY_KEYWORD, "texts.py"))
    assert texts(**given, trainer_state=None) == [2]


def test_reward_without_kwargs(tmp_path):
    """def reward(prompts, completions) is not given completion_ids."""
    body = "def reward(prompts, completions): return [1, 0.5]\n"
    reward = load_reward(write_reward(tmp_path, body))
    given = {"prompts": ["a", "b"], "completions": ["c", "d"]}
    assert reward(**given, completion_ids=[[1], [2]]) == [1, 0.5]


# ------------------------------------------------------------------------------- what it may return

RETURNED = [
    ("[None, 2]", [None, 2.0]),
    ("(None, True + 1)", [None, 2.0]),
    ("[None, numpy.float32(2)]", [None, 2.0]),
    ("[None, torch.tensor(2.0)]", [None, 2.0]),
    ("numpy.array([1, 2])", [1.0, 2.0]),
    ("torch.tensor([1.0, 2.0])", [1.0, 2.0]),
]


def test_what_may_be_returned(tmp_path):
    """None stays None. Numbers of Python, NumPy and torch become floats, in arrays as well."""
    for value, expected in RETURNED:
        body = f"import numpy, torch\ndef reward(prompts, completions): return {value}\n"
        reward = load_reward(write_reward(tmp_path, body))
        values = reward(prompts=["a", "b"], completions=["c", "d"])
        assert values == expected
        assert type(values[1]) is float


BAD_REWARDS = [
    ("return [0.5]", "returned 1 values for 2 completions"),
    ("return [0.5, 1, 2]", "returned 3 values for 2"),
    ("return 0.5", "returned float for 2"),
    ("return None", "returned NoneType for 2"),
    ("return {0: 1, 1: 2}", "returned dict for 2"),
    ("return (1.0 for y in completions)", "returned generator for 2"),
    ("return [0.5, float('nan')]", 'nan at index 1, for "second"'),
    ("return [float('inf'), 0.5]", 'inf at index 0, for "first"'),
    ("return [0.5, '0.5']", "'0.5' at index 1, for \"second\""),
    ("return [0.5, [1]]", r"\[1\] at index 1"),
    ("return [1 / 0, 1]", "raised ZeroDivisionError: division by zero"),
    ("return [kwargs['score']]", "raised NameError"),
]


@pytest.mark.parametrize("body, message", BAD_REWARDS, ids=[m for _, m in BAD_REWARDS])
def test_bad_rewards_are_reported(body, message, tmp_path):
    """One sentence, with the function's name, the index and the text."""
    spec = write_reward(tmp_path, f"def reward(prompts, completions):\n    {body}\n")
    with pytest.raises(BadInput, match=message) as error:
        load_reward(spec)(prompts=["x", "z"], completions=["first", "second"])
    assert spec in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------- how it is found


def test_rewards_that_cannot_be_loaded(tmp_path):
    """No such name, file or function; a file that is not Python, or that fails when imported."""
    (tmp_path / "a.txt").write_text("def reward(): pass")
    (tmp_path / "broken.py").write_text("def reward(:\n")
    (tmp_path / "value.py").write_text("reward = 3\n")
    for spec, message in [
        ("nonsense", "no reward is called 'nonsense'; built in: repetition, .*toxicity"),
        (f"{tmp_path}/none.py:reward", "none.py does not exist"),
        (f"{tmp_path}:reward", "does not exist"),
        (f"{tmp_path}/a.txt:reward", "not a .py file"),
        (f"{tmp_path}/broken.py:reward", "cannot be imported: SyntaxError"),
        (f"{tmp_path}/value.py:reward", "no function 'reward'"),
        (f"{tmp_path}/value.py:other", "no function 'other'"),
    ]:
        with pytest.raises(BadInput, match=message):
            load_reward(spec)


def test_a_file_with_siblings_dataclasses_and_workers(tmp_path):
    """The file is imported as Python does it: modules beside it, dataclasses, pickles."""
    (tmp_path / "sibling_of_mine.py").write_text("FACTOR = 3\n")
    body = """
import pickle
from dataclasses import dataclass
from sibling_of_mine import FACTOR

@dataclass
class Answer:
    length: "int"

def reward(completions, **kwargs):
    from sibling_of_mine import FACTOR as later
    answers = pickle.loads(pickle.dumps([Answer(len(y)) for y in completions]))
    return [FACTOR * later * answer.length for answer in answers]
"""
    reward = load_reward(write_reward(tmp_path, body, "my_own_reward.py"))
    assert reward(prompts=["x"], completions=["ab"]) == [18]


@pytest.mark.parametrize("name", ["a_reward_of_mine.py", "random.py", "my-reward.v2.py"])
def test_worker_processes_find_the_file(name, tmp_path):
    """By the module's name, which is another one where the name is taken."""
    body = """
import multiprocessing

def half(text):
    return len(text) / 2

def reward(completions, **kwargs):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map_async(half, completions).get(timeout=30)
"""
    script = "import sys; from rewards import load_reward\n"
    script += "if __name__ == '__main__':\n"
    script += "    print(load_reward(sys.argv[1])(prompts=['x'], completions=['abc']))\n"
    main = tmp_path / "main_of_the_test.py"
    main.write_text(script)
    (tmp_path / "mine").mkdir()
    spec = write_reward(tmp_path / "mine", body, name)
    done = execute(sys.executable, main, spec, PYTHONPATH=ROOT)
    assert (done.returncode, done.stdout) == (0, "[1.5]\n"), done.stderr


def test_nothing_of_the_user_s_displaces_a_stage(tmp_path, p0_folder):
    """A folder full of our names: the reward is found, and the stage still uses its own modules."""
    for name in ("explore", "learn", "numpy", "torch", "tqdm", "transformers", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')\n")
    (tmp_path / "plumbing").mkdir()
    (tmp_path / "plumbing" / "__init__.py").write_text("raise RuntimeError('the wrong module')\n")
    body = "import math\ndef reward(completions, **k): return [math.sqrt(4) for _ in completions]\n"
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}])
    for name in ("rewards.py", "quantize.py", "string.py", "my-reward.v2.py"):
        spec = write_reward(tmp_path, body, name)
        command = ["--model", p0_folder, "--prompts", prompts, "--reward", spec]
        out = tmp_path / "out" / f"{name}.jsonl"
        more = ["--max-new-tokens", 4, "--device", "cpu", "--out", out]
        done = execute(
            sys.executable, ROOT / "explore.py", *command, *more, cwd=tmp_path, PYTHONPATH=""
        )
        assert done.returncode == 0, done.stderr
        assert [row["reward"] for row in read_rows(out)] == [2.0]


def test_the_folder_of_a_reward_is_searched_last(tmp_path):
    """What is imported after the reward was loaded is still the library's."""
    sys.modules.pop("zipapp", None)
    (tmp_path / "zipapp.py").write_text("raise RuntimeError('the wrong module')\n")
    load_reward(write_reward(tmp_path, "def reward(completions): return [0]\n", "beside.py"))
    assert hasattr(importlib.import_module("zipapp"), "create_archive")


def test_columns_arrive_as_lists(tmp_path, p0_folder, monkeypatch):
    """A column of the prompt file reaches the reward, sample by sample, and stays in the pool."""
    body = """
def reward(completions, answer, **kwargs):
    assert kwargs["level"] == [None if a == 1 else "hard" for a in answer], kwargs
    assert "iteration" not in kwargs and "reward" not in kwargs
    return answer
"""
    spec = write_reward(tmp_path, body)
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2, "level": "hard"}]
    prompts = write_jsonl(tmp_path / "p.jsonl", rows)
    out = tmp_path / "o.jsonl"
    argv = ["--model", p0_folder, "--prompts", prompts, "--reward", spec, "--num-samples", 2]
    argv += ["--max-new-tokens", 4, "--device", "cpu", "--out", out]
    assert stage(monkeypatch, "explore.py", *argv) is None
    pool = read_rows(out)
    assert [row["reward"] for row in pool] == [1, 1, 2, 2]
    assert [row["answer"] for row in pool] == [1, 1, 2, 2]
    assert [row.get("level") for row in pool] == [None, None, "hard", "hard"]
    scored = tmp_path / "scored.jsonl"
    argv = ["--reward", spec, "--pool", out, "--out", scored]
    assert stage(monkeypatch, "rewards.py", *argv) is None
    assert [row["reward"] for row in read_rows(scored)] == [1, 1, 2, 2]
    argv = ["--model", p0_folder, "--reference", p0_folder, "--prompts", prompts, "--reward", spec]
    argv += ["--num-samples", 2, "--max-new-tokens", 4, "--device", "cpu", "--out", tmp_path / "e"]
    assert stage(monkeypatch, "evaluate.py", *argv) is None
    assert [row["rewards"][spec] for row in read_rows(tmp_path / "e.jsonl")] == [1, 1, 2, 2]
    argv = ["--generations", tmp_path / "e.jsonl", "--reference", p0_folder, "--reward", spec]
    argv += ["--device", "cpu", "--out", tmp_path / "g"]
    assert stage(monkeypatch, "evaluate.py", *argv) is None
    assert [row["rewards"][spec] for row in read_rows(tmp_path / "g.jsonl")] == [1, 1, 2, 2]


def test_async_rewards(tmp_path):
    """They are awaited, one call after another, in one event loop."""
    body = """
import asyncio
loops = set()
async def one(y):
    await asyncio.sleep(0)
    return len(y)
async def reward(prompts, completions):
    loops.add(id(asyncio.get_running_loop()))
    assert len(loops) == 1
    return await asyncio.gather(*[one(y) for y in completions])
"""
    reward = load_reward(write_reward(tmp_path, body))
    for texts in (["a", "bcd"], ["", "ef"]):
        assert reward(prompts=texts, completions=texts) == [len(text) for text in texts]
    fails = load_reward(write_reward(tmp_path, "async def reward(**k): return 1 / 0\n", "fails.py"))
    with pytest.raises(BadInput, match="raised ZeroDivisionError"):
        fails(prompts=["a"], completions=["b"])


def test_rewards_for_messages(tmp_path):
    """A function that expects lists of messages: the sentence says that these are strings."""
    for i, body in enumerate(('completion[0]["content"]', 'completion[-1].get("content")')):
        text = f"def reward(completions, **k): return [len({body}) for completion in completions]\n"
        reward = load_reward(write_reward(tmp_path, text, f"chat{i}.py"))
        with pytest.raises(BadInput, match="completions are strings here, not lists of messages"):
            reward(prompts=["a"], completions=["b"])


def test_only_what_is_asked_for_is_passed(tmp_path):
    """def reward(completions) is not given the prompts."""
    reward = load_reward(write_reward(tmp_path, "def reward(completions): return [1.0]\n"))
    assert reward(prompts=["a"], completions=["b"], answer=[2]) == [1.0]


CHANGES = """
def reward(prompts, completions, completion_ids, answer, **kwargs):
    for ids in completion_ids:
        ids.clear()
    answer.clear()
    prompts.pop()
    return [1.0] * len(completions)
"""


def test_a_reward_that_changes_its_lists(tmp_path, p0_folder, monkeypatch):
    """It gets copies: the pool's ids stay, and too few values are too few."""
    spec = write_reward(tmp_path, CHANGES)
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "answer": [1]}])
    argv = ["--model", p0_folder, "--prompts", prompts, "--reward", spec, "--out", tmp_path / "o"]
    argv += ["--num-samples", 3, "--max-new-tokens", 5, "--device", "cpu"]
    assert stage(monkeypatch, "explore.py", *argv) is None
    rows = read_rows(tmp_path / "o")
    assert all(row["completion_ids"] and row["answer"] == [1] for row in rows)
    fewer = "def reward(completions):\n    completions.pop()\n    return [1.0] * len(completions)\n"
    with pytest.raises(BadInput, match="returned 2 values for 3 completions"):
        load_reward(write_reward(tmp_path, fewer, "fewer.py"))(
            prompts="abc", completions=list("abc")
        )


def test_a_null_column_does_not_depend_on_the_batch(tmp_path, p0_folder, monkeypatch):
    """A column that is null for a whole batch arrives as a list of None, whatever the batch."""
    body = "def reward(completions, answer='x'): return [float(a is not None) for a in answer]\n"
    spec = write_reward(tmp_path, body)
    rows = [{"prompt": "a", "answer": None}, {"prompt": "b", "answer": "y"}, {"prompt": "c"}]
    prompts = write_jsonl(tmp_path / "p.jsonl", rows)
    for size in (1, 2, 8):
        argv = ["--model", p0_folder, "--prompts", prompts, "--reward", spec, "--batch-size", size]
        argv += ["--num-samples", 2, "--max-new-tokens", 4, "--out", tmp_path / f"{size}.jsonl"]
        assert stage(monkeypatch, "explore.py", *argv, "--device", "cpu") is None
        rewards = [row["reward"] for row in read_rows(tmp_path / f"{size}.jsonl")]
        assert rewards == [0, 0, 1, 1, 0, 0]


def test_the_files_of_a_reward(tmp_path, judges):
    """A judge's folder; an own file and what it imports from its folder; of the others, none."""
    (tmp_path / "my_helper_module.py").write_text("VALUE = 1\n")
    body = (
        "import math, my_helper_module\ndef reward(completions): return [1 for _ in completions]\n"
    )
    spec = write_reward(tmp_path, body, "with_helper.py")
    files = [str(tmp_path / name) for name in ("my_helper_module.py", "with_helper.py")]
    assert load_reward(spec).files == files
    assert load_reward("toxicity", judges / "toxicity").files == [str(judges / "toxicity")]
    assert load_reward("repetition").files == []


def test_odd_functions_and_values(tmp_path):
    """A function in C, arrays as values, a number of 5,000 digits, a message of two lines."""
    for i, (body, message) in enumerate(
        [
            ("reward = max", "cannot be called by keyword"),
            ("import numpy\ndef reward(completions): return [numpy.zeros(2)]", "at index 0"),
            ("import torch\ndef reward(completions): return [torch.zeros(2)]", "at index 0"),
            ("def reward(completions): return [10**5000]", "returned a huge number at index 0"),
            ("def reward(completions): raise ValueError('a\\nb')", "ValueError: a b;"),
        ]
    ):
        with pytest.raises(BadInput, match=message) as error:
            reward = load_reward(write_reward(tmp_path, body + "\n", f"odd{i}.py"))
            reward(prompts=["a"], completions=["b"])
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
