"""experiments/: means and ranges over runs, the rule of the verdicts, what a study runs."""

import json
import os
import shutil
import sys
import types

import check  # experiments/check.py
import hidden  # experiments/hidden.py
import kept  # experiments/kept.py
import measures  # experiments/measures.py
import pairs  # experiments/pairs.py
import pool  # experiments/pool.py
import pytest
import seeds  # experiments/seeds.py
import study  # experiments/study.py
import torch
from conftest import ROOT, execute, write_jsonl

from evaluate import perplexity
from plumbing.pool import BadInput
from rewards import load_reward

EXPERIMENTS = ROOT / "experiments"

# ---------------------------------------------------------------------- several runs, and a verdict


def table(mean, perplexity):
    group = {"rewards": {}, "dist_1": {"value": None}}
    rewards = {"hash": {"mean": {"value": mean}}}
    return {"rewards": rewards, "perplexity": {"value": perplexity}, "groups": {"a": group}}


def test_means_and_ranges(tmp_path, capsys):
    """Two runs: the base has 0.2 and 0.4, Quark 0.5 and 0.8, so 2.5 and 2 times as much.

    What is kept of a run is its tables, its dial, and two of its texts. Files beside them that are
    no tables do not count.
    """
    results = []
    for run, base, quark in (("x", 0.2, 0.5), ("y", 0.4, 0.8)):
        folder = tmp_path / run / "eval"
        folder.mkdir(parents=True)
        (tmp_path / run / "settings").write_text("TASK=hash\nEXPLORE=--a=b\n")
        files = {"base": table(base, 10), "quark": table(quark, 20), "dial-r1": table(base, 1)}
        files |= {"dial-none": table(quark, 1), "dial-r1.args": {"seed": 0}}
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        for name in ("base", "quark"):
            text = {"prompt": "x", "completion": f" {name}", "rewards": {"hash": 0.5}}
            write_jsonl(folder / f"{name}.jsonl", [text])
        results.append(str(tmp_path / f"{run}.json"))
        seeds.main(["--keep", str(tmp_path / run), "--out", results[-1]])
    one = json.loads((tmp_path / "x.json").read_text())
    assert one["settings"] == {"TASK": "hash", "EXPLORE": "--a=b"}
    assert one["machine"] == kept.machine()
    assert one["dial"] == [["r_1", 0.2], ["no token", 0.5]]
    assert one["texts"][0][1][1] == {"completion": " quark", "rewards": {"hash": 0.5}}
    seeds.main(results)
    lines = {}
    for line in capsys.readouterr().out.splitlines():
        if line.strip():
            lines[line.strip().split("  ")[0]] = line
    assert "0.300 (0.200 to 0.400)" in lines["hash mean"]
    assert "0.650 (0.500 to 0.800)" in lines["hash mean"]
    assert "2.250 (2.000 to 2.500)" in lines["hash mean"]
    assert "2.000 (2.000 to 2.000)" in lines["perplexity"]
    assert "0.300 (0.200 to 0.400)" in lines["r_1"]
    assert "0.650 (0.500 to 0.800)" in lines["no token"]


