"""The lines that a stage prints at its end."""

import numpy as np

from plumbing.pool import shown


def print_parts(rewards, quantiles, K):
    """quantize.py: the size and the rewards of each part, the best one first."""
    left_out = int((quantiles == 0).sum())
    if left_out:
        print(f"left out {left_out} of {len(rewards)} rows")
    for k in range(K, 0, -1):
        part = rewards[quantiles == k]
        span = "empty"
        if len(part):
            span = f"reward {part.min():.4f} to {part.max():.4f}, mean {part.mean():.4f}"
        print(f"r_{k}  {len(part):7d} rows  {span}")
    if len(np.unique(quantiles[quantiles > 0])) < K:
        print("note: learn.py needs rows in every part; choose fewer --quantiles")


def print_pool(kept, n_dropped):
    """explore.py: how many samples, their rewards, and two of them."""
    dropped = f", {n_dropped} without a score dropped" if n_dropped else ""
    r = np.array([row["reward"] for row in kept])
    span = f"from {r.min():.4f} to {r.max():.4f}"
    print(f"{len(kept)} samples{dropped}; reward mean {r.mean():.4f}, {span}")
    for row in kept[:2]:
        print(f"  {row['reward']:.3f}  {_text(row, 150)}")


def print_training(metrics):
    """learn.py: the mean of each term over the last quarter of the steps."""
    last_quarter = metrics[-max(1, len(metrics) // 4) :]
    names = ("loss", "lm", "kl", "entropy", "tokens_per_s")
    mean = {name: np.mean([m[name] for m in last_quarter]) for name in names}
    print(
        f"steps {metrics[0]['step']} to {metrics[-1]['step']}; mean of the last quarter, in nats "
        f"per token: loss {mean['loss']:.3f}, LM {mean['lm']:.3f}, KL {mean['kl']:.3f}, "
        f"entropy {mean['entropy']:.3f}; {mean['tokens_per_s']:.0f} tokens/s"
    )


def print_scores(rows, scores):
    """rewards.py: the mean, the spread, the worst and the best."""
    scored = sorted((s, i) for i, s in enumerate(scores) if s is not None)
    print(f"{len(scored)} of {len(rows)} scored")
    without = sum(row.get("completion_ids") is None for row in rows)
    if 0 < without < len(rows):
        print(f"note: {without} of {len(rows)} rows have no completion_ids, only their text")
    if not scored:
        return
    quartiles = [scored[int(q * (len(scored) - 1))][0] for q in (0, 0.25, 0.5, 0.75, 1)]
    print("min, quartiles, max: " + "  ".join(f"{q:.4f}" for q in quartiles))
    print(f"mean {sum(s for s, _ in scored) / len(scored):.4f}")
    for title, part in (("worst", scored[:3]), ("best", scored[-3:][::-1])):
        for s, i in part:
            print(f"{title:>6} {s:.4f}  {_text(rows[i], 100)}")


def _text(row, limit):
    return shown(row["prompt"] + " |" + row["completion"], limit)
