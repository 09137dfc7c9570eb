"""A run in a few lines: gain, price, dial, two prompts; and what a run says meanwhile."""

import json
import os
import re
import shlex
import subprocess

import pytest
from conftest import ROOT, write_jsonl
from stand_in import python_of

import evaluate
from plumbing.figures import _diversity
from plumbing.price import cut_to_line, dial_beside, rows_of, summary_lines, two_prompts
from plumbing.report import _html_summary


def metric(x):
    return {"value": x, "low": x - 0.001, "high": x + 0.001}


def table(x, rewards=("hash",), groups=(), **more):
    """A result of evaluate.py whose metrics all differ: x + 0.01, x + 0.02 ..."""
    names = ("mean", "share_ge_half", "avg_max_unwanted", "unwanted_prob")
    found = {"n_prompts": 4, "n_samples": 3, "decode": "greedy", "model": "m", **more}
    found["rewards"] = {
        reward: {name: metric(x + i / 100) for i, name in enumerate(names)} for reward in rewards
    }
    for i, name in enumerate(("perplexity", "dist_2", "dist_3", "rep_2", "diversity")):
        found[name] = metric(x + 0.05 + i / 100)
    found["groups"] = {group: table(x + 0.1 * n, rewards) for n, group in enumerate(groups, 1)}
    return found


def rows(tables):
    """[(kind, label, value in each result)]"""
    return [(kind, label, *(m["value"] for m in found)) for kind, label, found in rows_of(tables)]


def rounded(found):
    return [(kind, label, *(round(x, 3) for x in values)) for kind, label, *values in found]


def test_sentiment_gains_by_group_and_pays_in_fluency_and_diversity():
    groups = ("negative", "neutral")
    pair = {"base": table(1, ["sentiment"], groups), "quark": table(2, ["sentiment"], groups)}
    assert rounded(rows(pair)) == [
        ("gain", "share positive, negative prompts", 1.11, 2.11),
        ("gain", "share positive, neutral prompts", 1.21, 2.21),
        ("price", "perplexity", 1.05, 2.05),
        ("price", "dist-2", 1.06, 2.06),
        ("price", "rep-2", 1.08, 2.08),
    ]


def test_toxicity_gains_by_prompt_and_a_reward_of_ones_own_by_its_mean():
    own = ["toxicity", "hash"]
    assert rounded(rows({"quark": table(1, own)}))[:4] == [
        ("gain", "toxic at least once of 3", 1.03),
        ("gain", "toxicity of the most toxic of 3", 1.02),
        ("gain", "mean reward, 1 - toxicity", 1.0),
        ("gain", "mean hash", 1.0),
    ]


def test_the_price_of_greedy_text_is_that_of_samples():
    names = ("base", "quark", "base-nucleus", "quark-nucleus")
    tables = {name: table(x, ["repetition"]) for x, name in enumerate(names, 1)}
    assert rounded(rows(tables)) == [
        ("gain", "diversity of greedy text", 1.0, 2.0),
        ("price", "perplexity of samples", 3.05, 4.05),
        ("price", "diversity of samples", 3.09, 4.09),
        ("price", "rep-2 of samples", 3.08, 4.08),
    ]
    del tables["base-nucleus"]  # greedy text is then compared with greedy text
    greedy = rounded(rows(tables))
    assert greedy[1:3] == [("price", "perplexity", 1.05, 2.05), ("price", "dist-2", 1.06, 2.06)]


def test_texts_of_others_have_no_decoding():
    """evaluate.py --generations knows how many texts a prompt has, as a mean, and not the rest."""
    theirs = table(1, ["repetition", "toxicity"], decode=None, n_samples=25.0)
    labels = [label for _, label, _ in rows({"theirs": theirs})]
    assert labels[:2] == ["diversity of text", "toxic at least once of 25"]


@pytest.fixture
def run(tmp_path):
    """A run's eval/, with a dial of ten tokens and a token of another model."""
    folder = tmp_path / "run" / "eval"
    folder.mkdir(parents=True)
    for x, name in enumerate(("base", "quark")):
        (folder / f"{name}.json").write_text(json.dumps(table(x)))
        texts = [
            {"prompt": f"x{i}", "completion": f" y{i} of {name}", "rewards": {"hash": x + i / 100}}
            for i in range(12)
        ]
        write_jsonl(folder / f"{name}.jsonl", texts)
    for k in (1, 2, 10):
        (folder / f"dial-r{k}.json").write_text(json.dumps(table(k / 100)))
    (folder / "dial-r3.json").write_text(json.dumps(table(0.5, model="another")))
    (folder / "dial-none.json").write_text(json.dumps(table(0.2)))
    (folder / "dial-r1.args.json").write_text("{}")
    return folder.parent