def test_another_judge_is_measured_as_the_reward_is(tmp_path, monkeypatch):
    """Two prompts of two completions, scored .9 .4 and .8 .6 for p0, all 1 for Quark."""
    scores = {" a": 0.9, " b": 0.4, " c": 0.8, " d": 0.6}
    judge = types.ModuleType("held_out")
    judge.vader = lambda prompts, completions: [scores.get(y, 1.0) for y in completions]
    monkeypatch.setitem(sys.modules, "held_out", judge)
    monkeypatch.setitem(seeds.HELD_OUT, "sentiment", ("vader", "json"))
    for name, texts in (("base", " a b c d"), ("quark", " e f g h")):
        rows = [
            {"prompt": "x", "completion": f" {text}", "prompt_number": i // 2}
            for i, text in enumerate(texts.split())
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    found = seeds.held_out("sentiment", tmp_path)
    assert found["base"] == {"mean": 0.675, "avg_max_unwanted": 0.5, "unwanted_prob": 0.5}
    assert found["quark"] == {"mean": 1.0, "avg_max_unwanted": 0.0, "unwanted_prob": 0.0}
    assert seeds.held_out("repetition", tmp_path) is None


def two_variants(*differences):
    """A task's results: a's rewards are above b's by these differences, and its KL is lower."""
    a = {"reward": [0.5 + d for d in differences], "kl": [0.1] * 3}
    return {"a": a, "b": {"reward": [0.5] * 3, "kl": [0.3] * 3}}


def test_verdicts_by_hand():
    """Differences of .1, .2, .3: 0.2 +- 4.303 * 0.1 / sqrt 3 = 0.2 +- 0.248, which is unclear.

    Of .2, .2, .21: reproduced; with the other sign: not. One task that disagrees is enough, and a
    study's verdict is that of its worst claim.
    """
    assert study.interval([0.1, 0.2, 0.3]) == (pytest.approx(0.2), pytest.approx(0.24843, rel=1e-4))
    more_reward = ("reward", "a", ">", "b")
    clear, unsure = two_variants(0.2, 0.2, 0.21), two_variants(0.1, 0.2, 0.3)
    opposite = two_variants(-0.2, -0.2, -0.21)

    def word(claims, **tasks):
        return study.verdict(claims, tasks)[1]

    assert word([more_reward], x=clear, y=clear) == "reproduced"
    assert word([more_reward], x=clear, y=unsure) == "unclear"
    assert word([more_reward], x=clear, y=opposite) == "not reproduced"
    assert word([("reward", "a", "<", "b")], x=clear) == "not reproduced"
    lines, worst = study.verdict([more_reward, ("kl", "a", ">", "b")], {"x": clear})
    assert worst == "not reproduced"
    assert lines[1] == "mean reward, a > b: reproduced"
    assert "x: mean reward, a - b: +0.203 ± 0.014, claimed > 0" in lines


def test_what_the_studies_took(tmp_path, monkeypatch):
    """Two hours and half an hour of one core, and their sum; without a result, nothing."""
    monkeypatch.setattr(study, "ROOT", tmp_path)
    assert study.times() == ""
    results = tmp_path / "experiments" / "results"
    results.mkdir(parents=True)
    for name, runs, seconds in (("pool", 3, 7200), ("beta", 2, 1800)):
        cost = {"runs": runs, "seconds": seconds, "machines": ["A", "B"]}
        (results / f"{name}.json").write_text(json.dumps({"cost": cost}))
    assert study.times().splitlines()[2:] == [
        "| beta | 2 | 0.5 | A; B |",
        "| pool | 3 | 2.0 | A; B |",
        "| together | 5 | 2.5 |  |",
    ]


def test_pairs_of_variants(tmp_path, monkeypatch, capsys):
    """.1, .2, .3: 0.2 ± 0.248, as above; a name that the study lacks is told."""
    more = {"c": {"reward": [0.5, 0.5, 0.6], "kl": [0.0] * 3}}
    results = tmp_path / "experiments" / "results"
    results.mkdir(parents=True)
    content = {"results": {"toxicity": two_variants(0.1, 0.2, 0.3) | more}}
    (results / "beta.json").write_text(json.dumps(content))
    monkeypatch.setattr(study, "ROOT", tmp_path)
    pairs.main(["beta", "reward"])
    assert capsys.readouterr().out.splitlines() == [
        "toxicity: a - b: +0.200 ± 0.248",
        "toxicity: a - c: +0.167 ± 0.143",
        "toxicity: b - c: -0.033 ± 0.143",
    ]
    pairs.main(["beta", "kl", "b"])
    assert capsys.readouterr().out.split("\n")[0] == "toxicity: b - a: +0.200 ± 0.000"
    pairs.main(["beta", "reward", "c", "a"])
    assert capsys.readouterr().out == "toxicity: c - a: -0.167 ± 0.143\n"
    for argv, said in (
        (["beta", "reward", "d"], "'d' is none of a, b, c"),
        (["beta", "mb"], "'mb' is none of reward, kl"),
        (["pool", "reward"], "pool is not finished"),
    ):
        with pytest.raises(SystemExit):
            pairs.main(argv)
        assert said in capsys.readouterr().err


# -------------------------------------------------------------------------------- what a study runs

FAKE = """#!/usr/bin/env bash
# run_all.sh as a study sees it: asked for a task, a seed and settings, it writes what study.py
# reads. Each call is noted. With BETA=1 the first call fails.
{
    echo -n "$1 $SEED ${BETA:-.} ${REWARD:-.} $ITERATIONS,$STEPS,$NUM_PROMPTS "
    echo -n "$(ls "$RUN" | tr '\\n' ' ')$(ls "$RUN/pool") $EVALUATE"
    echo
} >> calls
if [ "${BETA:-}" = 1 ] && [ ! -e failed ]; then touch failed; exit 1; fi
mkdir -p "$RUN/pool" "$RUN/eval" "$RUN/model"
cp -r tiny/lm "$RUN/model/01"
mkdir "$RUN/model/00"
touch "$RUN/model/00/model.safetensors" "$RUN/model/01/optimizer.pt"
touch "$RUN/pool/00.jsonl" "$RUN/report.html"
echo '{"prompt": "The film", "completion": " was good."}' > "$RUN/eval/base.jsonl"
mean=0.$((5 - ${BETA:-0} + SEED))
for name in base quark; do
    echo '{"rewards": {"r": {"mean": {"value": '$mean'}}}, "perplexity": {"value": 10},
           "dist_1": {"value": 0.5}, "dist_2": {"value": 0.5}, "dist_3": {"value": 0.5},
           "rep_2": {"value": 0.1}}' > "$RUN/eval/$name.json"
done
"""
EVALUATE = " --decode sample --top-p 0.9 --num-samples 5 --reward "


@pytest.fixture
def as_study(tmp_path):
    """A copy of experiments/ beside a stand-in of run_all.sh.

    as_study(NAME, VARIANTS, ...) -> (the calls of run_all.sh, without EVALUATE; what was printed).
    """
    left_out = shutil.ignore_patterns("figures", "results", "__pycache__")
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments", ignore=left_out)
    rule = tmp_path / "experiments" / "study.py"
    three = rule.read_text().replace(f"N_SEEDS = {study.N_SEEDS}", "N_SEEDS = 3")
    rule.write_text(three)  # enough for a verdict here
    (tmp_path / "tiny").symlink_to(ROOT / "tiny")
    (tmp_path / "run_all.sh").write_text(FAKE)
    calls = tmp_path / "calls"

    def run(name, variants, seeds="0 1 2", succeeds=True):
        script = f'source "$(dirname "$0")/study.sh"\n{variants}\nfinish\n'
        (tmp_path / "experiments" / f"{name}.sh").write_text(script)
        env = {"PYTHON": sys.executable, "SEEDS": seeds, "JOBS": "1"}
        env["BETA"] = "7"  # of the user's, for something else: a study ignores it
        done = execute("bash", f"experiments/{name}.sh", cwd=tmp_path, **env)
        assert (done.returncode == 0) == succeeds, done.stderr
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return [line.split(EVALUATE)[0] for line in lines], done.stderr + done.stdout

    return run


def test_every_run_of_a_study_is_started(tmp_path):
    """Once for each variant, task and seed, after those of p0, wherever the user stands.

    PYTHON is relative to that place. TASK in a setting is the task's name. A stand-in takes the
    place of python.
    """
    here, house = tmp_path / "here", tmp_path / "the house"
    (house / "experiments").mkdir(parents=True)
    here.mkdir()
    shutil.copy(EXPERIMENTS / "study.sh", house / "experiments")
    script = (
        'source "$(dirname "$0")/study.sh"\nvariant a\nvariant b "REWARD=my r.py:TASK"\nfinish\n'
    )
    (house / "experiments" / "s.sh").write_text(script)
    (house / "run_all.sh").write_text(FAKE.replace("cp -r tiny/lm", "mkdir"))
    lists = '*--missing*) cat "${2%.tsv}-p0.tsv" "$2" ;;'
    (here / "python").write_text(f'#!/bin/sh\ncase "$*" in {lists} esac\n')
    (here / "python").chmod(0o755)
    given = {"PYTHON": "./python", "SEEDS": "0 1", "TASKS": "toxicity", "JOBS": "1"}
    done = execute("bash", house / "experiments" / "s.sh", cwd=here, **given)
    assert done.returncode == 0, done.stderr
    calls = (house / "calls").read_text().splitlines()
    runs = [line.split(EVALUATE)[0].split(",320 ")[0] for line in calls]
    assert runs == [
        "toxicity 0 . . 0,",
        "toxicity 1 . . 0,",
        "toxicity 0 . . 4,50",
        "toxicity 1 . . 4,50",
        "toxicity 0 . my r.py:toxicity 4,50",
        "toxicity 1 . my r.py:toxicity 4,50",
    ]


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped(as_study, tmp_path):
    """Two variants: p0 is evaluated once for each task and seed, and its files are in every run.

    A run that failed is named, and made again from nothing; finished ones are not. Another study
    then finds the run of the same settings. Where p0 samples by a reward of the study's own, only
    p0's evaluation is taken over. The page has the new table between its markers, and is otherwise
    as it was.
    """
    page = tmp_path / "experiments" / "README.md"
    times = "<!-- times -->\n<!-- end -->\n"
    below = "<!-- end -->\nbetween\n<!-- ties -->\n<!-- end -->\nbelow\n"
    page.write_text("above\n<!-- beta -->\nold\n" + below + times)
    variants = "variant 0\nvariant 1 BETA=1 STEPS=9"
    tasks_and_seeds = [(task, seed) for task in ("sentiment", "toxicity") for seed in (0, 1, 2)]

    calls, message = as_study("beta", variants, succeeds=False)
    expected = [f"{task} {seed} . . 0,,320 eval pool " for task, seed in tasks_and_seeds]
    for seed in (0, 1, 2):
        for beta, steps in ((".", 50), (1, 9)):
            for task in ("sentiment", "toxicity"):
                expected.append(f"{task} {seed} {beta} . 4,{steps},320 eval pool 00.jsonl")
    assert calls == expected
    failed = "runs/studies/sentiment-seed0-4-50-320-4-BETA=1-STEPS=9"
    assert f"{failed} failed" in message
    (tmp_path / failed / "half").touch()
    calls, _ = as_study("beta", variants)
    assert calls == ["sentiment 0 1 . 4,9,320 eval pool 00.jsonl"]
    assert not (tmp_path / failed / "half").exists()
    kept_models = [*(tmp_path / failed).rglob("model.safetensors")]
    assert kept_models == [tmp_path / failed / "model" / "01" / "model.safetensors"]
    assert not [*(tmp_path / failed).rglob("optimizer.pt")]

    results = tmp_path / "experiments" / "results" / "beta.json"
    result = json.loads(results.read_text())
    sentiment, toxicity = result["results"]["sentiment"], result["results"]["toxicity"]
    assert toxicity["0"]["reward"] == [0.5, 0.6, 0.7]
    assert sentiment["1"]["reward"] == [0.4, 0.5, 0.6]
    assert sentiment["p0"]["ppl"] == [1, 1, 1]
    assert sentiment["1"]["kl"] == pytest.approx([0] * 3, abs=1e-5)
    assert "mean reward, 1 < 0: reproduced" in result["claims"]
    assert (tmp_path / "experiments" / "figures" / "beta.png").exists()

    text = page.read_text()
    assert text.startswith("above\n<!-- beta -->\n| sentiment, 3 seeds | mean reward |")
    assert "| 1 | 0.500 ± 0.248 |" in text
    assert f"**Verdict: {result['verdict']}.**" in text
    assert below in text and "| beta | 12 | 0.0 |" in text.split("<!-- times -->")[1]
    assert "old" not in text

    names = ("random", "age", "random_of_2")
    ties = "".join(f"variant {name} REWARD=r.py:TASK\n" for name in names)
    calls, _ = as_study("ties", ties + "variant together_of_2", seeds="1")
    tasks = ("sentiment", "toxicity")
    assert calls == [f"{task} 1 . r.py:{task} 4,50,320 eval pool " for task in tasks]

    shutil.rmtree(tmp_path / "runs")  # the numbers are kept, so nothing is made again
    results.unlink()
    calls, message = as_study("beta", variants)
    assert calls == [] and json.loads(results.read_text()) == result
    lines = tmp_path / "experiments" / "results" / "studies.jsonl"
    first, *others = lines.read_text().splitlines(keepends=True)
    assert len(others) == 17  # and six of the other study
    lines.write_text("".join(others))
    calls, message = as_study("beta", variants)  # but the one that is not, and its p0
    task, seed = json.loads(first)["run"].split("-")[:2]
    assert [call.split(" eval")[0] for call in calls] == [
        f"{task} {seed[4:]} . . 0,,320",
        f"{task} {seed[4:]} . . 4,50,320",
    ]
    assert "12 of 12 runs, about 0 min left" in message
    (tmp_path / "run_all.sh").write_text(FAKE + "# other code\n")
    calls, _ = as_study("beta", variants)  # neither the numbers nor the folders count any more
    assert len(calls) == 6 + 12


@pytest.mark.slow
def test_a_part_of_a_study_overwrites_nothing(as_study, tmp_path):
    """With one seed there is a table and a figure, but no verdict, no results and no new page."""
    page = tmp_path / "experiments" / "README.md"
    before = page.read_text()
    _, printed = as_study("beta", "variant 0\nvariant 1 BETA=2", seeds="0")
    assert "| 1 | 0.300 ± inf |" in printed
    assert "no verdict" in printed
    assert "reproduced" not in printed
    assert (tmp_path / "runs" / "studies" / "beta.png").exists()
    results = list((tmp_path / "experiments" / "results").iterdir())
    assert [file.name for file in results] == ["studies.jsonl"]
    assert page.read_text() == before


def test_the_rounds_are_drawn_beside_the_picture_of_the_study(tmp_path, monkeypatch):
    """For a part of the study that is runs/studies/, never experiments/figures/."""
    part = {"sentiment": {"all": {"reward": [0.5], "ppl": [1.0]}}}
    monkeypatch.setattr(study, "ROOT", tmp_path)
    assert study.publish("pool", part, {}, lambda *_: None) == tmp_path / "runs" / "studies"
    rounds = {metric: [0.1, 0.2] for metric in pool.PANELS}
    line = {"p0": {}, "quark": {"reward": 0.5, "ppl": 1}, "machine": "m", "seconds": 1}
    lines = [("all", "sentiment", line | {"rounds": rounds})]
    monkeypatch.setattr(study, "publish", lambda *_: tmp_path / "here")
    pool.report("pool", lines)
    assert (tmp_path / "here" / "pool_rounds.png").exists()


def test_more_seeds_than_student_s_t_is_known_for(tmp_path):
    given = {"PYTHON": sys.executable, "LIST": "1", "SEEDS": "0 1 2 3 4 5 6 7 8 9 10"}
    done = execute("bash", EXPERIMENTS / "beta.sh", cwd=tmp_path, **given)
    assert done.returncode == 1 and "at most ten seeds" in done.stderr


def test_all_studies_are_listed_before_the_first_run(tmp_path):
    """LIST=1, as all.sh calls each study first: two tasks, its seeds, its variants, and no run."""
    left_out = shutil.ignore_patterns("figures", "results", "__pycache__")
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments", ignore=left_out)
    variants = dict(zip(study.CLAIMS, (6, 5, 4, 4, 6, 4, 10, 2), strict=True))
    for name, n in variants.items():
        given = {"PYTHON": sys.executable, "LIST": "1", "SEEDS": "0 1 2"}
        done = execute("bash", f"experiments/{name}.sh", cwd=tmp_path, **given)
        assert done.returncode == 0 and not done.stdout, done.stderr
        lines = kept.lines_of(tmp_path / "runs" / "studies" / f"{name}.tsv")
        assert len(lines) == 2 * 3 * n and len({line[0] for line in lines}) == n
        places = {(task, seed) for _, task, seed, *_ in lines}
        of_p0 = kept.lines_of(tmp_path / "runs" / "studies" / f"{name}-p0.tsv")
        assert places == {(task, seed) for _, task, seed, *_ in of_p0}


def test_what_is_kept_counts_while_the_code_is_the_same(tmp_path, monkeypatch):
    """Two runs of three: the last line of a run counts, and none after the code has changed.

    A run takes 60 s; one that another study made took nothing, and does not count for the mean.
    """
    monkeypatch.setattr(kept, "LINES", tmp_path / "studies.jsonl")
    listed = tmp_path / "beta.tsv"
    listed.write_text("".join(f"v\ttoxicity\t{i}\truns/r{i}\town\tK=2\n" for i in range(3)))
    (tmp_path / "beta-p0.tsv").write_text("".join(f"p0\ttoxicity\t{i}\tp{i}\n" for i in range(3)))
    kept.keep("study", "r0", 60, {"quark": 1})
    kept.keep("study", "r1", 120, {"quark": 2})
    kept.keep("study", "r1", 0, {"quark": 3})
    kept.keep("pool", "r2", 60, {"quark": 4})
    assert kept.kept()["study", "r1"]["quark"] == 3
    assert [line[3] for line in kept.missing("study", listed)] == ["p2", "runs/r2"]
    assert [line[3] for line in kept.missing("pool", listed)][2:] == ["runs/r0", "runs/r1"]
    assert kept.how_long([(listed, "study")], 2) == "2 of 3 runs, about 0 min left"
    assert (
        kept.how_long([(listed, "study"), (listed, "pool")], 1) == "0 of 3 runs, about 3 min left"
    )
    monkeypatch.setattr(kept, "code", lambda: "other")
    assert kept.kept() == {} and len(kept.missing("study", listed)) == 6


def test_a_run_is_of_the_code_with_which_it_began(tmp_path, monkeypatch):
    """study.sh took the fingerprint at the start, and exports it."""
    monkeypatch.setattr(kept, "LINES", tmp_path / "studies.jsonl")
    monkeypatch.setenv("CODE", "older")
    kept.keep("study", "r0", 60, {})
    assert kept.kept() == {}
    monkeypatch.delenv("CODE")
    kept.keep("study", "r0", 60, {})
    assert set(kept.kept()) == {("study", "r0")}


def test_a_report_without_runs_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "LINES", tmp_path / "studies.jsonl")
    listed = tmp_path / "beta.tsv"
    argv = ["study.py", str(listed)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="does not exist; bash experiments/beta.sh writes it"):
        kept.main(study.__doc__, measures.of_run, study.report_study)
    listed.write_text("v\ttoxicity\t0\truns/r0\town\tK=2\n")
    with pytest.raises(SystemExit, match="1 runs of beta are not kept, or were made by other code"):
        kept.main(study.__doc__, measures.of_run, study.report_study)


def test_a_table_of_runs_of_two_tasks_is_refused(capsys):
    folder = ROOT / "experiments" / "results" / "runs"
    files = [folder / f"{task}-seed0.json" for task in ("sentiment", "toxicity")]
    with pytest.raises(SystemExit):
        seeds.main(list(map(str, files)))
    assert "name files of one task" in capsys.readouterr().err
    with pytest.raises(BadInput, match="nowhere.json"):
        seeds.main(["nowhere.json"])


def test_comments_and_docstrings_change_no_fingerprint():
    source = '''"""M"""\n\ndef f(x):  # why\n    """Two\n    lines."""\n    return x + "#1"\n'''
    assert kept.without_comments(source) == 'def f(x):\n    return x + "#1"'
    other = '"""Other."""\n# why\ndef f(x):\n    return x + "#1"  # so\n'
    assert kept.without_comments(other) == kept.without_comments(source)
    assert kept.without_comments(other.replace("#1", "#2")) != kept.without_comments(source)
    text = 'X = """not\n# a docstring"""\n'
    assert kept.without_comments(text) == text.rstrip()


def test_the_rewards_of_0_or_1():
    """For every task, the study of ties uses a reward of experiments/labels.py: 0 or 1."""
    assert "labels.py:TASK" in (EXPERIMENTS / "ties.sh").read_text()
    completions = [" is great, I love it.", " is shit, you idiot."]
    for task in ("sentiment", "toxicity"):
        label = load_reward(f"{EXPERIMENTS / 'labels.py'}:{task}")
        values = label(prompts=["The film"] * 2, completions=completions)
        assert set(values) == {0.0, 1.0}


def test_every_table_of_the_pages_is_that_of_its_json(monkeypatch, capsys):
    """experiments/check.py says so; one digit more or less, and it does not."""
    assert check.main() == 0
    said = capsys.readouterr().out.splitlines()
    pages = {line.split(":")[0].split()[-1] for line in said}
    assert len(said) >= 20 and pages == {
        "README.md",
        *(f"docs/{name}.md" for name in ("metrics", "running", "small-runs")),
        *(f"{folder}/README.md" for folder in ("experiments", "baselines", "bench")),
    }
    table = seeds.readme_table()
    monkeypatch.setattr(check, "parts", lambda: [("README.md", "results", table.replace("4", "5"))])
    assert check.main() == 1 and "DIFFERS" in capsys.readouterr().out


def test_each_study_has_a_script_and_a_place():
    page = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    names = (EXPERIMENTS / "all.sh").read_text().split('ALL="')[1].split('"')[0].split()
    assert names == list(study.CLAIMS)
    for name in names:
        assert f"bash experiments/{name}.sh" in page and (EXPERIMENTS / f"{name}.sh").exists()


# ------------------------------------------------------------------------- what the studies measure


def log_probabilities(policy, front, x, y):
    """(len(y), V) log p(. | front, x, y_<t) for each token of y."""
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*front, *x, *y]])).logits
    before = len(front) + len(x) - 1
    return logits[0, before : before + len(y), : policy.vocab_size].log_softmax(-1)


