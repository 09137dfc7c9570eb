"""The exercises' checks fail on the untouched starter and on wrong work, and pass on a solution.

Each failure must be one sentence. The checks run in this process, by pytest itself, on the files
that the adapter names.
"""

import importlib
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, execute

from exercises import adapter, draw

SOLUTIONS = Path(__file__).parent / "exercise_solutions"
STARTERS = ROOT / "exercises" / "starters"
UNWRITTEN = {  # exercise -> what the untouched starter is told first, by check
    1: {"test_examples": "UNWANTED holds 0 different texts"},
    2: {"test_order": "assign_quantiles is not written yet"},
    3: {"test_forward_kl": "forward_kl is not written yet"},
    4: {
        "test_equal_models_have_no_kl[a]": "with p_theta = p0 the KL should be 0",
        "test_only_completions_count[b]": "behind the last token of y",
        "test_gradient[c]": "nothing is learned from the KL",
    },
    5: {"test_no_bound": "bounded is not written yet"},
    6: {"test_held_out_knows_its_trade": "held_out is not written yet"},
    7: {"test_dexperts_mixes": "dexperts is not written yet"},
}
N_CHECKS = {1: 5, 2: 7, 3: 7, 4: 15, 5: 7, 6: 7, 7: 6}
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
    "ex4_first_token": (
        "test_only_completions_count[b]",
        "the first token of every completion is left out",
    ),
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
    "ex7_nucleus_after": ("test_the_nucleus_comes_first", "before the mixing"),
    "ex7_forgets_the_text": ("test_posterior", "looks at the next token only"),
    "ex7_sum": ("test_posterior", "GeDi takes the mean"),
    "ex7_filter_upside_down": ("test_gedi_filters", "from the lowest P(good | v) up"),
}
SLIPS = [  # one line of a solution, changed: (file, old, new, the check that must catch it, words)
    (
        "ex2_quantiles",
        "= np.arange(N) * K // N + 1",
        "= K - np.arange(N) * K // N",
        "test_order",
        "K = 4 is the best",
    ),
    (
        "ex2_quantiles",
        "else np.random.default_rng(seed).random(N)",
        "else np.random.default_rng(seed).random(N) + 0.5 * np.asarray(iterations)",
        "test_who_fills_the_best_part_at_random",
        "the same chance",
    ),
    (
        "ex2_quantiles",
        "k - K * (1 - share_of_ones)",
        "k - K * share_of_ones",
        "test_what_tokens_mean",
        "counted from the worst",
    ),
    (
        "ex2_quantiles",
        "return np.bincount(np.asarray(iterations)[best], minlength=max(iterations) + 1)",
        "return N / K * np.bincount(iterations, weights=rewards) / np.sum(rewards)",
        "test_who_fills_the_best_part_by_age",
        "count the rows that are in D^5",
    ),
    (
        "ex3_kl",
        "return forward_kl(z, z0)",
        "return forward_kl(z0, z)",
        "test_reverse_kl",
        "the other direction",
    ),
    (
        "ex3_kl",
        "np.exp(log_softmax(z)) - np.exp(log_softmax(z0))",
        "np.exp(log_softmax(z0)) - np.exp(log_softmax(z))",
        "test_forward_gradient",
        "wrong sign",
    ),
    (
        "ex3_kl",
        'if direction == "forward"',
        'if direction != "forward"',
        "test_forward_covers",
        "covers both hills",
    ),
    (
        "ex3_kl",
        "(x - mu) ** 2 / variance).sum()",
        "(x - mu) ** 2 / variance**1.5).sum()",
        "test_one_step",
        "times d z / d log_sigma",
    ),
    (
        "ex5_pool",
        "np.ones(len(rewards), dtype=bool)",
        "np.zeros(len(rewards), dtype=bool)",
        "test_no_bound",
        "with no bound all stay",
    ),
    (
        "ex5_pool",
        "n_kept = math.ceil(keep_top * len(rows))",
        "n_kept = int(keep_top * len(rows))",
        "test_keep_top",
        "up to whole rows",
    ),
    ("ex5_pool", "default_rng(seed)", "default_rng(0)", "test_ties_are_random", "use the seed"),
    (
        "ex5_pool",
        "return sorted({int(p) for p in prompts} - {int(p) for p in np.asarray(prompts)[keep]})",
        "return [p for p in dict.fromkeys(prompts.tolist()) if not keep[prompts == p].any()]",
        "test_lost_prompts",
        "return [2, 7]",
    ),
    (
        "ex5_pool",
        "min(r, last or r)",
        "(last or r)",
        "test_newest_share",
        "after round r the pool holds r rounds",
    ),
    (
        "ex6_judge",
        "Nobody could call this a beautiful, moving, wonderful film.",
        "I hated the story, and the actors were bad.",
        "test_the_judge_is_fooled",
        "0.9 is needed",
    ),
    (
        "ex7_gedi",
        "order = np.argsort(-p0)",
        "order = np.arange(len(p0))",
        "test_the_nucleus_comes_first",
        "the nucleus of p0 is [0, 1, 3]",
    ),
    (
        "ex7_gedi",
        "so_far = np.cumsum(p_w[order])",
        "so_far = np.cumsum(np.exp(log_p0)[order])",
        "test_gedi_filters",
        "hold less than filter_mass of p0 P^omega",
    ),
    (
        "ex7_gedi",
        "alpha * (log_plus - log_minus)",
        "alpha * (log_minus - log_plus)",
        "test_dexperts_mixes",
        "p0 times (p_plus / p_minus)^alpha",
    ),
    (
        "ex7_gedi",
        "np.exp(log_p0) * p_good**omega",
        "np.exp(log_p0) * p_good",
        "test_gedi_reweights",
        "with filter_mass 0 no token goes",
    ),
    (
        "ex7_gedi",
        "/ (t + 1) * (1 - p_good)",
        "/ (t + 1)",
        "test_effective_alpha",
        "differentiate omega log P",
    ),
]