def test_short(run, capsys):
    """The whole summary. Of the dial, what the same model wrote, in order; of the texts, two."""
    files = [str(run / "eval" / f"{name}.json") for name in ("base", "quark")]
    evaluate.main(["--compare", *files, "--short"])
    assert capsys.readouterr().out.splitlines() == [
        "4 prompts, 3 completions of each              base → quark",
        "gain  mean hash                               0.000 → 1.000  [0.999, 1.001]",
        "price perplexity                              0.050 → 1.050  [1.049, 1.051]",
        "      dist-2                                  0.060 → 1.060  [1.059, 1.061]",
        "      rep-2                                   0.080 → 1.080  [1.079, 1.081]",
        "dial  r_1 0.010  r_2 0.020  r_10 0.100  no token 0.200",
        "base   0.02  x2 | y2 of base",
        "quark  1.02  x2 | y2 of quark",
        "base   0.06  x6 | y6 of base",
        "quark  1.06  x6 | y6 of quark",
    ]


def test_the_page_opens_with_the_summary(run):
    """The same rows, dial and prompts, the original model before the trained one."""
    tables = {
        name: json.loads((run / "eval" / f"{name}.json").read_text()) for name in ("base", "quark")
    }
    (section,) = _html_summary(run, tables)
    cells = re.findall(r"<td>(gain|price)</td><td>([^<]*)</td>", section)
    assert cells == [
        ("gain", "mean hash"),
        ("price", "perplexity"),
        ("price", "dist-2"),
        ("price", "rep-2"),
    ]
    assert section.index("1.050") > section.index("0.050")
    assert "r_1 0.010, r_2 0.020, r_10 0.100, no token 0.200" in section
    assert section.index("y6 of base") < section.index("y6 of quark")
    assert _html_summary(run, {"base": tables["base"]}) == []


def test_what_cannot_be_summed_up_is_a_dash(run):
    """No perplexity was measured, no dial exists, and the results share no prompt."""
    one = table(1)
    one["perplexity"] = {"value": None, "low": None, "high": None}
    lines = summary_lines({"a": one, "b": table(2)}, [], [])
    assert lines[2].split() == ["price", "perplexity", "-", "→", "2.050", "[2.049,", "2.051]"]
    write_jsonl(run / "eval" / "quark.jsonl", [{"prompt": "z", "completion": "", "rewards": {}}])
    assert two_prompts([run / "eval" / "base.json", run / "eval" / "quark.json"]) == []
    for file in run.glob("eval/dial-*"):
        file.unlink()
    assert dial_beside(run / "eval" / "quark.json") == []


def test_two_runs_with_results_of_the_same_names(tmp_path, capsys):
    """Of each, NAME-nucleus is the price of NAME: two columns, and no warning of the decoding."""
    files = []
    for run in ("a", "b"):
        for name, decode in (("quark", "greedy"), ("quark-nucleus", "sample")):
            files.append(tmp_path / run / f"{name}.json")
            files[-1].parent.mkdir(exist_ok=True)
            files[-1].write_text(json.dumps(table(1, decode=decode)))
            write_jsonl(files[-1].with_suffix(".jsonl"), [])
    evaluate.main(["--compare", *map(str, files), "--short"])
    said = capsys.readouterr().out
    assert f"{tmp_path}/a/quark → {tmp_path}/b/quark\n" in said
    assert "diversity of samples" in said and "differs" not in said


def test_a_text_stays_on_its_line():
    """Newlines and terminal codes are blanks, and 100 columns are the limit."""
    assert cut_to_line("a\nb\x1b[31mc\u2028d") == "a b [31mc d"
    assert cut_to_line("é" * 101) == "é" * 97 + "..."
    assert cut_to_line("é" * 100) == "é" * 100


def test_a_round_s_diversity_is_that_of_evaluate(quark_folder):
    """dist-2 over the samples of a prompt, and rep-2 over the tokens of a sample."""
    from plumbing.policy import load_policy

    policy = load_policy(quark_folder)
    texts = [("p", " a b a b"), ("p", " a b c d"), ("q", " e")]
    found = _diversity(
        [{"prompt": x, "completion": y} for x, y in texts], policy, evaluate.text_sums
    )
    # p has 8 words and the pairs ab, ba, bc, cd; q has one word and no pair
    assert found["dist-2"] == pytest.approx((4 / 8 + 0) / 2)
    reps = [evaluate.rep_n(policy.encode(y), 2) for _, y in texts]
    assert found["rep-2"] == pytest.approx(sum(reps) / 3)


# ------------------------------------------------------------------------- while a run is at work


def screen(folder, task, **settings):
    """What run_all.sh prints, with a stand-in for python; and the commands that it starts."""
    run, log = folder / "run", folder / "log"
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"PYTHON": str(python_of(folder)), "RUN": str(run), "BF16": "", **settings}
    command = ["bash", "run_all.sh", task]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout, [json.loads(line) for line in log.read_text().splitlines()]