def test_kl_on_the_samples_of_p0(p0, quark, quark_folder, tmp_path):
    """KL(p0 || p_theta) under r_K: the mean over the tokens of a completion that p0 sampled.

    The first row is empty and has none.
    """
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "01").symlink_to(quark_folder)
    rows = [{"prompt": "The film", "completion": ""}]
    rows.append({"prompt": "I was there and", "completion": " it is good"})
    write_jsonl(tmp_path / "eval" / "base.jsonl", rows)
    x, y = p0.encode("I was there and"), p0.encode(" it is good")
    log_p = log_probabilities(quark, [quark.reward_token_id(quark.n_quantiles)], x, y)
    log_p0 = log_probabilities(p0, [], x, y)
    expected = (log_p0.exp() * (log_p0 - log_p)).sum(-1).mean().item()
    assert expected > 0.001
    assert measures.kl_from_p0(tmp_path, p0) == pytest.approx(expected, rel=1e-4)


def test_what_is_left_of_the_worst(p0, p0_folder, quark, quark_folder, tmp_path):
    """The mean of log p_theta - log p0 over the tokens of the worst samples; 0 for p0 itself.

    With and without a reward token in front of the policy's input.
    """
    rows = []
    for x, y in (("The film", " was"), ("I was there and", " it is good")):
        rows.append({"prompt": x, "completion": y, "reward": 0})
    worst = write_jsonl(tmp_path / "worst.jsonl", rows)
    assert measures.worst_nats(p0_folder, worst, p0) == pytest.approx(0, abs=1e-6)
    for k, front in ((None, []), (2, [quark.reward_token_id(2)])):
        difference = tokens = 0
        for row in rows:
            x, y = p0.encode(row["prompt"]), p0.encode(row["completion"])
            log_p = log_probabilities(quark, front, x, y)
            log_p0 = log_probabilities(p0, [], x, y)
            for t, token in enumerate(y):
                difference += (log_p[t, token] - log_p0[t, token]).item()
            tokens += len(y)
        nats = measures.worst_nats(quark_folder, worst, p0, k)
        assert nats == pytest.approx(difference / tokens, abs=1e-5)


