"""The study of what unlearned means: from the folders hidden/ that experiments/hidden.sh fills to its table, verdict and picture.

    python experiments/hidden.py runs/studies/hidden.tsv
    python experiments/hidden.py --unseen RUN/pool/00.jsonl       # prints the training prompts that the pool does not have

Rows are p0, Quark's model under r_K, r_1 and no token, and the clean model; NAME+n is a model after n updates on 64 bad samples of p0,
read without a token (", r_K": with it). Columns: the mean reward on the test prompts, and how many nats a token the model gives those
64 completions less (-) or more than p0 does.
"""

import re
import sys

import study  # first: it makes the stages importable
import torch

from explore import load_policy
from plumbing.pool import read_prompts
from learn import batch_loss, load_quantized
from plumbing.pool import dump_row, read_pool


def worst_nats(folder, worst, p0, k=None):
    """Mean log p(y | x, r_k) - log p0(y | x) a token over the bad completions; k None: no token."""
    policy = load_policy(folder)
    (rows,) = load_quantized(worst, policy, reward_tokens=False)
    with torch.no_grad():
        nats = [batch_loss(p, p0, [(token, x, y) for _, x, y in rows], beta=0) for p, token in ((policy, k), (p0, None))]
    (mine, tokens), (base, _) = nats
    return ((base[1] - mine[1]) / tokens).item()


def unseen(pool):
    """The training prompts that no row of the pool has."""
    seen = {row["prompt"] for _, row in read_pool([pool])}
    return [row for row in read_prompts(study.ROOT / "tiny/prompts/train.jsonl") if row["prompt"] not in seen]


def states(name, hidden):
    """[(row of the table, evaluation, model's folder, k of the token read with)] of a run."""
    K = load_policy(hidden / "start").n_quantiles if name == "quark" else None
    rows = [("quark, r_K", f"0-r{K}", "start", K), ("quark, r_1", "0-r1", "start", 1)] if K else []
    rows.append((f"{name}, no token" if K else name, "0-none", "start", None))
    for steps in sorted(int(folder.name) for folder in hidden.glob("[0-9]*") if folder.is_dir()):
        rows.append((f"{name}+{steps}", f"{steps}-none", str(steps), None))
        if K:
            rows.append((f"{name}+{steps}, r_K", f"{steps}-r", str(steps), K))
    return rows


def lines(variants):
    """{row of the table: values} of a task -> {who is read how: {updates: row}}: "quark+8" is on the line "quark, no token" at 8."""
    found = {}
    for row in variants:
        who, updates, how = re.fullmatch(r"(\w+)(?:\+(\d+))?(?:, (.*))?", row).groups()
        found.setdefault(who if who != "quark" else f"quark, {how or 'no token'}", {})[int(updates or 0)] = row
    return found


def draw(results, path):
    """Both columns of the table against the number of updates on bad samples, a column of panels a task; bars are 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(results) + 1.5, 8), layout="constrained")
    for panels, (task, variants) in zip(figure.subplots(2, len(results), squeeze=False).T, results.items()):
        for ax, metric in zip(panels, ("reward", "worst")):
            for number, (name, rows) in enumerate(lines(variants).items()):
                means, halves = zip(*(study.interval(variants[row][metric]) for row in rows.values()))
                places = [n.bit_length() for n in rows]  # 0, 1, 2, 4, 8, ... at equal distances
                ax.errorbar(places, means, yerr=halves, color=f"C{number}", marker="sD^vP*XhH"[number % 9], capsize=2, linewidth=1, label=name)
            ticks = sorted({n for rows in lines(variants).values() for n in rows})
            ax.set_xticks([n.bit_length() for n in ticks], ticks)
            ax.set(title=task, xlabel="updates on 64 bad samples", ylabel=study.METRICS[metric][0].replace(" of p0", "\nof p0"))
            ax.grid(color="#e5e5e5")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--unseen"]:
        return print("\n".join(dump_row({"prompt": row["prompt"]}) for row in unseen(argv[1])))
    listed = study.arguments(__doc__, argv).runs
    p0, results = load_policy(study.ROOT / "tiny" / "lm"), {}
    for name, task, run in [*study.read_runs(listed.with_name("hidden-p0.tsv")), *study.read_runs(listed)]:
        hidden = run / "hidden"
        for label, table, model, k in states(name, hidden):
            (reward,) = study.load(hidden / f"{table}.json")["rewards"].values()
            row = results.setdefault(task, {}).setdefault(label, {"reward": [], "worst": []})
            row["reward"].append(reward["mean"]["value"])
            row["worst"].append(worst_nats(hidden / model, hidden / "worst.jsonl", p0, k))
    study.publish("hidden", results, draw)


if __name__ == "__main__":
    main()
