"""Stage 2 and the pool: the quantiles, the reading and checking of rows, outputs that appear whole or not at all."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, one_sentence, read_rows, stage, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

import quantize
from plumbing.pool import BadInput
from quantize import assign_quantiles, assign_quantiles_per_prompt, bounded
from plumbing.files import whole_file
from plumbing.files import write_args
from plumbing.pool import read_pool
from plumbing.pool import read_prompts
from plumbing.pool import shown


def row(reward, prompt="x", **more):
    return {"prompt": prompt, "completion": " y", "reward": reward, **more}


# ---------------------------------------------------------------------------------------------------- the quantiles


def test_quantiles_by_hand():
    """N = 7, K = 3. Rank i falls into part floor((i + 0.5) 3 / 7): 0.2 0.6 | 1.1 1.5 1.9 | 2.4 2.8, sizes 2, 3, 2.

    Worst to best: .1 .2 | .3 .5 .7 | .8 .9; K marks the best, so .9 gets 3 and .1 gets 1.
    """
    assert assign_quantiles([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8], 3).tolist() == [3, 1, 2, 2, 2, 1, 3]


def test_negative_and_integer_rewards():
    """-5 < -1 < 0 < 3: order by value, not by size or by text."""
    assert assign_quantiles([0, -5, 3, -1], 2).tolist() == [2, 1, 2, 1]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.sampled_from([-2.0, 0.0, 0.1, 0.5, 1e9]), min_size=1, max_size=60), st.data())
def test_parts_are_equal_and_ordered(rewards, data):
    """Whatever N, K and the ties: sizes differ by at most one, none is empty, a better part never holds a worse reward."""
    K = data.draw(st.integers(1, len(rewards)))
    quantiles = assign_quantiles(rewards, K, seed=3)
    parts = [[r for r, q in zip(rewards, quantiles) if q == k] for k in range(1, K + 1)]
    sizes = [len(part) for part in parts]
    assert sum(sizes) == len(rewards) and max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert all(max(worse) <= min(better) for worse, better in zip(parts, parts[1:]))


def test_one_quantile_and_as_many_as_samples():
    """K = 1: all the same. K = N: the rank itself."""
    assert assign_quantiles([3.0, 1.0, 2.0], 1).tolist() == [1, 1, 1]
    assert assign_quantiles([3.0, 1.0, 4.0, 2.0], 4).tolist() == [3, 1, 4, 2]


@pytest.mark.parametrize("K", [0, -1, 4])
def test_no_empty_parts(K):
    """More parts than samples, or none: refused, with both numbers in the message."""
    with pytest.raises(BadInput, match=rf"3 samples into K = {K} "):
        assign_quantiles([1.0, 2.0, 3.0], K)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rewards_must_be_finite(bad):
    """NaN has no place in an order; the message names which."""
    with pytest.raises(BadInput, match="number 1 "):
        assign_quantiles([0.5, bad, 0.1], 2)


def test_ties_are_broken_at_random_not_by_age():
    """1000 equal rewards, K = 2: the older half gets about half of the good tokens (250, standard deviation 8)."""
    quantiles = assign_quantiles(np.ones(1000), 2, seed=0)
    assert abs((quantiles[:500] == 2).sum() - 250) < 60
    assert abs((quantiles[::2] == 2).sum() - 250) < 60


def test_ties_by_age_and_together_by_hand():
    """Rewards 1 0 1 1 0 1, K = 3. By age, worst first: the zeros (rows 4, 1), then the ones (5, 3, 2, 0), two rows a part.
    Together: the zeros' mean rank is .5, (.5 + .5) 3 / 6 = .5: part 1; the ones' is 3.5, (3.5 + .5) 3 / 6 = 2: part 3."""
    rewards = [1, 0, 1, 1, 0, 1]
    assert assign_quantiles(rewards, 3, ties="age").tolist() == [3, 1, 3, 2, 1, 2]
    assert assign_quantiles(rewards, 3, ties="together").tolist() == [3, 1, 3, 3, 1, 3]
    assert assign_quantiles([3, 1, 2, 4], 2, ties="together").tolist() == [2, 1, 1, 2]
    twice, prompts = [1, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]
    assert assign_quantiles_per_prompt(twice, prompts, 3, 0, "age").tolist() == [3, 1, 2, 1, 3, 2]
    for seed in range(9):
        one, two = np.split(assign_quantiles_per_prompt(twice, prompts, 2, seed, "together"), 2)
        assert one[0] == one[2] > one[1] and two[1] == two[2] > two[0]


def test_seed_decides_ties_and_nothing_else():
    """Same seed: same parts. Another seed: another of the equal rewards crosses the border; distinct rewards stay."""
    tied = [0.0] * 3 + [1.0] * 5  # the best half is four of the five ones
    lonely = {assign_quantiles(tied, 2, seed).tolist().index(1, 3) for seed in range(40)}
    assert lonely == {3, 4, 5, 6, 7}
    assert all((assign_quantiles(tied, 2, seed)[:3] == 1).all() for seed in range(40))
    assert assign_quantiles(tied, 2, 7).tolist() == assign_quantiles(tied, 2, 7).tolist()
    distinct = np.random.default_rng(0).permutation(30)
    assert assign_quantiles(distinct, 4, 1).tolist() == assign_quantiles(distinct, 4, 2).tolist()


def test_row_order_does_not_matter():
    """A pool in another order: every sample keeps its part (distinct rewards)."""
    rng = np.random.default_rng(1)
    rewards, shuffle = rng.permutation(23) / 23, rng.permutation(23)
    assert (assign_quantiles(rewards, 5)[shuffle] == assign_quantiles(rewards[shuffle], 5)).all()


def test_per_prompt_by_hand():
    """Prompt 7 is easy (10, 20), prompt 4 is hard (1, 2): ranked alone, each has one sample in either half.

    With two samples and K = 2, rank i falls into part floor((i + o) 2 / 2) = i for every offset o in [0, 1).
    """
    rewards, prompts = [20, 2, 1, 10], [7, 4, 4, 7]
    for seed in range(20):
        assert assign_quantiles_per_prompt(rewards, prompts, 2, seed).tolist() == [2, 2, 1, 1]
    assert assign_quantiles(rewards, 2).tolist() == [2, 1, 1, 2]  # globally, the easy prompt takes the best part


def test_per_prompt_spreads_few_samples_over_all_parts():
    """900 prompts of one sample, K = 3: each part gets about 300 (standard deviation 14), in 1 ... 3."""
    quantiles = assign_quantiles_per_prompt(np.zeros(900), np.arange(900), 3, seed=0)
    counts = np.bincount(quantiles, minlength=5)
    assert counts[0] == counts[4] == 0 and (abs(counts[1:4] - 300) < 90).all()


def test_per_prompt_keeps_the_order_within_a_prompt():
    """Five samples of each of 40 prompts, K = 3: a better sample never has the worse part, and parts are used evenly."""
    rng = np.random.default_rng(2)
    rewards, prompts = rng.random(200), rng.permutation(np.repeat(np.arange(40), 5))
    quantiles = assign_quantiles_per_prompt(rewards, prompts, 3, seed=4)
    for prompt in range(40):
        mine = np.flatnonzero(prompts == prompt)
        ordered = quantiles[mine[np.argsort(rewards[mine])]]
        assert (np.diff(ordered) >= 0).all() and (np.bincount(ordered, minlength=4)[1:] >= 1).all()
    assert (abs(np.bincount(quantiles)[1:] - 200 / 3) < 20).all()


# --------------------------------------------------------------------------------------------------- bounded pools


def test_last_keeps_the_newest_iterations():
    """Iterations 0 ... 3 in mixed order: the last two are 2 and 3."""
    assert bounded([0.0] * 5, [2, 0, 3, 1, 3], last=2).tolist() == [True, False, True, False, True]
    assert bounded([0.0] * 3, [0, 1, 2], last=9).all()


def test_keep_p0_keeps_iteration_0_besides_the_newest():
    """Iterations 0 and 3 of 0 ... 3; where there is no iteration 0, only the newest."""
    assert bounded([0.0] * 5, [2, 0, 3, 1, 3], last=1, keep_p0=True).tolist() == [False, True, True, False, True]
    assert bounded([0.0] * 3, [1, 2, 3], last=1, keep_p0=True).tolist() == [False, False, True]
    assert bounded([0.1, 0.9, 0.3], [0, 1, 2], last=1, keep_p0=True, keep_top=0.5).tolist() == [False, False, True]  # then the best


def test_keep_top_keeps_the_best():
    """0.4 of 5 rows are 2: those with .9 and .8."""
    assert bounded([0.1, 0.9, 0.3, 0.8, 0.2], [0] * 5, keep_top=0.4).tolist() == [False, True, False, True, False]


def test_keep_top_rounds_up_and_is_exact():
    """0.3 of 5 = 1.5 -> 2 rows, so never none; 0.07 of 100 is 7, though 0.07 * 100 = 7.000000000000001 in a computer."""
    assert bounded(np.arange(5.0), [0] * 5, keep_top=0.3).sum() == 2
    assert bounded(np.arange(5.0), [0] * 5, keep_top=0.001).sum() == 1
    assert bounded(np.arange(100.0), [0] * 100, keep_top=0.07).sum() == 7
    assert bounded(np.arange(100.0), [0] * 100, keep_top=1.0).all()


def test_keep_top_after_last():
    """First the newest iteration (rows 2 ... 5), then its best half; old rows are gone however good."""
    kept = bounded([9, 9, 0.1, 0.4, 0.3, 0.2], [0, 0, 1, 1, 1, 1], last=1, keep_top=0.5)
    assert kept.tolist() == [False, False, False, True, True, False]


def test_keep_top_breaks_ties_at_random():
    """Half of 1000 equal rows: about half of them old, and not the same for every seed."""
    kept = bounded(np.ones(1000), [0] * 1000, keep_top=0.5, seed=1)
    assert kept.sum() == 500 and abs(kept[:500].sum() - 250) < 60
    assert (kept != bounded(np.ones(1000), [0] * 1000, keep_top=0.5, seed=2)).any()


# ------------------------------------------------------------------------------------------------------- the stage


def test_main_writes_every_row_with_its_quantile(tmp_path, capsys):
    """Two files, given as a folder: rows in order of name and line, unknown fields and odd characters untouched."""
    odd = {"note": {"a": [1, None, 1e-9]}, "text": "é \u2028 \U0001f600 \u0000", "iteration": 3}
    first = [row(0.25, **odd), row(1, prompt="z")]
    second = [row(-1.5), row(0.5, completion_ids=[3, 1], prompt_ids=[])]
    write_jsonl(tmp_path / "pool" / "01.jsonl", second), write_jsonl(tmp_path / "pool" / "00.jsonl", first)
    out = tmp_path / "quantized" / "00.jsonl"
    quantize.main([str(tmp_path / "pool"), "--quantiles", "2", "--out", str(out)])
    expected = [{**r, "quantile": k} for r, k in zip(first + second, [1, 2, 1, 2])]
    assert read_rows(out) == expected
    assert [list(r) for r in read_rows(out)] == [list(r) for r in expected]  # the fields keep their order, too
    assert type(read_rows(out)[1]["reward"]) is int and "é \u2028" in out.read_text(encoding="utf-8")  # written as one reads it
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == "r_2 2 rows reward 0.5000 to 1.0000, mean 0.7500".split()
    assert printed[1].split() == "r_1 2 rows reward -1.5000 to 0.2500, mean -0.6250".split()
    assert json.loads((tmp_path / "quantized" / "00.args.json").read_text())["quantiles"] == 2
    assert sorted(os.listdir(tmp_path / "quantized")) == ["00.args.json", "00.jsonl"]


def test_an_old_quantile_is_replaced(tmp_path):
    """A quantized file may be quantized again."""
    pool = write_jsonl(tmp_path / "a.jsonl", [row(0.1, quantile=2), row(0.2, quantile=1)])
    quantize.main([str(pool), "--quantiles", "2", "--out", str(tmp_path / "b.jsonl")])
    assert [r["quantile"] for r in read_rows(tmp_path / "b.jsonl")] == [1, 2]


def test_main_per_prompt_and_bounded(tmp_path, capsys):
    """--last 1 drops the rows of iteration 0; --per-prompt ranks the rest by prompt; what was left out is counted."""
    rows = [row(5.0, "a", iteration=0), row(20, "a", iteration=1), row(2, "b", iteration=1),
            row(10, "a", iteration=1), row(1, "b", iteration=1)]  # fmt: skip
    pool = write_jsonl(tmp_path / "a.jsonl", rows)
    quantize.main([str(pool), "--quantiles", "2", "--per-prompt", "--last", "1", "--out", str(tmp_path / "q.jsonl")])
    assert [(r["reward"], r["quantile"]) for r in read_rows(tmp_path / "q.jsonl")] == [(20, 2), (2, 2), (10, 1), (1, 1)]
    assert "left out 1 of 5 rows" in capsys.readouterr().out
    quantize.main([str(pool), "--quantiles", "2", "--last", "1", "--keep-p0", "--out", str(tmp_path / "p.jsonl")])
    assert len(read_rows(tmp_path / "p.jsonl")) == 5
    quantize.main([str(pool), "--quantiles", "2", "--keep-top", "0.4", "--out", str(tmp_path / "t.jsonl")])
    assert [(r["reward"], r["quantile"]) for r in read_rows(tmp_path / "t.jsonl")] == [(20, 2), (10, 1)]


def test_main_ties_and_random(tmp_path):
    """--ties age: of ten equal rewards the five older ones are better. --random: good rewards are in both parts, which are still halves."""
    pool = write_jsonl(tmp_path / "a.jsonl", [row(1, prompt=str(i)) for i in range(10)])
    quantize.main([str(pool), "--quantiles", "2", "--ties", "age", "--out", str(tmp_path / "q.jsonl")])
    assert [r["quantile"] for r in read_rows(tmp_path / "q.jsonl")] == [2] * 5 + [1] * 5
    pool = write_jsonl(tmp_path / "b.jsonl", [row(i, prompt=str(i)) for i in range(100)])
    quantize.main([str(pool), "--quantiles", "2", "--random", "--out", str(tmp_path / "r.jsonl")])
    best = [r["reward"] for r in read_rows(tmp_path / "r.jsonl") if r["quantile"] == 2]
    assert len(best) == 50 and 35 < np.mean(best) < 65


def test_same_seed_same_bytes(tmp_path):
    """All rewards equal: the file depends on --seed alone, and does depend on it."""
    pool = write_jsonl(tmp_path / "pool.jsonl", [row(1, prompt=str(i)) for i in range(40)])
    files = []
    for i, seed in enumerate([4, 4, 5]):
        quantize.main([str(pool), "--quantiles", "3", "--seed", str(seed), "--out", str(tmp_path / f"{i}.jsonl")])
        files.append((tmp_path / f"{i}.jsonl").read_bytes())
    assert files[0] == files[1] != files[2]


def test_per_prompt_needs_siblings(tmp_path):
    """Two samples a prompt, but one a round: --last 1 leaves nothing to rank; with both rounds there is. K from 1 to what is kept."""
    pool = write_jsonl(tmp_path / "a.jsonl", [row(i, prompt=str(i % 3), iteration=i // 3) for i in range(6)])
    with pytest.raises(BadInput, match="needs several samples of a prompt"):
        quantize.main([str(pool), "--quantiles", "2", "--per-prompt", "--last", "1", "--out", str(tmp_path / "q.jsonl")])
    quantize.main([str(pool), "--quantiles", "2", "--per-prompt", "--out", str(tmp_path / "q.jsonl")])
    assert [r["quantile"] for r in read_rows(tmp_path / "q.jsonl")] == [1, 1, 1, 2, 2, 2]
    for K in (-2, 0, 4):
        with pytest.raises(BadInput, match=f"cannot cut 3 samples into K = {K} "):
            quantize.main([str(pool), "--quantiles", str(K), "--keep-top", "0.5", "--out", str(tmp_path / "r.jsonl")])
    assert not (tmp_path / "r.jsonl").exists()


def test_a_file_named_twice_counts_once(tmp_path):
    """By another spelling, or beside the folder it stands in."""
    pool = write_jsonl(tmp_path / "pool" / "00.jsonl", [row(0.1), row(0.2)])
    quantize.main([str(pool.parent), str(pool), str(tmp_path / "pool" / ".." / "pool" / "00.jsonl"), "--quantiles", "2", "--out", str(tmp_path / "q.jsonl")])
    assert len(read_rows(tmp_path / "q.jsonl")) == 2


@pytest.mark.parametrize("left", [0, 3, 5])
def test_a_pool_that_changes_while_it_is_read(left, tmp_path, monkeypatch):
    """Nothing for the second pass, as with a pipe, <(cat pool.jsonl); a row fewer; a row more: refused, and no file."""
    lines = [json.dumps(row(i)) + "\n" for i in range(5)]
    pool, really = tmp_path / "a.jsonl", quantize.bounded
    pool.write_text("".join(lines[:4]))

    def between_the_passes(*given):
        pool.write_text("".join(lines[:left]))
        return really(*given)

    monkeypatch.setattr(quantize, "bounded", between_the_passes)
    with pytest.raises(BadInput, match=f"had 4 rows when it was ranked and {left} when it was written"):
        quantize.main([str(pool), "--quantiles", "2", "--out", str(tmp_path / "q.jsonl")])
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_pool_file_is_never_overwritten(tmp_path):
    """--out names an input, directly, by a detour or through a link: refused, and the file keeps its bytes."""
    pool = write_jsonl(tmp_path / "pool" / "00.jsonl", [row(0.1), row(0.2)])
    (tmp_path / "link.jsonl").symlink_to(pool)
    before = pool.read_bytes()
    for out in (pool, tmp_path / "pool" / ".." / "pool" / "00.jsonl", tmp_path / "link.jsonl"):
        for source in (pool, pool.parent):
            with pytest.raises(BadInput, match="one of the pool files|never changed"):
                quantize.main([str(source), "--quantiles", "2", "--out", str(out)])
    assert pool.read_bytes() == before and os.listdir(pool.parent) == ["00.jsonl"]


def test_out_inside_the_pool_folder(tmp_path):
    """quantize.py pool --out pool/q.jsonl would be a pool file itself in the next round."""
    write_jsonl(tmp_path / "pool" / "00.jsonl", [row(0.1), row(0.2)])
    with pytest.raises(BadInput):
        quantize.main([str(tmp_path / "pool"), "--quantiles", "2", "--out", str(tmp_path / "pool" / "q.jsonl")])
    assert os.listdir(tmp_path / "pool") == ["00.jsonl"]


def test_exit_status(tmp_path):
    """As the shell sees it: 0 and a file, or not 0, one line on stderr and no file."""
    good = write_jsonl(tmp_path / "good.jsonl", [row(0.1), row(0.2)])
    (tmp_path / "bad.jsonl").write_text(json.dumps(row(0.1)) + '\n{"prompt": "x", "compl')
    for pool, status in ((good, 0), (tmp_path / "bad.jsonl", 1)):
        out = tmp_path / f"out-{status}.jsonl"
        command = [sys.executable, str(ROOT / "quantize.py"), str(pool), "--quantiles", "2", "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == status and out.exists() == (status == 0)
        if status:
            assert one_sentence(done.stderr.strip()) and "bad.jsonl:2" in done.stderr and "cut off" in done.stderr


@pytest.mark.slow
def test_an_engine_agrees(tmp_path):
    """The query of bench/quantize.py: DuckDB's ntile over the same JSONL gives each part the same rewards, whoever breaks the ties, and the
    same rows where there are none; other fields pass through."""
    duckdb = pytest.importorskip("duckdb")
    rng = np.random.default_rng(0)
    for ties in (False, True):
        rewards = rng.integers(0, 7, 1000) / 7 if ties else rng.random(1000)
        rows = [row(float(r), prompt=f"p {i}", iteration=i % 3, completion_ids=[i, 7]) for i, r in enumerate(rewards)]
        pool = write_jsonl(tmp_path / f"pool-{ties}" / "00.jsonl", rows)
        duckdb.sql(f"""COPY (SELECT * EXCLUDE (u), ntile(5) OVER (ORDER BY reward, u) AS quantile
                             FROM (SELECT *, random() AS u FROM read_json('{pool.parent}/*.jsonl', format = 'newline_delimited')))
                       TO '{tmp_path}/engine.jsonl' (FORMAT json)""")
        quantize.main([str(pool.parent), "--quantiles", "5", "--out", str(tmp_path / "ours.jsonl")])
        engine, ours = (read_rows(tmp_path / name) for name in ("engine.jsonl", "ours.jsonl"))
        by_part = lambda rows: sorted((r["quantile"], r["reward"]) for r in rows)
        assert by_part(engine) == by_part(ours) and list(read_pool([tmp_path / "engine.jsonl"]))
        key = lambda r: r["prompt"]
        if not ties:
            assert sorted(engine, key=key) == sorted(ours, key=key)


# ------------------------------------------------------------------------------------------------------- bad input

BAD_ROWS = [
    ({"completion": "y", "reward": 1}, '"prompt" is missing'),
    ({"prompt": "x", "reward": 1}, '"completion" is missing'),
    ({"prompt": "x", "completion": "y"}, '"reward" is missing'),
    ({"prompt": ["x"], "completion": "y", "reward": 1}, '"prompt" is .*not a string'),
    ({"prompt": "x", "completion": None, "reward": 1}, '"completion" is null, not a string'),
    (row(float("nan")), '"reward" is NaN; .*finite'),
    (row(float("-inf")), '"reward" is -Infinity'),
    (row(10**400), '"reward" is 1000.*finite'),
    (row("0.5"), '"reward" is "0.5", not a number'),
    (row(True), '"reward" is true, not a number'),
    (row(None), '"reward" is null, not a number'),
    (row(1, iteration=-1), '"iteration" is -1'),
    (row(1, iteration=1.5), '"iteration" is 1.5'),
    (row(1, iteration=2**40), '"iteration" is'),
    (row(1, quantile=0), '"quantile" is 0'),
    (row(1, quantile=-1), '"quantile" is -1'),
    (row(1, quantile=True), '"quantile" is true'),
    (row(1, completion_ids=[1, -2]), '"completion_ids" is'),
    (row(1, completion_ids=[1.0]), '"completion_ids" is'),
    (row(1, prompt_ids="12"), '"prompt_ids" is'),
]


@pytest.mark.parametrize("bad, message", BAD_ROWS, ids=[m for _, m in BAD_ROWS])
def test_bad_row(bad, message, tmp_path, monkeypatch):
    """One sentence with file, line and value; exit status not 0; nothing written."""
    pool = write_jsonl(tmp_path / "pool.jsonl", [row(0.5), bad, row(0.7)])
    exit = stage(monkeypatch, "quantize.py", pool, "--quantiles", "2", "--out", tmp_path / "out" / "q.jsonl")
    assert one_sentence(exit) and f"{pool}:2" in exit
    with pytest.raises(BadInput, match=message):
        list(read_pool([pool]))
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


BAD_LINES = [
    (b"not json\n", "not valid JSON"),
    (b'{"prompt": "x", "completion"', "ends within this line"),
    (b'["x"]\n', "not an object"),
    (b"3\n", "is 3, not an object"),
    (b'{"prompt": "\xff", "completion": "y", "reward": 1}\n', "byte 12 is not UTF-8"),
    (b'{"prompt": "\\ud83d", "completion": "y", "reward": 1}\n', "half a surrogate pair"),
    (b'{"prompt": "x", "completion": "y", "reward": ' + b"1" * 5000 + b"}\n", ":2"),
    (b"[" * 100000 + b"\n", ":2"),
]


@pytest.mark.parametrize("bad, message", BAD_LINES, ids=[m for _, m in BAD_LINES])
def test_bad_line(bad, message, tmp_path):
    """Not JSON, cut off, not an object, not UTF-8, absurd: the line's number and what is wrong with it."""
    (tmp_path / "pool.jsonl").write_bytes(json.dumps(row(0.5)).encode() + b"\n" + bad)
    with pytest.raises(BadInput, match=message) as error:
        quantize.main([str(tmp_path / "pool.jsonl"), "--quantiles", "1", "--out", str(tmp_path / "q.jsonl")])
    assert "pool.jsonl:2" in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["pool.jsonl"]


