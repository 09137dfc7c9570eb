"""experiments/seeds.py: means and ranges over runs, by hand."""

import json
import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
import seeds


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
