"""A reward of one's own: how its file is found, how it is called, and what it may return."""

import pytest
from conftest import write_reward

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
