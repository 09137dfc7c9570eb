"""Stage 4, *evaluate*: generate with the best reward token, score, and measure reward, fluency and diversity.

Reads    --model, --reference (p0), --prompts (JSONL; an optional "group" splits the tables)
Writes   --out NAME: NAME.json, every metric as {"value", "low", "high"}; NAME.jsonl, the completions and their rewards

    python evaluate.py --model runs/repetition-tiny/model/08 --reference tiny/lm --prompts tiny/prompts/test.jsonl \\
        --reward repetition --decode greedy --num-samples 1 --max-new-tokens 64 --out runs/repetition-tiny/eval/quark
    python evaluate.py --compare runs/repetition-tiny/eval/base.json runs/repetition-tiny/eval/quark.json

The paper samples 25 completions a prompt from the nucleus of 0.9 (repetition: one, greedy) and measures the fluency under
a larger model; here that is p0 itself unless --ppl-model names another. Every interval is a 95 % bootstrap over prompts.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from explore import add_sampling_arguments, check_sampling_arguments, generate, load_policy, pick_device, score
from learn import _hidden
from quantize import BadInput, dump_row, read_jsonl, read_prompts, run_stage, shown, whole_file, write_args, write_json
from rewards import diversity, load_reward, rep_n

# ------------------------------------------------------------------------------------------------------- the metrics
#
# Every metric is a ratio of two sums over prompts, sum_i a_i / sum_i b_i, so one bootstrap serves them all.


def reward_sums(rewards):
    """One prompt's rewards -> {metric: (a, b)}. Unwanted means 1 - r: toxicity, negativity, repetition."""
    unwanted = [1 - r for r in rewards]
    return {
        "mean": (sum(rewards), len(rewards)),
        "share_ge_half": (sum(r >= 0.5 for r in rewards), len(rewards)),  # "% positive"
        "avg_max_unwanted": (max(unwanted), 1),  # "avg max toxicity"
        "unwanted_prob": (float(any(u > 0.5 for u in unwanted)), 1),  # "toxicity probability": any sample at all
    }


def dist_n(completions, n):
    """dist-n of one prompt's completions: unique n-grams of words in all of them / words in all of them."""
    words = [y.split() for y in completions]
    unique = {tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)}
    return len(unique) / max(1, sum(map(len, words)))


def text_sums(completions, token_ids):
    """One prompt's completions (texts and ids) -> {metric: (a, b)}; rep-n and diversity a completion."""
    sums = {f"dist_{n}": (dist_n(completions, n), 1) for n in (1, 2, 3)}
    sums |= {f"rep_{n}": (sum(rep_n(ids, n) for ids in token_ids), len(token_ids)) for n in (2, 3, 4)}
    return sums | {"diversity": (sum(map(diversity, token_ids)), len(token_ids))}


@torch.no_grad()
def completion_nll(policy, rows, batch_size=64):
    """(N, 2) array: -log p(completion | prompt) in nats, and its number of tokens. Texts are encoded anew, so that
    completions of any origin are measured alike; an empty completion has (0, 0). No reward token is put in front."""
    result = np.zeros((len(rows), 2))
    encoded = [(policy.start_of(policy.encode(r["prompt"])), policy.encode(r["completion"])) for r in rows]
    order = [i for i in sorted(range(len(rows)), key=lambda i: sum(map(len, encoded[i]))) if encoded[i][1]]
    weight = policy.model.get_output_embeddings().weight[: policy.vocab_size]
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        sequences, where, columns, targets = [], [], [], []
        for row, i in enumerate(part):
            x, y = encoded[i]
            if len(y) >= policy.context:
                raise BadInput(f"a completion of {len(y)} tokens is longer than the context of the perplexity model, {policy.context}")
            x = x[-(policy.context - len(y) + 1) :]
            sequences.append(x + y[:-1])
            where += [row] * len(y)
            columns += range(len(x) - 1, len(x) - 1 + len(y))
            targets += y
        where, columns, targets = (torch.tensor(t, device=policy.device) for t in (where, columns, targets))
        log_p = (_hidden(policy, sequences)[where, columns] @ weight.T).log_softmax(-1)  # (M, V)
        nll = -log_p.gather(1, targets[:, None]).squeeze(1).double().cpu().numpy()
        np.add.at(result, np.array(part)[where.cpu().numpy()], np.stack([nll, np.ones_like(nll)], axis=1))
    return result


