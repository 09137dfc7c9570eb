"""The exercises' checks: every one fails on the untouched starter and on plausible wrong work, and passes on a solution.

Each failure must be one sentence. The checks run in this process, by pytest itself, on the files that the adapter names.
"""

import importlib
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from exercises import adapter, draw

SOLUTIONS = ROOT / "tests" / "exercise_solutions"
UNWRITTEN = {  # exercise -> what the untouched starter is told first, by check
    1: {"test_examples": "UNWANTED holds 0 different texts"},
    2: {"test_order": "assign_quantiles is not written yet"},
    3: {"test_forward_kl": "forward_kl is not written yet"},
    4: {"test_equal_models_have_no_kl[a]": "with p_theta = p0 the KL should be 0", "test_only_completions_count[b]": "behind the last token of y",
        "test_gradient[c]": "nothing is learned from the KL"},
    5: {"test_no_bound": "bounded is not written yet"},
    6: {"test_held_out_knows_its_trade": "held_out is not written yet"},
}  # fmt: skip
WRONG = {  # file -> the check that must catch it, and what that must say
    "ex1_upside_down": ("test_examples", "is it upside down"),
    "ex1_relative": ("test_each_text_alone", "depend on that text only"),
    "ex1_silence": ("test_silence_is_no_way_out", "learn to say nothing"),
    "ex1_rare": ("test_p0_does_both", "choose something that the model does more often"),
    "ex2_by_age": ("test_ties_are_random", "the older half takes 100% of the best part"),
    "ex2_edges": ("test_sizes", "cut the sorted ranks"),
    "ex2_noise": ("test_close_rewards_are_no_ties", "do not add noise"),
    "ex2_by_place": ("test_who_fills_the_best_part_by_age", "whatever the order of the rows"),
    "ex3_swapped": ("test_forward_kl", "the other direction"),
    "ex3_not_centred": ("test_reverse_gradient", "is a term missing"),
    "ex3_naive_log": ("test_forward_kl", "no finite number"),
    "ex3_one_direction": ("test_reverse_seeks", "settles on the nearer hill"),
    "ex4_value_only": ("test_gradient[c]", "nothing is learned from the KL"),
    "ex4_wrong_shift": ("test_equal_models_have_no_kl[a]", "with p_theta = p0 the KL should be 0"),
    "ex4_first_token": ("test_only_completions_count[b]", "the first token of every completion is left out"),
    "ex4_direction": ("test_value[c]", "compare with the formula"),
    "ex4_guessed": ("test_diagnosis[a]", 'was not "vocabulary"'),
    "ex5_top_first": ("test_last_before_keep_top", "the order of the two bounds matters"),
    "ex5_off_by_one": ("test_last", "counted from the newest one"),
    "ex5_by_age": ("test_ties_are_random", "100% of the older ones"),
    "ex5_all_prompts_together": ("test_lost_prompts", "none may be lost"),
    "ex6_same_judge": ("test_held_out_knows_its_trade", "asks a neural network"),
    "ex6_bag_of_words": ("test_held_out_knows_its_trade", "praise that is denied"),
    "ex6_word_lists": ("test_texts_are_texts", "not a list of words"),
    "ex6_by_heart": ("test_held_out_is_not_fooled", "not know texts by heart"),
    "ex6_pessimist": ("test_held_out_admits_ignorance", "give 0.5"),
    "ex6_two_winners": ("test_best_of", "do not pick again"),
}


SLIPS = [  # one line of a solution changed: (file, old, new, the check that must catch it, what that must say)
    ("ex2_quantiles", "= np.arange(N) * K // N + 1", "= K - np.arange(N) * K // N", "test_order", "K = 4 is the best"),
    ("ex2_quantiles", "else np.random.default_rng(seed).random(N)", "else np.asarray(iterations)", "test_who_fills_the_best_part_at_random", "the same chance"),
    ("ex2_quantiles", "k - K * (1 - share_of_ones)", "k - K * share_of_ones", "test_what_tokens_mean", "counted from the worst"),
    ("ex3_kl", "return forward_kl(z, z0)", "return forward_kl(z0, z)", "test_reverse_kl", "the other direction"),
    ("ex3_kl", "np.exp(log_softmax(z)) - np.exp(log_softmax(z0))", "np.exp(log_softmax(z0)) - np.exp(log_softmax(z))", "test_forward_gradient", "wrong sign"),
    ("ex3_kl", 'if direction == "forward"', 'if direction != "forward"', "test_forward_covers", "covers both hills"),
    ("ex5_pool", "np.ones(len(rewards), dtype=bool)", "np.zeros(len(rewards), dtype=bool)", "test_no_bound", "with no bound all stay"),
    ("ex5_pool", "len(rows) - math.ceil(keep_top * len(rows))]] = False", "len(rows) - int(keep_top * len(rows))]] = False", "test_keep_top", "up to whole rows"),
    ("ex5_pool", "min(r, last or r)", "(last or r)", "test_newest_share", "after round r the pool holds r rounds"),
    ("ex6_judge", "Nobody could call this a beautiful, moving, wonderful film.", "I hated the story, and the actors were bad.", "test_the_judge_is_fooled", "0.9 is needed"),
]  # fmt: skip


