r"""Step 5, *evaluate*: sample under the best reward token; measure reward, fluency, diversity.

Reads    --model, --reference (p0), --prompts (JSONL; an optional "group" splits the tables)
Writes   --out NAME: NAME.json, each metric as {"value", "low", "high"}; NAME.jsonl, the texts

    python evaluate.py --model runs/sentiment-tiny/model/06 --reference tiny/lm \
        --prompts tiny/prompts/test.jsonl --reward sentiment --out runs/try/eval/06
    python evaluate.py --generations theirs.jsonl --reference tiny/lm --reward sentiment --out o
    python evaluate.py --report runs/sentiment-tiny           # report.html and its figures
    python evaluate.py --compare runs/sentiment-tiny/eval/base.json runs/try/eval/06.json

The paper samples 25 completions a prompt from the nucleus of 0.9 (repetition: one, greedy). It
measures fluency under a larger model; here p0 does it, unless --ppl-model names another. Every
interval is a 95 % bootstrap over prompts.
"""

import functools
import math
from pathlib import Path

import numpy as np
import torch

from explore import sample_prompts
from plumbing import options
from plumbing.fast_cpu import prepack
from plumbing.files import checksums
from plumbing.policy import load_policy
from plumbing.pool import BadInput, read_generations, read_prompts
from plumbing.results import (
    add_display_options,
    check_result,
    looks_at_results,
    print_result,
    settings_of,
    show_results,
    write_result,
)
from plumbing.tables import in_brackets
from rewards import diversity, load_reward, rep_n, score

# -------------------------------------------------------------------------------------- the metrics
#
# A metric is a ratio of two sums over prompts, sum a / sum b. Each function ..._sums returns the
# (a, b) of one prompt for each of its metrics, so one bootstrap over prompts serves them all.


def reward_sums(rewards):
    """One prompt's rewards -> {metric: (a, b)}. Unwanted means 1 - r: toxic, negative, repetitive.

    A prompt without any score is left out.
    """
    if not rewards:
        names = ("mean", "share_ge_half", "avg_max_unwanted", "unwanted_prob")
        return dict.fromkeys(names, (0, 0))
    unwanted = [1 - r for r in rewards]
    return {
        "mean": (sum(rewards), len(rewards)),
        "share_ge_half": (sum(r >= 0.5 for r in rewards), len(rewards)),  # "% positive"
        "avg_max_unwanted": (max(unwanted), 1),  # "avg max toxicity"
        "unwanted_prob": (float(any(u > 0.5 for u in unwanted)), 1),  # "toxicity probability"
    }


def dist_n(completions, n):
    """dist-n of one prompt: unique n-grams of words in its completions / words in them."""
    words = [y.split() for y in completions]
    unique = set()
    for w in words:
        unique |= {tuple(w[i : i + n]) for i in range(len(w) - n + 1)}
    return len(unique) / max(1, sum(map(len, words)))


def text_sums(completions, token_ids):
    """One prompt's completions, as texts and as ids -> {metric: (a, b)}."""
    sums = {}
    for n in (1, 2, 3):
        sums[f"dist_{n}"] = (dist_n(completions, n), 1)
    for n in (2, 3, 4):
        sums[f"rep_{n}"] = (sum(rep_n(ids, n) for ids in token_ids), len(token_ids))
    sums["diversity"] = (sum(map(diversity, token_ids)), len(token_ids))
    return sums


@torch.no_grad()
def completion_nll(policy, rows, batch_size=64):
    """-log p(completion | prompt) in nats, and its number of tokens: an (N, 2) array.

    Texts are encoded anew, so that completions of any origin are measured alike. An empty
    completion has (0, 0). No reward token is put in front.
    """
    encoded = [_encode(policy, row) for row in rows]
    order = [i for i in range(len(rows)) if encoded[i][1]]
    order.sort(key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))  # less padding in a batch
    result = np.zeros((len(rows), 2))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        row_of, columns, targets = [], [], []
        for row, i in enumerate(batch):
            x, y = encoded[i]
            row_of += [row] * len(y)
            columns += range(len(x) - 1, len(x) - 1 + len(y))  # the position before y_t predicts it
            targets += y
        hidden = policy.hidden_states([encoded[i][0] + encoded[i][1][:-1] for i in batch])
        logits = policy.head(hidden[row_of, columns])[:, : policy.vocab_size]  # (M, V)
        targets = torch.tensor(targets, device=policy.device)
        nll = -logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1).cpu().numpy()
        result[batch, 0] = np.bincount(row_of, weights=nll)
        result[batch, 1] = np.bincount(row_of)
    if not np.isfinite(result).all():
        raise BadInput("the perplexity model's logits are not finite; its weights are damaged")
    return result


