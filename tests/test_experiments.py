"""experiments/: means and ranges over runs, and the rule of the verdicts, by hand."""

import json
import sys

import pytest
from conftest import ROOT

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
    assert word == "not reproduced" and "x: mean reward, a - b: +0.203 ± 0.014, claimed > 0" in lines
