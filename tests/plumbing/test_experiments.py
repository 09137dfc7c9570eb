"""experiments/: means and ranges over runs, and the rule of the verdicts, by hand."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, write_jsonl

sys.path.insert(0, str(ROOT / "experiments"))
import seeds
import study


def table(mean, perplexity):
    return {"rewards": {"hash": {"mean": {"value": mean}}}, "perplexity": {"value": perplexity}, "groups": {"a": {"rewards": {}, "dist_1": {"value": None}}}}


def test_means_and_ranges(tmp_path, capsys):
    """Two runs: base 0.2 and 0.4, Quark 0.5 and 0.8; the settings that lie beside the tables are no tables."""
    for run, base, quark in (("x", 0.2, 0.5), ("y", 0.4, 0.8)):
        (tmp_path / run / "eval").mkdir(parents=True)
        for name, content in {"base": table(base, 10), "quark": table(quark, 20), "dial-r1": table(base, 1), "dial-r1.args": {"seed": 0}}.items():
            (tmp_path / run / "eval" / f"{name}.json").write_text(json.dumps(content))
    seeds.main([str(tmp_path / "x"), str(tmp_path / "y")])
    lines = {line.split("  ")[0].strip() or line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "0.300 (0.200 to 0.400)" in lines["hash mean"] and "0.650 (0.500 to 0.800)" in lines["hash mean"]
    assert "2.250 (2.000 to 2.500)" in lines["hash mean"] and "2.000 (2.000 to 2.000)" in lines["perplexity"]
    assert "hash 0.300 (0.200 to 0.400)" in lines["dial-r1"] and not any("args" in line for line in lines)


def test_verdicts_by_hand():
    """Differences of 0.1, 0.2, 0.3: 0.2 ± 4.303 * 0.1 / sqrt 3 = 0.248, unclear; of 0.2, 0.2, 0.2: reproduced; the other way: not.
    One task that disagrees is enough; a study's verdict is that of its worst claim."""
    assert study.interval([0.1, 0.2, 0.3]) == (pytest.approx(0.2), pytest.approx(0.24843, rel=1e-4))

    def task(*differences):
        return {"a": {"reward": [0.5 + d for d in differences], "kl": [0.1] * 3}, "b": {"reward": [0.5] * 3, "kl": [0.3, 0.3, 0.3]}}

    claim = [("reward", "a", ">", "b")]
    clear, unsure = task(0.2, 0.2, 0.21), task(0.1, 0.2, 0.3)
    assert study.verdict(claim, {"x": clear, "y": clear})[1] == "reproduced"
    assert study.verdict(claim, {"x": clear, "y": unsure})[1] == "unclear"
    assert study.verdict(claim, {"x": clear, "y": task(-0.2, -0.2, -0.21)})[1] == "not reproduced"
    assert study.verdict([("reward", "a", "<", "b")], {"x": clear})[1] == "not reproduced"
    lines, word = study.verdict([*claim, ("kl", "a", ">", "b")], {"x": clear})
    assert word == "not reproduced" and "x: mean reward, a - b: +0.203 ± 0.014, claimed > 0" in lines and lines[1] == "mean reward, a > b: reproduced"


FAKE = """#!/usr/bin/env bash
# run_all.sh as a study sees it: asked for a task, a seed and settings, it writes what study.py reads; BETA=1 fails once.
echo "$1 $SEED ${BETA:-.} ${REWARD:-.} $ITERATIONS,$STEPS,$NUM_PROMPTS $(ls "$RUN" | tr '\\n' ' ')$(ls "$RUN/pool") $EVALUATE" >> calls
if [ "${BETA:-}" = 1 ] && [ ! -e failed ]; then touch failed; exit 1; fi
mkdir -p "$RUN/pool" "$RUN/eval" "$RUN/model"
cp -r tiny/lm "$RUN/model/01"
touch "$RUN/pool/00.jsonl" "$RUN/report.html"
echo '{"prompt": "The film", "completion": " was good."}' > "$RUN/eval/base.jsonl"
for name in base quark; do
    echo '{"rewards": {"r": {"mean": {"value": 0.'$((5 - ${BETA:-0} + SEED))'}}}, "perplexity": {"value": 10}, "dist_1": {"value": 0.5},
           "dist_3": {"value": 0.5}}' > "$RUN/eval/$name.json"
done
"""