class Reports:
    """What a run of the checks said: {check: sentence} of the failed ones, and the names of all that passed."""

    def __init__(self):
        self.failed, self.passed = {}, []

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::")[-1]
        if report.failed:
            self.failed[name] = str(report.longrepr)
        elif report.passed and report.when == "call":
            self.passed.append(name)


def check(monkeypatch, exercise, folder, file=None):
    """The checks of one exercise on the work in `folder`, with no network. Returns the exit status and the reports."""

    def refuse(*args):
        raise AssertionError("a check asked the network")

    monkeypatch.setattr(adapter, "FOLDER", folder)
    monkeypatch.setitem(adapter.FILES, exercise, file or adapter.FILES[exercise])
    monkeypatch.setattr(socket.socket, "connect", refuse)
    reports = Reports()
    # unraisableexception: it collects garbage twice a run, which takes longer than most of the checks
    status = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:unraisableexception", str(ROOT / "exercises" / f"test_ex{exercise}.py")], plugins=[reports])
    return status, reports


def sentence(text):
    return "\n" not in text and text.rstrip().endswith((".", "?")) and "Traceback" not in text and len(text) < 400


@pytest.mark.parametrize("exercise", UNWRITTEN)
def test_untouched_starter_fails(exercise, monkeypatch):
    """With one sentence, which says what to do; what comes after it is left for later."""
    status, reports = check(monkeypatch, exercise, ROOT / "exercises" / "starters")
    assert status == 1 and reports.failed.keys() == UNWRITTEN[exercise].keys()
    for name, words in UNWRITTEN[exercise].items():
        assert words in reports.failed[name] and sentence(reports.failed[name])


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_work_fails(wrong, monkeypatch):
    """At the check that is about it, with a sentence that names the fault."""
    name, words = WRONG[wrong]
    status, reports = check(monkeypatch, int(wrong[2]), SOLUTIONS / "wrong", f"{wrong}.py")
    assert status == 1 and list(reports.failed) == [name]
    assert words in reports.failed[name] and sentence(reports.failed[name])


@pytest.mark.parametrize("file, old, new, name, words", SLIPS, ids=[slip[3] for slip in SLIPS])
def test_slips_fail(file, old, new, name, words, tmp_path, monkeypatch):
    """The checks that no wrong file is about, each by a solution with one slip."""
    source = (SOLUTIONS / "reference" / f"{file}.py").read_text(encoding="utf-8")
    assert source.count(old) == 1
    (tmp_path / f"{file}.py").write_text(source.replace(old, new), encoding="utf-8")
    status, reports = check(monkeypatch, int(file[2]), tmp_path)
    assert status == 1 and list(reports.failed) == [name]
    assert words in reports.failed[name] and sentence(reports.failed[name])


def test_measurements_can_fail(monkeypatch):
    """The two checks at the ends of long measurements: a run that has learned nothing, and two judges that are one."""
    from exercises import test_ex1, test_ex6

    monkeypatch.setattr(adapter, "FOLDER", SOLUTIONS / "reference")
    monkeypatch.setattr(test_ex1, "short_run", lambda score: (np.linspace(0.2, 0.9, 50), np.linspace(0.21, 0.91, 50)))
    with pytest.raises(pytest.fail.Exception, match="after a short run the mean reward"):
        test_ex1.test_it_is_unlearned()
    monkeypatch.setattr(test_ex6, "held_out", lambda texts: np.array(test_ex6.judge()(texts)))
    with pytest.raises(pytest.fail.Exception, match="it should grow by 0.1 or more"):
        test_ex6.test_the_gap_grows()


@pytest.mark.parametrize("exercise", [pytest.param(e, marks=pytest.mark.slow) if e == 1 else e for e in UNWRITTEN])  # 1 trains a model
def test_solution_passes(exercise, monkeypatch):
    """Every check of the exercise, none skipped."""
    status, reports = check(monkeypatch, exercise, SOLUTIONS / "reference")
    assert status == 0 and not reports.failed
    assert len(reports.passed) == {1: 5, 2: 7, 3: 6, 4: 15, 5: 7, 6: 7}[exercise]


