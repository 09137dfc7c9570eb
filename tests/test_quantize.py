"""Step 2: the quantiles, over all samples and per prompt; the bounded pool; the stage."""

import itertools
import json
import os
import sys

import numpy as np
import pytest
from conftest import execute, one_sentence, read_rows, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

import quantize
from plumbing.pool import BadInput, read_pool
from quantize import assign_quantiles, assign_quantiles_per_prompt, bounded


def row(reward, prompt="x", **more):
    return {"prompt": prompt, "completion": " y", "reward": reward, **more}


# ------------------------------------------------------------------------------------ the quantiles


def test_quantiles_by_hand():
    """N = 7 and K = 3. Rank i, from 0 for the worst, goes to part floor((i + 0.5) 3 / 7) + 1.

        rewards, worst to best    .1   .2    .3   .5   .7    .8   .9
        (i + 0.5) 3 / 7           0.2  0.6   1.1  1.5  1.9   2.4  2.8
        part                      1    1     2    2    2     3    3

    The sizes are 2, 3 and 2. K marks the best.
    """
    rewards = [0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8]
    assert assign_quantiles(rewards, 3).tolist() == [3, 1, 2, 2, 2, 1, 3]


def test_negative_and_integer_rewards():
    """-5 < -1 < 0 < 3: rewards are ordered by value, not by size and not as text."""
    assert assign_quantiles([0, -5, 3, -1], 2).tolist() == [2, 1, 2, 1]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.sampled_from([-2.0, 0.0, 0.1, 0.5, 1e9]), min_size=1, max_size=60), st.data())
def test_parts_are_equal_and_ordered(rewards, data):
    """This holds for every N and K, with any ties.

    Sizes differ by at most one, no part is empty, and no reward of a part is above one of the next.
    """
    K = data.draw(st.integers(1, len(rewards)))
    quantiles = assign_quantiles(rewards, K, seed=3)
    parts = [[] for _ in range(K)]
    for reward, k in zip(rewards, quantiles, strict=True):
        parts[k - 1].append(reward)
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    for worse, better in itertools.pairwise(parts):
        assert max(worse) <= min(better)


def test_one_quantile_and_as_many_as_samples():
    """K = 1: all in one part. K = N: the quantile is the rank."""
    assert assign_quantiles([3.0, 1.0, 2.0], 1).tolist() == [1, 1, 1]
    assert assign_quantiles([3.0, 1.0, 4.0, 2.0], 4).tolist() == [3, 1, 4, 2]


@pytest.mark.parametrize("K", [0, -1, 4])
def test_no_empty_parts(K):
    """More parts than samples, or none, are refused. The message holds both numbers."""
    with pytest.raises(BadInput, match=rf"3 samples into K = {K} "):
        assign_quantiles([1.0, 2.0, 3.0], K)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rewards_must_be_finite(bad):
    """NaN has no place in an order. The message says which reward it is."""
    with pytest.raises(BadInput, match="number 1 "):
        assign_quantiles([0.5, bad, 0.1], 2)


def test_ties_are_broken_at_random_not_by_age():
    """Of 1000 equal rewards in two parts, the older half gets about half of the better tokens.

    It gets 250 of them on average, with a standard deviation of 8.
    """
    quantiles = assign_quantiles(np.ones(1000), 2, seed=0)
    assert abs((quantiles[:500] == 2).sum() - 250) < 60
    assert abs((quantiles[::2] == 2).sum() - 250) < 60


def test_ties_by_age_and_together_by_hand():
    """Rewards 1 0 1 1 0 1 in rows 0 to 5, and K = 3, so two rows a part.

    By age an older row is better. Worst first: rows 4 and 1, which are zeros, then 5, 3, 2 and 0.
    Together: the zeros have the ranks 0 and 1, mean 0.5, and (0.5 + 0.5) 3 / 6 = 0.5 is in part 1.
    The ones have the ranks 2 to 5, mean 3.5, and (3.5 + 0.5) 3 / 6 = 2 is in part 3.
    """
    rewards = [1, 0, 1, 1, 0, 1]
    assert assign_quantiles(rewards, 3, ties="age").tolist() == [3, 1, 3, 2, 1, 2]
    assert assign_quantiles(rewards, 3, ties="together").tolist() == [3, 1, 3, 3, 1, 3]
    assert assign_quantiles([3, 1, 2, 4], 2, ties="together").tolist() == [2, 1, 1, 2]


