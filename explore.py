"""Stage 1, *explore*: sample completions y ~ p(. | x, r_K), score them, write them to the pool D.

Algorithm 1 of the paper calls it "initialisation" when the model has no reward tokens (the model is p0,
and nothing stands in front of the prompt), and "exploration" when it has.

Reads    --prompts, a JSONL file with "prompt"; --model, a GPT-2 folder or hub name
Writes   --out, one row a sample: {"prompt", "completion", "reward", "iteration", "prompt_ids",
         "completion_ids"}

    python explore.py --model tiny/lm --prompts tiny/prompts/train.jsonl --reward repetition \\
        --out runs/try/pool/00.jsonl
    python explore.py --model runs/try/model/01 --prompts my.jsonl --reward my_reward.py:shouting \\
        --iteration 1 --out runs/try/pool/01.jsonl

Where we differ: the authors' code samples from the 50 likeliest tokens without meaning to (--top-k 50),
and it can generate reward tokens. Here nothing is cut off unless an option says so, and a reward token is
never generated.
"""

import argparse
import glob
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache

from plumbing.fast_cpu import prepack
from plumbing.files import AppendLog, check_writable, whole_file
from plumbing.options import (
    add_sampling_options,
    check_options,
    check_sampling_options,
    pick_device,
    run_stage,
)
from plumbing.policy import load_policy
from plumbing.pool import BadInput, dump_row, read_prompts, shown
from plumbing.processes import finish, gather, processes, wait_for_all
from rewards import load_reward

# ----------------------------------------------------------------------------------------- sampling


@torch.no_grad()
def sample(
    policy,
    prompt_ids,
    *,
    quantile=None,
    max_new_tokens,
    min_new_tokens=0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    greedy=False,
    seed=0,
    iteration=0,
    keys=None,
    batch_size=64,
    bf16=False,
    network=None,
):
    """y ~ p(. | x, r_k) for every x in `prompt_ids`, a list of lists of ids. Returns lists of ids.

    quantile: k of the reward token in front of x; None for no token. greedy: one bool, or one per row.
    A completion ends with <|endoftext|>, which is kept, or after `max_new_tokens`. The random numbers
    of row i depend on (seed, iteration, keys[i]) only, so neither the batch size nor the order of the
    rows changes what is drawn. keys: (prompt number, sample number) pairs.
    bf16: the network multiplies in bfloat16; logits and drawing stay in float32.
    network: what gives the next token's logits in place of the policy's own model, an object with
    next_logits(tokens) -> (B, V) and keep(rows), such as CachedModel.
    """
    N = len(prompt_ids)
    keys = keys if keys is not None else [(i, 0) for i in range(N)]
    greedy = [greedy] * N if isinstance(greedy, bool) else list(greedy)
    front = [] if quantile is None else [policy.reward_token_id(quantile)]
    room = policy.context - max_new_tokens - len(front)
    if room < 1:
        raise BadInput(
            f"{max_new_tokens} new tokens leave no room for a prompt in a context of {policy.context}"
        )
    contexts = [front + policy.start_of(ids)[-room:] for ids in prompt_ids]
    network = network or CachedModel(policy.model)
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    completions = [None] * N
    with torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=bf16):
        for rows in batches_by_length(contexts, batch_size):
            batch = [contexts[i] for i in rows]
            uniform = np.stack([uniforms(seed, iteration, *keys[i], max_new_tokens) for i in rows])
            is_greedy = [greedy[i] for i in rows]
            done = _sample_batch(
                policy, network, batch, uniform, is_greedy, max_new_tokens, min_new_tokens, drawing
            )
            for i, ids in zip(rows, done):
                completions[i] = ids
    return completions


