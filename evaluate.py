"""Stage 4, *evaluate*: generate with the best reward token, score, and measure reward, fluency and diversity.

Reads    --model, --reference (p0), --prompts (JSONL; an optional "group" splits the tables)
Writes   --out NAME: NAME.json, every metric as {"value", "low", "high"}; NAME.jsonl, the completions and their rewards

    python evaluate.py --model runs/sentiment-tiny/model/06 --reference tiny/lm --prompts tiny/prompts/test.jsonl \\
        --reward sentiment my_judge.py:lexicon --out runs/sentiment-tiny/eval/quark          # a second, held-out judge
    python evaluate.py --generations theirs.jsonl --reference tiny/lm --reward sentiment --out runs/theirs    # by the same ruler
    python evaluate.py --compare runs/sentiment-tiny/eval/base.json runs/sentiment-tiny/eval/quark.json
    python evaluate.py --report runs/sentiment-tiny                                          # report.html and its figures
    python evaluate.py --human-sheet sheet.csv --compare .../base.json .../quark.json        # blinded pairs, for people
    python evaluate.py --tally sheet.csv                                                     # what they preferred

The paper samples 25 completions a prompt from the nucleus of 0.9 (repetition: one, greedy) and measures the fluency under
a larger model; here that is p0 itself unless --ppl-model names another. Every interval is a 95 % bootstrap over prompts.
"""

from quantize import (BadInput, add_sampling_arguments, check_sampling_arguments, check_writable, dump_row, group_of, read_jsonl, read_pool,
                      read_prompts, run_stage, shown, text_of, whole_file, write_json)  # first: from here on Ctrl-C is one line  # fmt: skip

import argparse
import base64
import csv
import functools
import html
import io
import json
import math
from pathlib import Path


