"""experiments/: the rule behind the defaults, the README's results, and the page of samples."""

import json
import re
import subprocess

import defaults  # experiments/defaults.py
import pytest
import samples  # experiments/samples.py
import seeds  # experiments/seeds.py
from conftest import ROOT, write_jsonl

from plumbing.pool import BadInput

TASKS = ("sentiment", "toxicity", "repetition")
KEPT = [task for task in TASKS if (seeds.KEPT / f"{task}-seed0.json").exists()]
all_runs_are_kept = pytest.mark.skipif(len(KEPT) < 3, reason="no runs of these defaults are kept")


def run(mean, dist_2, perplexity, dial=(0.1, 0.2)):
    """Numbers of one run; p0 has a mean of 0.5, dist-2 and dist-3 of 0.9, a perplexity of 20."""
    shared = {"rep_2": 0, "negative share_ge_half": 0, "neutral share_ge_half": 0}
    p0 = {"mean": 0.5, "dist_2": 0.9, "dist_3": 0.9, "perplexity": 20}
    quark = {"mean": mean, "dist_2": dist_2, "dist_3": 0.9, "perplexity": perplexity}
    return {"p0": p0 | shared, "quark": quark | shared, "dial": list(dial)}


def test_the_price_is_that_of_the_mean_run_and_the_dial_that_of_the_worst():
    """dist-2 falls by 0.04 and 0.06, so by 0.05; perplexity is 1 and 1.6 times p0's, so 1.3."""
    pair = {"0": run(0.7, 0.86, 20), "1": run(0.9, 0.84, 32)}
    found = defaults.summary("sentiment", pair)
    expected = {"gain": 0.8, "dist_2": -0.05, "dist_3": 0, "ppl": 1.3, "rising": 0.1}
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    found |= {"dist_2": -0.05, "ppl": 1.3}  # the sums above are off by a rounding error
    assert defaults.keeps_price("sentiment", found)
    for worse in ({"dist_2": -0.051}, {"dist_3": -0.011}, {"ppl": 1.31}, {"rising": 0.0}):
        assert not defaults.keeps_price("sentiment", found | worse)
    falling = {"0": run(0.7, 0.9, 20), "1": run(0.7, 0.9, 20, [0.1, 0.3, 0.2])}
    found = defaults.summary("sentiment", falling)
    assert found["rising"] == pytest.approx(-0.1) and found["step"] == pytest.approx(0)


def test_the_price_of_repetition():
    found = {"diversity": 0.93, "ppl": 0.9, "rising": 0.001, "step": 0.01}
    assert defaults.keeps_price("repetition", found)
    flat = ({"rising": -0.1}, {"step": 0.009})
    for worse in ({"diversity": 0.929}, {"ppl": 0.89}, {"ppl": 1.16}, *flat):
        assert not defaults.keeps_price("repetition", found | worse)


@pytest.mark.parametrize("task", KEPT)
def test_the_defaults_are_what_the_rule_chooses(task):
    """settings/tiny.sh holds the chosen try's settings.

    A try of one seed has a lower gain there than the chosen one, or does not keep the price.
    """
    tries = json.loads(defaults.RESULTS.read_text(encoding="utf-8"))[task]
    chosen = defaults.choose(task, tries)
    first = {name: defaults.summary(task, {"0": seeds["0"]}) for name, seeds in tries.items()}
    for name, found in first.items():
        if len(tries[name]) < 3 and defaults.keeps_price(task, found):
            assert found["gain"] < first[chosen]["gain"], name
    settings = defaults.BEFORE[task] | defaults.TRIES[task][chosen]
    script = f"TASK={task} MODEL=tiny/lm SEED=0; set -a; source settings/tiny.sh; env"
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    in_shell = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    settings.pop("DIAL_SAMPLES")  # of measuring
    assert {name: in_shell.get(name, "") for name in settings} == {
        name: str(value) for name, value in settings.items()
    }


