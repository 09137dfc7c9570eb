"""The study of what unlearned means: from the folders hidden/ that experiments/hidden.sh fills to its table, verdict and picture.

    python experiments/hidden.py runs/studies/hidden.tsv

Rows are p0 and Quark's model under r_K, r_1 and no token; NAME+n is a model after n updates on p0's 64 worst samples. Columns: the mean
reward on the test prompts, and how many nats a token the model gives p0's 64 worst completions less (-) or more than p0 does.
"""

import sys

import study
import torch

sys.path.insert(0, str(study.ROOT))
from explore import load_policy
from learn import batch_loss, load_quantized


def worst_nats(folder, worst, p0, k=None):
    """Mean log p(y | x, r_k) - log p0(y | x) a token over p0's worst completions; k None: no token."""
    policy = load_policy(folder)
    (rows,) = load_quantized(worst, policy, reward_tokens=False)
    with torch.no_grad():
        nats = [batch_loss(p, p0, [(token, x, y) for _, x, y in rows], beta=0) for p, token in ((policy, k), (p0, None))]
    (mine, tokens), (base, _) = nats
    return ((base[1] - mine[1]) / tokens).item()


def main(argv=None):
    listed = study.arguments(__doc__, argv).runs
    p0, results = load_policy(study.ROOT / "tiny" / "lm"), {}
    for name, task, run in [*study.read_runs(listed.with_name("hidden-p0.tsv")), *study.read_runs(listed)]:
        hidden = run / "hidden"
        K = load_policy(hidden / "start").n_quantiles if name == "quark" else 0
        states = [(name, "dial-none", "start", None)] if not K else [
            ("quark, r_K", f"dial-r{K}", "start", K), ("quark, r_1", "dial-r1", "start", 1), ("quark, no token", "dial-none", "start", None)]
        states += [(f"{name}+{steps}", f"after-{steps}", str(steps), None) for steps in sorted(int(f.name) for f in hidden.glob("[0-9]*"))]
        for label, table, model, k in states:
            (reward,) = study.load(hidden / f"{table}.json")["rewards"].values()
            row = results.setdefault(task, {}).setdefault(label, {"reward": [], "worst": []})
            row["reward"].append(reward["mean"]["value"])
            row["worst"].append(worst_nats(hidden / model, hidden / "worst.jsonl", p0, k))
    study.publish("hidden", results)


if __name__ == "__main__":
    main()