def test_ties_per_prompt_by_hand():
    """Two prompts with the rewards 1 0 1 and 0 1 1.

    By age with K = 3, each prompt's rows are worst to best 1 2 0 and 0 2 1. Together with K = 2,
    the two ones of a prompt share a part, and the zero is in a lower one.
    """
    rewards, prompts = [1, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]
    by_age = assign_quantiles_per_prompt(rewards, prompts, 3, 0, "age")
    assert by_age.tolist() == [3, 1, 2, 1, 3, 2]
    for seed in range(9):
        together = assign_quantiles_per_prompt(rewards, prompts, 2, seed, "together")
        first, second = np.split(together, 2)
        assert first[0] == first[2] > first[1]
        assert second[1] == second[2] > second[0]


def test_seed_decides_ties_and_nothing_else():
    """The same seed gives the same parts. Another seed changes only where equal rewards go.

    Three zeros and five ones, K = 2: one of the five ones is left out of the best half. Over 40
    seeds this is each of them at some time, and never a zero.
    """
    tied = [0.0] * 3 + [1.0] * 5
    left_out = set()
    for seed in range(40):
        quantiles = assign_quantiles(tied, 2, seed).tolist()
        assert quantiles[:3] == [1, 1, 1]
        left_out.add(quantiles.index(1, 3))
    assert left_out == {3, 4, 5, 6, 7}
    assert assign_quantiles(tied, 2, 7).tolist() == assign_quantiles(tied, 2, 7).tolist()
    distinct = np.random.default_rng(0).permutation(30)
    assert assign_quantiles(distinct, 4, 1).tolist() == assign_quantiles(distinct, 4, 2).tolist()


def test_row_order_does_not_matter():
    """With distinct rewards, every sample keeps its part in a pool of another order."""
    rng = np.random.default_rng(1)
    rewards, shuffle = rng.permutation(23) / 23, rng.permutation(23)
    shuffled = assign_quantiles(rewards[shuffle], 5)
    assert (assign_quantiles(rewards, 5)[shuffle] == shuffled).all()


# --------------------------------------------------------------------------------------- per prompt


def test_per_prompt_by_hand():
    """Prompt 7 is easy (rewards 10 and 20), prompt 4 is hard (1 and 2).

    Each on its own has one sample in either half. With two samples and K = 2, rank i is in part
    floor((i + o) 2 / 2) + 1 = i + 1 for every offset o in [0, 1). Globally, the easy prompt would
    fill the better half.
    """
    rewards, prompts = [20, 2, 1, 10], [7, 4, 4, 7]
    for seed in range(20):
        quantiles = assign_quantiles_per_prompt(rewards, prompts, 2, seed)
        assert quantiles.tolist() == [2, 2, 1, 1]
    assert assign_quantiles(rewards, 2).tolist() == [2, 1, 1, 2]


def test_per_prompt_spreads_few_samples_over_all_parts():
    """900 prompts with one sample each, K = 3: about 300 in each part (standard deviation 14)."""
    quantiles = assign_quantiles_per_prompt(np.zeros(900), np.arange(900), 3, seed=0)
    counts = np.bincount(quantiles, minlength=5)
    assert counts[0] == counts[4] == 0
    assert (abs(counts[1:4] - 300) < 90).all()