def test_over_the_rounds(p0, tmp_path):
    """Two rounds of two prompts: mean reward, dist-3, perplexity, seconds and megabytes.

    dist-3 is that of a prompt's first two completions. In the first round A has 3 + 4 words with
    the 3-grams bcd and cde, and B has 3 words with bcd: (2/7 + 1/3) / 2. In the second round A has
    4 + 3 words with bcd, cde and fgh: (3/7 + 1/3) / 2. Seconds are those between the files' times,
    and megabytes those of the quantized pool.
    """
    rows = []
    samples = [("A", " b c d", 0), ("A", " b c d e", 0.5), ("A", " f g h", 1), ("B", " b c d", 0.1)]
    for x, y, reward in samples:
        rows.append({"prompt": x, "completion": y, "reward": reward, "iteration": 0})
    for t in (0, 1):
        sampled = write_jsonl(tmp_path / "pool" / f"0{t}.jsonl", rows[t:])
        os.utime(sampled, (1000, 1000))
        metrics = write_jsonl(tmp_path / "model" / f"0{t + 1}" / "metrics.jsonl", [])
        os.utime(metrics, (1000, 1007 + t))
        quantized = tmp_path / "quantized" / f"0{t}.jsonl"
        quantized.parent.mkdir(exist_ok=True)
        quantized.write_bytes(b"x" * 1000 * (t + 1))
    rounds = measures.over_rounds(tmp_path, p0)
    assert rounds["reward"] == pytest.approx([1.6 / 4, 1.6 / 3])
    assert rounds["seconds"] == [7, 8]
    assert rounds["mb"] == [0.001, 0.002]
    assert rounds["dist_3"] == pytest.approx([(2 / 7 + 1 / 3) / 2, (3 / 7 + 1 / 3) / 2])
    assert rounds["ppl"] == pytest.approx([perplexity(p0, rows), perplexity(p0, rows[1:])])