def arguments(argv=None):
    """The stage's options, checked: what cannot be ends here with one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="p_theta or p0: a checkpoint folder or hub name")
    parser.add_argument("--generations", metavar="JSONL", help='instead of --model: rows with "prompt" and "completion", whoever wrote them')
    parser.add_argument("--reference", help="p0, whose perplexity measures fluency if no --ppl-model is named")
    parser.add_argument("--prompts", help='JSONL with "prompt" and, if you like, "group"')
    parser.add_argument("--reward", nargs="+", help="one or several; the second may be a judge that was not trained on")
    parser.add_argument("--out", help="NAME: writes NAME.json and NAME.jsonl")
    parser.add_argument("--reward-token", default="K", help="K (default), 1 ... K, none, or all: one table a token")
    parser.add_argument("--ppl-model", help="model of the perplexity (default: --reference); none: no perplexity")
    add_sampling_arguments(parser, num_samples=25, top_p=0.9)
    after = parser.add_argument_group("looking at results; nothing is generated")
    after.add_argument("--compare", nargs="+", metavar="JSON", help="print these results side by side")
    after.add_argument("--report", metavar="RUN", help="draw a run of run_all.sh: RUN/report.html and RUN/figures/*.png")
    after.add_argument("--human-sheet", metavar="CSV", help="with --compare of two: pairs of completions, sides shuffled, for people")
    after.add_argument("--pairs", type=int, default=50, help="rows of the --human-sheet (default 50)")
    after.add_argument("--tally", metavar="CSV", help="count a filled --human-sheet; its key lies beside it")
    args = parser.parse_args(argv)
    if args.human_sheet and (not args.compare or len(args.compare) != 2 or args.pairs < 1):
        parser.error("--human-sheet needs --compare with two results, and --pairs of at least 1")
    if args.tally or args.compare or args.report:
        return args
    needed = ("reference", "reward", "out") if args.generations else ("model", "reference", "prompts", "reward", "out")
    if missing := [n for n in needed if not getattr(args, n)]:
        parser.error(f"--{missing[0]} is missing")
    if args.generations and args.model:
        parser.error("--generations is measured as it stands; leave --model out")
    check_sampling_arguments(parser, args)
    return args


if __name__ == "__main__":
    arguments()  # --help and wrong options are answered here: the imports below take seconds

import numpy as np
import torch
from tqdm import tqdm

from explore import Decoder, distinct, generate, laid_out, load_policy, pick_device, processes, score, without_eos
from rewards import diversity, load_reward, rep_n

# ------------------------------------------------------------------------------------------------------- the metrics
#
# Every metric is a ratio of two sums over prompts, sum_i a_i / sum_i b_i, so one bootstrap serves them all.


def reward_sums(rewards):
    """One prompt's rewards -> {metric: (a, b)}. Unwanted means 1 - r: toxicity, negativity, repetition.

    A prompt none of whose completions has a score counts for nothing.
    """
    if not rewards:
        return dict.fromkeys(("mean", "share_ge_half", "avg_max_unwanted", "unwanted_prob"), (0, 0))
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
    for i, (x, y) in enumerate(encoded):
        if len(y) >= policy.context:
            raise BadInput(f"a completion of {len(y)} tokens is longer than the context of the perplexity model, {policy.context}")
        encoded[i] = x[-(policy.context - len(y) + 1) :], y
    order = [i for i in range(len(rows)) if encoded[i][1]]
    order.sort(key=lambda i: (len(encoded[i][1]) // 8, encoded[i][0]))  # similar lengths, and one prompt's completions, together
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        longest = max(len(encoded[i][1]) for i in part)
        tokens, padding, row_of = distinct(policy, [encoded[i][0] for i in part])
        decoder = Decoder(policy.model, padding, tokens.shape[1] + longest)
        hidden = decoder.hidden(tokens)[row_of, -1:]  # (B, 1, d): what predicts y_1, from the prompt alone
        decoder.keep(row_of)
        targets = torch.tensor([encoded[i][1] + [0] * (longest - len(encoded[i][1])) for i in part], device=policy.device)  # (B, T)
        is_token = torch.tensor([[t < len(encoded[i][1]) for t in range(longest)] for i in part], device=policy.device)
        if longest > 1:
            hidden = torch.cat([hidden, decoder.hidden(targets[:, :-1])], dim=1)
        logits = policy.model.lm_head(policy.model.transformer.ln_f(hidden[is_token]))
        log_p = logits[:, : policy.vocab_size].log_softmax(-1)  # (M, V)
        nll = torch.zeros(targets.shape, device=policy.device)
        nll[is_token] = -log_p.gather(1, targets[is_token][:, None]).squeeze(1)
        result[part] = torch.stack([nll.sum(1), is_token.sum(1)], dim=1).cpu().numpy()
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


@functools.lru_cache
def _resamples(P, seed, resamples):
    """(resamples, P) array: how often each of P prompts is drawn when P are drawn with replacement; the same for every metric."""
    return np.random.default_rng(seed).multinomial(P, np.full(P, 1 / P), size=resamples).astype(float)


def interval(pairs, seed=0, resamples=1000):
    """sum a / sum b over prompts, with a 95 % percentile bootstrap over prompts: [(a, b)] -> {"value", "low", "high"}."""
    pairs = np.array(pairs, dtype=float)  # (P, 2)
    a, b = (_resamples(len(pairs), seed, resamples) @ pairs).T
    total = pairs.sum(0)
    if not total[1]:  # nothing to measure: no score, or only empty completions
        return {"value": None, "low": None, "high": None}
    low, high = np.quantile(a[b > 0] / b[b > 0], [0.025, 0.975])
    return {"value": total[0] / total[1], "low": float(low), "high": float(high)}


def measure(rows, nll, reward_names):
    """All metrics of generated rows ("prompt", "completion", "completion_ids", "rewards": {name: r}), and of each group of prompts."""
    members, sums = {}, []
    for i, row in enumerate(rows):
        members.setdefault(row["prompt_number"], []).append(i)
    for own in members.values():  # one prompt after the other
        part = [rows[i] for i in own]
        rewards = {name: reward_sums([r["rewards"][name] for r in part if r["rewards"][name] is not None]) for name in reward_names}
        others = text_sums([r["completion"] for r in part], [r["completion_ids"] for r in part]) | fluency_sums(nll[own])
        sums.append((part[0].get("group"), rewards, others))
    table = _intervals(sums)
    table["groups"] = {group: _intervals([s for s in sums if s[0] == group]) for group in sorted({s[0] for s in sums if s[0]})}
    return table


def _intervals(sums):
    """Prompts' (group, {reward: sums}, other sums) -> {"rewards": {reward: {metric: interval}}, metric: interval}."""

    def intervals(dicts):
        return {key: interval([d[key] for d in dicts]) for key in dicts[0]}

    table = {"rewards": {name: intervals([rewards[name] for _, rewards, _ in sums]) for name in sums[0][1]}}
    table |= intervals([others for _, _, others in sums])
    table["perplexity"] = {
        key: None if value is None else math.exp(min(value, 700)) for key, value in table.pop("log_perplexity").items()
    }
    return table


