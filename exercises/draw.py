"""Draws the subject of exercise 2, 3, 5 or 7 in the terminal, with the student's functions.

python exercises/draw.py 3
SOLUTIONS=handed_in/anna python exercises/draw.py 5
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest

from exercises.adapter import explain, solution

LEVELS = " .:-=+*#%@"


def draw_quantiles(work):
    """Which iterations fill D^5, in a pool of five iterations with rewards 0 or 1."""
    from exercises.test_ex2 import ONES, binary_pool

    rewards, iterations = binary_pool()
    by_age = work.best_part(rewards, iterations, 5, "age")
    draws = [work.best_part(rewards, iterations, 5, "random", seed) for seed in range(40)]
    at_random = np.mean(draws, axis=0)
    print("iteration  ones of 100  in D^5, older first        in D^5, at random")
    for i, (ones, a, b) in enumerate(zip(ONES, by_age, at_random)):
        left, right = "#" * round(a / 2.5), "#" * round(b / 2.5)
        print(f"{i:9d}  {ones:11d}  {a:3.0f} {left:21s}  {b:5.1f} {right}")
    means = work.mean_reward_by_token(sum(ONES) / 500, 5)
    print("mean reward of D^1 ... D^5:", " ".join(f"{r:.2f}" for r in means))


def draw_kl(work):
    """p0 with two hills, and the bell that each direction of the KL ends at."""
    from exercises.test_ex3 import X, two_hills

    def line(name, z):
        p = np.exp(work.log_softmax(z)).reshape(-1, 3).sum(1)  # three points a character
        p = np.minimum(p, 0.2)
        bars = [LEVELS[int(np.ceil(v / 0.2 * 9))] if v > 0.002 else " " for v in p]
        print(f"{name:24s}|{''.join(bars)}|")

    x = X[:-2]  # 159 points, x from -12 to 11.7
    line("p0", two_hills()[:-2])
    for direction in ("forward", "reverse"):
        for start in (-1.0, 1.5):
            mu, log_sigma = work.fit(two_hills(), X, direction, start, np.log(2.0))
            line(f"{direction} from {start:4.1f}", work.bell_logits(x, mu, log_sigma))
            print(f"    mu {mu:5.2f}, sigma {np.exp(log_sigma):.2f}")


def draw_pool(work):
    """What different bounds keep of ten rounds of 40 prompts with 4 samples each.

    Some prompts are harder than others, and every round is a little better than the one before.
    """
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=40)
    iterations = np.repeat(np.arange(10), 160)
    prompts = np.tile(np.repeat(np.arange(40), 4), 10)
    quality = difficulty[prompts] + 0.15 * iterations + rng.normal(size=1600)
    rewards = 1 / (1 + np.exp(-quality))
    bounds = {
        "all": work.bounded(rewards, iterations),
        "last 2": work.bounded(rewards, iterations, last=2),
        "best quarter": work.bounded(rewards, iterations, keep_top=0.25),
        "best quarter of last 2": work.bounded(rewards, iterations, last=2, keep_top=0.25),
        "best quarter a prompt": work.bounded_per_prompt(rewards, prompts, 0.25),
    }
    print(f"{'kept':24s}  rows  newest  mean reward  spread  prompts lost")
    for name, keep in bounds.items():
        r = rewards[keep]
        newest = np.mean(iterations[keep] == 9)
        lost = len(work.lost_prompts(prompts, keep))
        numbers = f"{len(r):4d}   {newest:.2f}   {r.mean():10.2f}   {r.std():.2f}   {lost:8d}"
        print(f"{name:24s}  {numbers}")


def draw_gedi(work):
    """How hard GeDi pulls while it reads a text that is good by half a nat a token."""
    print("tokens read  P(good) of a token at   -2 nats  0 nats  +2 nats   pulls like alpha")
    for t in (0, 1, 3, 7, 15, 31):
        read = np.full(t, -3.0), np.full(t, -3.5)
        p_good = work.posterior(*read, np.array([-4.0, -3.0, -2.0]), np.array([-2.0, -3, -4]), 4.0)
        cells = "".join(f"{p:9.2f}" for p in p_good)
        alphas = [work.effective_alpha(p, 30.0, 4.0, t) for p in p_good]
        pulls = ", ".join(f"{alpha:.1f}" for alpha in alphas)
        print(f"{t:11d}  {'':23s}{cells}   {pulls}")


PICTURES = {"2": (2, draw_quantiles), "3": (3, draw_kl), "5": (5, draw_pool), "7": (7, draw_gedi)}


def main(which):
    if which not in PICTURES:
        sys.exit("draw.py: error: name an exercise: 2, 3, 5 or 7")
    exercise, picture = PICTURES[which]
    try:
        picture(solution(exercise))
    except (Exception, pytest.fail.Exception) as error:
        failed = isinstance(error, pytest.fail.Exception)
        sentence = str(error) if failed else explain(error)
        if sentence is None:
            raise
        sys.exit(f"draw.py: error: {sentence}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else None)