class Reports:
    """What a run of the checks said: {check: sentence} of the failed ones; names of the others."""

    def __init__(self):
        self.failed = {}
        self.passed = []

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::")[-1]
        if report.failed:
            self.failed[name] = str(report.longrepr)
        elif report.passed and report.when == "call":
            self.passed.append(name)


def check(monkeypatch, exercise, folder, file=None):
    """The checks of one exercise on the work in `folder`, with no network: (status, reports)."""

    def refuse(*args):
        raise AssertionError("a check asked the network")

    monkeypatch.setattr(adapter, "FOLDER", folder)
    monkeypatch.setitem(adapter.FILES, exercise, file or adapter.FILES[exercise])
    monkeypatch.setattr(socket.socket, "connect", refuse)
    reports = Reports()
    # unraisableexception collects garbage twice a run, which takes longer than most of the checks.
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    path = ROOT / "exercises" / f"test_ex{exercise}.py"
    status = pytest.main([*options, str(path)], plugins=[reports])
    return status, reports


def is_sentence(text):
    ends_well = text.rstrip().endswith((".", "?"))
    return ends_well and "\n" not in text and "Traceback" not in text and len(text) < 400


def fails_with(status, reports, name, words):
    """Whether the check `name` failed, and no other, with a sentence that holds `words`."""
    said = reports.failed.get(name, "")
    return status == 1 and list(reports.failed) == [name] and words in said and is_sentence(said)


# ----------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("exercise", UNWRITTEN)
def test_untouched_starter_fails(exercise, monkeypatch):
    """With a sentence that says what to do. What comes after it is left for later."""
    status, reports = check(monkeypatch, exercise, STARTERS)
    assert status == 1
    assert reports.failed.keys() == UNWRITTEN[exercise].keys()
    for name, words in UNWRITTEN[exercise].items():
        assert words in reports.failed[name]
        assert is_sentence(reports.failed[name])


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_work_fails(wrong, monkeypatch):
    """At the check that is about it, with a sentence that names the fault."""
    status, reports = check(monkeypatch, int(wrong[2]), SOLUTIONS / "wrong", f"{wrong}.py")
    assert fails_with(status, reports, *WRONG[wrong]), reports.failed


@pytest.mark.parametrize("file, old, new, name, words", SLIPS, ids=[slip[3] for slip in SLIPS])
def test_slips_fail(file, old, new, name, words, tmp_path, monkeypatch):
    """The checks that no wrong file is about, each by a solution with one slip."""
    source = (SOLUTIONS / "reference" / f"{file}.py").read_text(encoding="utf-8")
    assert source.count(old) == 1
    (tmp_path / f"{file}.py").write_text(source.replace(old, new), encoding="utf-8")
    status, reports = check(monkeypatch, int(file[2]), tmp_path)
    assert fails_with(status, reports, name, words), reports.failed


def test_measurements_can_fail(monkeypatch):
    """The two checks that measure for long: a run that learned nothing, and two equal judges."""
    from exercises import test_ex1, test_ex6  # not at the top: pytest must import them first

    def nothing_learned(score):
        return np.linspace(0.2, 0.9, 50), np.linspace(0.21, 0.91, 50)

    def the_same_judge(texts):
        return np.array(test_ex6.judge()(texts))

    monkeypatch.setattr(adapter, "FOLDER", SOLUTIONS / "reference")
    monkeypatch.setattr(test_ex1, "short_run", nothing_learned)
    with pytest.raises(pytest.fail.Exception, match="after a short run the mean reward"):
        test_ex1.test_it_is_unlearned()
    monkeypatch.setattr(test_ex6, "held_out", the_same_judge)
    with pytest.raises(pytest.fail.Exception, match="it should grow by 0.1 or more"):
        test_ex6.test_the_gap_grows()