@pytest.fixture
def as_study(tmp_path):
    """A copy of experiments/ beside a stand-in of run_all.sh; as_study(NAME, VARIANTS, ...) -> (what was run, what was printed)."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("figures", "results", "__pycache__"))
    (tmp_path / "tiny").symlink_to(ROOT / "tiny")
    (tmp_path / "run_all.sh").write_text(FAKE)

    def run(name, variants, seeds="0 1 2", expected=0):
        (tmp_path / "experiments" / f"{name}.sh").write_text(f'source "$(dirname "$0")/study.sh"\n{variants}\nfinish\n')
        env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "SEEDS": seeds, "JOBS": "1", "BETA": "7"}
        done = subprocess.run(["bash", f"experiments/{name}.sh"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.returncode == 0) == (expected == 0), done.stderr
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        (tmp_path / "calls").unlink(missing_ok=True)
        return [call.split(" --decode sample --top-p 0.9 --num-samples 5 --reward ")[0] for call in calls], done.stderr + done.stdout

    return run


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped(as_study, tmp_path):
    """Two variants: p0 once a task and seed and its files in every run; a failed run is named and made again, finished ones are not.
    Another study then finds the run of the same settings; where p0 samples by a reward of its own, only p0's evaluation is taken over.
    A BETA in the environment is nobody's."""
    page = tmp_path / "experiments" / "README.md"
    page.write_text("above\n<!-- beta -->\nold\n<!-- end -->\nbetween\n<!-- ties -->\n<!-- end -->\nbelow\n")
    variants, settings, whole = "variant 0\nvariant 1 BETA=1 STEPS=9", "4,50,320", "eval pool 00.jsonl"
    each = [(task, seed) for task in ("sentiment", "toxicity") for seed in (0, 1, 2)]

    first, message = as_study("beta", variants, expected=1)
    assert first[:6] == [f"{task} {seed} . . 0,,320 eval pool " for task, seed in each]
    assert first[6:] == [f"{t} {s} {beta} . 4,{steps},320 {whole}" for beta, steps in ((".", 50), (1, 9)) for t, s in each]
    failed = "runs/studies/sentiment-seed0-4-50-320-4-BETA=1-STEPS=9"
    assert f"{failed} failed" in message
    (tmp_path / failed / "half").touch()
    assert as_study("beta", variants)[0] == [f"sentiment 0 1 . 4,9,320 {whole}"] and not (tmp_path / failed / "half").exists()
    result = json.loads((tmp_path / "experiments" / "results" / "beta.json").read_text())
    assert result["results"]["toxicity"]["0"]["reward"] == [0.5, 0.6, 0.7] and result["results"]["sentiment"]["1"]["reward"] == [0.4, 0.5, 0.6]
    assert result["results"]["sentiment"]["p0"]["ppl"] == [1, 1, 1] and result["results"]["sentiment"]["1"]["kl"] == pytest.approx([0] * 3, abs=1e-5)
    assert "mean reward, 1 < 0: reproduced" in result["claims"] and (tmp_path / "experiments" / "figures" / "beta.png").exists()
    above, between = page.read_text().split("| 1 | 0.500 ± 0.248 |", 1)
    assert above.startswith("above\n<!-- beta -->\n| sentiment, 3 seeds | mean reward |") and f"**Verdict: {result['verdict']}.**" in between
    assert between.endswith("<!-- end -->\nbetween\n<!-- ties -->\n<!-- end -->\nbelow\n") and "old" not in above + between
    ties = "\n".join(f"variant {name} REWARD=r.py:TASK" for name in ("random", "age", "random_of_2")) + "\nvariant together_of_2"
    assert as_study("ties", ties)[0] == [f"{t} {s} . r.py:{t} {settings} eval pool " for t, s in each]