def batches_by_length(sequences, batch_size):
    """Row numbers in lists of `batch_size`, sequences of similar length together: less padding."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def uniforms(seed, iteration, prompt, sample_number, T):
    """(T,) numbers in [0, 1) from a counter-based generator: a function of the arguments alone."""
    generator = np.random.Philox(key=[seed, iteration], counter=[0, 0, prompt, sample_number])
    return np.random.Generator(generator).random(T)


def _sample_batch(
    policy, network, contexts, uniform, greedy, max_new_tokens, min_new_tokens, drawing
):
    """The sampling loop for B contexts of r_k and x. uniform (B, max_new_tokens); greedy (B,)."""
    device, B = policy.device, len(contexts)
    tokens, padding, row_of = deduplicate(contexts, policy.eos_id, device)
    precise = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs lack float64
    uniform = torch.from_numpy(uniform).to(device, precise)
    greedy = torch.tensor(greedy, device=device)
    if hasattr(network, "start"):
        network.start(padding)
    completions = [[] for _ in range(B)]
    alive = list(range(B))
    for t in range(max_new_tokens):
        logits = network.next_logits(tokens)[:, : policy.vocab_size]  # r_k is read, never written
        if t == 0:  # each prompt was read once; from here on, a row is a sample
            network.keep(row_of)
            logits = logits[row_of]
        if t < min_new_tokens:
            logits[:, policy.eos_id] = -torch.inf
        if greedy.all():
            y_t = logits.argmax(-1)
        else:
            y_t = draw(logits, uniform[:, t], **drawing)
            y_t = torch.where(greedy, logits.argmax(-1), y_t)
        for row, token in zip(alive, y_t.tolist()):
            completions[row].append(token)
        going = (y_t != policy.eos_id).nonzero().squeeze(1)
        if len(going) < len(alive):  # finished rows leave the batch
            alive = [alive[i] for i in going.tolist()]
            if not alive:
                break
            network.keep(going)
            y_t, uniform, greedy = y_t[going], uniform[going], greedy[going]
        tokens = y_t[:, None]
    return completions


def deduplicate(contexts, pad, device):
    """Deduplicate the contexts and left-pad them to one length, so that all end in the last column.

    Returns tokens (P, T), the padding of each row (P,), and for each sample the row of its context (B,).
    """
    row_of = {context: i for i, context in enumerate(dict.fromkeys(map(tuple, contexts)))}
    longest = max(map(len, row_of))
    padding = [longest - len(context) for context in row_of]
    tokens = [[pad] * n + list(context) for n, context in zip(padding, row_of)]
    rows = [row_of[tuple(context)] for context in contexts]
    return (torch.tensor(t, device=device) for t in (tokens, padding, rows))


class CachedModel:
    """The next token's logits by transformers' own forward pass, with its cache of keys and values.

    A batch begins with start(padding). Whatever else has these three methods can be given to `sample`
    as its `network`.
    """

    def __init__(self, model):
        self.model = model

    def start(self, padding):
        """A new batch. padding (P,): how many columns at the left of each row are empty."""
        self.padding = padding
        self.columns = 0
        self.cache = DynamicCache(config=self.model.config)

    def next_logits(self, tokens):
        """(B, t) further tokens -> (B, V + K) logits of the token after the last one."""
        self.columns += tokens.shape[1]
        column = torch.arange(self.columns, device=tokens.device)
        is_token = column >= self.padding[:, None]  # (B, columns)
        position = (column - self.padding[:, None]).clamp(min=0)  # the first real token is at 0
        output = self.model.base_model(
            input_ids=tokens,
            attention_mask=is_token.long(),
            position_ids=position[:, -tokens.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden = output.last_hidden_state[:, -1]
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 would make logits equal
            return self.model.lm_head(hidden.to(self.model.dtype))

    def keep(self, rows):
        """Only these rows go on, in this order. A row may be named several times."""
        self.padding = self.padding[rows]
        self.cache.batch_select_indices(rows)


def draw(logits, uniform, top_p=1.0, top_k=0, temperature=1.0):
    """Draws a token by the inverse CDF: the first one whose cumulative probability exceeds u.

    (B, V) logits, (B,) u in [0, 1) -> (B,) ids. top_p < 1: only from the nucleus, the smallest set of
    likeliest tokens that holds at least top_p. top_k > 0: only from the k likeliest tokens, and those
    that are as likely as the last of them.
    """
    if temperature != 1:
        logits = logits / temperature
    if 0 < top_k < logits.shape[1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    p = logits.softmax(-1)
    if top_p < 1 and uniform.dtype != torch.float64:  # too few digits for a second draw
        return _draw_from_nucleus(p, uniform, top_p)
    cdf, ids = _inverse_cdf(p, uniform)
    if top_p < 1:
        _redraw_outside_nucleus(p, cdf, ids, uniform, top_p)
    return ids


def _inverse_cdf(p, uniform):
    """(B, V) probabilities, whatever their sum, and (B,) u -> their cumulative sums and (B,) ids."""
    cdf = p.cumsum(-1, dtype=uniform.dtype)  # in float64, rare tokens among 50,000 are not lost
    uniform = uniform.clamp(max=1 - torch.finfo(uniform.dtype).eps / 2)  # float32 may round it to 1
    return cdf, torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).squeeze(1)


def _redraw_outside_nucleus(p, cdf, ids, uniform, top_p):
    """Draws again, in place, where a drawn token lies outside the nucleus.

    This spares sorting most rows: a token is inside where the likelier ones hold less than top_p.
    Where it is outside, u's place within the token's stretch of the CDF is again uniform in [0, 1),
    so it can draw from the nucleus alone. Sorting every row takes four times as long.
    """
    own = p.gather(1, ids[:, None])
    likelier = torch.where(p > own, p, 0.0).sum(-1)
    outside = (likelier >= top_p).nonzero().squeeze(1)
    if len(outside):
        start = (cdf.gather(1, ids[:, None]) - own)[outside, 0]
        place = (uniform[outside] * cdf[outside, -1] - start) / own[outside, 0]
        ids[outside] = _draw_from_nucleus(p[outside], place.clamp(0, 1 - 2**-53), top_p)


def _draw_from_nucleus(p, uniform, top_p, first=1024):
    """Sorts by p and cuts where the tokens before hold top_p. First only the `first` likeliest."""
    top, order = p.topk(min(first, p.shape[1]))
    if (top.sum(-1) < top_p).any():
        top, order = p.sort(dim=-1, descending=True)
    before = top.cumsum(-1) - top
    _, drawn = _inverse_cdf(top.masked_fill(before >= top_p, 0.0), uniform)
    return order.gather(1, drawn[:, None]).squeeze(1)


# ---------------------------------------------------------------------------------------- the stage


def explore(policy, prompts, reward, args):
    """Samples and scores args.num_samples completions a prompt: {number: pool row}, on process 0.

    Each scored batch goes to the append log OUT.*.part, from which a run that was interrupted goes on.
    """
    part = AppendLog(f"{args.out}.{_fingerprint(policy, prompts, args)}.part")
    rows = {}
    for row in part.rows:
        rows[row.pop("number")] = row
    rank, world = processes()
    wait_for_all()  # nobody writes before all have read
    if rows and rank == 0:
        total = len(prompts) * args.num_samples
        print(f"going on: {len(rows)} of {total} samples were kept in {part.own}", flush=True)
    k = policy.n_quantiles if args.reward_token == "K" else None  # r_K
    batches = sample_prompts(
        policy, prompts, args, args.seed, args.iteration, k or None, rows, rank, world
    )
    for batch in batches:
        for row, value in zip(batch.values(), score(list(batch.values()), reward)):
            row["reward"] = value  # None: no score
        part.append([{**row, "number": number} for number, row in batch.items()])
        rows |= batch
    return gather(rows)


def sample_prompts(
    policy, prompts, args, seed, iteration=0, quantile=None, known=(), rank=0, world=1
):
    """Yields {number: pool row without a reward}, a batch at a time.

    number = number of the prompt * num_samples + number of the sample. Batches are formed before they
    are dealt out to the `world` processes, so the number of processes changes no sample. Batches whose
    numbers are all in `known` are left out.
    """
    encoded = [policy.encode(p["prompt"]) for p in prompts]
    room = policy.context - args.max_new_tokens - 1  # one place is always kept for the reward token
    if room < 1:
        raise BadInput(
            f"--max-new-tokens {args.max_new_tokens} leaves no room for a prompt in a context of "
            f"{policy.context}"
        )
    cut = sum(len(ids) > room for ids in encoded)
    if cut and rank == 0:
        print(
            f"{cut} of {len(prompts)} prompts are longer than {room} tokens and lose their beginning"
        )
    encoded = [ids[-room:] for ids in encoded]
    keys = [(i, j) for i in range(len(prompts)) for j in range(args.num_samples)]
    if args.decode == "mixed":  # half greedy, alternating over prompts, samples and rounds
        greedy = [(i + j + iteration) % 2 == 0 for i, j in keys]
    else:
        greedy = [args.decode == "greedy"] * len(keys)
    batches = batches_by_length([encoded[i] for i, _ in keys], args.batch_size)
    todo = [batch for batch in batches[rank::world] if not all(n in known for n in batch)]
    total = sum(map(len, todo))
    with tqdm(total=total, desc="sampling", unit="sample", disable=rank > 0) as bar:
        for batch in todo:
            completions = sample(
                policy,
                [encoded[keys[n][0]] for n in batch],
                quantile=quantile,
                max_new_tokens=args.max_new_tokens,
                min_new_tokens=args.min_new_tokens,
                temperature=args.temperature,
                top_k=args.top_k,
                top_p=args.top_p,
                greedy=[greedy[n] for n in batch],
                seed=seed,
                iteration=iteration,
                keys=[keys[n] for n in batch],
                batch_size=len(batch),
                bf16=args.bf16,
            )
            rows = {}
            for n, ids in zip(batch, completions):
                i, _ = keys[n]
                rows[n] = {
                    "prompt": prompts[i]["prompt"],
                    "completion": policy.decode(policy.without_eos(ids)),
                    "iteration": iteration,
                    "prompt_ids": encoded[i],
                    "completion_ids": ids,
                }
            yield rows
            bar.update(len(batch))


def generate(policy, prompts, args, seed, iteration=0, quantile=None):
    """The rows of sample_prompts as one list, in the order of the prompts."""
    rows = {}
    for batch in sample_prompts(policy, prompts, args, seed, iteration, quantile):
        rows |= batch
    return [rows[number] for number in sorted(rows)]


def score(rows, reward, chunk=4096):
    """r(x, y) of every row: a list of float or None."""
    scores = []
    starts = range(0, len(rows), chunk)
    for start in tqdm(starts, desc="scoring", disable=len(rows) <= chunk):
        part = rows[start : start + chunk]
        scores += reward(
            prompts=[r["prompt"] for r in part],
            completions=[r["completion"] for r in part],
            completion_ids=[r["completion_ids"] for r in part],
        )
    return scores


def _fingerprint(policy, prompts, args):
    """A checksum of all that decides what is sampled and scored: settings, prompts, reward, model."""
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "device")}
    service = None
    if args.reward == "remote":
        service = [os.environ.get("REMOTE_URL"), os.environ.get("REMOTE_ATTRIBUTE")]
    digest = hashlib.sha256(json.dumps([settings, prompts, service], sort_keys=True).encode())
    if ":" in args.reward:
        digest.update(Path(args.reward.rsplit(":", 1)[0]).read_bytes())
    some_weights = policy.model.transformer.ln_f.weight  # every training step changes them
    digest.update(some_weights.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def main(argv=None):
    args = parse_options(argv)
    prompts = read_prompts(args.prompts)
    if args.num_prompts and args.num_prompts < len(prompts):
        order = np.random.default_rng(args.seed).permutation(len(prompts))
        prompts = [prompts[i] for i in sorted(order[: args.num_prompts])]
    if processes()[0] == 0:
        check_writable(args.out)
    device = pick_device(args.device)
    cache = Path(args.out).parent / "remote.cache"
    reward = load_reward(args.reward, args.reward_model, cache=cache, device=device)
    policy = load_policy(args.model, device)
    if device == "cpu":
        prepack(policy.model, args.bf16)
    rows = explore(policy, prompts, reward, args)
    if processes()[0] == 0:
        _write_pool(rows, args)
    finish()
    _remove_parts(args.out)  # the pool holds every process's samples now


def _write_pool(rows, args):
    """Writes the rows that have a score, in the order of the prompts, and prints a summary."""
    rows = [rows[number] for number in sorted(rows)]
    kept = [row for row in rows if row["reward"] is not None]
    if not kept:
        _remove_parts(args.out)  # so that the next start tries again
        raise BadInput(
            f"reward {args.reward} scored none of the {len(rows)} samples; nothing was written"
        )
    with whole_file(args.out, args) as file:
        for row in kept:
            file.write(dump_row(row) + "\n")
    values = np.array([row["reward"] for row in kept])
    dropped = ""
    if len(kept) < len(rows):
        dropped = f", {len(rows) - len(kept)} without a score dropped"
    span = f"from {values.min():.4f} to {values.max():.4f}"
    print(f"{len(kept)} samples{dropped}; reward mean {values.mean():.4f}, {span}")
    for row in kept[:2]:
        print(f"  {row['reward']:.3f}  {shown(row['prompt'] + ' |' + row['completion'], 150)}")


def _remove_parts(out):
    for part in Path(out).parent.glob(glob.escape(Path(out).name) + ".*.part*"):
        part.unlink(missing_ok=True)


def parse_options(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="p: a checkpoint folder or hub name")
    add("--prompts", required=True, help='X: JSONL with "prompt", a string or {"text": ...}')
    add("--reward", required=True, help="r: a built-in name or path/to/file.py:function")
    add("--out", required=True, help="pool file to write, e.g. pool/00.jsonl")
    add("--iteration", type=int, default=0, help="round number, written into the rows (default 0)")
    text = "take this many of the prompts, the same ones in every round\nwith the same --seed (default: all)"
    add("--num-prompts", type=int, help=text)
    text = "what stands in front of x: r_K, or nothing (default K)"
    add("--reward-token", choices=["K", "none"], default="K", help=text)
    add_sampling_options(parser, num_samples=1, top_p=1.0)
    args = parser.parse_args(argv)
    check_sampling_options(parser, args)
    rules = [
        ("iteration", 0 <= args.iteration < 2**31, "from 0"),
        ("num_prompts", args.num_prompts is None or args.num_prompts >= 1, "at least 1"),
    ]
    check_options(parser, args, rules)
    return args


if __name__ == "__main__":
    run_stage(main)
