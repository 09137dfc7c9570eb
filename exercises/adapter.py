"""The one place that says whose work is checked.

    pytest exercises                              # your own work, in exercises/starters
    SOLUTIONS=handed_in/anna pytest exercises     # a folder of anybody else's

A student who uses other file names or function names is adapted here, and nowhere else.
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
}
NAMES = {}  # name in the sheet -> name in the student's file, e.g. {"assign_quantiles": "my_quantiles"}


def solution(exercise):
    """The student's module, read anew from its file. A name that it lacks fails the check in one sentence."""
    path = FOLDER / FILES[exercise]
    if not path.is_file():
        pytest.fail(f"There is no {path}; copy it from exercises/starters, or set SOLUTIONS to the folder that holds it.", pytrace=False)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    unreadable = None
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        unreadable = f"{path.name}, line {error.lineno}: Python cannot read it: {error.msg}."
    if unreadable:
        pytest.fail(unreadable, pytrace=False)

    def missing(name):  # Python calls this for a name that the module does not have
        if name in NAMES:
            return getattr(module, NAMES[name])
        if name.startswith("__"):
            raise AttributeError(name)
        pytest.fail(f"{path.name} has no {name}; keep the starter's names, or adapt them in exercises/adapter.py.", pytrace=False)

    module.__getattr__ = missing
    return module


def explain(error):
    """One sentence for an exception out of a student's code; None if the student's files had no part in it."""
    folders = {(FOLDER / file).resolve().parent for file in FILES.values()}
    place, trace = None, error.__traceback__
    while trace:  # the innermost line that is the student's
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.resolve().parent in folders:
            place = path.name, trace.tb_frame.f_code.co_name, trace.tb_lineno
        trace = trace.tb_next
    if place is None and isinstance(error, TypeError) and "argument" in str(error):
        return f"{error}: the arguments must be those of the starter, in the same order."
    if place is None:
        return None
    file, function, line = place
    if isinstance(error, NotImplementedError):
        return f"{file}: {function} is not written yet; the sheet (exercises/README.md) says what it should do."
    return f"{file}, line {line}: {function} raised {type(error).__name__}: {error}."
