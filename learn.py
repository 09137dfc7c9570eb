r"""Step 3, *learn*: fine-tune p_theta on the quantized pool, with r_k in front and a KL term to p0.

Equation 2 of the paper: maximise the expectation over k ~ U(1, K) and (x, y) ~ D^k of

    log p_theta(y | x, r_k)  -  beta sum_t KL( p0(. | y_<t, x) || p_theta(. | y_<t, x, r_k) )

Reads    --pool, quantized rows; --model, the checkpoint to go on from; --reference, p0
Writes   --out, a checkpoint folder: the model, the optimiser's state, metrics.jsonl (a line a step)

    python learn.py --pool runs/try/quantized/00.jsonl --model tiny/lm --reference tiny/lm \
        --steps 50 --total-steps 100 --batch-size 32 --lr 1e-3 --warmup 10 --out runs/try/model/01
    python learn.py --pool runs/try/quantized/01.jsonl --model runs/try/model/01 \
        --reference tiny/lm --steps 50 --total-steps 100 --batch-size 32 --lr 1e-3 --warmup 10 \
        --out runs/try/model/02

Where we differ: the paper sums over the tokens of a sequence. Like the authors' code, we take the
mean over all completion tokens of a batch. The two differ by a factor, the mean length of a
completion; without --clip, Adam cancels most of it. Unlike the paper, the authors' code uses
KL(p_theta || p0) (--kl reverse) and adds the entropy (--entropy-coef 0.06).
"""

import itertools
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from plumbing import options
from plumbing.closed_form import ClosedForm
from plumbing.fast_cpu import prepack
from plumbing.files import check_outputs, check_replaceable
from plumbing.policy import load_policy
from plumbing.pool import BadInput
from plumbing.processes import finish, processes, sum_over_processes
from plumbing.quantized import load_quantized
from plumbing.resume import load_training_state, write_training_state
from plumbing.summaries import print_training

# ----------------------------------------------------------------------------- the objective, Eq. 2


def token_kl(logits_p, logits_q):
    """KL(p || q) = sum_v p(v) log(p(v) / q(v)) in nats, exact, at every position.

    Two (B, T, V) tensors of logits -> (B, T).
    """
    return kl_of_log_probs(logits_p.log_softmax(-1), logits_q.log_softmax(-1))