BROKEN_FILES = [
    (None, "There is no"),
    ("def assign_quantiles(\n", "ex2_quantiles.py, line 1: Python cannot read it"),
    ("from numpy import nothing\n", "ex2_quantiles.py, line 1: <module> raised ImportError"),
    ("import math\n", "ex2_quantiles.py has no assign_quantiles"),
    (
        "def assign_quantiles(rewards, K, seed=0):\n    return 1 / 0\n",
        "line 2: assign_quantiles raised ZeroDivisionError",
    ),
    (
        "def assign_quantiles(rewards):\n    return rewards\n",
        "the arguments must be those of the starter",
    ),
    ("def assign_quantiles(rewards, K, seed=0):\n    pass\n", "assign_quantiles returned None"),
    (
        "def assign_quantiles(rewards, K, seed=0):\n    return [0] * len(rewards)\n",
        "whole numbers from 1 to K",
    ),
]


@pytest.mark.parametrize("source, words", BROKEN_FILES)
def test_broken_files(source, words, tmp_path, monkeypatch):
    """What goes wrong before anything is checked is one sentence, too."""
    if source:
        (tmp_path / "ex2_quantiles.py").write_text(source)
    status, reports = check(monkeypatch, 2, tmp_path)
    assert fails_with(status, reports, "test_order", words), reports.failed


BROKEN_REWARDS = [
    ("return [0.5]", "reward returned 1 values for 3 completions"),
    ("return ['good' for y in completions]", "reward returned 'good' at index 0"),
    ("return [completions.count(y) / 0 for y in completions]", "raised ZeroDivisionError"),
    ("return [7 for y in completions]", "it must lie from 0 to 1"),
    ("return [None for y in completions]", "needs a number"),
]


@pytest.mark.parametrize("body, words", BROKEN_REWARDS)
def test_broken_rewards(body, words, tmp_path, monkeypatch):
    """What rewards.py says of a reward that returns something else reaches the student."""
    source = f"""
UNWANTED, WANTED = list("abc"), list("def")

def reward(prompts, completions, **kwargs):
    {body}
"""
    (tmp_path / "ex1_reward.py").write_text(source)
    status, reports = check(monkeypatch, 1, tmp_path)
    assert fails_with(status, reports, "test_examples", words), reports.failed


# ---------------------------------------------------------------------------------------- solutions


@pytest.mark.parametrize(
    "exercise",
    [
        pytest.param(1, marks=pytest.mark.slow),  # trains a model
        2,
        3,
        4,
        5,
        6,
        7,
    ],
)
def test_solution_passes(exercise, monkeypatch):
    """Every check of the exercise, none skipped."""
    status, reports = check(monkeypatch, exercise, SOLUTIONS / "reference")
    assert status == 0
    assert not reports.failed
    assert len(reports.passed) == N_CHECKS[exercise]


def test_nothing_is_forgotten():
    """Every wrong file is used, each exercise has at least two, and every check is seen to fail."""
    files = {path.stem for path in (SOLUTIONS / "wrong").glob("*.py")}
    assert files == set(WRONG)
    for n in UNWRITTEN:
        assert sum(name.startswith(f"ex{n}_") for name in files) >= 2
    caught = {(1, "test_it_is_unlearned"), (6, "test_the_gap_grows")}
    caught |= {(int(file[2]), name.split("[")[0]) for file, (name, _) in WRONG.items()}
    caught |= {(int(file[2]), name) for file, _, _, name, _ in SLIPS}
    checks = set()
    for n in UNWRITTEN:
        module = importlib.import_module(f"exercises.test_ex{n}")
        checks |= {(n, name) for name in dir(module) if name.startswith("test_")}
    assert caught == checks


def test_other_names(tmp_path, monkeypatch):
    """The adapter's NAMES: a student whose file and function are called differently."""
    source = (SOLUTIONS / "reference" / "ex2_quantiles.py").read_text()
    renamed = source.replace("def assign_quantiles", "def my_cut")
    (tmp_path / "annas.py").write_text(renamed)
    monkeypatch.setitem(adapter.NAMES, "assign_quantiles", "my_cut")
    status, _ = check(monkeypatch, 2, tmp_path, "annas.py")
    assert status == 0


def test_the_command():
    """`SOLUTIONS=folder pytest exercises/...` as a person types it."""
    pytest_quietly = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    folder = str(SOLUTIONS / "reference")
    done = execute(*pytest_quietly, "exercises/test_ex2.py", SOLUTIONS=folder)
    assert done.returncode == 0
    assert "7 passed" in done.stdout


# ----------------------------------------------------------------------------- the sheet's pictures


@pytest.mark.parametrize("which", ["2", "3", "5", "7"])
def test_pictures_of_the_sheet(which, monkeypatch, capsys):
    """What the sheet shows is what the solutions draw, line by line."""
    monkeypatch.setattr(adapter, "FOLDER", SOLUTIONS / "reference")
    draw.main(which)
    sheet = (ROOT / "exercises" / "README.md").read_text(encoding="utf-8")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    for line in lines:
        assert line.rstrip() in sheet


def test_pictures_of_a_starter(monkeypatch):
    """Work that is not written yet is one sentence, too."""
    monkeypatch.setattr(adapter, "FOLDER", STARTERS)
    with pytest.raises(SystemExit, match="best_part is not written yet"):
        draw.main("2")