def _encode(policy, row):
    """The ids of the prompt and of the completion. A prompt too long for the context is cut."""
    y = policy.encode(row["completion"], goes_on=True)
    room = policy.context - len(policy.bos) - len(y) + 1  # y_T is predicted, not read
    if room < 1:
        raise BadInput(
            f"a completion of {len(y)} tokens does not fit the context of the perplexity model, "
            f"{policy.context}"
        )
    return policy.start_of(policy.encode(row["prompt"])[-room:]), y


def perplexity(policy, rows):
    """exp(total nats / total tokens) of all completions given their prompts (corpus-level)."""
    nats, tokens = completion_nll(policy, rows).sum(0)
    return math.exp(nats / tokens) if tokens else math.nan


PPL_LIMIT = 1e4  # as in the authors' code, the mean over completions leaves out this and more


def fluency_sums(nll):
    """One prompt's rows of completion_nll -> {metric: (a, b)}."""
    each = [math.exp(min(nats / n, 700)) for nats, n in nll if n]
    kept = [ppl for ppl in each if ppl < PPL_LIMIT]
    return {
        "log_perplexity": (nll[:, 0].sum(), nll[:, 1].sum()),
        "perplexity_mean_per_completion": (sum(kept), len(kept)),
    }


# ------------------------------------------------------------------------------------ the intervals


def interval(pairs, seed=0, resamples=1000):
    """[(a, b) of each prompt] -> sum a / sum b, with its 95 % percentile bootstrap over prompts."""
    pairs = np.array(pairs, dtype=float)  # (P, 2)
    a, b = (bootstrap_weights(len(pairs), seed, resamples) @ pairs).T
    total = pairs.sum(0)
    if not total[1]:  # nothing to measure: no score, or only empty completions
        return {"value": None, "low": None, "high": None}
    low, high = np.quantile(a[b > 0] / b[b > 0], [0.025, 0.975])
    return {"value": total[0] / total[1], "low": float(low), "high": float(high)}