def test_per_prompt_keeps_the_order_within_a_prompt():
    """Five samples of each of 40 prompts, K = 3: a better sample is never in a worse part.

    Each prompt has a sample in every part, and the parts are about equally full.
    """
    rng = np.random.default_rng(2)
    rewards = rng.random(200)
    prompts = rng.permutation(np.repeat(np.arange(40), 5))
    quantiles = assign_quantiles_per_prompt(rewards, prompts, 3, seed=4)
    for prompt in range(40):
        own = np.flatnonzero(prompts == prompt)
        worst_first = quantiles[own[np.argsort(rewards[own])]]
        assert (np.diff(worst_first) >= 0).all()
        assert set(worst_first) == {1, 2, 3}
    assert (abs(np.bincount(quantiles)[1:] - 200 / 3) < 20).all()


# --------------------------------------------------------------------------------- the bounded pool


def kept(rewards, iterations, **bounds):
    """The numbers of the rows that stay."""
    return np.flatnonzero(bounded(rewards, iterations, **bounds)).tolist()


def test_last_keeps_the_newest_iterations():
    """Iterations 2 0 3 1 3: the newest two are 2 and 3, in rows 0, 2 and 4."""
    assert kept([0.0] * 5, [2, 0, 3, 1, 3], last=2) == [0, 2, 4]
    assert kept([0.0] * 3, [0, 1, 2], last=9) == [0, 1, 2]


def test_keep_p0_keeps_iteration_0_besides_the_newest():
    """Iterations 2 0 3 1 3: 0 and 3 stay, rows 1, 2 and 4. Without an iteration 0, only the newest.

    --keep-top comes after that: of the rewards .1 (iteration 0) and .3 (iteration 2), the better.
    """
    assert kept([0.0] * 5, [2, 0, 3, 1, 3], last=1, keep_p0=True) == [1, 2, 4]
    assert kept([0.0] * 3, [1, 2, 3], last=1, keep_p0=True) == [2]
    assert kept([0.1, 0.9, 0.3], [0, 1, 2], last=1, keep_p0=True, keep_top=0.5) == [2]


def test_keep_top_keeps_the_best():
    """0.4 of 5 rows are 2: those with .9 and .8."""
    assert kept([0.1, 0.9, 0.3, 0.8, 0.2], [0] * 5, keep_top=0.4) == [1, 3]


def test_keep_top_rounds_up_and_is_exact():
    """0.3 of 5 is 1.5, so 2 rows stay. At least one row always stays.

    0.07 of 100 is 7, although 0.07 * 100 is 7.000000000000001 in floating point.
    """
    assert kept(np.arange(5.0), [0] * 5, keep_top=0.3) == [3, 4]
    assert kept(np.arange(5.0), [0] * 5, keep_top=0.001) == [4]
    assert kept(np.arange(100.0), [0] * 100, keep_top=0.07) == list(range(93, 100))
    assert kept(np.arange(100.0), [0] * 100, keep_top=1.0) == list(range(100))


def test_keep_top_after_last():
    """First the newest iteration, rows 2 to 5, then its best half. Old rows go, however good."""
    rewards, iterations = [9, 9, 0.1, 0.4, 0.3, 0.2], [0, 0, 1, 1, 1, 1]
    assert kept(rewards, iterations, last=1, keep_top=0.5) == [3, 4]


def test_keep_top_breaks_ties_at_random():
    """Of 1000 equal rows half stay. About half of them are old, and the seed decides which."""
    first = kept(np.ones(1000), [0] * 1000, keep_top=0.5, seed=1)
    assert len(first) == 500
    assert abs(sum(row < 500 for row in first) - 250) < 60
    assert first != kept(np.ones(1000), [0] * 1000, keep_top=0.5, seed=2)


# ---------------------------------------------------------------------------------------- the stage


def run(pool, out, *options, K=2):
    """quantize.py from `pool`, a path or several, into the file `out`. Returns the rows written."""
    pools = pool if isinstance(pool, list) else [pool]
    quantize.main([*map(str, pools), "--quantiles", str(K), "--out", str(out), *map(str, options)])
    return read_rows(out)


def rewards_and_quantiles(rows):
    return [(row["reward"], row["quantile"]) for row in rows]