def test_other_bad_input(tmp_path):
    """A file that is missing, a folder without pools, no rows, more parts than rows, --last without iterations."""
    pool = write_jsonl(tmp_path / "pool.jsonl", [row(0.5), row(0.6, "other")])
    (tmp_path / "none").mkdir(), (tmp_path / "empty.jsonl").write_text("\n\n")
    for source, options, message in [
        (tmp_path / "missing.jsonl", [], "missing.jsonl: No such file"),
        (tmp_path / "none", [], "holds no .jsonl"),
        (tmp_path / "empty.jsonl", [], "no rows"),
        (pool, ["--quantiles", "3"], "2 samples into K = 3"),
        (pool, ["--quantiles", "0"], "K = 0"),
        (pool, ["--quantiles", "2", "--last", "1"], 'pool.jsonl:1: "iteration" is missing'),
        (pool, ["--quantiles", "2", "--keep-top", "0.1"], "1 samples into K = 2"),
        (pool, ["--quantiles", "2", "--per-prompt"], "several samples of a prompt"),
    ]:
        with pytest.raises(BadInput, match=message):
            quantize.main([str(source), *(options or ["--quantiles", "1"]), "--out", str(tmp_path / "q.jsonl")])
        assert not (tmp_path / "q.jsonl").exists()


