"""Exercise 5: bound the pool; what stays, and what is lost with the rest."""

import numpy as np

from exercises.adapter import solution
from exercises.helpers import array, expect


def mask(value, N, what):
    """`value` as (N,) bool."""
    array(value, (N,), what)
    value = np.asarray(value)
    expect(
        value.dtype == bool,
        f"{what} returned numbers of type {value.dtype}; "
        "return True where a row stays, one for each row.",
    )
    return value


def bounded(rewards, iterations, **bounds):
    """What the student's function keeps, and the call as it is named in a failure."""
    arguments = ", ".join(f"{k}={v}" for k, v in bounds.items())
    what = f"bounded({arguments})"
    rewards = np.array(rewards, dtype=float)
    keep = solution(5).bounded(rewards, np.array(iterations), **bounds)
    return mask(keep, len(rewards), what), what


def pool():
    """Iterations 3, 4, 5, 6 of 10 rows each, in a mixed order. The older ones have more reward."""
    rng = np.random.default_rng(3)
    iterations = rng.permutation(np.repeat([3, 4, 5, 6], 10))
    return rng.permutation(40) / 100 - iterations, iterations


def test_no_bound():
    """None keeps all."""
    rewards, iterations = pool()
    keep, what = bounded(rewards, iterations)
    expect(keep.all(), f"{what} keeps {keep.sum()} of 40 rows; with no bound all stay.")


def test_last():
    """The newest two of four iterations are 5 and 6."""
    rewards, iterations = pool()
    for last, expected in ((1, {6}), (2, {5, 6}), (9, {3, 4, 5, 6})):
        keep, what = bounded(rewards, iterations, last=last)
        got = {int(i) for i in iterations[keep]}
        expect(
            got == expected and keep.sum() == 10 * len(expected),
            f"{what} keeps iterations {sorted(got)} of 3, 4, 5, 6; "
            f"the newest {last} are {sorted(expected)}, counted from the newest one.",
        )


def test_keep_top():
    """The best quarter of 40 rows is 10; the best 0.35 of 10 rows is 4."""
    rewards, iterations = pool()
    for n, fraction, count in ((40, 0.25, 10), (10, 0.35, 4), (30, 0.1, 3), (40, 1.0, 40)):
        keep, what = bounded(rewards[:n], iterations[:n], keep_top=fraction)
        expect(
            keep.sum() == count,
            f"{what} keeps {keep.sum()} of {n} rows, not {count}; "
            f"round {fraction} * {n} up to whole rows.",
        )
        kept, dropped = rewards[:n][keep], rewards[:n][~keep]
        expect(
            keep.all() or kept.min() > dropped.max(),
            f"{what} keeps a reward of {kept.min():.2f} and drops a higher one; keep the best.",
        )


def test_last_before_keep_top():
    """First the newest iterations, then the best of those. Here the best of all are old."""
    rewards, iterations = pool()
    keep, what = bounded(rewards, iterations, last=2, keep_top=0.25)
    expect(
        keep.sum() == 5,
        f"{what} keeps {keep.sum()} rows; the newest two iterations have 20, of which the best "
        "quarter is 5: the order of the two bounds matters.",
    )
    best_of_newest = np.sort(rewards[iterations >= 5])[-5:]
    expect(
        (iterations[keep] >= 5).all() and rewards[keep].min() >= best_of_newest[0],
        f"{what} does not keep the best 5 of the 20 newest rows.",
    )


def test_ties_are_random():
    """400 equal rewards, keep half: half of the older half stays, 50 +- 0.6 % over 20 seeds."""
    old = np.arange(400) < 200
    keeps = []
    for seed in range(20):
        keep, _ = bounded(np.ones(400), (~old).astype(int), keep_top=0.5, seed=seed)
        keeps.append(keep)
    share = np.mean([keep[old].mean() for keep in keeps])
    counts = {int(keep.sum()) for keep in keeps}
    expect(
        counts == {200},
        f"bounded(keep_top=0.5) keeps {max(counts)} of 400 equal rewards, not 200; "
        "cut the sorted rows, not at a reward.",
    )
    expect(
        0.47 < share < 0.53,
        f"of equal rewards bounded keeps {share:.0%} of the older ones; it should be near 50%: "
        "which of them falls out must be drawn by the seed.",
    )
    again, _ = bounded(np.ones(400), (~old).astype(int), keep_top=0.5, seed=3)
    expect(
        (again == keeps[3]).all(),
        "bounded gave two different results with the same seed; "
        "draw from np.random.default_rng(seed) inside the function.",
    )
    expect(
        (keeps[0] != keeps[1]).any(),
        "with seeds 0 and 1 bounded drops the same ones of equal rewards; use the seed.",
    )


def test_newest_share():
    """Without a bound 1, 1/2, 1/3 ...; with last=3 never less than a third."""
    cases = [
        (None, [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]),
        (3, [1, 1 / 2, 1 / 3, 1 / 3, 1 / 3]),
        (1, [1, 1, 1, 1, 1]),
    ]
    for last, expected in cases:
        what = f"newest_share(5, last={last})"
        got = array(solution(5).newest_share(5, last), (5,), what)
        expect(
            np.allclose(got, expected),
            f"{what} is {got.round(3).tolist()}, not {np.round(expected, 3).tolist()}; "
            "after round r the pool holds r rounds, or `last` if that is fewer.",
        )


def test_lost_prompts():
    """The best sample of prompt 7 is worse than the others' worst: the best half has none of it."""
    prompts = np.array([7, 2, 7, 5, 2, 7, 5, 5, 2, 7])
    rewards = np.array([0.1, 0.8, 0.2, 0.6, 0.9, 0.0, 0.7, 0.5, 0.4, 0.3])
    keep = np.array([False, True, False, True, True, False, True, True, False, False])
    lost = solution(5).lost_prompts(prompts, keep)
    expect(isinstance(lost, list), f"lost_prompts returned a {type(lost).__name__}; return a list.")
    expect(
        lost == [7],
        f"lost_prompts gives {lost} where only prompt 7 has lost all of its rows; return [7].",
    )
    lost = solution(5).lost_prompts(prompts, prompts == 5)
    expect(
        lost == [2, 7],
        f"lost_prompts gives {lost} where 2 and 7 have lost all of their rows; return [2, 7].",
    )
    none = solution(5).lost_prompts(prompts, np.ones(10, dtype=bool))
    expect(
        list(none) == [], f"lost_prompts gives {none} where every row stays; return an empty list."
    )
    what = "bounded_per_prompt(keep_top=0.5)"
    per_prompt = mask(solution(5).bounded_per_prompt(rewards, prompts, 0.5), 10, what)
    kept = {p: rewards[per_prompt & (prompts == p)].tolist() for p in (2, 5, 7)}
    expect(
        all(kept.values()),
        f"{what} keeps {kept} by prompt; none may be lost: "
        "take the best half of each prompt's own rows.",
    )
    right = {2: [0.8, 0.9], 5: [0.6, 0.7], 7: [0.2, 0.3]}
    expect(
        {p: sorted(v) for p, v in kept.items()} == right,
        f"{what} keeps {kept} by prompt, not {right}: half of each, rounded up.",
    )