def test_main_writes_every_row_with_its_quantile(tmp_path, capsys):
    """Two files, given as a folder: the rows come in the order of the names and the lines.

    Unknown fields, unusual characters, the order of the fields and whole numbers stay as they are.
    """
    odd = {"note": {"a": [1, None, 1e-9]}, "text": "é \u2028 \U0001f600 \u0000", "iteration": 3}
    first = [row(0.25, **odd), row(1, prompt="z")]
    second = [row(-1.5), row(0.5, completion_ids=[3, 1], prompt_ids=[])]
    write_jsonl(tmp_path / "pool" / "01.jsonl", second)
    write_jsonl(tmp_path / "pool" / "00.jsonl", first)
    out = tmp_path / "quantized" / "00.jsonl"
    rows = run(tmp_path / "pool", out)
    expected = [{**r, "quantile": k} for r, k in zip(first + second, [1, 2, 1, 2])]
    assert rows == expected
    assert [list(r) for r in rows] == [list(r) for r in expected]
    assert type(rows[1]["reward"]) is int
    assert "é \u2028" in out.read_text(encoding="utf-8")  # and not as \u00e9 \u2028
    best, worst = (" ".join(line.split()) for line in capsys.readouterr().out.splitlines())
    assert best == "r_2 2 rows reward 0.5000 to 1.0000, mean 0.7500"
    assert worst == "r_1 2 rows reward -1.5000 to 0.2500, mean -0.6250"
    assert json.loads((tmp_path / "quantized" / "00.args.json").read_text())["quantiles"] == 2
    assert sorted(os.listdir(tmp_path / "quantized")) == ["00.args.json", "00.jsonl"]


def test_an_old_quantile_is_replaced(tmp_path):
    """A quantized file may be quantized again."""
    pool = write_jsonl(tmp_path / "a.jsonl", [row(0.1, quantile=2), row(0.2, quantile=1)])
    assert rewards_and_quantiles(run(pool, tmp_path / "b.jsonl")) == [(0.1, 1), (0.2, 2)]


def test_main_per_prompt_and_bounded(tmp_path, capsys):
    """--last 1 drops the row of iteration 0, --per-prompt ranks the others within their prompts.

    The number of dropped rows is printed. --keep-p0 keeps all 5; --keep-top 0.4 keeps the best 2.
    """
    rows = [
        row(5.0, "a", iteration=0),
        row(20, "a", iteration=1),
        row(2, "b", iteration=1),
        row(10, "a", iteration=1),
        row(1, "b", iteration=1),
    ]
    pool = write_jsonl(tmp_path / "a.jsonl", rows)
    newest = run(pool, tmp_path / "q.jsonl", "--per-prompt", "--last", 1)
    assert rewards_and_quantiles(newest) == [(20, 2), (2, 2), (10, 1), (1, 1)]
    assert "left out 1 of 5 rows" in capsys.readouterr().out
    assert len(run(pool, tmp_path / "p.jsonl", "--last", 1, "--keep-p0")) == 5
    best = run(pool, tmp_path / "t.jsonl", "--keep-top", 0.4)
    assert rewards_and_quantiles(best) == [(20, 2), (10, 1)]


def test_main_ties_and_random(tmp_path):
    """--ties age: of ten equal rewards the five older ones are better.

    --random: the parts are still halves, but the mean reward of the best half of 0 ... 99 is near
    50, where the best rewards would have 74.5. What --keep-top drops is still decided by the
    rewards: the best half stays.
    """
    pool = write_jsonl(tmp_path / "a.jsonl", [row(1, prompt=str(i)) for i in range(10)])
    rows = run(pool, tmp_path / "q.jsonl", "--ties", "age")
    assert [r["quantile"] for r in rows] == [2] * 5 + [1] * 5
    pool = write_jsonl(tmp_path / "b.jsonl", [row(i, prompt=str(i)) for i in range(100)])
    rows = run(pool, tmp_path / "r.jsonl", "--random")
    best = [r["reward"] for r in rows if r["quantile"] == 2]
    assert len(best) == 50
    assert 35 < np.mean(best) < 65
    rows = run(pool, tmp_path / "k.jsonl", "--random", "--keep-top", 0.5)
    assert [r["reward"] for r in rows] == list(range(50, 100))