@pytest.mark.slow
def test_a_part_of_a_study_overwrites_nothing(as_study, tmp_path):
    page = (tmp_path / "experiments" / "README.md").read_text()
    _, printed = as_study("beta", "variant 0\nvariant 1 BETA=2", seeds="0")
    assert "| 1 | 0.300 ± inf |" in printed and "no verdict" in printed and "reproduced" not in printed
    assert (tmp_path / "runs" / "studies" / "beta.png").exists() and not (tmp_path / "experiments" / "results").exists()
    assert (tmp_path / "experiments" / "README.md").read_text() == page


def test_the_rewards_of_0_or_1():
    """The study of ties names, for every task, a reward of experiments/labels.py."""
    from rewards import load_reward

    assert "labels.py:TASK" in (ROOT / "experiments" / "ties.sh").read_text()
    for task in ("sentiment", "toxicity"):
        label = load_reward(f"{ROOT / 'experiments' / 'labels.py'}:{task}")
        assert set(label(prompts=["The film"] * 2, completions=[" is great, I love it.", " is shit, you idiot."])) == {0.0, 1.0}


def test_kl_on_the_samples_of_p0(p0, quark, quark_folder, tmp_path):
    """Of the second of two rows, slowly: under r_K, from p0, the mean over its tokens."""
    import torch

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "01").symlink_to(quark_folder)
    rows = [{"prompt": "The film", "completion": ""}, {"prompt": "I was there and", "completion": " it is good"}]
    write_jsonl(tmp_path / "eval" / "base.jsonl", rows)
    x, y, front = p0.encode("I was there and"), p0.encode(" it is good"), [quark.reward_token_id(quark.n_quantiles)]
    with torch.no_grad():
        log_p, log_p0 = (policy.model(torch.tensor([start + x + y])).logits[0, len(start + x) - 1 : -1, : p0.vocab_size].log_softmax(-1)
                         for policy, start in ((quark, front), (p0, [])))  # fmt: skip
    expected = (log_p0.exp() * (log_p0 - log_p)).sum(-1).mean().item()
    assert expected > 0.001 and study.kl_from_p0(tmp_path, p0) == pytest.approx(expected, rel=1e-4)


def test_the_page_says_what_was_measured():
    """Every study has its place on the page; where it was made, table and verdict there are those of its JSON file."""
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    for name in study.CLAIMS:
        place = page.split(f"<!-- {name} -->\n")[1].split("<!-- end -->")[0]
        result = ROOT / "experiments" / "results" / f"{name}.json"
        assert place == (study.as_text(name, study.load(result)["results"]) if result.exists() else "Not made yet.\n")
        assert f"bash experiments/{name}.sh" in page and (ROOT / "experiments" / f"{name}.sh").exists()


def test_what_is_left_of_the_worst(p0, p0_folder, quark, quark_folder, tmp_path):
    """0 for p0 itself; for another model the mean difference of log-probabilities a token, with and without a token in front, slowly."""
    import hidden
    import torch

    rows = [{"prompt": x, "completion": y, "reward": 0} for x, y in (("The film", " was"), ("I was there and", " it is good"))]
    worst = write_jsonl(tmp_path / "worst.jsonl", rows)
    assert hidden.worst_nats(p0_folder, worst, p0) == pytest.approx(0, abs=1e-6)
    for k, front in ((None, []), (2, [quark.reward_token_id(2)])):
        difference = tokens = 0
        for row in rows:
            x, y = p0.encode(row["prompt"]), p0.encode(row["completion"])
            for policy, start, sign in ((quark, front, 1), (p0, [], -1)):
                with torch.no_grad():
                    log_p = policy.model(torch.tensor([[*start, *x, *y]])).logits[0, :, : p0.vocab_size].log_softmax(-1)
                difference += sign * sum(log_p[len(start) + len(x) + t - 1, y[t]].item() for t in range(len(y)))
            tokens += len(y)
        assert hidden.worst_nats(quark_folder, worst, p0, k) == pytest.approx(difference / tokens, abs=1e-5)