@pytest.mark.parametrize("options", [["--last", "0"], ["--keep-top", "0"], ["--keep-top", "1.1"], ["--keep-top", "nan"],
                                     ["--seed", "-1"], ["--quantiles", "two"], ["--keep-p0"]])  # fmt: skip
def test_bad_options(options, tmp_path):
    """argparse's exit status 2, before anything is read."""
    with pytest.raises(SystemExit) as exit:
        quantize.main([str(tmp_path / "not even there"), "--out", str(tmp_path / "q.jsonl"), *options])
    assert exit.value.code == 2


def test_out_is_a_folder(tmp_path):
    """--out names a folder that exists, or lies under a file: one sentence, nothing left."""
    pool = write_jsonl(tmp_path / "pool.jsonl", [row(0.5)])
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "folder", pool / "q.jsonl"):
        with pytest.raises(BadInput):
            quantize.main([str(pool), "--quantiles", "1", "--out", str(out)])
    assert sorted(os.listdir(tmp_path)) == ["folder", "pool.jsonl"] and os.listdir(tmp_path / "folder") == []


# ---------------------------------------------------------------------------------------------- reading and writing


def test_read_prompts(tmp_path):
    """A string or {"text": ...} as RealToxicityPrompts has it, with or without group, blank lines and a byte-order mark."""
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "group": "g"}\n\n{"prompt": {"text": "b", "toxicity": 0.1}, "x": 1}\r\n{"prompt": ""}')
    assert read_prompts(path) == [
        {"prompt": "a", "group": "g"}, {"prompt": "b", "group": None}, {"prompt": "", "group": None}]  # fmt: skip