def kl_of_log_probs(log_p, log_q):
    """KL(p || q) at every position from log-probabilities, (B, T, V) -> (B, T)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def quark_loss(
    policy_logits, reference_logits, targets, mask, beta, kl="forward", entropy_coef=0.0
):
    """The negative of Eq. 2, as a mean over completion tokens.

    Training calls this function, except with --closed-form, which computes the same.

    policy_logits (B, T, V + K), reference_logits (B, T, V): position t predicts targets[:, t].
    targets (B, T), mask (B, T): 1 on completion tokens; other positions are ignored.
    Returns (loss, parts): lm, kl and entropy in nats per token, means over the mask.
    """
    V = reference_logits.shape[-1]  # the K reward tokens are never predicted
    log_p = policy_logits[..., :V].log_softmax(-1)
    log_p0 = reference_logits.log_softmax(-1)

    nll = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # -log p_theta(y_t | y_<t, x, r_k)
    if kl == "forward":
        divergence = kl_of_log_probs(log_p0, log_p)  # the paper: KL(p0 || p_theta)
    else:
        divergence = kl_of_log_probs(log_p, log_p0)  # the authors' code: KL(p_theta || p0)
    if entropy_coef == 0:
        log_p = log_p.detach()  # the entropy is only reported: no gradient
    entropy = masked_mean(-(log_p.exp() * log_p).sum(-1), mask)

    lm = masked_mean(nll, mask)
    kl_term = masked_mean(divergence, mask)
    loss = lm + beta * kl_term - entropy_coef * entropy  # Eq. 2; the authors add the entropy
    return loss, {"lm": lm, "kl": kl_term, "entropy": entropy}


def masked_mean(term, mask):
    return term[mask.bool()].sum() / mask.sum()  # indexed, not multiplied: 0 * NaN is NaN


def batch_loss(
    policy, reference, batch, beta, kl="forward", entropy_coef=0.0, bf16=False, closed_form=False
):
    """Eq. 2 on a list of (k, prompt_ids, completion_ids). k None: no reward token in front.

    Returns the sums of loss, lm, kl and entropy over completion tokens, (4,), and how many tokens
    these are. bf16: both transformers multiply in bfloat16, the objective stays in float32.
    closed_form: the same numbers with the gradient written out (plumbing/closed_form.py).
    """
    policy_reads, reference_reads = [], []
    for k, prompt_ids, y in batch:
        policy_reads.append((policy.start_of(prompt_ids, k), y))  # r_k and the prompt ...
        reference_reads.append((reference.start_of(prompt_ids), y))  # ... p0 never sees r_k
    hidden, targets = predicting_states(policy, policy_reads, bf16)
    with torch.no_grad():
        ref_hidden, _ = predicting_states(reference, reference_reads, bf16)
    if closed_form:
        weight, p0_head = policy.head.weight[: policy.vocab_size], reference.head
        states = (hidden, weight, ref_hidden, p0_head, targets)
        return ClosedForm.apply(*states, beta, kl, entropy_coef, bf16), len(targets)
    policy_logits = policy.head(hidden)  # (M, V + K): all tokens of all completions
    with torch.no_grad():
        reference_logits = reference.head(ref_hidden)[:, : policy.vocab_size]
    mask = torch.ones_like(targets)  # only completion tokens are left
    one_row = [t[None] for t in (policy_logits, reference_logits, targets, mask)]  # B = 1, T = M
    loss, parts = quark_loss(*one_row, beta, kl, entropy_coef)
    means = torch.stack([loss, parts["lm"], parts["kl"], parts["entropy"]])
    return means * len(targets), len(targets)


def predicting_states(policy, pairs, bf16=False):
    """[(context, y)] -> the hidden states that predict the M tokens of all y, (M, d), and these
    tokens, (M,).

    The network's output at a position predicts the next token. So y_t is predicted at the position
    of y_{t-1}, and y_1 at the last position of the context.
    """
    inputs, rows, columns, targets = [], [], [], []
    for row, (context, y) in enumerate(pairs):
        inputs.append([*context, *y[:-1]])
        rows += [row] * len(y)
        columns += range(len(context) - 1, len(context) - 1 + len(y))
        targets += list(y)
    rows, columns, targets = torch.tensor([rows, columns, targets], device=policy.device)
    return policy.hidden_states(inputs, bf16)[rows, columns], targets


# ----------------------------------------------------------------- reward tokens, batches, schedule


def add_reward_tokens(policy, K, seed=0, init="normal"):
    """Gives the policy, a copy of p0, the tokens r_1 ... r_K. They start from the V existing rows.

    normal, as in the authors' code: each dimension from N(mean, std) of the existing rows.
    ordered: r_k = mean + z_k std d, with one random direction d for all and K evenly spaced z_k
    from -3 to 3. Then what is learned about one token carries over to its neighbours.
    """
    old = policy.model.get_input_embeddings().weight.detach()  # (V, d)
    generator = torch.Generator().manual_seed(seed)
    if init == "ordered":
        direction = torch.randn(old.shape[1], generator=generator)
        noise = torch.linspace(-3, 3, K)[:, None] * direction
    else:
        noise = torch.randn(K, old.shape[1], generator=generator)
    policy.append_embeddings(old.mean(0).cpu() + old.std(0).cpu() * noise)


def draw_batch(parts, batch_size, rng):
    """k ~ U(1, K), then (x, y) uniformly from D^k: every quantile weighs the same, however full."""
    drawn = [parts[i] for i in rng.integers(len(parts), size=batch_size)]
    return [D_k[rng.integers(len(D_k))] for D_k in drawn]


def learning_rate(step, lr, warmup, total_steps):
    """Rises linearly to lr in `warmup` steps, then falls linearly to 0 at `total_steps`."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * max(0.0, (total_steps - step) / max(1, total_steps - warmup))


# ---------------------------------------------------------------------------------------- the stage