# ------------------------------------------------------------------------------------------------------------ tables


def compare(tables, names):
    """Prints the tables of several evaluations side by side, the whole and then each group."""
    width = max(len(label) for label, _ in _lines(tables[0])) + 2
    for group in [None, *tables[0].get("groups", {})]:
        parts = [t if group is None else t["groups"].get(group, {}) for t in tables]
        print(f"\n{'all prompts' if group is None else group + ' prompts':{width}s}" + "".join(f"{n:>25s}" for n in names))
        for label, path in _lines(parts[0]):
            cells = [_at(p, path) for p in parts]
            print(f"  {label:{width - 2}s}" + "".join(f"{_cell(c):>25s}" for c in cells))


def show_completions(files, prompts=3):
    """Prints what each evaluation wrote for the same few prompts."""
    firsts = [_first_rows(file) for file in files]
    for prompt in list(firsts[0])[:prompts]:
        print(f"\n{prompt} ...")
        for file, first in zip(files, firsts):
            if row := first.get(prompt):
                print(f"  {file.stem:14s} {_rewards(row):>6s}  {shown(row['completion'], 160)}")


def _first_rows(file):
    """{prompt: its first row} of an evaluation's completions."""
    first = {}
    for _, row in read_jsonl(file):
        first.setdefault(row["prompt"], row)
    return first


def _rewards(row):
    return ", ".join("none" if r is None else f"{r:.2f}" for r in row["rewards"].values())


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


# ----------------------------------------------------------------------------------------------- people's judgement

QUESTIONS = ("better", "on_topic", "fluent")  # which side is less unwanted, fits its prompt better, is better English


def human_sheet(sheet, a, b, pairs, seed):
    """A CSV of blinded pairs from two results, and SHEET.key.json, which says what stood on the left. Both are whole or absent.

    Prompts are drawn without replacement, one completion of each result for every prompt, sides by a coin.
    """
    if sheet.exists():
        raise BadInput(f"{sheet} exists, and people may have filled it in; remove it or choose another --human-sheet")
    names = (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))  # two runs' quark.json
    if names[0] == names[1]:
        raise BadInput(f"--compare names {a} twice; a sheet needs two results")
    sides = []
    for file in (a, b):
        by_prompt = {}
        for _, row in read_jsonl(file.with_suffix(".jsonl")):
            by_prompt.setdefault(row["prompt"], []).append(row["completion"])
        sides.append(by_prompt)
    shared = [prompt for prompt in sides[0] if prompt in sides[1]]
    if len(shared) < pairs:
        raise BadInput(f"{a} and {b} share {len(shared)} prompts, fewer than --pairs {pairs}; ask for fewer")
    rng = np.random.default_rng(seed)
    rows, key = [], []
    for number, i in enumerate(rng.choice(len(shared), pairs, replace=False), 1):
        texts = [side[shared[i]][rng.integers(len(side[shared[i]]))] for side in sides]
        a_left = bool(rng.integers(2))
        left, right = texts if a_left else texts[::-1]
        # "... " in front also keeps a spreadsheet from taking a text that begins with = for a formula
        rows.append([number, "... " + shared[i], "... " + left, "... " + right, *[""] * len(QUESTIONS)])
        key.append({"pair": number, "left": names[0] if a_left else names[1]})
    with whole_file(sheet) as file:
        file.write("\ufeff")  # or spreadsheets take it for another encoding
        writer = csv.writer(file)
        writer.writerow(["pair", "prompt", "left", "right", *QUESTIONS])
        writer.writerows(rows)
    write_json(f"{sheet}.key.json", {"a": names[0], "b": names[1], "pairs": key})
    print(f"{sheet}: {pairs} pairs. For each question write left, right or same: better = less of what is unwanted, on_topic = fits its")
    print(f"prompt, fluent = reads like English. Keep {sheet}.key.json from the readers; then: python evaluate.py --tally {sheet}")