def test_the_states_of_a_model(quark, quark_folder, p0_folder, tmp_path):
    """Quark's model is read under r_K, r_1 and no token, and after relearning under r_K and none.

    Other models have no token. `lines` groups the states by what stands in front.
    """
    for model, folder in (("quark", quark_folder), ("p0", p0_folder)):
        (tmp_path / model).mkdir()
        for state in ("2", "16", "start"):
            (tmp_path / model / state).symlink_to(folder)
    K = quark.n_quantiles
    of_quark = measures.states("quark", tmp_path / "quark")
    assert of_quark == [
        ("quark, r_K", f"0-r{K}", "start", K),
        ("quark, r_1", "0-r1", "start", 1),
        ("quark, no token", "0-none", "start", None),
        ("quark+2", "2-none", "2", None),
        ("quark+2, r_K", "2-r", "2", K),
        ("quark+16", "16-none", "16", None),
        ("quark+16, r_K", "16-r", "16", K),
    ]
    of_p0 = measures.states("p0", tmp_path / "p0")
    assert of_p0 == [
        ("p0", "0-none", "start", None),
        ("p0+2", "2-none", "2", None),
        ("p0+16", "16-none", "16", None),
    ]
    assert hidden.lines([row for row, *_ in of_p0 + of_quark]) == {
        "p0": {0: "p0", 2: "p0+2", 16: "p0+16"},
        "quark, r_K": {0: "quark, r_K", 2: "quark+2, r_K", 16: "quark+16, r_K"},
        "quark, r_1": {0: "quark, r_1"},
        "quark, no token": {0: "quark, no token", 2: "quark+2", 16: "quark+16"},
    }


