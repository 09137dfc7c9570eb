"""Exercise 2: quantiles, and what happens to them when most rewards are equal."""

import numpy as np

from exercises.adapter import solution
from exercises.helpers import array, expect

ONES = [30, 50, 70, 80, 90]  # of 100 samples an iteration: 320 ones in 500, and D^5 has 100 places


def quantiles(rewards, K, seed=0):
    """What the student's assign_quantiles gives, if it is whole numbers from 1 to K."""
    rewards = np.array(rewards, dtype=float)
    before = rewards.copy()
    k = array(solution(2).assign_quantiles(rewards, K, seed), rewards.shape, "assign_quantiles")
    expect(
        (rewards == before).all(),
        "assign_quantiles changed the rewards that it was given; sort a copy, or use argsort.",
    )
    odd = k[(k % 1 != 0) | (k < 1) | (k > K)]
    expect(
        not odd.size,
        f"assign_quantiles returned {odd[:1]} for K = {K}; "
        "quantiles are whole numbers from 1 to K.",
    )
    return k.astype(int)


def binary_pool():
    """(500,) rewards and iterations, in an order that has nothing to do with age."""
    rewards = np.concatenate([np.arange(100) < n for n in ONES]).astype(float)
    order = np.random.default_rng(7).permutation(500)
    return rewards[order], np.repeat(np.arange(5), 100)[order]


def best_part(ties, seed=0, rewards=None):
    """The student's counts of D^5 by iteration, (5,)."""
    ones, iterations = binary_pool()
    rewards = ones if rewards is None else rewards
    name = f'best_part(ties="{ties}")'
    counts = array(solution(2).best_part(rewards, iterations, 5, ties, seed), (5,), name)
    expect(
        (counts % 1 == 0).all(),
        f"{name} counts {counts.round(2).tolist()}; count the rows that are in D^5.",
    )
    expect(counts.sum() == 100, f"{name} counts {counts.sum():g} rows; D^5 of 500 rows has 100.")
    return counts


def test_order():
    """Higher rewards get higher quantiles."""
    rewards = np.random.default_rng(1).normal(size=23)
    k = quantiles(rewards, 4)
    best, worst = k[rewards.argmax()], k[rewards.argmin()]
    expect(
        best > worst,
        f"assign_quantiles gives the highest reward quantile {best} and the lowest {worst}; "
        "K = 4 is the best.",
    )
    order = k[rewards.argsort()]
    expect(
        (np.diff(order) >= 0).all(),
        f"from the lowest reward to the highest the quantiles are {order.tolist()}; "
        "they must never fall.",
    )


def test_sizes():
    """23 = 6 + 6 + 6 + 5, also where rewards are equal."""
    pools = [
        ("different", np.arange(23) - 9.5, 4),
        ("equal", np.zeros(10), 3),
        ("0/1", [0, 1, 1, 1, 1, 1, 1], 7),
        ("any", [3.0, 2.0], 1),
    ]
    for name, rewards, K in pools:
        sizes = np.bincount(quantiles(rewards, K), minlength=K + 1)[1:]
        expect(
            sizes.max() - sizes.min() <= 1,
            f"{len(rewards)} {name} rewards fall into {K} parts of sizes {sizes.tolist()}; "
            "they may differ by one at most, "
            "so cut the sorted ranks, not the range of the rewards.",
        )


def test_close_rewards_are_no_ties():
    """Random numbers decide between equal rewards, and nowhere else."""
    k = quantiles(np.arange(40) * 1e-12, 4)
    expect(
        (np.diff(k) >= 0).all(),
        "two rewards that differ by 1e-12 came out in the wrong order; "
        "do not add noise to the rewards, break ties with a second sort key.",
    )


def test_ties_are_random():
    """400 rewards of 0 or 1, old and new alike: old ones take half of the best part.

    50 +- 1 % over 20 seeds.
    """
    rewards = np.tile([0.0, 1.0], 200)
    old = np.arange(400) < 200
    ks = [quantiles(rewards, 4, seed) for seed in range(20)]
    share = np.mean([old[k == 4].mean() for k in ks])
    expect(
        0.44 < share < 0.56,
        f"of equal rewards the older half takes {share:.0%} of the best part; "
        "it should be near 50%: break ties at random, not by place.",
    )
    expect(
        (quantiles(rewards, 4, 3) == ks[3]).all(),
        "the same seed gave two different results; "
        "draw from np.random.default_rng(seed) inside the function.",
    )
    expect(
        (ks[0] != ks[1]).any(), "seeds 0 and 1 give the same order of equal rewards; use the seed."
    )


def test_who_fills_the_best_part_by_age():
    """The oldest come first: 30 of iteration 0, 50 of iteration 1, 20 of iteration 2."""
    counts = best_part("age").astype(int).tolist()
    expect(
        counts == [30, 50, 20, 0, 0],
        f'best_part(ties="age") counts {counts} by iteration; with {ONES} ones in iterations 0 to '
        "4 the older one of two equal rewards must win its place in D^5, "
        "whatever the order of the rows.",
    )
    graded = np.random.default_rng(5).normal(size=500)
    best = binary_pool()[1][graded.argsort()[-100:]]
    for ties in ("age", "random"):
        counts = best_part(ties, rewards=graded).astype(int).tolist()
        right = np.bincount(best, minlength=5).tolist()
        expect(
            counts == right,
            f'best_part(ties="{ties}") counts {counts} where no two rewards are equal, not '
            f"{right}; D^5 holds the 100 highest rewards, which need not be 0 or 1.",
        )


def test_who_fills_the_best_part_at_random():
    """Each one has the same chance: 100 places for 320 ones."""
    by_seed = np.array([best_part("random", seed) for seed in range(40)])
    expect(
        (best_part("random", 3) == by_seed[3]).all() and (by_seed != by_seed[0]).any(),
        'best_part(ties="random") must count the same for the same seed, and not the same for all '
        "seeds; draw from np.random.default_rng(seed) inside the function.",
    )
    counts = by_seed.mean(0)
    expected = 100 * np.array(ONES) / sum(ONES)
    expect(
        (abs(counts - expected) < 3).all(),
        f'best_part(ties="random") counts {counts.round(1).tolist()} on average; each of the '
        f"{sum(ONES)} ones has the same chance of the 100 places, "
        f"which gives {expected.round(1).tolist()}.",
    )


def test_what_tokens_mean():
    """64 % ones, K = 5: 0, 0.2, 1, 1, 1. Three tokens of five mean the same."""
    cases = [
        (0.64, 5, [0, 0.2, 1, 1, 1]),
        (0.25, 3, [0, 0, 0.75]),
        (1.0, 2, [1, 1]),
        (0.5, 1, [0.5]),
    ]
    for share, K, expected in cases:
        got = array(solution(2).mean_reward_by_token(share, K), (K,), "mean_reward_by_token")
        expect(
            np.allclose(got, expected),
            f"mean_reward_by_token({share}, {K}) is {got.round(3).tolist()}, not {expected}; "
            "D^k holds the ranks from (k - 1) / K to k / K, counted from the worst.",
        )