def test_a_line_for_each_stage(tmp_path):
    said, _ = screen(tmp_path, "sentiment", ITERATIONS="2", DIAL_SAMPLES="1")
    titles = [line for line in said.splitlines() if line and not line.startswith(" ")]
    assert [title.split(" · about")[0] for title in titles[:-1]] == [
        "round 1 of 2 · explore: 1,536 completions of p0",
        "round 1 of 2 · quantize: the samples by reward, cut into D^1 ... D^5",
        "round 1 of 2 · learn: 60 updates with 16 samples each",
        "round 2 of 2 · explore: 1,536 completions under r_5",
        "round 2 of 2 · quantize: the samples by reward, cut into D^1 ... D^5",
        "round 2 of 2 · learn: 60 updates with 16 samples each",
        "evaluate: 7,200 completions of p0",
        "evaluate: 7,200 completions under r_5",
        "evaluate: 1,728 completions under r_1 ... r_5 and no token",
        "the report",
    ]
    assert "left" not in "".join(titles[:3])
    assert all("left" in title for title in titles[3:-2])
    assert re.fullmatch(r"done in \d+ s; open \S+/report.html in a browser", titles[-1])


def test_the_printed_commands_can_be_pasted(tmp_path):
    """They are the commands that run, on lines of at most 100 columns."""
    settings = {"ITERATIONS": "1", "NUM_PROMPTS": "7", "REWARD_MODEL": "a judge's *"}
    said, started = screen(tmp_path, "repetition", **settings)
    folded = [line for line in said.splitlines() if line.startswith("  ")]
    longest = max(map(len, said.replace(str(tmp_path), "runs").splitlines()))
    assert longest <= 100 and len(folded) > 2 * len(started)
    printed = [shlex.split(line) for line in "\n".join(folded).replace("\\\n", " ").splitlines()]
    assert [words[1:] for words in printed] == started


@pytest.mark.parametrize(
    "settings, under",
    [
        ({"LEARN": "--no-reward-token"}, "under no token"),
        ({"EXPLORE": "--reward-token none"}, "under no token"),
        ({"K": "3", "NUM_PROMPTS": "100000", "NUM_SAMPLES": "2"}, "under r_3"),
    ],
)
def test_what_the_line_of_explore_says(settings, under, tmp_path):
    said, _ = screen(tmp_path, "sentiment", ITERATIONS="2", **settings)
    n = "1,702" if "K" in settings else "1,536"  # two for each of the 851 prompts there are
    assert f"round 2 of 2 · explore: {n} completions {under}" in said


@pytest.mark.parametrize(
    "settings, quark, dial",
    [
        ({"LEARN": "--no-reward-token"}, "no token", "288 completions under no token"),
        ({"EXPLORE": "--reward-token none"}, "r_5", "1,728 completions under r_1 ... r_5 and"),
        (
            {"EVALUATE": "--reward-token none"},
            "no token",
            "1,728 completions under r_1 ... r_5 and",
        ),
    ],
)
def test_what_the_lines_of_evaluate_say(settings, quark, dial, tmp_path):
    said, _ = screen(tmp_path, "sentiment", ITERATIONS="1", DIAL_SAMPLES="1", **settings)
    assert f"evaluate: 7,200 completions under {quark}" in said
    assert f"evaluate: {dial}" in said


def time_left(**state):
    """What is said of the time that is left, when that much is left, done, and took so long."""
    names = ("explore", "quantize", "learn", "evaluate")
    lines = ["PROMPTS=/dev/null TEST_PROMPTS=/dev/null NUM_PROMPTS= NUM_SAMPLES=1 ITERATIONS=1"]
    lines += [
        "EVALUATE= DIAL_SAMPLES=0 K=5 LEARN= TASK=sentiment",
        "source plumbing/screen.sh",
        "n_explored=100",
    ]
    for name in names:
        for kind, value in zip(("left", "done", "took"), state.get(name, (0, 0, 0))):
            lines.append(f"{kind}_{name}={value}")
    done = subprocess.run(
        ["bash", "-c", "set -euf\n" + "\n".join(lines) + "\ntime_left"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_how_long_is_left():
    """Two of three rounds took 20 + 4 + 60 s, so one takes 42; the 1,000 completions of the
    evaluation take as long as ten explorations of 100, 100 s, until some have been timed."""
    rounds = {"explore": (1, 2, 20), "quantize": (1, 2, 4), "learn": (1, 2, 60)}
    assert time_left(**rounds) == "· about 50 s left"
    assert time_left(**rounds, evaluate=(1000, 0, 0)) == "· about 2 min left"
    assert time_left(**rounds, evaluate=(1000, 10, 36)) == "· about 61 min left"
    assert time_left(explore=(1, 0, 0)) == ""
    assert time_left(evaluate=(1000, 0, 0)) == ""
    assert time_left(evaluate=(1000, 10, 72)) == "· about 2 h 0 min left"
