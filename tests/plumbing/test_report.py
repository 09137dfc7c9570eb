"""Results for people: the comparison on the screen, the page of a run, and its figures."""

import html
import json
import os
import sys

import pytest
from conftest import EVALUATED, execute, one_sentence, read_rows, run_evaluate, stage, write_jsonl

import evaluate
from plumbing.figures import _draw_dial, _draw_learning, _draw_rewards, _draw_top, _numbered
from plumbing.tables import format_rewards

# ------------------------------------------------------------------------------------ on the screen


def test_compare(quark_folder, p0_folder, tmp_path, capsys):
    """Two results side by side, in the order given: the numbers of the files, groups, too."""
    base = run_evaluate(tmp_path, p0_folder, p0_folder, name="base")
    quark = run_evaluate(tmp_path, quark_folder, p0_folder, name="quark")
    capsys.readouterr()
    files = [str(tmp_path / "eval" / f"{name}.json") for name in ("base", "quark")]
    evaluate.main(["--compare", *files])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "length mean" in line)
    first, second = (
        f"{table['rewards']['length']['mean']['value']:.3f} [" for table in (base, quark)
    )
    assert line.index(first) < line.rindex(second)
    assert out.index("base") < out.index("quark")
    assert "neutral" in out


def test_compare_warns_of_what_was_measured_otherwise(p0_folder, tmp_path, capsys):
    """Two samples beside three: the maximum of three is larger. The same settings: no warning."""
    run_evaluate(tmp_path, p0_folder, p0_folder, name="three")
    run_evaluate(tmp_path, p0_folder, p0_folder, name="again")
    options = ["--num-samples", 2, "--top-p", 0.5]
    run_evaluate(tmp_path, p0_folder, p0_folder, *options, name="two")
    files = {name: tmp_path / "eval" / f"{name}.json" for name in ("three", "again", "two")}

    def warnings(*names):
        capsys.readouterr()
        evaluate.main(["--compare", *(str(files[name]) for name in names)])
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith("warning: ")]

    assert warnings("three", "again") == []
    samples, nucleus = warnings("three", "two")
    assert "n_samples differs: three 3, two 2; avg_max_unwanted and unwanted_prob" in samples
    assert "top_p differs: three 0.9, two 0.5" in nucleus
    table = json.loads(files["two"].read_text())
    table |= {"n_samples": 3, "top_p": 0.9, "prompts_sha256": "0" * 64}
    del table["ppl_model"]
    files["two"].write_text(json.dumps(table))
    prompts, ppl = warnings("three", "two")
    assert "prompts_sha256 differs" in prompts
    assert "ppl_model differs" in ppl
    assert "two not recorded" in ppl


def test_compare_warns_of_other_judges(judges, p0_folder, tmp_path, capsys):
    """The same reward by two judges; and a reward that only the second result has is shown."""
    prompts = ["--reward-model", judges / "two"], ["--reward-model", judges / "sentiment"]
    for name, options, reward in zip(("a", "b"), prompts, (["sentiment"], ["sentiment", "hash"])):
        run_evaluate(tmp_path, p0_folder, p0_folder, *options, name=name, reward=reward)
    capsys.readouterr()
    files = [str(tmp_path / "eval" / f"{name}.json") for name in ("a", "b")]
    evaluate.main(["--compare", *files])
    out = capsys.readouterr().out
    assert "warning: sentiment was measured by different judges or files" in out
    line = next(line for line in out.splitlines() if "hash mean" in line)
    assert line.split()[2] == "-"
    evaluate.main(["--compare", files[0], files[0]])
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["empty pool", "no quantile", "metrics", "long text", "dial"])
def test_a_report_of_odd_files(fault, quark_folder, p0_folder, tmp_path, monkeypatch):
    """A page without the figure, or one sentence that names the file and the line."""
    make_run(tmp_path, quark_folder, p0_folder)
    row = {"prompt": "It", "completion": " good", "reward": 0.5}
    if fault == "empty pool":
        (tmp_path / "pool" / "02.jsonl").touch()
        (tmp_path / "quantized" / "02.jsonl").touch()
        (tmp_path / "model" / "02" / "metrics.jsonl").write_text("")
    elif fault == "no quantile":
        write_jsonl(tmp_path / "quantized" / "02.jsonl", [row])
    elif fault == "metrics":
        write_jsonl(tmp_path / "model" / "02" / "metrics.jsonl", [{"loss": 1}])
    elif fault == "long text":
        write_jsonl(tmp_path / "pool" / "02.jsonl", [{**row, "completion": "word " * 200}])
    else:
        table = json.loads((tmp_path / "eval" / "dial-r2.json").read_text())
        del table["rewards"]["hash"]
        (tmp_path / "eval" / "dial-r2.json").write_text(json.dumps(table))
    exit = stage(monkeypatch, "evaluate.py", "--report", tmp_path)
    if fault in ("no quantile", "metrics"):
        assert one_sentence(exit)
        assert ".jsonl:1" in exit
    else:
        assert exit is None
        assert "<img" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_rounds_are_in_the_order_of_their_numbers(tmp_path):
    """99 comes before 100."""
    for name in ("00", "99", "100", "notes"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{}])
    assert [file.stem for file in _numbered(tmp_path)] == ["00", "99", "100"]