def test_the_reward_that_is_lost():
    """What is read under r_K is compared with the start read under r_K. Two seeds."""
    rewards = {"quark, r_K": [0.9, 0.8], "quark, no token": [0.7, 0.6], "p0": [0.5, 0.5]}
    rewards |= {"quark+8": [0.4, 0.5], "quark+8, r_K": [0.8, 0.5], "p0+8": [0.25, 0.75]}
    variants = {row: {"reward": values} for row, values in rewards.items()}
    hidden.add_losses(variants)
    lost = {row: values["lost"] for row, values in variants.items()}
    assert lost["p0"] == lost["quark, r_K"] == [0, 0] and lost["p0+8"] == [0.25, -0.25]
    assert lost["quark+8"] == pytest.approx([0.3, 0.1])
    assert lost["quark+8, r_K"] == pytest.approx([0.1, 0.3])


def test_the_clean_model_that_is_near(tmp_path):
    """Of rewards .2, .45 and .7, .45 is nearest to .5."""
    for name, mean in (("quark", 0.5), ("a", 0.2), ("b", 0.45), ("c", 0.7)):
        table = {"rewards": {"sentiment": {"mean": {"value": mean}}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    quark, *tries = (tmp_path / f"{name}.json" for name in ("quark", "a", "b", "c"))
    assert measures.nearest(quark, tries) == tries[1]


def test_the_rows_of_a_run(p0, p0_folder, quark, quark_folder, tmp_path):
    """Quark's run holds its own states and, in near/, those of the clean model that is near."""
    folder = tmp_path / "hidden"
    worst = [{"prompt": "a", "completion": " b", "reward": 0, "quantile": 1}]
    tables = {folder: [f"0-r{quark.n_quantiles}", "0-r1", "0-none"], folder / "near": ["0-none"]}
    for where, names in tables.items():
        where.mkdir()
        write_jsonl(where / "worst.jsonl", worst)
        for n, name in enumerate(names):
            table = {"rewards": {"sentiment": {"mean": {"value": n + len(names)}}}}
            (where / f"{name}.json").write_text(json.dumps(table))
    (folder / "name").write_text("quark\n")
    (folder / "start").symlink_to(quark_folder)
    (folder / "near" / "start").symlink_to(p0_folder)
    (folder / "near" / "updates").write_text("16\n")
    numbers = measures.of_hidden(tmp_path, p0)
    assert numbers["near"] == 16
    rows = numbers["rows"]
    found = {name: row["reward"] for name, row in rows.items()}
    assert found == {"quark, r_K": 3, "quark, r_1": 4, "quark, no token": 5, "clean_near": 1}
    assert rows["clean_near"]["worst"] == pytest.approx(0, abs=1e-6)
    assert abs(rows["quark, r_K"]["worst"]) > 1e-4


def test_the_prompts_that_are_left(tmp_path):
    """The prompts of tiny/prompts/train.jsonl without a sample in the pool, in the file's order."""
    text = (ROOT / "tiny" / "prompts" / "train.jsonl").read_text(encoding="utf-8")
    prompts = [json.loads(line)["prompt"] for line in text.splitlines()]
    rows = [{"prompt": x, "completion": "", "reward": 0} for x in prompts[2:] * 2]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    assert [row["prompt"] for row in measures.unseen(pool)] == prompts[:2]


def test_measure_divides_by_p0(tmp_path, monkeypatch):
    """The perplexity is in units of p0's, so p0 has 1 and a model with twice as much has 2."""
    monkeypatch.setattr(measures, "kl_from_p0", lambda run, p0: 0.7)
    for name, mean, ppl in (("base", 0.3, 10), ("quark", 0.8, 20)):
        content = table(mean, ppl)
        content |= {name: {"value": mean / 2} for name in ("dist_1", "dist_2", "rep_2")}
        content |= {"dist_3": {"value": mean / 3}}
        (tmp_path / "eval").mkdir(exist_ok=True)
        (tmp_path / "eval" / f"{name}.json").write_text(json.dumps(content))
    halves = dict.fromkeys(("dist_1", "dist_2", "rep_2"), 0.15)
    found = measures.of_run(tmp_path, None)
    assert found["p0"] == pytest.approx({"reward": 0.3, "ppl": 1, "kl": 0, "dist_3": 0.1} | halves)
    halves = dict.fromkeys(halves, 0.4)
    expected = {"reward": 0.8, "ppl": 2, "kl": 0.7, "dist_3": 0.8 / 3} | halves
    assert found["quark"] == pytest.approx(expected)
