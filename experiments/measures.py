"""What the studies keep of a finished run: its metrics, and of some studies more.

A measure takes (run, p0), the run's folder and the loaded p0, and returns {name: number or dict}.
"""

import sys

import kept
import numpy as np
import torch

sys.path.insert(0, str(kept.ROOT))

from evaluate import dist_n, perplexity
from learn import batch_loss
from plumbing.files import read_json
from plumbing.policy import load_policy
from plumbing.pool import read_jsonl, read_pool, read_prompts
from plumbing.quantized import load_quantized

# -------------------------------------------------------------------------------- of every variant


def of_run(run, p0):
    """The metrics of one run: {"p0": {metric: value}, "quark": those of the trained model}."""
    base, quark = (table_of(run / "eval" / f"{name}.json") for name in ("base", "quark"))
    values = {}
    for name, table, kl in (("p0", base, 0.0), ("quark", quark, kl_from_p0(run, p0))):
        (reward,) = table["rewards"].values()
        values[name] = {
            "reward": reward["mean"]["value"],
            "ppl": table["perplexity"]["value"] / base["perplexity"]["value"],
            "kl": kl,
        }
        values[name] |= {m: table[m]["value"] for m in ("dist_1", "dist_2", "dist_3", "rep_2")}
    return values


def table_of(path):
    """A file of evaluate.py."""
    return read_json(path, "what evaluate.py wrote")


@torch.no_grad()
def kl_from_p0(run, p0, rows=288):
    """KL(p0 || p(. | r_K)) in nats per token, exact at each token.

    Measured on p0's own completions of the test prompts, which are the same for all variants.
    """
    policy = load_policy(max(run.glob("model/[0-9]*")))
    k = policy.n_quantiles or None  # None: it never learned a token
    samples = [row for _, row in read_jsonl(run / "eval" / "base.jsonl")]
    samples = samples[:: max(1, len(samples) // rows)]
    kl = 0.0
    tokens = 0
    for start in range(0, len(samples), 64):
        batch = []
        for row in samples[start : start + 64]:
            if row["completion"]:
                batch.append((k, p0.encode(row["prompt"]), p0.encode(row["completion"])))
        sums, n = batch_loss(policy, p0, batch, beta=1)
        kl += sums[2].item()
        tokens += n
    return kl / tokens


# --------------------------------------------------------------------- of the study of the pool


def of_pool(run, p0):
    """The metrics and the costs; and how the run went over its rounds."""
    numbers = of_run(run, p0)
    return numbers | {"quark": numbers["quark"] | costs(run), "rounds": over_rounds(run, p0)}


def over_rounds(run, p0):
    """{metric: [a value for each round]} of one run.

    Reward, perplexity and dist-3 are of the samples of rounds 0, 1, ... Seconds and MB are of the
    round that learns from them.
    """
    rounds = {metric: [] for metric in ("reward", "ppl", "dist_3", "seconds", "mb")}
    for pool in sorted(run.glob("pool/[0-9]*.jsonl")):
        rows = [row for _, row in read_pool([pool])]
        by_prompt = {}
        for row in rows:
            by_prompt.setdefault(row["prompt"], []).append(row["completion"])
        dist_3 = [dist_n(completions[:2], 3) for completions in by_prompt.values()]
        rounds["reward"].append(float(np.mean([row["reward"] for row in rows])))
        rounds["ppl"].append(perplexity(p0, rows[:: max(1, len(rows) // 256)]))
        rounds["dist_3"].append(float(np.mean(dist_3)))
        rounds["seconds"].append(seconds(run, pool))
        rounds["mb"].append(megabytes(run, pool))
    return rounds


def seconds(run, pool):
    """Time to quantize and learn with that pool as the newest, from the times of the files."""
    metrics = run / "model" / f"{int(pool.stem) + 1:02d}" / "metrics.jsonl"
    return metrics.stat().st_mtime - pool.stat().st_mtime


def megabytes(run, pool):
    """What the round with that pool as the newest learns from."""
    return (run / "quantized" / pool.name).stat().st_size / 1e6


def costs(run):
    """Seconds as a mean over the rounds; MB of the last round."""
    pools = sorted(run.glob("pool/[0-9]*.jsonl"))
    mean = float(np.mean([seconds(run, pool) for pool in pools]))
    return {"seconds": mean, "mb": megabytes(run, pools[-1])}


# ------------------------------------------------------ of the study whether the fault is hidden


def of_hidden(run, p0):
    """{"rows": {name of the row: {"reward", "worst"}}} of a run's folder hidden/.

    Of Quark's also "near": after how many updates clean_near was taken.
    """
    folder = run / "hidden"
    models = {(folder / "name").read_text(encoding="utf-8").strip(): folder}
    numbers = {}
    if (folder / "near").exists():
        models["clean_near"] = folder / "near"
        numbers["near"] = int((folder / "near" / "updates").read_text(encoding="utf-8"))
    rows = {}
    for name, folder in models.items():
        for label, table, model, k in states(name, folder):
            nats = worst_nats(folder / model, folder / "worst.jsonl", p0, k)
            rows[label] = {"reward": reward_in(folder / f"{table}.json"), "worst": nats}
    return numbers | {"rows": rows}


def reward_in(table):
    """The mean reward in a file of evaluate.py."""
    (reward,) = table_of(table)["rewards"].values()
    return reward["mean"]["value"]


def nearest(table, others):
    """Which of the other files of evaluate.py has the mean reward nearest to the first's."""
    wanted = reward_in(table)
    return min(others, key=lambda other: abs(reward_in(other) - wanted))


@torch.no_grad()
def worst_nats(folder, worst, p0, k=None):
    """Mean log p(y | x, r_k) - log p0(y | x) per token over the bad completions.

    k = None: no token.
    """
    policy = load_policy(folder)
    (rows,) = load_quantized(worst, policy, reward_tokens=False)
    pairs = [(x, y) for _, x, y in rows]
    mine, tokens = batch_loss(policy, p0, [(k, x, y) for x, y in pairs], beta=0)
    base, _ = batch_loss(p0, p0, [(None, x, y) for x, y in pairs], beta=0)
    return ((base[1] - mine[1]) / tokens).item()  # the second sum is -log p


def unseen(pool):
    """The training prompts that no row of the pool has."""
    seen = {row["prompt"] for _, row in read_pool([pool])}
    prompts = read_prompts(kept.ROOT / "tiny/prompts/train.jsonl")
    return [row for row in prompts if row["prompt"] not in seen]


def states(name, hidden):
    """What a run has in its folder hidden/, as rows of the table.

    [(name of the row, evaluation, folder of the model, k of the token that it is read with)].
    """
    K = load_policy(hidden / "start").n_quantiles if name == "quark" else None
    rows = []
    if K:
        rows.append(("quark, r_K", f"0-r{K}", "start", K))
        rows.append(("quark, r_1", "0-r1", "start", 1))
    rows.append((f"{name}, no token" if K else name, "0-none", "start", None))
    folders = [folder for folder in hidden.glob("[0-9]*") if folder.is_dir()]
    for steps in sorted(int(folder.name) for folder in folders):
        rows.append((f"{name}+{steps}", f"{steps}-none", str(steps), None))
        if K:
            rows.append((f"{name}+{steps}, r_K", f"{steps}-r", str(steps), K))
    return rows
