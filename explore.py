r"""Steps 1 and 4, *explore*: sample y ~ p(. | x, r_K), score it, write it to the pool D.

For p0 this is the "initialisation" of Algorithm 1: p0 has no reward tokens, so nothing stands in
front of x. In later rounds it is the "exploration", under r_K.

Reads    --prompts, a JSONL file with "prompt"; --model, a folder or hub name
Writes   --out, one row a sample: prompt, completion, reward, iteration and the token ids

    python explore.py --model tiny/lm --prompts tiny/prompts/train.jsonl --reward sentiment \
        --out runs/try/pool/00.jsonl
    python explore.py --model runs/try/model/01 --prompts tiny/prompts/train.jsonl \
        --reward sentiment --iteration 1 --out runs/try/pool/01.jsonl
    python explore.py --model runs/try/model/01 --prompt "The film was" --reward sentiment

The last one only prints: a completion under no token and under each of r_1 ... r_K.
Where we differ: by a default of their library, the authors' code draws from the 50 likeliest tokens
(--top-k 50), and it can draw a reward token. This code draws from all tokens but the reward tokens.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from plumbing import options
from plumbing.fast_cpu import prepack
from plumbing.files import check_output, whole_file
from plumbing.policy import CachedModel, load_policy
from plumbing.pool import BadInput, dump_row, read_prompts, shown
from plumbing.processes import finish, gather, processes, wait_for_all
from plumbing.resume import open_log, remove_logs
from plumbing.summaries import print_pool
from rewards import load_reward, score, whole_prompts

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

    quantile is the k of the reward token in front of x, None for no token. greedy is one bool, or
    one per row. A completion ends with <|endoftext|>, which is kept, or after `max_new_tokens`.
    Row i's random numbers depend on (seed, iteration, keys[i]) only, where keys[i] = (number of the
    prompt, number of the sample). So neither batch size nor order changes what is drawn.
    bf16: the network multiplies in bfloat16; the logits are in float32.
    network: an object with next_logits(tokens) -> (B, V) and keep(rows), such as CachedModel, to
    take the place of the policy's own model.
    """
    N = len(prompt_ids)
    keys = keys if keys is not None else [(i, 0) for i in range(N)]
    greedy = [greedy] * N if isinstance(greedy, bool) else list(greedy)
    room = policy.room_for_prompt(max_new_tokens, 0 if quantile is None else 1)
    contexts = [policy.start_of(ids[-room:], quantile) for ids in prompt_ids]
    network = network or CachedModel(policy.model)
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    completions = [None] * N
    with torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=bf16 or policy.in_bf16):
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
        if t == 0:  # equal contexts were read once; from here on, each sample has its own row
            network.keep(row_of)
            logits = logits[row_of]
        if not logits.amax(-1).isfinite().all():
            raise BadInput("the model's logits are not finite; its weights are damaged")
        if t < min_new_tokens:
            logits[:, policy.eos_id] = -torch.inf
        y_t = logits.argmax(-1)
        if not greedy.all():
            y_t = torch.where(greedy, y_t, draw(logits, uniform[:, t], **drawing))
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

    Returns tokens (P, T), the padding of each row (P,), and for each sample the row of its context
    (B,).
    """
    row_of = {context: i for i, context in enumerate(dict.fromkeys(map(tuple, contexts)))}
    longest = max(map(len, row_of))
    padding = [longest - len(context) for context in row_of]
    tokens = [[pad] * n + list(context) for n, context in zip(padding, row_of)]
    rows = [row_of[tuple(context)] for context in contexts]
    return [torch.tensor(t, device=device) for t in (tokens, padding, rows)]


def draw(logits, uniform, top_p=1.0, top_k=0, temperature=1.0):
    """Draws a token by the inverse CDF: the first one whose cumulative probability exceeds u.

    (B, V) logits, (B,) u in [0, 1) -> (B,) ids. top_p < 1: only from the nucleus, the smallest set
    of likeliest tokens that holds at least top_p. top_k > 0: only from the k likeliest tokens, and
    those that are as likely as the last of them.
    """
    if temperature != 1:
        logits = logits / temperature
    if 0 < top_k < logits.shape[1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    p = logits.softmax(-1)
    if top_p < 1 and uniform.dtype != torch.float64:  # float32: u cannot be used twice
        return _draw_from_nucleus(p, uniform, top_p)
    cdf, ids = _inverse_cdf(p, uniform)
    if top_p < 1:
        _redraw_outside_nucleus(p, cdf, ids, uniform, top_p)
    return ids


def _inverse_cdf(p, uniform):
    """(B, V) p, whatever its sum, and (B,) u -> the cumulative sums (B, V) and ids (B,)."""
    cdf = p.cumsum(-1, dtype=uniform.dtype)  # in float64, rare tokens among 50,000 are not lost
    uniform = uniform.clamp(max=1 - torch.finfo(uniform.dtype).eps / 2)  # float32 may round it to 1
    return cdf, torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).squeeze(1)


def _redraw_outside_nucleus(p, cdf, ids, uniform, top_p):
    """Draws again, in place, where a drawn token lies outside the nucleus.

    A token is inside if the likelier ones hold less than top_p, which needs no sorting. If it is
    outside: u fell into its interval [start, start + p) of the CDF, so (u - start) / p is uniform
    in [0, 1) and serves as a new u. Only such rows are sorted; to sort all takes four times as
    long.
    """
    own = p.gather(1, ids[:, None])
    likelier = torch.where(p > own, p, 0.0).sum(-1)
    outside = (likelier >= top_p).nonzero().squeeze(1)
    if len(outside):
        start = (cdf.gather(1, ids[:, None]) - own)[outside, 0]
        place = (uniform[outside] * cdf[outside, -1] - start) / own[outside, 0]
        ids[outside] = _draw_from_nucleus(p[outside], place.clamp(min=0), top_p)


def _draw_from_nucleus(p, uniform, top_p, first=1024):
    """Sorts by p and cuts where the tokens before hold top_p. First only the `first` likeliest."""
    top, order = p.topk(min(first, p.shape[1]))
    if (top.sum(-1) < top_p).any():
        top, order = p.sort(dim=-1, descending=True)
    before = top.cumsum(-1) - top
    _, drawn = _inverse_cdf(top.masked_fill(before >= top_p, 0.0), uniform)
    return order.gather(1, drawn[:, None]).squeeze(1)


# ---------------------------------------------------------------------------------------- the stage


def explore(policy, prompts, reward, args, log, rows):
    """Samples completions of each prompt under r_K and scores them: {number: pool row}.

    Each scored batch goes to the append log, from which an interrupted run goes on with the `rows`
    that it already had. Under torchrun process 0 returns the rows of all processes.
    """
    wait_for_all()  # no process writes before all have read
    rank, world = processes()
    k = None if args.reward_token == "none" else policy.n_quantiles or None  # r_K; p0 has none
    for batch in sample_prompts(policy, prompts, args, k, args.iteration, rows, rank, world):
        values = score(list(batch.values()), reward)
        for row, value in zip(batch.values(), values):
            row["reward"] = value  # None: no score
        log.append([{**row, "number": number} for number, row in batch.items()])
        rows |= batch
    return gather(rows)


def sample_prompts(
    policy, prompts, args, quantile, iteration=0, known=(), rank=0, world=1, network=None
):
    """Yields {number: pool row without a reward}, a batch at a time.

    Samples are numbered prompt by prompt. A batch holds all samples of its prompts, so that they
    are scored together. Batches are formed before the `world` processes share them, so the number
    of processes changes no sample. Batches that are all `known` are left out.
    """
    encoded = [policy.encode(p["prompt"]) for p in prompts]
    room = policy.room_for_prompt(args.max_new_tokens, 1)  # one place is kept for r_K, under p0 too
    if rank == 0 and (cut := sum(len(ids) > room for ids in encoded)):
        print(f"{cut} of {len(prompts)} prompts are longer than {room} tokens: cut from the left")
    encoded = [ids[-room:] for ids in encoded]
    keys = [(i, j) for i in range(len(prompts)) for j in range(args.num_samples)]
    if args.decode == "mixed":  # half greedy, alternating over prompts, samples and rounds
        greedy = [(i + j + iteration) % 2 == 0 for i, j in keys]
    else:
        greedy = [args.decode == "greedy"] * len(keys)
    settings = {"quantile": quantile, "iteration": iteration, "network": network}
    settings |= sampling_settings(args)
    batches = _batches_of_prompts(prompts, encoded, args.num_samples, args.batch_size)
    todo = [batch for batch in batches[rank::world] if not all(n in known for n in batch)]
    with tqdm(total=sum(map(len, todo)), desc="sampling", unit="sample", disable=rank > 0) as bar:
        for batch in todo:
            ids = [encoded[keys[n][0]] for n in batch]
            own = {"greedy": [greedy[n] for n in batch], "keys": [keys[n] for n in batch]}
            completions = sample(policy, ids, batch_size=args.batch_size, **own, **settings)
            rows = {}
            for n, prompt_ids, y in zip(batch, ids, completions):
                rows[n] = {
                    **prompts[keys[n][0]],
                    "completion": policy.decode(policy.without_eos(y), goes_on=True),
                    "iteration": iteration,
                    "prompt_ids": prompt_ids,
                    "completion_ids": y,
                }
            yield rows
            bar.update(len(batch))


def _batches_of_prompts(prompts, encoded, num_samples, batch_size):
    """The numbers of the samples in batches of whole prompts: batch_size of them, or one prompt.

    Prompts of similar length go together; equal texts are one prompt.
    """
    numbers = {}  # text -> its samples
    for i in sorted(range(len(prompts)), key=lambda i: len(encoded[i])):
        own = range(i * num_samples, (i + 1) * num_samples)
        numbers.setdefault(prompts[i]["prompt"], []).extend(own)
    return whole_prompts(numbers, batch_size)


def show_prompt(policy, reward, args):
    """Prints a completion of one prompt under no token and under each of r_1 ... r_K."""
    ids = policy.encode(args.prompt)
    greedy = args.decode == "greedy"
    for k in [None, *range(1, policy.n_quantiles + 1)]:
        y = sample(policy, [ids], quantile=k, greedy=greedy, **sampling_settings(args))[0]
        text = policy.decode(policy.without_eos(y), goes_on=True)
        r = ""
        if reward:
            (value,) = reward(prompts=[args.prompt], completions=[text], completion_ids=[y])
            r = "no score  " if value is None else f"{value:.3f}  "
        token = f"r_{k}" if k else "no token"
        print(f"{token:10s}{r}{shown(args.prompt + ' |' + text, 150)}")


def sampling_settings(args):
    names = ("max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "seed", "bf16")
    return {name: getattr(args, name) for name in names}


def main(argv=None):
    args = parse_options(argv)
    device = options.pick_device(args.device)
    cache = Path(args.out).parent / "remote.cache" if args.out else None
    reward = args.reward and load_reward(args.reward, args.reward_model, cache, device=device)
    if args.prompt is None:
        prompts = read_prompts(args.prompts, args.num_prompts, args.seed)
        if processes()[0] == 0:
            check_output(args.out, [args.prompts, args.model, *reward.files])
    policy = load_policy(args.model, device, args.bf16_weights)
    if args.prompt is None:
        log, known = open_log(policy, prompts, args, reward.files)  # while the weights can be read
    if device == "cpu":
        prepack(policy.model, args.bf16 or policy.in_bf16)
    if args.prompt is not None:
        return show_prompt(policy, reward, args)
    rows = explore(policy, prompts, reward, args, log, known)
    if processes()[0] == 0:
        _write_pool([rows[number] for number in sorted(rows)], args)
    finish()


def _write_pool(rows, args):
    kept = [row for row in rows if row["reward"] is not None]
    if not kept:
        remove_logs(args.out)  # so that the next start tries again
        raise BadInput(
            f"reward {args.reward} scored none of the {len(rows)} samples; nothing was written"
        )
    with whole_file(args.out, args) as file:
        for row in kept:
            file.write(dump_row(row) + "\n")
    remove_logs(args.out)  # the pool holds every process's samples now
    print_pool(kept, len(rows) - len(kept))


def parse_options(argv=None):
    parser = options.stage_parser(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="the model to sample from: a folder or hub name")
    add("--prompts", help='JSONL with "prompt", a string or {"text": ...}')
    text = "instead of --prompts: print a completion of TEXT under no token and under each r_k"
    add("--prompt", metavar="TEXT", help=text)
    add("--reward", help="a built-in name, or path/to/file.py:function")
    add("--out", help="pool file to write, e.g. pool/00.jsonl")
    add(
        "--iteration",
        type=options.NATURAL,
        default=0,
        help="the round: stored in the rows, part of the seed",
    )
    text = "use only this many of the prompts; one --seed gives the same ones in every round"
    add("--num-prompts", type=options.COUNT, help=text)
    ablations = options.add_sampling_options(parser, num_samples=1, top_p=1.0)
    text = "what stands in front of x: r_K, or nothing"
    ablations.add_argument("--reward-token", choices=["K", "none"], default="K", help=text)
    args = parser.parse_args(argv)
    options.check_lengths(parser, args)
    if (args.prompt is None) == (args.prompts is None):
        parser.error("name either --prompts FILE or --prompt TEXT")
    if args.prompts is not None and not (args.reward and args.out):
        parser.error("--prompts needs --reward and --out as well")
    return args


if __name__ == "__main__":
    options.run_stage(main)
