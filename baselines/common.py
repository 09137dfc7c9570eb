"""What the comparators share: texts from another source of logits, and updates of a policy.

What a method computes stands in its own file. Here is what is the same for all: several networks
that read the same tokens, log-probabilities of given completions, a loop of updates, and options.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from evaluate import generate
from explore import sample
from learn import learning_rate, predicting_states
from plumbing import options
from plumbing.fast_cpu import prepack
from plumbing.files import check_output, check_outputs, check_replaceable, whole_file, write_json
from plumbing.policy import CachedModel, load_policy
from plumbing.pool import BadInput, dump_row, read_pool, read_prompts
from plumbing.quantized import ids_of
from rewards import score

# ------------------------------------------------------------- completions from a source of logits


class Together:
    """Several networks read the same tokens; `combine` makes one distribution of their logits.

    It is a `network` of `explore.sample`. In the first `min_new_tokens` steps the first network's
    logit of <|endoftext|> is -inf before `combine` sees it. Otherwise a method's own nucleus could
    hold <|endoftext|>, which sampling then forbids.
    """

    def __init__(self, policies, min_new_tokens=0):
        self.networks = [CachedModel(policy.model) for policy in policies]
        self.V, self.eos_id = policies[0].vocab_size, policies[0].eos_id
        self.min_new_tokens = min_new_tokens

    def start(self, padding):
        self.t = 0
        for network in self.networks:
            network.start(padding)

    def keep(self, rows):
        for network in self.networks:
            network.keep(rows)

    def next_logits(self, tokens):
        """(B, t) next tokens -> (B, V), which `combine` makes of one (B, V) for each network."""
        logits = [network.next_logits(tokens)[:, : self.V] for network in self.networks]
        if self.t < self.min_new_tokens:
            logits[0][:, self.eos_id] = -torch.inf
        self.t += 1
        return self.combine(*logits)


def outside_nucleus(logits, top_p):
    """(B, V) logits -> (B, V) bool: True outside the smallest set that holds at least top_p."""
    p, order = logits.softmax(-1).sort(dim=-1, descending=True)
    before = p.cumsum(-1) - p
    return torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)


def generations_parser(docstring, judge=False):
    """The options of a method that writes completions: --model, --prompts, --out, sampling.

    judge: with --reward-model.
    """
    parser = options.stage_parser(docstring)
    parser.add_argument("--model", required=True, help="p0, a folder or hub name")
    parser.add_argument("--prompts", required=True, help='JSONL with "prompt"')
    parser.add_argument("--num-prompts", type=options.COUNT, help="only this many of them")
    parser.add_argument("--out", required=True, help="JSONL of completions to write")
    options.add_sampling_options(parser, num_samples=25, top_p=0.9, judge=judge)
    return parser


def load_for_sampling(args, *names):
    """--model and other models, repacked for sampling as evaluate.py does it."""
    device = options.pick_device(args.device)
    policies = [load_policy(name, device, args.bf16_weights) for name in (args.model, *names)]
    for name, policy in zip(names, policies[1:]):
        if not policy.has_tokens_of(policies[0]):
            raise BadInput(f"{name} has another vocabulary than --model {args.model}")
    if device == "cpu":
        for policy in policies:
            prepack(policy.model, args.bf16 or policy.in_bf16)
    return policies


def write_generations(policy, args, network, reads=(), choose=lambda rows: rows, **drawing):
    """Completions of every prompt by `network` -> args.out, for `evaluate.py --generations`.

    choose: which of the rows are written. drawing: options that differ from those of `args`.
    """
    prompts = read_prompts(args.prompts, args.num_prompts, args.seed)
    check_output(args.out, [args.prompts, args.model, *reads])
    drawing = argparse.Namespace(**vars(args) | drawing)
    rows = choose(generate(policy, prompts, drawing, None, network))
    with whole_file(args.out, args) as file:
        for row in rows:
            file.write(dump_row(row) + "\n")


# ------------------------------------------------------------------------------ training a policy


def training_parser(docstring, steps, lr, batch_size, on_policy=False):
    """The options of a method that trains: --model, --out, steps, learning rate, clipping, seed.

    on_policy: a step is one batch of the policy's own samples, with one update or several.
    """
    parser = options.stage_parser(docstring)
    positive = options.number(float, above=0, below=float("inf"))
    add = parser.add_argument
    add("--model", required=True, help="p0, where training starts: a folder or hub name")
    add("--out", required=True, help="checkpoint folder to write")
    text = "batches of samples" if on_policy else "updates"
    add("--steps", type=options.COUNT, default=steps, help=text)
    add("--lr", type=positive, default=lr, help="peak learning rate of Adam")
    add("--warmup", type=options.number(int, least=0), default=10, help="updates of warm-up")
    add("--clip", type=positive, default=1.0, help="largest gradient norm")
    text = "completions that are sampled at a time" if on_policy else "completions per update"
    add("--batch-size", type=options.COUNT, default=batch_size, help=text)
    text = "multiply in bfloat16, as learn.py does: the loss stays in float32"
    add("--bf16", action="store_true", help=text)
    text = "save the model after this many steps, too, as OUT-N"
    add("--save-at", type=options.COUNT, nargs="+", default=[], metavar="N", help=text)
    options.add_seed_and_device(parser, "random seed")
    return parser


def check_folder(args, reads=()):
    """Raises BadInput if --out, or a folder of --save-at, cannot be written or is an input."""
    save_at = getattr(args, "save_at", [])
    if late := [n for n in save_at if n > args.steps]:
        raise BadInput(f"--save-at {late[0]} comes after the last of {args.steps} steps")
    folders = [args.out, *(f"{args.out}-{n}" for n in save_at)]
    for folder in folders:
        check_replaceable(folder)
    check_outputs(folders, [args.model, *reads])


def load_for_training(args, reads=()):
    """--model, whose weights will change, after the check that --out can be written."""
    check_folder(args, reads)
    policy = load_policy(args.model, options.pick_device(args.device))
    policy.in_bf16 = args.bf16
    return policy


def load_p0(args):
    """--model once more; it is only read, and repacked for that as learn.py does it."""
    p0 = load_policy(args.model, options.pick_device(args.device))
    p0.in_bf16 = args.bf16
    if p0.device.type == "cpu":
        prepack(p0.model, args.bf16)
    return p0


def adam(policy, *more):
    """Adam as learn.py has it, over the policy's weights and those of other modules."""
    parameters = [p for module in (policy.model, *more) for p in module.parameters()]
    return torch.optim.Adam(parameters, eps=1e-5)