def test_the_report_is_drawn_before_the_table_is_printed(p0_folder, tmp_path):
    """Nobody reads the table ("| head -1"): one exit status, no traceback, and a report."""
    run_evaluate(tmp_path, p0_folder, p0_folder, name="base")
    command = (
        f"{sys.executable} evaluate.py --compare {tmp_path}/eval/base.json --report {tmp_path}"
    )
    done = execute("bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("141\n", "")
    assert (tmp_path / "report.html").exists()


def test_a_console_that_is_not_utf_8(p0_folder, tmp_path):
    """A curly quote in a prompt costs neither the table nor the report."""
    prompts = [{"prompt": "It\u2019s"}, {"prompt": "A \U0001f600"}]
    for name in ("base", "quark"):
        run_evaluate(tmp_path, p0_folder, p0_folder, name=name, prompts=prompts)
    command = ["evaluate.py", "--compare", tmp_path / "eval" / "base.json", "--report", tmp_path]
    done = execute(sys.executable, *command, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, "")
    assert "It\\u2019s" in done.stdout
    assert "\u2019" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_compare_bad_input(tmp_path, monkeypatch):
    """A file that is missing, no JSON, no object, or no result of evaluate.py: one sentence."""
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("[1]")
    (tmp_path / "c.json").write_text("{}")
    for name in ("none", "a", "b", "c"):
        exit = stage(monkeypatch, "evaluate.py", "--compare", tmp_path / f"{name}.json")
        assert one_sentence(exit)
        assert f"{name}.json" in exit


# ----------------------------------------------------------------------------------------- the page


def make_run(tmp_path, quark_folder, p0_folder):
    """A run's folder as run_all.sh leaves it: two rounds, metrics, an evaluation and its dial."""
    for i in range(2):
        pool, quantized = [], []
        for j in range(4):
            row = {"prompt": "It", "completion": " good", "reward": (i + j) / 5, "iteration": i}
            pool.append({**row, "completion_ids": []})
            quantized.append({**pool[-1], "quantile": 1 + (j > 1)})
        write_jsonl(tmp_path / "pool" / f"{i:02d}.jsonl", pool)
        write_jsonl(tmp_path / "quantized" / f"{i:02d}.jsonl", quantized)
        steps = [{"step": 3 * i + j, "lm": 2.0, "kl": 0.1} for j in range(3)]
        write_jsonl(tmp_path / "model" / f"{i + 1:02d}" / "metrics.jsonl", steps)
    prompts = [{"prompt": "I <b>"}, *EVALUATED]
    results = [("base", p0_folder, []), ("quark", quark_folder, [])]
    results.append(("dial", quark_folder, ["--reward-token", "all"]))
    for name, model, options in results:
        options = ["--decode", "greedy", "--num-samples", 1, *options]
        run_evaluate(tmp_path, model, p0_folder, *options, name=name, prompts=prompts)


def test_report_is_one_page_that_asks_for_nothing(quark_folder, p0_folder, tmp_path, capsys):
    """All five figures are inside the page, no address is in it, and texts are escaped.

    Every metric has its interval. If the comparison is asked for as well, it is printed last.
    """
    make_run(tmp_path, quark_folder, p0_folder)
    pair = [str(tmp_path / "eval" / f"{name}.json") for name in ("base", "quark")]
    capsys.readouterr()
    evaluate.main(["--compare", *pair, "--report", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.index("report.html") < out.index("\nall prompts")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    figures = list((tmp_path / "figures").iterdir())
    assert page.count("<img") == page.count("data:image/png;base64,") == len(figures) == 5
    for address in ("http", "<script", "url(", "<link"):
        assert address not in page
    for figure in figures:
        assert figure.read_bytes().startswith(b"\x89PNG")
    table = json.loads((tmp_path / "eval" / "quark.json").read_text())
    metric = table["rewards"]["hash"]["mean"]
    assert f"{metric['value']:.3f}" in page
    assert f"[{metric['low']:.3f}, {metric['high']:.3f}]" in page
    assert "I &lt;b&gt; ..." in page
    assert "<b>" not in page


def test_base_stands_left_and_quark_right(quark_folder, p0_folder, tmp_path):
    """In the table, in the price and in the completions: each value under its own name."""
    make_run(tmp_path, quark_folder, p0_folder)
    evaluate.main(["--report", str(tmp_path)])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    tables = []
    for name in ("base", "quark"):
        tables.append(json.loads((tmp_path / "eval" / f"{name}.json").read_text()))
    pair = page[page.index("<h2>base and quark</h2>") :]
    assert pair.index("<th>base</th>") < pair.index("<th>quark</th>")
    for section in (pair, page[page.index("<h2>The gain, and its price</h2>") :]):
        row = section[section.index(">perplexity<") :]
        values = [f">{table['perplexity']['value']:.3f}<" for table in tables]
        assert values[0] != values[1]
        assert row.index(values[0]) < row.index(values[1])
    places = []
    for name in ("base", "quark"):
        row = read_rows(tmp_path / "eval" / f"{name}.jsonl")[0]
        label = f'<span class="small">{name} {format_rewards(row)}</span>'
        places.append(page.index(f"{label} {html.escape(row['completion'])}</p>"))
    assert places[0] < places[1]


def test_report_of_a_run_that_goes_on(tmp_path):
    """After the first pool there is a page already, with one figure."""
    row = {"prompt": "It", "completion": " good", "reward": 0.5}
    write_jsonl(tmp_path / "pool" / "00.jsonl", [row])
    evaluate.main(["--report", str(tmp_path)])
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<img") == 1


def test_report_of_no_run(tmp_path, monkeypatch):
    """A folder that is no run is refused in one sentence, and nothing is written to it."""
    exit = stage(monkeypatch, "evaluate.py", "--report", tmp_path)
    assert one_sentence(exit)
    assert "name the folder of a run" in exit
    assert os.listdir(tmp_path) == []


# -------------------------------------------------------------------------------------- the figures


def test_report_draws_what_the_files_say(tmp_path):
    """The numbers behind the lines and bars of four figures.

    Rewards 0, .1 and .8 have the median .1 and the mean .3. In the best quantile are four samples,
    three of them of the newest round: .75, and .25 one round older. The dial is in the order of k.
    The smoothed LM term of the steps 0 to 9, each with lm = step, is their mean, 4.5.
    """
    rounds = {0: [{"reward": r} for r in (0.0, 0.1, 0.8)], 1: [{"reward": 0.6}]}
    median, mean = _draw_rewards(rounds).axes[0].lines
    assert list(median.get_ydata()) == pytest.approx([0.1, 0.6])
    assert list(mean.get_ydata()) == pytest.approx([0.3, 0.6])

    rows = []
    for iteration, quantile in [(0, 1), (1, 1), (1, 2), (1, 2), (1, 2), (0, 2)]:
        row = {"prompt": "a", "completion": "b", "reward": 0}
        rows.append({**row, "iteration": iteration, "quantile": quantile})
    bars = _draw_top([write_jsonl(tmp_path / "01.jsonl", rows)]).axes[0].patches
    assert [bar.get_height() for bar in bars] == [0.75, 0.25]

    dial = {}
    for k in (2, 1):
        metric = {"value": k / 10, "low": k / 10 - 0.02, "high": k / 10 + 0.01}
        dial[k] = {"rewards": {"r": {"mean": metric}}}
    line = _draw_dial(dial, {}).axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == [0.1, 0.2]

    logs = []
    for first in (0, 10):
        logs.append([{"step": i, "lm": i, "kl": 0.0} for i in range(first, first + 10)])
    smooth = _draw_learning(logs).axes[0].lines[0]
    x, y = smooth.get_data()
    assert x[0] == 9
    assert y[0] == pytest.approx(4.5)