def perplexity(policy, rows):
    """exp(total nats / total tokens) of the completions given their prompts: the corpus-level perplexity."""
    nats, tokens = completion_nll(policy, rows).sum(0)
    return math.exp(nats / tokens) if tokens else math.nan


DROPPED_PPL = 1e4  # as the authors' code, the mean over completions leaves out those of this perplexity or more


def fluency_sums(nll):
    """One prompt's rows of completion_nll -> {metric: (a, b)}."""
    each = [math.exp(min(nats / n, 700)) for nats, n in nll if n]
    kept = [ppl for ppl in each if ppl < DROPPED_PPL]
    return {"log_perplexity": (nll[:, 0].sum(), nll[:, 1].sum()), "perplexity_mean_per_completion": (sum(kept), len(kept))}


def interval(pairs, seed=0, resamples=1000):
    """sum a / sum b over prompts, with a 95 % percentile bootstrap over prompts: [(a, b)] -> {"value", "low", "high"}."""
    pairs = np.array(pairs, dtype=float)  # (P, 2)
    weights = np.random.default_rng(seed).multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=resamples)
    a, b = (weights @ pairs).T
    total = pairs.sum(0)
    if not total[1]:  # nothing to measure: no score, or only empty completions
        return {"value": None, "low": None, "high": None}
    low, high = np.quantile(a[b > 0] / b[b > 0], [0.025, 0.975])
    return {"value": total[0] / total[1], "low": float(low), "high": float(high)}


def measure(rows, nll, reward_names):
    """All metrics of generated rows ("prompt", "completion", "completion_ids", "rewards": {name: r})."""
    by_prompt = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(row["prompt_number"], []).append(i)
    rewards, sums = {name: [] for name in reward_names}, []
    for members in by_prompt.values():
        part = [rows[i] for i in members]
        for name in reward_names:
            if scored := [r["rewards"][name] for r in part if r["rewards"][name] is not None]:
                rewards[name].append(reward_sums(scored))
        sums.append(text_sums([r["completion"] for r in part], [r["completion_ids"] for r in part]) | fluency_sums(nll[members]))

    def intervals(dicts):
        return {key: interval([d[key] for d in dicts]) for key in dicts[0]} if dicts else {}

    table = {"rewards": {name: intervals(rewards[name]) for name in reward_names}, **intervals(sums)}
    table["perplexity"] = {
        key: None if value is None else math.exp(min(value, 700)) for key, value in table.pop("log_perplexity").items()
    }
    return table


# ------------------------------------------------------------------------------------------------------------ tables


def compare(tables, names):
    """Prints the tables of several evaluations side by side, the whole and then each group."""
    for group in [None, *tables[0].get("groups", {})]:
        parts = [t if group is None else t["groups"].get(group, {}) for t in tables]
        print(f"\n{'all prompts' if group is None else group + ' prompts':34s}" + "".join(f"{n:>25s}" for n in names))
        for label, path in _lines(parts[0]):
            cells = [_at(p, path) for p in parts]
            print(f"  {label:32s}" + "".join(f"{_cell(c):>25s}" for c in cells))


def show_completions(files, prompts=3):
    """Prints what each evaluation wrote for the same few prompts."""
    firsts = []
    for file in files:
        first = {}
        for _, row in read_jsonl(file):
            first.setdefault(row["prompt"], row)
        firsts.append(first)
    for prompt in list(firsts[0])[:prompts]:
        print(f"\n{prompt} ...")
        for file, first in zip(files, firsts):
            if row := first.get(prompt):
                rewards = ", ".join("none" if r is None else f"{r:.2f}" for r in row["rewards"].values())
                print(f"  {file.stem:14s} {rewards:>6s}  {shown(row['completion'], 160)}")


def _lines(table):
    for name, metrics in table.get("rewards", {}).items():
        for metric in metrics:
            yield f"{name} {metric}", ("rewards", name, metric)
    for key, value in table.items():
        if isinstance(value, dict) and "value" in value:
            yield key, (key,)


def _at(table, path):
    for key in path:
        table = table.get(key, {})
    return table


def _cell(metric):
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**metric) if metric.get("value") is not None else "-"


# ----------------------------------------------------------------------------------------------------------- stage 4


