"""How the checks report: one sentence without a traceback. The first failure skips the rest."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no check uses the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest

from exercises.adapter import explain

STOPPED = pytest.StashKey[set]()


def part_of(item):
    """What one failure stops: an exercise, or one variant of it."""
    return item.path, item.callspec.id if hasattr(item, "callspec") else None


def pytest_sessionstart(session):
    session.stash[STOPPED] = set()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if part_of(item) in item.session.stash[STOPPED]:
        pytest.skip("an earlier check of this exercise failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    except Exception as error:  # not what pytest.fail raises, which derives from BaseException
        sentence = explain(error)
        if sentence is None:
            raise  # a fault of the check, not of the student: show all of it
    pytest.fail(sentence, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.session.stash[STOPPED].add(part_of(item))
    return report
