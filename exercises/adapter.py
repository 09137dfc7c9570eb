"""Says whose work is checked, and how the student's files and functions are called.

    pytest exercises                              # your own work, in exercises/starters
    SOLUTIONS=handed_in/anna pytest exercises     # a folder of somebody else's

If a student uses other names for files or functions, change the tables here and nothing else.
"""

import importlib.util
import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("SOLUTIONS") or Path(__file__).parent / "starters")
FILES = {  # exercise -> file in that folder; an absolute path works too
    1: "ex1_reward.py",
    2: "ex2_quantiles.py",
    3: "ex3_kl.py",
    4: "ex4_loss.py",
    5: "ex5_pool.py",
    6: "ex6_judge.py",
    7: "ex7_gedi.py",
}
NAMES = {}  # the sheet's name -> the student's, as in {"assign_quantiles": "my_quantiles"}


def solution(exercise):
    """The student's module, read anew from its file.

    If the file or a name in it is missing, the check fails with one sentence.
    """
    path = FOLDER / FILES[exercise]
    if not path.is_file():
        pytest.fail(
            f"There is no {path}; copy it from exercises/starters, "
            "or set SOLUTIONS to the folder that holds it.",
            pytrace=False,
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    unreadable = None
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        unreadable = f"{path.name}, line {error.lineno}: Python cannot read it: {error.msg}."
    if unreadable:
        pytest.fail(unreadable, pytrace=False)

    def missing(name):
        if name in NAMES:
            return getattr(module, NAMES[name])
        if name.startswith("__"):
            raise AttributeError(name)
        pytest.fail(
            f"{path.name} has no {name}; keep the starter's names, "
            "or adapt them in exercises/adapter.py.",
            pytrace=False,
        )

    module.__getattr__ = missing  # Python calls it for a name that the module does not have
    return module


def explain(error):
    """One sentence about an exception in a student's code; None if it came from elsewhere."""
    folders = {(FOLDER / file).resolve().parent for file in FILES.values()}
    place = None
    trace = error.__traceback__
    while trace:  # the last line found is the innermost one in the student's files
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.resolve().parent in folders:
            place = path.name, trace.tb_frame.f_code.co_name, trace.tb_lineno
        trace = trace.tb_next
    if place is None:
        if isinstance(error, TypeError) and "argument" in str(error):
            return f"{error}: the arguments must be those of the starter, in the same order."
        return None
    file, function, line = place
    if isinstance(error, NotImplementedError):
        return (
            f"{file}: {function} is not written yet; "
            "the sheet (exercises/README.md) says what it should do."
        )
    return f"{file}, line {line}: {function} raised {type(error).__name__}: {error}."