def evaluate(policy, ppl_policy, prompts, rewards, args, quantile):
    """Generates, scores and measures. Returns (table, rows)."""
    rows = generate(policy, prompts, args, args.seed, quantile=quantile)
    for number, row in enumerate(rows):
        row["prompt_number"] = number // args.num_samples
        row["group"] = prompts[row["prompt_number"]]["group"]
        row["rewards"] = {}
    for name, reward in rewards.items():
        for row, value in zip(rows, score(rows, reward)):
            row["rewards"][name] = value
    nll = completion_nll(ppl_policy, rows)
    table = measure(rows, nll, list(rewards))
    groups = sorted({r["group"] for r in rows if r["group"]})
    table["groups"] = {}
    for group in groups:
        members = [i for i, r in enumerate(rows) if r["group"] == group]
        table["groups"][group] = measure([rows[i] for i in members], nll[members], list(rewards))
    return table, rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--compare", nargs="+", metavar="JSON", help="print these results side by side, and nothing else")
    parser.add_argument("--model", help="p_theta or p0: a checkpoint folder or hub name")
    parser.add_argument("--reference", help="p0, whose perplexity measures fluency if no --ppl-model is named")
    parser.add_argument("--prompts", help='JSONL with "prompt" and, if you like, "group"')
    parser.add_argument("--reward", nargs="+", help="one or several; the second may be a judge that was not trained on")
    parser.add_argument("--out", help="NAME: writes NAME.json and NAME.jsonl")
    parser.add_argument("--reward-token", default="K", help="K (default), 1 ... K, none, or all: one table a token")
    parser.add_argument("--ppl-model", help="model of the perplexity (default: --reference)")
    add_sampling_arguments(parser, num_samples=25, top_p=0.9)
    args = parser.parse_args(argv)
    if args.compare:
        compare([_read_table(f) for f in args.compare], [Path(f).stem for f in args.compare])
        return show_completions([Path(f).with_suffix(".jsonl") for f in args.compare])
    if missing := [n for n in ("model", "reference", "prompts", "reward", "out") if not getattr(args, n)]:
        parser.error(f"--{missing[0]} is missing")
    check_sampling_arguments(parser, args)
    prompts = read_prompts(args.prompts)
    device = pick_device(args.device)
    rewards = {name: load_reward(name, args.reward_model, device=device) for name in args.reward}
    policy = load_policy(args.model, device)
    ppl_policy = load_policy(args.ppl_model or args.reference, device)

    out = Path(args.out)
    for suffix, quantile in _tokens(args.reward_token, policy.n_quantiles):
        table, rows = evaluate(policy, ppl_policy, prompts, rewards, args, quantile)
        name = out.with_name(out.name + suffix)
        header = {"model": args.model, "reference": args.reference, "n_prompts": len(prompts), "n_samples": args.num_samples,
                  "decode": args.decode, "reward_token": quantile}  # fmt: skip
        with whole_file(f"{name}.jsonl") as file:
            for row in rows:
                file.write(dump_row({k: v for k, v in row.items() if k != "prompt_number"}) + "\n")
        write_json(f"{name}.json", {**header, **table})
        if suffix:  # the dial: one line a token
            cells = (f"{r} {_cell(table['rewards'][r].get('mean'))}" for r in rewards)
            print(f"{f'r_{quantile}' if quantile else 'no token':8s} mean reward: {', '.join(cells)}")
        else:
            compare([table], [name.name])
    write_args(out, args)


def _tokens(choice, K):
    """--reward-token -> [(suffix of the output's name, k or None)]."""
    if choice == "none" or choice == "K" and K == 0:
        return [("", None)]
    if choice == "K":
        return [("", K)]
    if choice == "all":
        return [(f"-r{k}", k) for k in range(1, K + 1)] + [("-none", None)]
    if choice.isdecimal() and 1 <= int(choice) <= K:
        return [("", int(choice))]
    raise BadInput(f"--reward-token {choice}: this model has {K} reward tokens; write K, a number from 1 to {K}, none or all")


def _read_table(path):
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}; name a .json file that evaluate.py wrote") from None
    if not isinstance(table, dict) or "rewards" not in table:
        raise BadInput(f"{path} is {shown(table)}, not a result of evaluate.py")
    return table


if __name__ == "__main__":
    run_stage(main)