def update(optimiser, loss, step, total_steps, args):
    """One step of Adam on `loss`, with learn.py's schedule and clipping. Returns the norm.

    A group of parameters may have "times": its rate is that many times the schedule's.
    """
    loss.backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, args.clip).item()
    if not np.isfinite(norm):
        raise BadInput(f"the gradient's norm is {norm} at step {step}; lower --lr")
    for group in optimiser.param_groups:
        lr = learning_rate(step, args.lr, args.warmup, total_steps)
        group["lr"] = lr * group.get("times", 1)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


def train(policy, steps, args):
    """Runs the generator `steps` to its end, then saves the policy.

    Each step, an update or all updates on one batch of samples, yields {name: number}. These are
    the lines of the folder's metrics.jsonl.
    """
    metrics = []

    def write_more(folder):
        lines = [dump_row(line) + "\n" for line in metrics]
        (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
        write_json(folder / "args.json", vars(args))

    with tqdm(steps, total=args.steps, desc="learning", unit="step") as bar:
        for line in bar:
            metrics.append({"step": len(metrics), **line})
            bar.set_postfix({name: f"{value:.3f}" for name, value in line.items()})
            if len(metrics) in args.save_at:
                policy.save(f"{args.out}-{len(metrics)}", write_more)
    policy.save(args.out, write_more)


def token_log_probs(policy, pairs, min_new_tokens=0):
    """log p(y_t | x, y_<t) of [(x, y)] as (M,), and the row of each of the M tokens, (M,).

    In the first `min_new_tokens` places <|endoftext|> has no probability, as in sampling.
    """
    logits, targets, rows = token_logits(policy, pairs, min_new_tokens)
    return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1), rows