def test_main_says_that_a_part_is_empty(tmp_path, capsys):
    """Two rewards, together in three parts: one stays empty, perhaps the best one."""
    rows = [row(float(i > 2), prompt=str(i)) for i in range(10)]
    pool = write_jsonl(tmp_path / "a.jsonl", rows)
    run(pool, tmp_path / "q.jsonl", "--ties", "together", K=3)
    assert "note: learn.py needs rows in every part" in capsys.readouterr().out
    run(pool, tmp_path / "q.jsonl", K=3)
    assert "note" not in capsys.readouterr().out


def test_same_seed_same_bytes(tmp_path):
    """All rewards are equal, so the parts depend on --seed, and on nothing else."""
    pool = write_jsonl(tmp_path / "pool.jsonl", [row(1, prompt=str(i)) for i in range(40)])
    files = []
    for i, seed in enumerate([4, 4, 5]):
        run(pool, tmp_path / f"{i}.jsonl", "--seed", seed, K=3)
        files.append((tmp_path / f"{i}.jsonl").read_bytes())
    assert files[0] == files[1] != files[2]


def test_per_prompt_needs_siblings(tmp_path):
    """Two samples a prompt, one in each round: --last 1 leaves nothing to rank.

    With both rounds there is. K is counted against the rows that are kept: half of six, 3.
    """
    rows = [row(i, prompt=str(i % 3), iteration=i // 3) for i in range(6)]
    pool = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(BadInput, match="needs several samples of a prompt"):
        run(pool, tmp_path / "q.jsonl", "--per-prompt", "--last", 1)
    ranked = run(pool, tmp_path / "q.jsonl", "--per-prompt")
    assert [r["quantile"] for r in ranked] == [1, 1, 1, 2, 2, 2]
    for K in (-2, 0, 4):
        with pytest.raises(BadInput, match=f"cannot cut 3 samples into K = {K} "):
            run(pool, tmp_path / "r.jsonl", "--keep-top", 0.5, K=K)
    assert not (tmp_path / "r.jsonl").exists()


def test_a_file_named_twice_counts_once(tmp_path):
    """By another spelling of its path, or beside the folder that it is in."""
    pool = write_jsonl(tmp_path / "pool" / "00.jsonl", [row(0.1), row(0.2)])
    detour = tmp_path / "pool" / ".." / "pool" / "00.jsonl"
    assert len(run([pool.parent, pool, detour], tmp_path / "q.jsonl")) == 2


@pytest.mark.parametrize("left", [0, 3, 5])
def test_a_pool_that_changes_while_it_is_read(left, tmp_path, monkeypatch):
    """The file is read twice. A row more, a row fewer, or nothing the second time: no output.

    Nothing is what a pipe gives, as in quantize.py <(cat pool.jsonl).
    """
    lines = [json.dumps(row(i)) + "\n" for i in range(5)]
    pool = tmp_path / "a.jsonl"
    pool.write_text("".join(lines[:4]))
    really_bounded = quantize.bounded

    def between_the_passes(*given):
        pool.write_text("".join(lines[:left]))
        return really_bounded(*given)

    monkeypatch.setattr(quantize, "bounded", between_the_passes)
    message = f"had 4 rows when it was ranked and {left} when it was written"
    with pytest.raises(BadInput, match=message):
        run(pool, tmp_path / "q.jsonl")
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_pool_file_is_never_overwritten(tmp_path):
    """--out names an input, directly, by a detour or through a link: refused, nothing changes."""
    pool = write_jsonl(tmp_path / "pool" / "00.jsonl", [row(0.1), row(0.2)])
    (tmp_path / "link.jsonl").symlink_to(pool)
    before = pool.read_bytes()
    detour = tmp_path / "pool" / ".." / "pool" / "00.jsonl"
    for out in (pool, detour, tmp_path / "link.jsonl"):
        for source in (pool, pool.parent):
            with pytest.raises(BadInput, match="this command reads|is a link"):
                run(source, out)
    assert pool.read_bytes() == before
    assert os.listdir(pool.parent) == ["00.jsonl"]


def test_out_inside_the_pool_folder(tmp_path):
    """An output in the pool's folder would be a pool file itself in the next round."""
    write_jsonl(tmp_path / "pool" / "00.jsonl", [row(0.1), row(0.2)])
    with pytest.raises(BadInput):
        run(tmp_path / "pool", tmp_path / "pool" / "q.jsonl")
    assert os.listdir(tmp_path / "pool") == ["00.jsonl"]


def test_exit_status(tmp_path):
    """As the shell sees it: 0 and a file, or 1, one line on stderr and no file."""
    good = write_jsonl(tmp_path / "good.jsonl", [row(0.1), row(0.2)])
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(row(0.1)) + '\n{"prompt": "x", "compl')
    command = [sys.executable, "quantize.py", "--quantiles", 2, "--out"]
    assert execute(*command, tmp_path / "a.jsonl", good).returncode == 0
    assert (tmp_path / "a.jsonl").exists()
    failed = execute(*command, tmp_path / "b.jsonl", bad)
    assert failed.returncode == 1
    assert one_sentence(failed.stderr.strip())
    assert "bad.jsonl:2" in failed.stderr and "cut off" in failed.stderr
    assert not (tmp_path / "b.jsonl").exists()


NTILE = """
COPY (
    SELECT * EXCLUDE (u), ntile(5) OVER (ORDER BY reward, u) AS quantile
    FROM (SELECT *, random() AS u FROM read_json('POOL/*.jsonl', format = 'newline_delimited'))
) TO 'OUT' (FORMAT json)
"""


@pytest.mark.slow
def test_an_engine_agrees(tmp_path):
    """DuckDB's ntile over the same file, the query of bench/cutting.py.

    Each part has the same rewards, whoever breaks the ties, and the same rows where there are none.
    Other fields pass through.
    """
    duckdb = pytest.importorskip("duckdb")
    rng = np.random.default_rng(0)
    out = tmp_path / "engine.jsonl"
    for ties in (False, True):
        rewards = rng.integers(0, 7, 1000) / 7 if ties else rng.random(1000)
        rows = []
        for i, reward in enumerate(rewards.tolist()):
            rows.append(row(reward, prompt=f"p {i}", iteration=i % 3, completion_ids=[i, 7]))
        pool = write_jsonl(tmp_path / f"pool-{ties}" / "00.jsonl", rows).parent
        duckdb.sql(NTILE.replace("POOL", str(pool)).replace("OUT", str(out)))
        engine, ours = read_rows(out), run(pool, tmp_path / "ours.jsonl", K=5)
        assert sorted(rewards_and_quantiles(engine)) == sorted(rewards_and_quantiles(ours))
        assert len(list(read_pool([out]))) == 1000  # what the engine wrote is a valid pool
        if not ties:
            assert sorted(engine, key=by_prompt) == sorted(ours, key=by_prompt)


def by_prompt(row):
    return row["prompt"]


# ---------------------------------------------------------------------- bad input: see test_pool.py


def test_other_bad_input(tmp_path):
    """One sentence each for a missing file, a folder without pools, no rows, too many parts ..."""
    pool = write_jsonl(tmp_path / "pool.jsonl", [row(0.5), row(0.6, "other")])
    (tmp_path / "none").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    for source, K, options, message in [
        (tmp_path / "missing.jsonl", 1, [], "missing.jsonl: No such file"),
        (tmp_path / "none", 1, [], "holds no .jsonl"),
        (tmp_path / "empty.jsonl", 1, [], "no rows"),
        (pool, 3, [], "2 samples into K = 3"),
        (pool, 0, [], "K = 0"),
        (pool, 2, ["--last", "1"], 'pool.jsonl:1: "iteration" is missing'),
        (pool, 2, ["--keep-top", "0.1"], "1 samples into K = 2"),
        (pool, 2, ["--per-prompt"], "several samples of a prompt"),
    ]:
        with pytest.raises(BadInput, match=message):
            run(source, tmp_path / "q.jsonl", *options, K=K)
        assert not (tmp_path / "q.jsonl").exists()


BAD_OPTIONS = [
    ["--last", "0"],
    ["--keep-top", "0"],
    ["--keep-top", "1.1"],
    ["--keep-top", "nan"],
    ["--seed", "-1"],
    ["--quantiles", "two"],
    ["--keep-p0"],
]


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options(options, tmp_path):
    """argparse's exit status 2, before anything is read."""
    argv = [str(tmp_path / "not even there"), "--out", str(tmp_path / "q.jsonl"), *options]
    with pytest.raises(SystemExit) as exit:
        quantize.main(argv)
    assert exit.value.code == 2


def test_out_is_a_folder(tmp_path):
    """--out names a folder, or lies under a file: one sentence, and nothing is left behind."""
    pool = write_jsonl(tmp_path / "pool.jsonl", [row(0.5)])
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "folder", pool / "q.jsonl"):
        with pytest.raises(BadInput):
            run(pool, out, K=1)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pool.jsonl"]
    assert os.listdir(tmp_path / "folder") == []