@pytest.mark.parametrize("task", TASKS)
def test_all_tries_stand_in_the_page(task):
    tries = json.loads(defaults.RESULTS.read_text(encoding="utf-8"))[task]
    page = (ROOT / "docs" / "small-runs.md").read_text(encoding="utf-8")
    assert set(tries) == set(defaults.TRIES[task]) and all("0" in seeds for seeds in tries.values())
    assert defaults.table(task, tries) in page


def test_the_rule_takes_the_highest_gain_among_those_of_three_seeds():
    three = ("0", "1", "2")
    tries = {
        "dear": dict.fromkeys(three, run(0.9, 0.7, 20)),
        "good": dict.fromkeys(three, run(0.8, 0.89, 20)),
        "fair": dict.fromkeys(three, run(0.7, 0.89, 20)),
        "once": {"0": run(0.85, 0.89, 20)},
    }
    assert defaults.choose("sentiment", tries) == "good"
    assert defaults.choose("sentiment", {"dear": tries["dear"]}) is None
    without = {"good": tries["good"], "begun": {"1": tries["good"]["0"]}}
    assert [name for name, *_ in defaults.ranked("sentiment", without)] == ["good"]


def test_names_of_no_task_and_no_try(capsys):
    """Told before a run is made."""
    for argv in (["sentimant"], ["sentiment", "--only", "no such try"]):
        with pytest.raises(SystemExit):
            defaults.main(argv)
        assert f"'{argv[-1]}' is none of " in capsys.readouterr().err


def test_samples_are_drawn_by_the_seed_and_stand_beside_each_other(tmp_path):
    """Of three prompts two, each with p0's and Quark's completion of the same number."""
    for name in ("base", "quark"):
        rows = [
            {"prompt": f"x|{p}", "completion": f" {name}|{p}{i}", "prompt_number": p}
            | {"rewards": {"hash": 0.25 if name == "base" else 0.754}}
            for p in range(3)
            for i in range(4)
        ]
        write_jsonl(tmp_path / "eval" / f"{name}.jsonl", rows)
    page = tmp_path / "samples.md"
    pages = []
    for seed in (0, 0, 1, 2):
        samples.main([str(tmp_path), "--count", "2", "--seed", str(seed), "--out", str(page)])
        pages.append(page.read_text(encoding="utf-8"))
    assert pages[0] == pages[1] and len(set(pages)) > 1
    base = re.findall(r"^\| x\\\|(\d) \| p0 0.25 \| base\\\|(\d\d) \|$", pages[0], re.MULTILINE)
    quark = re.findall(r"^\| \| Quark 0.75 \| quark\\\|(\d\d) \|$", pages[0], re.MULTILINE)
    assert len(base) == 2 and [number for _, number in base] == quark
    assert all(prompt == number[0] for prompt, number in base)
    assert str(tmp_path) in pages[0] and "## Hash" in pages[0]
    with pytest.raises(BadInput, match="has 3 prompts, fewer than --count 4"):
        samples.main([str(tmp_path), "--count", "4", "--out", str(page)])


@all_runs_are_kept
def test_the_page_of_samples_has_twenty_of_each_task():
    page = (ROOT / "docs" / "samples.md").read_text(encoding="utf-8")
    for task in TASKS:
        part = page.split(f"## {task.capitalize()}\n")[1].split("\n## ")[0]
        assert len(re.findall(r"^\|.*\| p0 ", part, re.MULTILINE)) == 20
        assert len(re.findall(r"^\| \| Quark ", part, re.MULTILINE)) == 20


@pytest.mark.parametrize("task", KEPT)
def test_three_seeds_are_kept_and_another_judge_agrees(task):
    runs = seeds.kept_runs()[task]
    assert [run["settings"]["SEED"] for run in runs] == ["0", "1", "2"]
    for run in runs:
        dial = [mean for token, mean in run["dial"] if token != "no token"]
        assert dial == sorted(dial)
        if task != "repetition":
            own = [run["tables"][w]["rewards"][task]["mean"]["value"] for w in ("base", "quark")]
            other = [run["held_out"][who]["mean"] for who in ("base", "quark")]
            assert other[1] - other[0] > (own[1] - own[0]) / 2 > 0