def test_over_the_rounds(p0, tmp_path):
    """Two rounds of two prompts: mean reward, dist-3 of a prompt's first two completions (the third is not looked at), the perplexity
    of the samples, and, from the files that lie there, seconds and MB."""
    import pool
    from evaluate import perplexity

    rows = [{"prompt": x, "completion": y, "reward": r, "iteration": 0} for x, y, r in (
        ("A", " b c d", 0), ("A", " b c d e", 0.5), ("A", " f g h", 1), ("B", " b c d", 0.1))]  # fmt: skip
    for folder in ("pool", "quantized", "model/01", "model/02"):
        (tmp_path / folder).mkdir(parents=True)
    for number in (0, 1):
        (tmp_path / "quantized" / f"0{number}.jsonl").write_bytes(b"x" * 1000 * (number + 1))
        os.utime(write_jsonl(tmp_path / "pool" / f"0{number}.jsonl", rows[number:]), (1000, 1000))
        metrics = tmp_path / "model" / f"0{number + 1}" / "metrics.jsonl"
        metrics.touch()
        os.utime(metrics, (1000, 1007 + number))
    rounds = pool.over_rounds(tmp_path, p0)
    assert rounds["reward"] == pytest.approx([0.4, 1.6 / 3]) and rounds["seconds"] == [7, 8] and rounds["mb"] == [0.001, 0.002]
    # A: of 3 + 4 words the 3-grams bcd, cde; B: bcd of 3. Then A: of 4 + 3 words bcd, cde, fgh.
    assert rounds["dist_3"] == pytest.approx([(2 / 7 + 1 / 3) / 2, (3 / 7 + 1 / 3) / 2])
    assert rounds["ppl"] == pytest.approx([perplexity(p0, rows), perplexity(p0, rows[1:])])


def test_the_states_of_a_model(quark, quark_folder, p0_folder, tmp_path):
    """Quark's is read under r_K, r_1 and no token, and after relearning under r_K too; the others have no token. Then the prompts that
    are left for the bad samples."""
    import hidden

    K = quark.n_quantiles
    for folder in ("2", "16", "start"):
        (tmp_path / "quark").mkdir(exist_ok=True), (tmp_path / "p0").mkdir(exist_ok=True)
        (tmp_path / "quark" / folder).symlink_to(quark_folder), (tmp_path / "p0" / folder).symlink_to(p0_folder)
    assert hidden.states("quark", tmp_path / "quark") == [
        ("quark, r_K", f"0-r{K}", "start", K), ("quark, r_1", "0-r1", "start", 1), ("quark, no token", "0-none", "start", None),
        ("quark+2", "2-none", "2", None), ("quark+2, r_K", "2-r", "2", K), ("quark+16", "16-none", "16", None), ("quark+16, r_K", "16-r", "16", K)]  # fmt: skip
    assert hidden.states("p0", tmp_path / "p0") == [("p0", "0-none", "start", None), ("p0+2", "2-none", "2", None), ("p0+16", "16-none", "16", None)]
    rows = [row for row, *_ in hidden.states("p0", tmp_path / "p0") + hidden.states("quark", tmp_path / "quark")]
    assert hidden.lines(rows) == {"p0": {0: "p0", 2: "p0+2", 16: "p0+16"}, "quark, r_K": {0: "quark, r_K", 2: "quark+2, r_K", 16: "quark+16, r_K"},
                                  "quark, r_1": {0: "quark, r_1"}, "quark, no token": {0: "quark, no token", 2: "quark+2", 16: "quark+16"}}  # fmt: skip
    prompts = [json.loads(line)["prompt"] for line in (ROOT / "tiny/prompts/train.jsonl").read_text(encoding="utf-8").splitlines()]
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"prompt": x, "completion": "", "reward": 0} for x in prompts[2:] * 2])
    assert [row["prompt"] for row in hidden.unseen(pool)] == prompts[:2]