def tally(sheet):
    """Counts a filled sheet: who was preferred, and the two-sided sign test of "both are preferred equally often"."""
    key = _read_json(f"{sheet}.key.json", "the key that --human-sheet wrote beside the sheet")
    left = {str(pair["pair"]): pair["left"] for pair in key["pairs"]}
    counts = {question: {key["a"]: 0, key["b"]: 0, "same": 0, "empty": 0} for question in QUESTIONS}
    try:
        with open(sheet, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read {sheet}: {error}; save it as CSV in UTF-8") from None
    for line, row in enumerate(rows, 2):
        if row.get("pair") not in left:
            raise BadInput(f"{sheet}: row {line}: pair {shown(row.get('pair'))} is not in the key; leave the first column as it was")
        other = {key["a"]: key["b"], key["b"]: key["a"]}
        for question in QUESTIONS:
            answer = (row.get(question) or "").strip().lower()
            name = {"left": left[row["pair"]], "right": other[left[row["pair"]]], "same": "same", "": "empty"}.get(answer)
            if name is None:
                raise BadInput(f"{sheet}: row {line}: {question} is {shown(answer)}; write left, right or same")
            counts[question][name] += 1
    width = max(12, *(len(name) + 2 for name in counts[QUESTIONS[0]]))
    print(f"{'':10s}" + "".join(f"{name:>{width}s}" for name in counts[QUESTIONS[0]]) + f"{'sign test p':>14s}")
    for question, count in counts.items():
        print(f"{question:10s}" + "".join(f"{n:{width}d}" for n in count.values()) + f"{sign_test(count[key['a']], count[key['b']]):14.4f}")


def sign_test(a, b):
    """P(a split at least as uneven as a : b | a fair coin), two-sided; ties are left out beforehand, as usual."""
    n, most = a + b, max(a, b)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(most, n + 1)) / 2**n)


# -------------------------------------------------------------------------------------------------------- the report

BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#777777"  # Okabe, Ito