def learn(policy, reference, parts, args, optimiser, first_step):
    """`args.steps` updates of Eq. 2. Yields the metrics of each step.

    Under torchrun each process takes its share of every batch, and the gradients are summed over
    the processes: the same step as with one process, to rounding.
    """
    rank, world = processes()
    parameters = list(policy.model.parameters())
    embedding = policy.model.get_input_embeddings().weight
    V = policy.vocab_size
    objective = (args.beta, args.kl, args.entropy_coef, args.bf16, args.closed_form)
    for step in range(first_step, first_step + args.steps):
        start = time.perf_counter()
        # Each step has its own generator, so several short runs draw the batches of one long run.
        batch = draw_batch(parts, args.batch_size, np.random.default_rng([args.seed, step]))
        # similar lengths in a piece: less padding
        batch.sort(key=lambda row: len(row[1]) + len(row[2]))
        n_tokens = sum(len(y) for _, _, y in batch)
        totals = torch.zeros(4, device=policy.device, dtype=policy.model.dtype)
        for rows in _pieces(batch[rank::world], args.grad_accum):
            sums, _ = batch_loss(policy, reference, rows, *objective)
            (sums[0] / n_tokens).backward()  # the mean over the whole batch's completion tokens
            totals += sums.detach()
        sum_over_processes(totals, parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, args.clip or float("inf")).item()
        loss, lm, kl, entropy = (totals / n_tokens).tolist()
        if not np.isfinite([loss, norm]).all():
            raise BadInput(
                f"the loss is {loss} and its gradient's norm {norm} at step {step}; "
                "lower --lr or set --clip 1"
            )
        lr = learning_rate(step, args.lr, args.warmup, args.total_steps)
        for group in optimiser.param_groups:
            group["lr"] = lr
        r_before = embedding.data[V:].clone()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        r_step = embedding.data[V:] - r_before
        embedding.data[V:] = r_before + args.reward_token_lr * r_step
        line = {"step": step, "loss": loss, "lm": lm, "kl": kl, "entropy": entropy}
        tokens_per_s = n_tokens / (time.perf_counter() - start)
        yield {**line, "grad_norm": norm, "lr": lr, "tokens_per_s": tokens_per_s}