@functools.lru_cache
def bootstrap_weights(P, seed, resamples):
    """(resamples, P): how often each prompt is drawn when P are drawn with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(P, np.full(P, 1 / P), size=resamples).astype(float)


def measure(rows, nll, reward_names):
    """All metrics of generated rows, and those of each group of prompts.

    rows: {"prompt_number", "completion", "completion_ids", "rewards": {name: r}, "group"}; nll: (N,
    2).
    """
    members = {}
    for i, row in enumerate(rows):
        members.setdefault(row["prompt_number"], []).append(i)
    sums = []  # (group, {reward: {metric: (a, b)}}, {metric: (a, b)}) of each prompt
    for own in members.values():
        part = [rows[i] for i in own]
        rewards = {}
        for name in reward_names:
            values = [row["rewards"][name] for row in part]
            rewards[name] = reward_sums([r for r in values if r is not None])
        texts = text_sums([r["completion"] for r in part], [r["completion_ids"] for r in part])
        sums.append((part[0].get("group"), rewards, texts | fluency_sums(nll[own])))
    table = _intervals(sums)
    table["groups"] = {}
    for group in sorted({s[0] for s in sums if s[0]}):
        table["groups"][group] = _intervals([s for s in sums if s[0] == group])
    return table


def _intervals(sums):
    """The sums of some prompts -> {"rewards": {reward: {metric: interval}}, metric: interval}."""
    _, first_rewards, first_others = sums[0]
    table = {"rewards": {}}
    for name, metrics in first_rewards.items():
        table["rewards"][name] = {m: interval([s[1][name][m] for s in sums]) for m in metrics}
    for metric in first_others:
        table[metric] = interval([s[2][metric] for s in sums])
    log_perplexity = table.pop("log_perplexity")
    table["perplexity"] = {}
    for key, value in log_perplexity.items():
        table["perplexity"][key] = None if value is None else math.exp(min(value, 700))
    return table


# ---------------------------------------------------------------------------------------- the stage


def evaluate(rows, ppl_policy, rewards):
    """Scores and measures rows. ppl_policy None: no perplexity. Returns the table."""
    for row in rows:
        row["rewards"] = {}
    for name, reward in rewards.items():
        for row, value in zip(rows, score(rows, reward)):
            row["rewards"][name] = value
    nll = completion_nll(ppl_policy, rows) if ppl_policy else np.zeros((len(rows), 2))
    return measure(rows, nll, list(rewards))


def generate(policy, prompts, args, quantile, network=None):
    """args.num_samples completions of each prompt under r_k, as rows, prompt by prompt."""
    rows = {}
    for batch in sample_prompts(policy, prompts, args, quantile, network=network):
        rows |= batch
    for n, row in rows.items():
        row["prompt_number"] = n // args.num_samples
    return [rows[n] for n in sorted(rows)]


def main(argv=None):
    args = parse_options(argv)
    if show_results(args, perplexity, text_sums):
        return
    out = Path(args.out)
    if not out.name or args.out.endswith("/"):
        raise BadInput(f"--out {args.out} is a folder; write NAME, such as eval/quark")
    if out.suffix in (".json", ".jsonl"):
        raise BadInput(
            f"--out {args.out}: leave out {out.suffix}; NAME.json and NAME.jsonl are made"
        )
    device = options.pick_device(args.device)
    reads = [args.model, args.reference, args.ppl_model, args.prompts, args.generations]
    rewards = {}
    for name in args.reward:
        cache = out.parent / "remote.cache"
        rewards[name] = load_reward(name, args.reward_model, cache=cache, device=device)
        reads += rewards[name].files
    ppl_model = None if args.ppl_model == "none" else args.ppl_model or args.reference
    ppl_policy = load_policy(ppl_model, device, args.bf16_weights) if ppl_model else None
    if ppl_policy and device == "cpu":
        prepack(ppl_policy.model, ppl_policy.in_bf16)
    header = {"model": args.model, "reference": args.reference, "ppl_model": ppl_model}
    header["reward_sha256"] = {name: checksums(rewards[name].files) for name in rewards}

    if args.generations:
        check_result(out, reads)
        rows = read_generations(args.generations, load_policy(args.reference, device))
        header |= {"generations": args.generations, "reward_token": None, **settings_of(rows)}
        table = header | evaluate(rows, ppl_policy, rewards)
        write_result(out, table, rows, args)
        print_result(out, table, rows, args)
        return

    prompts = read_prompts(args.prompts)
    policy = load_policy(args.model, device, args.bf16_weights)
    if device == "cpu":
        prepack(policy.model, args.bf16 or policy.in_bf16)
    tables = [
        (out.with_name(out.name + suffix), k)
        for suffix, k in policy.parse_reward_token(args.reward_token)
    ]
    for name, _ in tables:
        check_result(name, reads)
    for name, quantile in tables:
        rows = generate(policy, prompts, args, quantile)
        settings = {"reward_token": quantile, **settings_of(rows, args)}
        table = header | settings | evaluate(rows, ppl_policy, rewards)
        write_result(name, table, rows, args)
        if name != out:  # the dial: one line a token
            cells = [f"{r} {in_brackets(table['rewards'][r]['mean'])}" for r in rewards]
            token = f"r_{quantile}" if quantile else "no token"
            print(f"{token:8s} mean reward: {', '.join(cells)}")
        else:
            print_result(out, table, rows, args)


def parse_options(argv=None):
    parser = options.stage_parser(__doc__)
    add = parser.add_argument
    add("--model", help="the model to sample from: a folder or hub name")
    text = 'instead of --model: measure these rows with "prompt" and "completion"'
    add("--generations", metavar="JSONL", help=text)
    text = "p0, whose perplexity measures fluency unless a --ppl-model is named"
    add("--reference", help=text)
    add("--prompts", help='JSONL with "prompt" and, optionally, "group"')
    add("--reward", nargs="+", help="one or several; one that was not trained on serves as a check")
    add("--out", help="NAME: writes NAME.json and NAME.jsonl")
    text = "model of the perplexity (default: --reference); none: no perplexity"
    add("--ppl-model", help=text)
    ablations = options.add_sampling_options(parser, num_samples=25, top_p=0.9)
    text = "K, a number from 1 to K, none, or all: a table for each token"
    ablations.add_argument("--reward-token", default="K", help=text)
    add_display_options(parser)
    args = parser.parse_args(argv)
    if looks_at_results(parser, args):
        return args
    if args.generations and args.model:
        parser.error("--generations is measured as it stands; leave --model out")
    needed = ("reference", "reward", "out") if args.generations else ()
    for name in needed or ("model", "reference", "prompts", "reward", "out"):
        if not getattr(args, name):
            parser.error(f"--{name} is missing")
    options.check_lengths(parser, args)
    return args


if __name__ == "__main__":
    options.run_stage(main)
