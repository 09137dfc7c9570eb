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
mkdir -p "$RUN/pool" "$RUN/eval" "$RUN/model/01" "$RUN/quantized"
echo "{}" | tee "$RUN/pool/00.jsonl" > "$RUN/quantized/00.jsonl"; touch "$RUN/eval/base.jsonl" "$RUN/report.html"
for name in base quark; do
    echo '{"rewards": {"r": {"mean": {"value": 0.'$((5 - ${BETA:-0} + SEED))'}}}, "perplexity": {"value": 10}, "dist_1": {"value": 0.5},
           "dist_3": {"value": 0.5}}' > "$RUN/eval/$name.json"
done
echo '{"kl": 0.'$((3 - ${BETA:-0}))'}' > "$RUN/model/01/metrics.jsonl"
echo "run done in 7 s."
"""


def test_a_study_goes_on_where_it_stopped(tmp_path):
    """Two variants, two seeds: p0 once a seed and its files in every run; a failed run is named and made again, finished ones are not.
    Another study then finds the run without settings; where p0 samples by a reward of its own, only p0's evaluation is taken over."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("figures", "results", "__pycache__"))
    (tmp_path / "run_all.sh").write_text(FAKE)
    page = tmp_path / "experiments" / "README.md"
    page.write_text("above\n<!-- beta -->\nold\n<!-- end -->\nbetween\n<!-- ties -->\n<!-- end -->\n<!-- pool -->\n<!-- end -->\nbelow\n")

    def study(name, variants, expected=0):
        (tmp_path / "experiments" / f"{name}.sh").write_text(f'source "$(dirname "$0")/study.sh"\n{variants}\nfinish\n')
        env = {**os.environ, "PYTHON": sys.executable, "TASKS": "sentiment", "SEEDS": "0 1", "JOBS": "1"}
        done = subprocess.run(["bash", f"experiments/{name}.sh"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.returncode == 0) == (expected == 0), done.stderr
        calls = (tmp_path / "calls").read_text().splitlines()
        (tmp_path / "calls").unlink()
        return [call.removesuffix(" --decode sample --top-p 0.9 --num-samples 5 --reward sentiment") for call in calls], done.stderr

    first, message = study("beta", "variant 0\nvariant 1 BETA=1 STEPS=9", expected=1)
    settings, whole = "4,50,320", "eval pool 00.jsonl"
    assert first == [f"sentiment {s} . . 0,,320 eval pool " if i == 0 else f"sentiment {s} . . {settings} {whole}" for i in (0, 1) for s in (0, 1)] + [
        f"sentiment {s} 1 . 4,9,320 {whole}" for s in (0, 1)]  # fmt: skip
    assert "runs/studies/sentiment-seed0-4-50-320-4-BETA=1-STEPS=9 failed" in message
    assert study("beta", "variant 0\nvariant 1 BETA=1 STEPS=9")[0] == [f"sentiment 0 1 . 4,9,320 {whole}"]
    result = json.loads((tmp_path / "experiments" / "results" / "beta.json").read_text())
    assert result["results"]["sentiment"]["0"]["reward"] == [0.5, 0.6] and result["results"]["sentiment"]["1"]["kl"] == [0.2, 0.2]
    assert result["verdict"] == "reproduced" and (tmp_path / "experiments" / "figures" / "beta.png").exists()
    above, between = page.read_text().split("| 1 | 0.450 ± 0.635 |")
    assert above.startswith("above\n<!-- beta -->\n| sentiment, 2 seeds | mean reward |") and "**Verdict: reproduced.**" in between
    assert between.endswith("<!-- end -->\nbetween\n<!-- ties -->\n<!-- end -->\n<!-- pool -->\n<!-- end -->\nbelow\n") and "old" not in above + between
    ties = "variant random REWARD=r.py:TASK\nvariant age\n"
    assert study("ties", ties)[0] == [f"sentiment {s} . r.py:sentiment {settings} eval pool " for s in (0, 1)]
    study("pool", "variant all\nvariant newest_2 QUANTIZE=\nvariant per_prompt_4 QUANTIZE=--per-prompt")  # here time and disk are the question
    assert json.loads((tmp_path / "experiments" / "results" / "pool.json").read_text())["results"]["sentiment"]["all"]["seconds"] == [7, 7]
    assert not {"seconds", "mb"} & set(result["results"]["sentiment"]["0"])


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
