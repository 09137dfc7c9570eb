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

from plumbing.fast_cpu import in_int8, prepack
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
):
    """y ~ p(. | x, r_k) for every x in `prompt_ids`, a list of lists of ids. Returns lists of ids.

    quantile: k of the reward token in front of x; None for no token. greedy: one bool, or one per row.
    A completion ends with <|endoftext|>, which is kept, or after `max_new_tokens`. The random numbers
    of row i depend on (seed, iteration, keys[i]) only, so neither the batch size nor the order of the
    rows changes what is drawn. keys: (prompt number, sample number) pairs.
    bf16: the network multiplies in bfloat16; logits and drawing stay in float32.
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
    completions = [None] * N
    with torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=bf16):
        for rows in batches_by_length(contexts, batch_size):
            uniform = np.stack([uniforms(seed, iteration, *keys[i], max_new_tokens) for i in rows])
            done = _sample_batch(
                policy,
                [contexts[i] for i in rows],
                uniform,
                [greedy[i] for i in rows],
                max_new_tokens,
                min_new_tokens,
                temperature,
                top_k,
                top_p,
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
    policy, contexts, uniform, greedy, max_new_tokens, min_new_tokens, temperature, top_k, top_p
):
    """The sampling loop for B prompts, padded on the left so that all end in the same column."""
    device, V, B = policy.device, policy.vocab_size, len(contexts)
    tokens, padding, row_of = deduplicate(policy, contexts)
    precise = (
        torch.float32 if device.type == "mps" else torch.float64
    )  # Apple's GPUs know no float64
    uniform = torch.from_numpy(uniform).to(device, precise)
    greedy = torch.tensor(greedy, device=device)
    network = Decoder(policy.model, padding, tokens.shape[1] + max_new_tokens)
    alive = list(range(B))
    completions = [[] for _ in range(B)]
    for step in range(max_new_tokens):
        logits = network.next_logits(tokens)[
            :, :V
        ]  # (B, V): reward tokens can be read, never written
        if step == 0:
            network.keep(row_of)
            logits = logits[row_of]
        if step < min_new_tokens:
            logits[:, policy.eos_id] = -torch.inf
        chosen = logits.argmax(-1) if greedy.any() else None
        if not greedy.all():
            scaled = logits if temperature == 1 else logits / temperature
            drawn = draw(scaled, uniform[:, step], top_p, top_k)
            chosen = drawn if chosen is None else torch.where(greedy, chosen, drawn)
        for row, token in zip(alive, chosen.tolist()):
            completions[row].append(token)
        going = chosen != policy.eos_id
        if not going.all():  # finished rows leave the batch
            kept = going.nonzero().squeeze(1)
            alive = [alive[i] for i in kept.tolist()]
            if not alive:
                break
            network.keep(kept)
            chosen, uniform, greedy = (t[kept] for t in (chosen, uniform, greedy))
        tokens = chosen[:, None]
    return completions


def deduplicate(policy, contexts):
    """Deduplicate the prompts and left-pad them to one length.

    Returns tokens (P, T), the padding of each row (P,), and for each sample the row of its prompt (N,).
    """
    number = {context: i for i, context in enumerate(dict.fromkeys(map(tuple, contexts)))}
    longest = max(map(len, number))
    tokens = [[policy.eos_id] * (longest - len(c)) + list(c) for c in number]
    padding = [longest - len(c) for c in number]
    row_of = [number[tuple(c)] for c in contexts]
    return (torch.tensor(t, device=policy.device) for t in (tokens, padding, row_of))


class Decoder:
    """The network of `model` one column of tokens after the other, keys and values of the columns before in a cache.

    It computes what model(...) does, in fewer and larger operations: the cache has its full length T from the beginning,
    where transformers copies it to lengthen it, which takes half of the time at 64 tokens. padding: (B,) columns that are
    empty at the left of each row.
    """

    def __init__(self, model, padding, T):
        self.model, self.padding, self.T, self.columns, self.cache = model, padding, T, 0, []

    def keep(self, rows):
        """These rows (a tensor of numbers, the same one several times if need be) go on, and no others."""
        self.padding = self.padding[rows]
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]

    def next_logits(self, tokens):
        """(B, t) further tokens -> (B, V + K) logits of the token after the last one."""
        x = self.hidden(tokens)
        with torch.autocast(
            x.device.type, enabled=False
        ):  # with bf16's three digits many logits would be equal
            return self.model.lm_head(self.model.transformer.ln_f(x[:, -1]))

    def hidden(self, tokens):
        """(B, t) further tokens -> (B, t, d), what leaves the last block."""
        transformer, config, (B, t) = self.model.transformer, self.model.config, tokens.shape
        old, new = self.columns, self.columns + t
        wide = min(
            self.T, -(-new // 32) * 32
        )  # attention reads 32 columns more at a time: shapes that recur reuse their memory
        column = torch.arange(wide, device=tokens.device)
        # the first real token is at 0, whatever the padding; columns before it, or beyond the context, hold padding
        position = (column[old:new] - self.padding[:, None]).clamp(0, config.n_positions - 1)
        seen = (column <= column[old:new, None]) & (
            column >= self.padding[:, None, None]
        )  # (B, t, wide): not the future, no padding
        barred = torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, -1e9)[:, None]
        x = transformer.wte(tokens) + transformer.wpe(position)  # (B, t, d)
        for number, block in enumerate(transformer.h):
            q, k, v = (
                part.view(B, t, config.n_head, -1).transpose(1, 2)
                for part in block.attn.c_attn(block.ln_1(x)).chunk(3, dim=-1)
            )
            if old == 0:
                self.cache.append(
                    (
                        k.new_zeros(*k.shape[:2], k.shape[3], self.T),
                        v.new_zeros(*v.shape[:2], self.T, v.shape[3]),
                    )
                )
            keys, values = self.cache[
                number
            ]  # (B, heads, d / heads, T), and the last two the other way round
            keys[..., old:new], values[:, :, old:new] = k.transpose(2, 3), v
            attention = ((q * block.attn.scaling) @ keys[..., :wide] + barred).softmax(-1).to(
                v.dtype
            ) @ values[:, :, :wide]
            x = x + block.attn.c_proj(attention.transpose(1, 2).reshape(B, t, -1))
            x = x + block.mlp.c_proj(block.mlp.act(block.mlp.c_fc(block.ln_2(x))))
        self.columns = new
        return x


def draw(logits, uniform, top_p=1.0, top_k=0):
    """Inverse CDF: the first token at which the cumulative probability exceeds u. (B, V) logits, (B,) u -> (B,) ids.

    top_p < 1 draws from the nucleus, the smallest set of likeliest tokens that holds at least that much probability. Most rows
    need no sorting for it: a token is inside where the tokens likelier than it hold less than top_p. Where it is outside, u's
    place within that token's stretch of the CDF is again uniform from 0 to 1, and draws from the nucleus alone.
    top_k > 0 leaves only the k likeliest tokens in p, and what is as likely as the last of them.
    """
    if 0 < top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    p = logits.softmax(-1)
    if (
        top_p < 1 and uniform.dtype != torch.float64
    ):  # of a float32 too little would be left for a second draw
        return _draw_from_nucleus(p, uniform, top_p)
    cdf, ids = _inverse_cdf(p, uniform)
    if top_p < 1:
        own = p.gather(1, ids)
        outside = (torch.where(p > own, p, 0.0).sum(-1) >= top_p).nonzero().squeeze(1)
        if len(outside):
            start, stretch = (cdf.gather(1, ids) - own)[outside, 0], own[outside, 0]
            place = (uniform[outside] * cdf[outside, -1] - start) / stretch
            ids[outside, 0] = _draw_from_nucleus(p[outside], place.clamp(0, 1 - 2**-53), top_p)
    return ids.squeeze(1)


def _inverse_cdf(p, uniform):
    """(B, V) probabilities, whatever their sum, (B,) u -> their cumulative sums (B, V), and ids (B, 1)."""
    cdf = p.cumsum(-1, dtype=uniform.dtype)  # in float64 no sum of 50,000 terms rounds a token away
    return cdf, torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).clamp(
        max=p.shape[1] - 1
    )


def _draw_from_nucleus(p, uniform, top_p):
    p, order = _likeliest(p, top_p)
    p = p.masked_fill(
        p.cumsum(-1) - p >= top_p, 0.0
    )  # cut where the tokens before already hold top_p
    return order.gather(1, _inverse_cdf(p, uniform)[1]).squeeze(1)


def _likeliest(p, mass, first=1024):
    """(p, ids) in descending order, at least so many that every row holds `mass`; to sort all V is most of sampling's time."""
    if p.shape[1] > first:
        top, order = p.topk(first)
        if (top.sum(-1) >= mass).all():
            return top, order
    return p.sort(dim=-1, descending=True)


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
    if args.int8 and device != "cpu":
        raise BadInput(
            f"--int8 is for CPUs, and this would run on {device}; add --device cpu, or use --bf16"
        )
    cache = Path(args.out).parent / "remote.cache"
    reward = load_reward(args.reward, args.reward_model, cache=cache, device=device)
    policy = load_policy(args.model, device)
    if args.int8:
        in_int8(policy.model)
    elif device == "cpu":
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
    add("--int8", action="store_true", help="sample with weights of 8 bits, on a CPU only")
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