@pytest.mark.parametrize("options", [[], ["--per-prompt"], ["--random"], ["--keep-top", 0.5]])
def test_ties_are_drawn_anew_in_each_round(options, tmp_path):
    """With one seed, a row's luck among equal rewards in one round says nothing about the next."""
    rounds = []
    for newest in range(3):
        rows = []
        for i in range(400):
            rows.append({"prompt": f"x{i // 40}", "completion": "y", "reward": 1, "n": i})
            rows[-1]["iteration"] = newest if i == 0 else 0
        out = tmp_path / f"{newest}.jsonl"
        pool = write_jsonl(tmp_path / "pool.jsonl", rows)
        quantize.main(
            [str(pool), "--quantiles", "4", "--seed", "3", "--out", str(out), *map(str, options)]
        )
        luck = np.zeros(400)
        for row in read_rows(out):
            luck[row["n"]] = row["quantile"]
        rounds.append(luck)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert abs(np.corrcoef(rounds[a], rounds[b])[0, 1]) < 0.2  # 4 standard deviations


@pytest.mark.parametrize(
    "options", [["--per-prompt"], ["--keep-top", 0.5], ["--keep-top", 0.5, "--per-prompt"]]
)
def test_the_seed_reaches_the_cut_of_each_prompt_and_keep_top(options, tmp_path):
    """Equal rewards: another seed chooses other rows; the same seed chooses the same."""
    rows = [{"prompt": f"x{i % 4}", "completion": "y", "reward": 1, "n": i} for i in range(40)]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)

    def chosen(seed):
        argv = [pool, "--quantiles", 2, "--seed", seed, "--out", tmp_path / "q.jsonl", *options]
        quantize.main([str(a) for a in argv])
        return {row["n"]: row["quantile"] for row in read_rows(tmp_path / "q.jsonl")}

    by_seed = [chosen(seed) for seed in range(4)]
    assert chosen(0) == by_seed[0]
    for a, b in itertools.combinations(by_seed, 2):
        assert a != b
        if "--keep-top" in options:
            assert a.keys() != b.keys()


def test_ties_reach_the_cut_of_each_prompt(tmp_path):
    """By age within each prompt, the earlier row is the better; together, they share a part."""
    rows = [{"prompt": f"x{i % 3}", "completion": "y", "reward": 1, "n": i} for i in range(12)]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)

    def quantiles(ties):
        argv = [
            pool,
            "--quantiles",
            4,
            "--per-prompt",
            "--ties",
            ties,
            "--out",
            tmp_path / "q.jsonl",
        ]
        quantize.main([str(a) for a in argv])
        by_row = {row["n"]: row["quantile"] for row in read_rows(tmp_path / "q.jsonl")}
        return [[by_row[n] for n in range(x, 12, 3)] for x in range(3)]

    assert quantiles("age") == [[4, 3, 2, 1]] * 3
    for prompt in quantiles("together"):
        assert len(set(prompt)) == 1