def report(run):
    """RUN/report.html, one self-contained page, and RUN/figures/*.png, from what the stages have written so far."""
    pools, quantized = ([f for f in sorted((run / d).glob("*.jsonl")) if f.stem.isdecimal()] for d in ("pool", "quantized"))
    tables = {f.stem: _read_table(f) for f in sorted((run / "eval").glob("*.json")) if not f.name.endswith(".args.json")}
    if not pools and not tables:
        raise BadInput(f"{run} has neither pool/ nor eval/; name the folder of a run, e.g. runs/sentiment-tiny")
    figures = []  # (file name, title, caption, Figure)
    if pools:
        rounds = {int(f.stem): [{key: row[key] for key in ("prompt", "completion", "reward")} for _, row in read_pool([f])] for f in pools}
        figures.append(("rewards", "Reward of each round's samples", "Round 0 is p0; later rounds are sampled under r_K. Line: median; "
                        "dark band: the middle half; light band: from 5 % to 95 %; dots: mean.", _draw_rewards(rounds)))  # fmt: skip
        figures += _fluency_figure(rounds, tables)
    if quantized:
        figures.append(("quantiles", "Who fills the best quantile", "Share of each round's samples in D^K, from which r_K is learned, at "
                        "every quantization. If new samples are better than old ones, they take it over.", _draw_top(quantized)))  # fmt: skip
    if logs := [[row for _, row in read_jsonl(f)] for f in sorted(run.glob("model/[0-9]*/metrics.jsonl"))]:
        figures.append(("learning", "The objective while learning", "Nats per completion token, mean of ten steps: the LM term, the KL term "
                        "to p0 (before beta), and exp(LM), the perplexity of the pool under p_theta. Dashed: a new round.", _draw_learning(logs)))  # fmt: skip
    dial = {int(name[6:]): table for name, table in tables.items() if name.startswith("dial-r") and name[6:].isdecimal()}
    if dial:
        figures.append(("dial", "The dial", "Mean reward on the test prompts under each reward token, with 95 % intervals. All quantiles "
                        "were learned; the token chooses.", _draw_dial(dial, tables)))  # fmt: skip

    sections = []
    for pair in (("base", "quark"), ("base-nucleus", "quark-nucleus")):
        if all(name in tables for name in pair):
            sections.append(_html_table(*[tables[name] for name in pair], pair))
    if "base" in tables and "quark" in tables:
        sections.append(_html_completions(run))
    (run / "figures").mkdir(exist_ok=True)
    for name, title, caption, figure in figures:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        (run / "figures" / f"{name}.png").write_bytes(png.getvalue())
        data = base64.b64encode(png.getvalue()).decode()
        sections.append(f'<figure><h2>{title}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
                        f"<figcaption>{html.escape(caption)}</figcaption></figure>")  # fmt: skip
    page = PAGE.replace("TITLE", html.escape(f"Quark: {run.resolve().name}")).replace("SECTIONS", "\n".join(sections))
    with whole_file(run / "report.html") as file:
        file.write(page)
    print(f"{run / 'report.html'}: {len(figures)} figures, also in {run / 'figures'}")


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>TITLE</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 2rem; }
.wide { grid-column: 1 / -1; min-width: 0; } figure { margin: 0; min-width: 0; } img { width: 100%; height: auto; }
figcaption, .small { color: #555; font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } th, td { text-align: left; padding: .25rem .5rem; vertical-align: top; }
tr { border-bottom: 1px solid #ddd; } .number { white-space: nowrap; } .scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .25rem 2rem; padding: .6rem 0; border-bottom: 1px solid #ddd; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } th, td { padding: .25rem .3rem .25rem 0; } table { font-size: .8rem; } }
.pair p { margin: 0; overflow-wrap: anywhere; } .pair .prompt { grid-column: 1 / -1; font-weight: 600; }
</style></head><body><h1>TITLE</h1><main>
SECTIONS
</main></body></html>
"""


def _html_table(base, quark, names):
    """Two results side by side: all prompts, then each group under a fold."""
    parts = []
    for group in [None, *base.get("groups", {})]:
        pair = [t if group is None else t["groups"].get(group, {}) for t in (base, quark)]
        lines = "".join(f"<tr><td>{html.escape(label).replace('_', '_<wbr>')}</td>" + "".join(f"<td>{_html_cell(_at(t, path))}</td>" for t in pair) + "</tr>"
                        for label, path in _lines(pair[0]))  # fmt: skip
        table = f'<div class="scroll"><table><tr><th></th>{"".join(f"<th>{n}</th>" for n in names)}</tr>{lines}</table></div>'
        parts.append(table if group is None else f"<details><summary>{html.escape(group)} prompts</summary>{table}</details>")
    note = f'{base["n_prompts"]} prompts, {base["n_samples"]} completions a prompt, decode {base["decode"]}; in brackets 95 % intervals over prompts.'
    return f'<section class="wide"><h2>{names[0]} and {names[1]}</h2>{"".join(parts)}<p class="small">{note}</p></section>'


def _html_cell(metric):
    if metric.get("value") is None:
        return "-"
    return '<span class="number">{value:.3f}</span> <span class="number small">[{low:.3f}, {high:.3f}]</span>'.format(**metric)


def _html_completions(run, count=8):
    """The first completions of some prompts, spread over the file and so over its groups, by p0 and by Quark."""
    firsts = [_first_rows(run / "eval" / f"{name}.jsonl") for name in ("base", "quark")]
    prompts = [p for p in firsts[0] if p in firsts[1]]
    pairs = []
    for prompt in prompts[:: max(1, len(prompts) // count)][:count]:
        cells = [f'<p><span class="small">{name} {_rewards(first[prompt])}</span> {html.escape(first[prompt]["completion"])}</p>'
                 for name, first in zip(("base", "quark"), firsts)]  # fmt: skip
        pairs.append(f'<div class="pair"><p class="prompt">{html.escape(prompt)} ...</p>{"".join(cells)}</div>')
    return f'<section class="wide"><h2>The same prompts, before and after</h2>{"".join(pairs)}</section>'


def _axes(rows=1, height=3.6):
    """A Figure and its axes, wide enough for a phone's screen to show its letters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#e5e5e5")
        ax.set_axisbelow(True)
    return figure, axes


def _whole_numbers(ax):
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_rewards(rounds):
    figure, (ax,) = _axes()
    x = list(rounds)
    rewards = [[row["reward"] for row in rows] for rows in rounds.values()]
    bands = np.array([np.quantile(r, [0.05, 0.25, 0.5, 0.75, 0.95]) for r in rewards]).T  # (5, rounds)
    ax.fill_between(x, bands[0], bands[4], color=SKY, alpha=0.3, linewidth=0)
    ax.fill_between(x, bands[1], bands[3], color=SKY, alpha=0.7, linewidth=0)
    ax.plot(x, bands[2], color=BLUE)
    ax.plot(x, [np.mean(r) for r in rewards], "o", color=RED)
    ax.set(xlabel="round", ylabel="reward")
    _whole_numbers(ax)
    return figure


def _fluency_figure(rounds, tables, words_a_round=4000):
    """Mean reward against the perplexity under p0 of (a sample of) each round's samples, if the model is there to ask."""
    asked = next((t.get("ppl_model") or t.get("reference") for t in tables.values()), None)
    try:
        policy = load_policy(asked, pick_device("auto")) if asked else None
    except BadInput as error:
        print(f"no figure of the fluency: {error}")
        policy = None
    if policy is None:
        return []
    x, y = [], []
    for rows in tqdm(rounds.values(), desc="perplexity of each round"):
        some = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        before = np.cumsum([0, *(len(row["completion"].split()) for row in some)])
        x.append(perplexity(policy, [row for row, words in zip(some, before) if words < words_a_round]))
        y.append(np.mean([row["reward"] for row in rows]))
    figure, (ax,) = _axes()
    ax.plot(x, y, color=GREY, linewidth=1)
    ax.scatter(x, y, c=[BLUE] + [ORANGE] * (len(x) - 1), s=45, zorder=3)
    for number, place in zip(rounds, zip(x, y)):
        ax.annotate(str(number), place, xytext=(6, -12), textcoords="offset points")
    ax.margins(0.1)
    ax.set(xlabel=f"perplexity under {Path(asked).name} (lower: more fluent)", ylabel="mean reward")
    return [("fluency", "Fluency against reward", "One point a round, with its number; blue is p0. Up is better, right is the price.", figure)]


def _draw_top(quantized):
    figure, (ax,) = _axes()
    shares, labels = [], []
    for file in quantized:
        counts = {}  # quantile: the rounds of its samples
        for _, row in read_pool([file]):
            counts.setdefault(row["quantile"], []).append(row.get("iteration", 0))
        best = np.array(counts[max(counts)])
        newest = best.max()
        shares.append([np.mean(best == newest - age) for age in range(3)] + [np.mean(best < newest - 2)])
        labels.append(int(file.stem))
    bottom = np.zeros(len(shares))
    for part, colour, name in zip(np.array(shares).T, (BLUE, ORANGE, GREEN, GREY), ("newest", "one older", "two older", "older still")):
        if part.any():
            ax.bar(labels, part, bottom=bottom, color=colour, label=name, width=0.7)
        bottom += part
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, frameon=False)
    ax.set(xlabel="newest round in the pool", ylabel="share of D^K", ylim=(0, 1))
    _whole_numbers(ax)
    return figure


def _draw_learning(logs):
    figure, axes = _axes(rows=3, height=5.4)
    steps = [step for log in logs for step in log]
    x = np.array([s["step"] for s in steps])
    lm, kl = (np.array([s[key] for s in steps]) for key in ("lm", "kl"))
    window = min(10, len(x))
    smooth = lambda v: np.convolve(v, np.ones(window) / window, mode="valid")  # noqa: E731
    for ax, values, name, colour in zip(axes, (smooth(lm), smooth(kl), np.exp(smooth(lm))), ("LM", "KL", "exp(LM)"), (BLUE, RED, GREEN)):
        ax.plot(x[window - 1 :], values, color=colour)
        ax.set_ylabel(name)
        for log in logs[1:]:
            ax.axvline(log[0]["step"], color="#999999", linestyle="--", linewidth=0.8)
    axes[-1].set_xlabel("step")
    return figure


def _draw_dial(dial, tables):
    figure, (ax,) = _axes()
    for (name, colour) in zip(dial[min(dial)]["rewards"], (BLUE, GREEN, PINK)):
        metrics = {k: dial[k]["rewards"][name]["mean"] for k in sorted(dial)}
        value, low, high = (np.array([m[key] for m in metrics.values()], dtype=float) for key in ("value", "low", "high"))
        ax.errorbar(list(metrics), value, yerr=[value - low, high - value], fmt="o-", color=colour, capsize=4, label=name)
        for other, style in (("base", ":"), ("dial-none", "--")):
            if (mean := tables.get(other, {}).get("rewards", {}).get(name, {}).get("mean", {}).get("value")) is not None:
                ax.axhline(mean, color=colour, linestyle=style, linewidth=1, label=f"{name}, {'p0' if other == 'base' else 'no token'}")
    ax.set_xticks(sorted(dial), [f"r_{k}" for k in sorted(dial)])
    ax.set(ylabel="mean reward")
    ax.legend(frameon=False)
    return figure


# ----------------------------------------------------------------------------------------------------------- stage 4


def evaluate(rows, ppl_policy, rewards):
    """Scores and measures rows ("prompt", "completion", "completion_ids", "prompt_number", "group"). Returns the table;
    without a ppl_policy its perplexities are empty."""
    for row in rows:
        row["rewards"] = {}
    for name, reward in rewards.items():
        for row, value in zip(rows, score(rows, reward)):
            row["rewards"][name] = value
    nll = completion_nll(ppl_policy, rows) if ppl_policy else np.zeros((len(rows), 2))
    return measure(rows, nll, list(rewards))


def generations(path, policy):
    """Completions of any origin: rows with "prompt" and "completion", if they like "group", and more rows for a prompt.

    "completion_ids" stay where they spell the completion in the policy's tokens; otherwise the text is encoded.
    """
    rows, numbers = [], {}
    for place, row in read_jsonl(path):
        prompt, completion, ids = text_of(row, "prompt", place), text_of(row, "completion", place), row.get("completion_ids")
        known = isinstance(ids, list) and all(type(i) is int and 0 <= i < policy.vocab_size for i in ids)
        if not known or policy.decode(without_eos(policy, ids)) != completion:
            ids = policy.encode(completion)
        group = group_of(row, place)
        rows.append({"prompt": prompt, "completion": completion, "completion_ids": ids, "group": group,
                     "prompt_number": numbers.setdefault((prompt, group), len(numbers))})  # fmt: skip
    if not rows:
        raise BadInput(f"{path} has no rows; each needs a prompt and a completion")
    return rows


def main(argv=None):
    args = arguments(argv)
    if args.tally:
        return tally(Path(args.tally))
    if args.human_sheet:
        return human_sheet(Path(args.human_sheet), *map(Path, args.compare), args.pairs, args.seed)
    if args.compare:
        compare([_read_table(f) for f in args.compare], [Path(f).stem for f in args.compare])
        show_completions([Path(f).with_suffix(".jsonl") for f in args.compare])
    if args.report:
        report(Path(args.report))
    if args.compare or args.report:
        return
    if processes()[1] > 1:
        raise BadInput("evaluate.py runs as one process; start it without torchrun")
    check_writable(f"{args.out}.json")
    if args.generations and Path(f"{args.out}.jsonl").resolve() == Path(args.generations).resolve():
        raise BadInput(f"--out {args.out} would replace {args.generations}; choose another --out")
    device = pick_device(args.device)
    prompts = None if args.generations else read_prompts(args.prompts)
    cache = Path(args.out).parent / "remote.cache"
    rewards = {name: load_reward(name, args.reward_model, cache=cache, device=device) for name in args.reward}
    ppl_model = None if args.ppl_model == "none" else args.ppl_model or args.reference
    ppl_policy = load_policy(ppl_model, device) if ppl_model else None
    if ppl_policy and device == "cpu":
        laid_out(ppl_policy.model)

    out = Path(args.out)
    header = {"model": args.model, "reference": args.reference, "ppl_model": ppl_model}
    if args.generations:
        rows = generations(args.generations, load_policy(args.reference, device))
        n = len({r["prompt"] for r in rows})
        header |= {"generations": args.generations, "n_prompts": n, "n_samples": len(rows) / n, "decode": None, "reward_token": None}
        table = evaluate(rows, ppl_policy, rewards)
        _write(out, {**header, **table}, rows, args)
        return compare([table], [out.name])

    policy = load_policy(args.model, device)
    if device == "cpu":
        laid_out(policy.model, args.bf16)
    header |= {"n_prompts": len(prompts), "n_samples": args.num_samples, "decode": args.decode}
    for suffix, quantile in _tokens(args.reward_token, policy.n_quantiles):
        rows = generate(policy, prompts, args, args.seed, quantile=quantile)
        for number, row in enumerate(rows):
            row["prompt_number"] = number // args.num_samples
            row["group"] = prompts[row["prompt_number"]]["group"]
        table = evaluate(rows, ppl_policy, rewards)
        _write(out.with_name(out.name + suffix), {**header, "reward_token": quantile, **table}, rows, args)
        if suffix:  # the dial: one line a token
            cells = (f"{r} {_cell(table['rewards'][r]['mean'])}" for r in rewards)
            print(f"{f'r_{quantile}' if quantile else 'no token':8s} mean reward: {', '.join(cells)}")
        else:
            compare([table], [out.name])


def _write(name, table, rows, args):
    with whole_file(f"{name}.jsonl", args) as file:
        for row in rows:
            file.write(dump_row({k: v for k, v in row.items() if k != "prompt_number"}) + "\n")
    write_json(f"{name}.json", table)


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
    table = _read_json(path, "a .json file that evaluate.py wrote")
    if "rewards" not in table:
        raise BadInput(f"{path} is {shown(table)}, not a result of evaluate.py")
    return table


def _read_json(path, what):
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}; name {what}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} is {shown(value)}, not {what}")
    return value


if __name__ == "__main__":
    run_stage(main)