def token_logits(policy, pairs, min_new_tokens=0):
    """The logits (M, V) that predict the M tokens of all y, these tokens (M,), their rows (M,)."""
    hidden, targets = predicting_states(policy, [(policy.start_of(x), y) for x, y in pairs])
    logits = policy.head(hidden)[:, : policy.vocab_size]
    place = torch.tensor([t for _, y in pairs for t in range(len(y))], device=logits.device)
    rows = torch.tensor([i for i, (_, y) in enumerate(pairs) for _ in y], device=logits.device)
    if ((place < min_new_tokens) & (targets == policy.eos_id)).any():
        ends = int(place[(targets == policy.eos_id)].min()) + 1
        raise BadInput(
            f"a completion ends after {ends} tokens, before --min-new-tokens {min_new_tokens}; "
            "give the number with which it was sampled"
        )
    eos = torch.arange(policy.vocab_size, device=logits.device) == policy.eos_id
    return logits.masked_fill((place < min_new_tokens)[:, None] & eos, -torch.inf), targets, rows


def sum_by_row(values, rows, n):
    """(M,) values of tokens -> (n,) sums over each row's tokens."""
    return torch.zeros(n, dtype=values.dtype, device=values.device).index_add(0, rows, values)


# ---------------------------------------------------------------------------- samples and rewards


def add_rollout_options(parser, samples_per_prompt):
    add = parser.add_argument
    add("--prompts", required=True, help='JSONL with "prompt"')
    add("--num-prompts", type=options.COUNT, help="take this many of them, by --seed")
    add("--reward", required=True, help="a built-in name, or path/to/file.py:function")
    text = "judge of sentiment or toxicity, a folder or hub name (default: in tiny/)"
    add("--reward-model", help=text)
    text = "k, how many of the samples are of one prompt"
    add("--samples-per-prompt", type=options.COUNT, default=samples_per_prompt, help=text)
    add("--max-new-tokens", type=options.COUNT, default=20, help="longest y, in tokens")
    add("--min-new-tokens", type=options.NATURAL, default=3, help="shortest y, in tokens")


def rollout(policy, prompts, reward, args, step):
    """Samples of the policy itself (T = 1, all tokens) and rewards: ([(x, y)], (B,) rewards).

    --batch-size completions, k of each prompt one after the other.
    """
    k = args.samples_per_prompt
    if args.batch_size % k:
        raise BadInput(f"--batch-size {args.batch_size} is no multiple of k, {k}")
    drawn = prompts_of_step(len(prompts), args.batch_size // k, step, args.seed)
    before = [drawn[:place].count(i) for place, i in enumerate(drawn)]  # in this step
    keys = [(i, n * k + j) for i, n in zip(drawn, before) for j in range(k)]
    room = policy.room_for_prompt(args.max_new_tokens, 0)
    ids = [policy.encode(prompts[i]["prompt"])[-room:] for i, _ in keys]
    settings = {"seed": args.seed, "iteration": step, "keys": keys, "batch_size": len(keys)}
    settings |= {name: getattr(args, name) for name in ("max_new_tokens", "min_new_tokens")}
    completions = sample(policy, ids, **settings)
    texts = [policy.decode(policy.without_eos(y), goes_on=True) for y in completions]
    rows = [
        {**prompts[i], "completion": text, "completion_ids": y}
        for (i, _), text, y in zip(keys, texts, completions)
    ]
    values = score(rows, reward)
    if None in values:
        raise BadInput("the reward gave a sample no score; this method needs one for each")
    return list(zip(ids, completions)), torch.tensor(values, device=policy.device)


def prompts_of_step(n, per_step, step, seed):
    """Which of n prompts a step uses: in random order, all of them before one comes again."""
    places = range(step * per_step, (step + 1) * per_step)
    orders = {
        epoch: np.random.default_rng([seed, epoch]).permutation(n)
        for epoch in {place // n for place in places}
    }
    return [int(orders[place // n][place % n]) for place in places]


def read_samples(path, policy):
    """A pool as [(prompt, x ids, y ids, reward)]."""
    samples = []
    for place, row in read_pool([path]):
        x, y = ids_of(row, policy, place)
        if y:
            samples.append((row["prompt"], x, y, row["reward"]))
    if not samples:
        raise BadInput(f"{path}: no rows to learn from; run explore.py first")
    return samples