@pytest.mark.parametrize("line, message", [
    ('{"text": "a"}', '"prompt" is missing'), ('{"prompt": {"toxicity": 1}}', '"prompt" is null'), ('{"prompt": 3}', "not a string"),
    ('{"prompt": "a", "group": 3}', '"group" is 3'), ("", "no prompts")])  # fmt: skip
def test_bad_prompts(line, message, tmp_path):
    """A prompt file without prompts says so, with the line."""
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(BadInput, match=message):
        read_prompts(tmp_path / "p.jsonl")


def test_whole_file_all_or_nothing(tmp_path):
    """An exception while writing leaves the old file as it was, and no second one beside it."""
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write("new")
        1 / 0
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.jsonl"]
    with whole_file(path) as file:
        file.write("new\n")
        assert path.read_text() == "old"  # not there before it is whole
    assert path.read_bytes() == b"new\n" and os.listdir(tmp_path) == ["a.jsonl"]


def test_args_file_name(tmp_path):
    """pool/00.jsonl -> pool/00.args.json; a name with another dot in it keeps it."""
    import argparse

    for path in ("00.jsonl", "quark", "v1.5"):
        write_args(tmp_path / path, argparse.Namespace(seed=1))
    assert set(os.listdir(tmp_path)) == {"00.args.json", "quark.args.json", "v1.5.args.json"}


def test_shown_is_short():
    """A value of any size takes 60 characters at most in a message."""
    assert shown([1, "a"]) == '[1, "a"]' and len(shown("x" * 10**6)) == 60