def test_nothing_is_forgotten():
    """Every wrong file is used, every exercise has at least two, and every check is seen to fail here."""
    files = {path.stem for path in (SOLUTIONS / "wrong").glob("*.py")}
    assert files == set(WRONG)
    assert all(sum(name.startswith(f"ex{n}_") for name in files) >= 2 for n in UNWRITTEN)
    caught = {(int(file[2]), name.split("[")[0]) for file, (name, _) in WRONG.items()}
    caught |= {(int(file[2]), name) for file, _, _, name, _ in SLIPS} | {(1, "test_it_is_unlearned"), (6, "test_the_gap_grows")}
    checks = {(n, name) for n in UNWRITTEN for name in dir(importlib.import_module(f"exercises.test_ex{n}")) if name.startswith("test_")}
    assert caught == checks


@pytest.mark.parametrize("which", ["2", "3", "5"])
def test_pictures_of_the_sheet(which, monkeypatch, capsys):
    """What the sheet shows is what the solutions draw, line by line."""
    monkeypatch.setattr(adapter, "FOLDER", SOLUTIONS / "reference")
    draw.main(which)
    sheet = (ROOT / "exercises" / "README.md").read_text(encoding="utf-8")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5 and not [line for line in lines if line.rstrip() not in sheet]


def test_pictures_of_a_starter(monkeypatch):
    """One sentence, too."""
    monkeypatch.setattr(adapter, "FOLDER", ROOT / "exercises" / "starters")
    with pytest.raises(SystemExit, match="best_part is not written yet"):
        draw.main("2")


@pytest.mark.parametrize("source, words", {
    "missing": (None, "There is no"),
    "syntax": ("def assign_quantiles(\n", "ex2_quantiles.py, line 1: Python cannot read it"),
    "import": ("from numpy import nothing\n", "ex2_quantiles.py, line 1: <module> raised ImportError"),
    "name": ("import math\n", "ex2_quantiles.py has no assign_quantiles"),
    "exception": ("def assign_quantiles(rewards, K, seed=0):\n    return 1 / 0\n", "line 2: assign_quantiles raised ZeroDivisionError"),
    "arguments": ("def assign_quantiles(rewards):\n    return rewards\n", "the arguments must be those of the starter"),
    "none": ("def assign_quantiles(rewards, K, seed=0):\n    pass\n", "assign_quantiles returned None"),
    "zeros": ("def assign_quantiles(rewards, K, seed=0):\n    return [0] * len(rewards)\n", "whole numbers from 1 to K"),
}.values())  # fmt: skip
def test_broken_files(source, words, tmp_path, monkeypatch):
    """What goes wrong before anything is checked is one sentence too."""
    if source:
        (tmp_path / "ex2_quantiles.py").write_text(source)
    status, reports = check(monkeypatch, 2, tmp_path)
    assert status == 1 and list(reports.failed) == ["test_order"]
    assert words in reports.failed["test_order"] and sentence(reports.failed["test_order"])


@pytest.mark.parametrize("body, words", [
    ("return [0.5]", "reward returned 1 values for 3 completions"),
    ("return ['good' for y in completions]", "reward returned 'good' at index 0"),
    ("return [completions.count(y) / 0 for y in completions]", "raised ZeroDivisionError"),
    ("return [7 for y in completions]", "it must lie from 0 to 1"),
    ("return [None for y in completions]", "needs a number"),
])  # fmt: skip
def test_broken_rewards(body, words, tmp_path, monkeypatch):
    """What rewards.py says of a reward that returns something else reaches the student."""
    (tmp_path / "ex1_reward.py").write_text(f"UNWANTED, WANTED = list('abc'), list('def')\n\n\ndef reward(prompts, completions, **kwargs):\n    {body}\n")
    status, reports = check(monkeypatch, 1, tmp_path)
    assert status == 1 and list(reports.failed) == ["test_examples"]
    assert words in reports.failed["test_examples"] and sentence(reports.failed["test_examples"])


def test_other_names(tmp_path, monkeypatch):
    """The adapter's NAMES: a student whose function is called differently."""
    source = (SOLUTIONS / "reference" / "ex2_quantiles.py").read_text()
    (tmp_path / "annas.py").write_text(source.replace("def assign_quantiles", "def my_cut"))
    monkeypatch.setitem(adapter.NAMES, "assign_quantiles", "my_cut")
    assert check(monkeypatch, 2, tmp_path, "annas.py")[0] == 0


def test_the_command():
    """`SOLUTIONS=folder pytest exercises/...` as a person types it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "exercises/test_ex2.py"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "SOLUTIONS": str(SOLUTIONS / "reference")}, capture_output=True, text=True)
    assert done.returncode == 0 and "7 passed" in done.stdout