def _pieces(rows, n):
    """The rows in n parts of nearly equal size, without empty ones."""
    borders = [i * len(rows) // n for i in range(n + 1)]
    return [rows[begin:end] for begin, end in itertools.pairwise(borders) if begin < end]


def main(argv=None):
    args = parse_options(argv)
    rank = processes()[0]
    if rank == 0:  # now rather than after the training
        check_replaceable(args.out)
        check_outputs([args.out], [args.pool, args.model, args.reference])
    device = options.pick_device(args.device)
    policy = load_policy(args.model, device)
    reference = load_policy(args.reference, device, args.bf16_weights)
    parts = load_quantized(args.pool, policy, reward_tokens=not args.no_reward_token)
    _check_models(policy, reference, parts, args)
    is_new = not args.no_reward_token and policy.n_quantiles == 0
    if is_new:
        add_reward_tokens(policy, len(parts), args.seed, args.reward_token_init)
    if device == "cpu":
        prepack(reference.model, args.bf16 or reference.in_bf16)
    optimiser = torch.optim.Adam(policy.model.parameters(), lr=args.lr, eps=1e-5, fused=True)
    # A model that gets its reward tokens now was trained for something else, or not at all.
    first_step = 0 if is_new else load_training_state(optimiser, args.model, device)
    end = first_step + args.steps
    args.total_steps = args.total_steps or end
    if args.total_steps < end:
        raise BadInput(
            f"--total-steps {args.total_steps}: {args.model} has made {first_step} steps, and "
            f"{args.steps} more would end with a learning rate of 0; give at least {end}"
        )
    if rank == 0:
        form = "its closed form (plumbing/closed_form.py)" if args.closed_form else "quark_loss"
        terms = f"beta {args.beta:g}, {args.kl} KL, entropy {args.entropy_coef:g}"
        print(f"objective: {terms}, by {form}", flush=True)
        if is_new and (Path(args.model) / "optimizer.pt").exists():
            print("note: the model gets its reward tokens now: a new optimiser, schedule from 0")
        if args.warmup > args.total_steps:
            print(f"note: the learning rate never reaches --lr: --warmup is {args.warmup} steps")

    metrics = []
    steps = learn(policy, reference, parts, args, optimiser, first_step)
    bar = tqdm(steps, total=args.steps, desc="learning", unit="step", disable=rank > 0)
    for line in bar:
        metrics.append(line)
        bar.set_postfix(lm=f"{line['lm']:.3f}", kl=f"{line['kl']:.3f}")
    if not all(p.isfinite().all() for p in policy.model.parameters()):
        raise BadInput("the last update made weights that are not finite; lower --lr")
    if rank == 0:
        state = (optimiser, end, metrics, args)
        policy.save(args.out, lambda folder: write_training_state(folder, *state))
        print_training(metrics)
    finish()


def _check_models(policy, reference, parts, args):
    if reference.context < policy.context:
        raise BadInput(
            f"--reference {args.reference} reads {reference.context} tokens and --model "
            f"{args.model} {policy.context}; give the p0 that the model started from"
        )
    if args.closed_form and getattr(policy.head, "bias", None) is not None:
        raise BadInput(
            f"--closed-form: the output layer of {args.model} has a bias; leave the option out "
            "(LEARN= for run_all.sh)"
        )
    if not policy.has_tokens_of(reference):
        raise BadInput(
            f"--model {args.model} and --reference {args.reference} have different vocabularies; "
            "give the p0 that the model started from"
        )
    K = policy.n_quantiles
    if K not in (0, len(parts)) and not args.no_reward_token:
        raise BadInput(
            f"{args.pool} has {len(parts)} quantiles, but {args.model} has {K} reward tokens; "
            f"use quantize.py --quantiles {K}, and see that no part is empty"
        )


def parse_options(argv=None):
    parser = options.stage_parser(__doc__)
    add = parser.add_argument
    add("--pool", required=True, help="quantized JSONL of quantize.py")
    text = "p_theta to go on from: p0 in the first round, then model/NN"
    add("--model", required=True, help=text)
    add("--reference", required=True, help="p0, the model to stay close to")
    add("--out", required=True, help="checkpoint folder to write, e.g. model/01")
    positive = options.number(float, above=0, below=float("inf"))
    not_negative = options.number(float, least=0, below=float("inf"))
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--beta", type=not_negative, default=0.05, help="beta, the weight of the KL term in Eq. 2")
    add("--steps", type=options.COUNT, default=500, help="updates in this round")
    text = "updates in all rounds: lr falls to 0 there (default: the end of this run)"
    add("--total-steps", type=options.COUNT, help=text)
    add("--batch-size", type=options.COUNT, default=128, help="examples per update")
    text = "micro-batches per update, to save memory"
    add("--grad-accum", type=options.COUNT, default=1, help=text)
    add("--lr", type=positive, default=1e-5, help="peak learning rate of Adam")
    add("--warmup", type=options.number(int, least=0), default=500, help="steps of linear warm-up")
    add("--clip", type=not_negative, default=0.0, help="largest gradient norm; 0: no clipping")
    text = "multiply in bfloat16, but not in the objective: faster on GPUs and some CPUs"
    add("--bf16", action="store_true", help=text)
    text = "store p0 in bfloat16; the policy, which Adam updates, stays in float32"
    add("--bf16-weights", action="store_true", help=text)
    text = "compute the gradient of Eq. 2 in closed form: less memory for large vocabularies"
    add("--closed-form", action="store_true", help=text)
    options.add_seed_and_device(group, "random seed: the batches, and the first embeddings of r_k")

    add = parser.add_argument_group("ablations, and what is not in the paper").add_argument
    text = "forward: KL(p0||p_theta), the paper; reverse: the authors' code"
    add("--kl", choices=["forward", "reverse"], default="forward", help=text)
    coefficient = options.number(float, above=-1e9, below=1e9)
    text = "weight of the entropy bonus, 0.06 in the authors' code"
    add("--entropy-coef", type=coefficient, default=0.0, help=text)
    text = "put nothing in front of the prompts: plain fine-tuning"
    add("--no-reward-token", action="store_true", help=text)
    text = "r_1 ... r_K learn this many times as fast"
    add("--reward-token-lr", type=not_negative, default=1.0, help=text)
    text = "normal: drawn independently, the authors' code; ordered: along one direction"
    add("--reward-token-init", choices=["normal", "ordered"], default="normal", help=text)
    args = parser.parse_args(argv)
    if args.grad_accum > args.batch_size:
        parser.error(f"--grad-accum {args.grad_accum} must be at most --batch-size")
    if args.total_steps and args.total_steps < args.steps:
        parser.error(f"--total-steps {args.total_steps} must be at least --steps, {args.steps}")
    return args


if __name__ == "__main__":
    options.run_stage(main)
