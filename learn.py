"""Stage 3, *learn*: fine-tune p_theta on the quantized pool, with r_k in front and a KL term to p0.

Equation 2 of the paper: in the mean over k ~ U(1, K) and (x, y) ~ D^k, maximise

    log p_theta(y | x, r_k)  -  beta sum_t KL( p0(. | y_<t, x) || p_theta(. | y_<t, x, r_k) )

Reads    --pool, quantized rows; --model, the checkpoint to go on from; --reference, p0
Writes   --out, a checkpoint folder: the model, the optimiser's state, metrics.jsonl (a line a step)

    python learn.py --pool runs/try/quantized/00.jsonl --model tiny/lm --reference tiny/lm \\
        --steps 50 --total-steps 100 --batch-size 32 --lr 1e-3 --warmup 10 --out runs/try/model/01
    python learn.py --pool runs/try/quantized/01.jsonl --model runs/try/model/01 --reference tiny/lm \\
        --steps 50 --total-steps 100 --batch-size 32 --lr 1e-3 --warmup 10 --out runs/try/model/02

Where the authors' code differs: it uses KL(p_theta || p0) (--kl reverse) and an entropy bonus of 0.06
(--entropy-coef 0.06). Like it, and unlike the paper's sum over each sequence, we take the mean over all
completion tokens of a batch. Within a batch both weigh every token alike, and the factor between them,
the mean length of y, is one that Adam mostly cancels.
"""

import argparse
import json
import pickle
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from plumbing.closed_form import ClosedForm
from plumbing.fast_cpu import prepack
from plumbing.files import check_replaceable, write_json
from plumbing.options import add_seed_and_device, check_options, pick_device, run_stage
from plumbing.policy import load_policy
from plumbing.pool import BadInput, read_pool
from plumbing.processes import finish, processes, sum_over_processes

# ----------------------------------------------------------------------------- the objective, Eq. 2


def token_kl(logits_p, logits_q):
    """KL(p || q) = sum_v p(v) log(p(v) / q(v)) in nats, exact, at every position.

    Two (B, T, V) tensors of logits -> (B, T).
    """
    return _kl(logits_p.log_softmax(-1), logits_q.log_softmax(-1))


def _kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def quark_loss(
    policy_logits, reference_logits, targets, mask, beta, kl="forward", entropy_coef=0.0
):
    """The negative of Eq. 2, as a mean over completion tokens. Training calls this function.

    policy_logits (B, T, V + K), reference_logits (B, T, V): position t predicts targets[:, t] (B, T).
    mask (B, T) is 1 on completion tokens; what stands elsewhere has no influence.
    Returns (loss, parts): lm, kl and entropy in nats per token, means over the mask.
    """
    V = reference_logits.shape[-1]  # the K reward tokens are never predicted
    log_p = policy_logits[..., :V].log_softmax(-1)
    log_p0 = reference_logits.log_softmax(-1)

    lm = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # -log p_theta(y_t | y_<t, x, r_k)
    if kl == "forward":
        divergence = _kl(log_p0, log_p)  # the paper: KL(p0 || p_theta)
    else:
        divergence = _kl(log_p, log_p0)  # the authors' code: KL(p_theta || p0)
    with torch.set_grad_enabled(bool(entropy_coef) and torch.is_grad_enabled()):
        entropy = -(log_p.exp() * log_p).sum(-1)

    lm = masked_mean(lm, mask)
    divergence = masked_mean(divergence, mask)
    entropy = masked_mean(entropy, mask)
    loss = lm + beta * divergence - entropy_coef * entropy  # Eq. 2; the authors add the entropy
    return loss, {"lm": lm, "kl": divergence, "entropy": entropy}


def masked_mean(term, mask):
    return term[mask.bool()].sum() / mask.sum()


def batch_loss(
    policy, reference, batch, beta, kl="forward", entropy_coef=0.0, bf16=False, closed_form=False
):
    """Eq. 2 on `batch`, a list of (k, prompt_ids, completion_ids). k = None in all: no reward token.

    Returns a (4,) tensor, the sums over completion tokens of loss, lm, kl and entropy, and the number of
    completion tokens. bf16: both transformers multiply in bfloat16, the objective stays in float32.
    closed_form: the same numbers with the gradient written out (plumbing/closed_form.py).
    """
    hidden, ref_hidden, targets = completion_states(policy, reference, batch, bf16)
    if closed_form:
        weight = policy.model.lm_head.weight[: policy.vocab_size]
        p0_logits = reference.model.lm_head
        sums = ClosedForm.apply(
            hidden, weight, ref_hidden, p0_logits, targets, beta, kl, entropy_coef, bf16
        )
        return sums, len(targets)
    policy_logits = policy.model.lm_head(hidden)  # (M, V + K), all completions one after the other
    with torch.no_grad():
        reference_logits = reference.model.lm_head(ref_hidden)[:, : policy.vocab_size]
    mask = torch.ones_like(targets)
    loss, parts = quark_loss(
        policy_logits[None],
        reference_logits[None],
        targets[None],
        mask[None],
        beta,
        kl,
        entropy_coef,
    )
    means = torch.stack([loss, parts["lm"], parts["kl"], parts["entropy"]])
    return means * len(targets), len(targets)


def completion_states(policy, reference, batch, bf16=False):
    """The last hidden states at the positions that predict the M tokens of y in the batch.

    Returns (M, d) of the policy, which reads r_k; (M, d) of p0, which does not; and the (M,) tokens.
    """
    policy_in, reference_in, rows, columns, targets = [], [], [], [], []
    for row, (k, prompt_ids, completion_ids) in enumerate(batch):
        x = policy.start_of(prompt_ids)
        y = list(completion_ids)
        r_k = [policy.reward_token_id(k)] if k else []
        policy_in.append([*r_k, *x, *y[:-1]])  # r_k is prepended to the prompt ...
        reference_in.append([*x, *y[:-1]])  # ... and p0 never sees it
        rows += [row] * len(y)
        columns += range(len(x) - 1, len(x) - 1 + len(y))  # in p0's input, the position before y_t
        targets += y
    rows, columns, targets = (
        torch.tensor(t, device=policy.device) for t in (rows, columns, targets)
    )
    shift = len(r_k)  # in the policy's input everything stands one column further right
    hidden = policy.hidden_states(policy_in, bf16)[rows, columns + shift]
    with torch.no_grad():
        ref_hidden = reference.hidden_states(reference_in, bf16)[rows, columns]
    return hidden, ref_hidden, targets


# ---------------------------------------------------------------------- reward tokens, data, schedule


def add_reward_tokens(policy, K, seed=0, init="normal"):
    """Gives p0 the tokens r_1 ... r_K. Their first embedding comes from the V existing rows.

    normal, as in the authors' code: each dimension is drawn from N(mean, std) of the existing rows.
    ordered: r_k = mean + z_k std e, with one random direction e for all and z_k from -3 to 3 in K steps.
    What is learned of one token then carries over to its neighbours, which takes fewer updates.
    """
    old = policy.model.get_input_embeddings().weight.detach()  # (V, d)
    generator = torch.Generator().manual_seed(seed)
    if init == "ordered":
        direction = torch.randn(old.shape[1], generator=generator)
        noise = torch.linspace(-3, 3, K)[:, None] * direction
    else:
        noise = torch.randn(K, old.shape[1], generator=generator)
    policy.add_reward_tokens(old.mean(0).cpu() + old.std(0).cpu() * noise)


def draw_batch(parts, batch_size, rng):
    """k ~ U(1, K), then (x, y) uniformly from D^k: every quantile weighs the same, however full."""
    K = len(parts)
    return [parts[k][rng.integers(len(parts[k]))] for k in rng.integers(K, size=batch_size)]


def learning_rate(step, lr, warmup, total_steps):
    """Linear from 0 to lr in `warmup` steps, then linear to 0 at `total_steps`, over all rounds."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * max(0.0, (total_steps - step) / max(1, total_steps - warmup))


# ---------------------------------------------------------------------------------------- the stage


def learn(policy, reference, parts, args, optimiser, first_step):
    """`args.steps` updates. Yields the metrics of each step.

    Under torchrun each process takes its share of every batch, and the gradients are summed over the
    processes: the same step as with one process, to rounding.
    """
    rank, world = processes()
    model, V = policy.model, policy.vocab_size
    parameters = list(model.parameters())
    embedding = model.get_input_embeddings().weight
    for step in range(first_step, first_step + args.steps):
        start = time.perf_counter()
        # Each step has its own generator, so several short runs draw the batches of one long run.
        batch = draw_batch(parts, args.batch_size, np.random.default_rng([args.seed, step]))
        torch.manual_seed((args.seed << 32) + step + rank * 2**31)  # of the dropout, if any
        batch.sort(key=lambda row: len(row[1]) + len(row[2]))  # less padding in a piece
        n_tokens = sum(len(y) for _, _, y in batch)
        totals = torch.zeros(4, device=policy.device, dtype=model.dtype)
        mine = batch[rank::world]
        for piece in range(args.grad_accum):
            begin = piece * len(mine) // args.grad_accum
            end = (piece + 1) * len(mine) // args.grad_accum
            if begin == end:
                continue
            sums, _ = batch_loss(
                policy,
                reference,
                mine[begin:end],
                args.beta,
                args.kl,
                args.entropy_coef,
                args.bf16,
                args.closed_form,
            )
            (sums[0] / n_tokens).backward()  # a mean over the whole batch's completion tokens
            totals += sums.detach()
        if world > 1:
            sum_over_processes([totals, *_gradients(parameters)])
        norm = torch.nn.utils.clip_grad_norm_(parameters, args.clip or float("inf"))
        loss, lm, kl, entropy = (totals / n_tokens).tolist()
        if not np.isfinite([loss, norm.item()]).all():
            raise BadInput(
                f"the loss is {loss} and its gradient's norm {norm.item()} at step {step}; "
                "lower --lr or set --clip 1"
            )
        rate = learning_rate(step, args.lr, args.warmup, args.total_steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        before = embedding.data[V:].clone()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        embedding.data[V:] = before + args.reward_token_lr * (embedding.data[V:] - before)
        yield {
            "step": step,
            "loss": loss,
            "lm": lm,
            "kl": kl,
            "entropy": entropy,
            "grad_norm": norm.item(),
            "lr": rate,
            "tokens_per_s": n_tokens / (time.perf_counter() - start),
        }


def _gradients(parameters):
    """Every parameter's gradient; zeros where this process had no row."""
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    return [p.grad for p in parameters]


def load_quantized(path, policy, reward_tokens=True):
    """The quantized pool as D^1 ... D^K: K lists of (k, prompt_ids, completion_ids), int32 arrays.

    The sampled ids are used where a row has them, <|endoftext|> included if it was produced. Otherwise
    the texts are encoded, and no <|endoftext|> is added, as nothing is known about the completion's end.
    reward_tokens False: one part with all rows, and None in place of k.
    """
    parts = {}
    for place, row in read_pool([path]):
        if reward_tokens and "quantile" not in row:
            raise BadInput(f'{place}: "quantile" is missing; run quantize.py on the pool first')
        x = _ids(row, "prompt", policy, place)
        y = _ids(row, "completion", policy, place)
        room = policy.context - 1 - len(y)
        if room < 1:
            raise BadInput(
                f"{place}: the completion has {len(y)} tokens, more than the model's context of "
                f"{policy.context} holds"
            )
        if y:  # an empty completion has no token to learn from
            k = row["quantile"] if reward_tokens else None
            example = (k, np.array(x[-room:], np.int32), np.array(y, np.int32))
            parts.setdefault(k, []).append(example)
    if not parts:
        raise BadInput(f"{path}: no rows to learn from; run explore.py and quantize.py first")
    if not reward_tokens:
        return [parts[None]]
    K = max(parts)
    missing = next((k for k in range(1, K + 1) if k not in parts), None)
    if missing:
        raise BadInput(
            f"{path}: no row has quantile {missing} of {K}; choose fewer --quantiles in quantize.py"
        )
    return [parts[k] for k in range(1, K + 1)]


def _ids(row, field, policy, place):
    """The ids of a row's prompt or completion, checked against its text."""
    ids = row.get(field + "_ids")
    if ids is None:
        return policy.encode(row[field])
    remedy = "Remove the ids to have the text encoded again"
    if ids and max(ids) >= policy.vocab_size:
        raise BadInput(
            f'{place}: "{field}_ids" holds {max(ids)}, but the model has {policy.vocab_size} tokens; '
            f"sampled with another tokenizer? {remedy}"
        )
    text = policy.decode(policy.without_eos(ids))
    if (
        field == "prompt"
    ):  # explore.py cuts off a long prompt's beginning, perhaps inside a character
        fits = row["prompt"].endswith(text.lstrip("\ufffd")) and bool(ids) == bool(row["prompt"])
    else:
        fits = text == row["completion"]
    if not fits:
        raise BadInput(
            f'{place}: "{field}_ids" do not spell "{field}"; sampled with another tokenizer, or the '
            f"text was edited? {remedy}"
        )
    return ids


def main(argv=None):
    args = parse_options(argv)
    if Path(args.out).resolve() == Path(args.reference).resolve():
        raise BadInput(
            f"--out {args.out} is the reference model, which must stay as it is; choose another --out"
        )
    rank = processes()[0]
    if rank == 0:
        check_replaceable(args.out)  # now rather than after the training
    device = pick_device(args.device)
    policy = load_policy(args.model, device)
    reference = load_policy(args.reference, device)
    if policy.files != reference.files:
        raise BadInput(
            f"--model {args.model} and --reference {args.reference} have different vocabularies; "
            "give the p0 that the model started from"
        )
    parts = load_quantized(args.pool, policy, not args.no_reward_token)
    if not args.no_reward_token:
        _give_reward_tokens(policy, len(parts), args)
    if args.dropout:
        for module in policy.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = args.dropout
        policy.model.train()
    if device == "cpu":
        prepack(reference.model, args.bf16)
    optimiser = torch.optim.Adam(policy.model.parameters(), lr=args.lr, eps=1e-5, fused=True)
    first_step = _resume(optimiser, args.model, device)
    args.total_steps = args.total_steps or first_step + args.steps
    _check_schedule(args, first_step, rank)

    if rank == 0:
        form = "closed form (plumbing/closed_form.py)" if args.closed_form else "quark_loss"
        print(f"objective: Eq. 2 by {form}", flush=True)
    metrics = []
    steps = learn(policy, reference, parts, args, optimiser, first_step)
    bar = tqdm(steps, total=args.steps, desc="learning", unit="step", disable=rank > 0)
    for line in bar:
        metrics.append(line)
        bar.set_postfix(lm=f"{line['lm']:.3f}", kl=f"{line['kl']:.3f}")

    def write_training_state(folder):
        state = {"optimizer": optimiser.state_dict(), "step": first_step + args.steps}
        torch.save(state, folder / "optimizer.pt")
        lines = "".join(json.dumps(m) + "\n" for m in metrics)
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
        write_json(folder / "args.json", vars(args))

    if rank == 0:
        policy.save(args.out, write_training_state)
    finish()
    if rank == 0:
        _print_summary(metrics)


def _give_reward_tokens(policy, K, args):
    """Adds r_1 ... r_K in the first round; later, checks that the pool has as many quantiles."""
    if policy.n_quantiles == 0:
        add_reward_tokens(policy, K, args.seed, args.reward_token_init)
    elif policy.n_quantiles != K:
        raise BadInput(
            f"{args.pool} has {K} quantiles, but {args.model} has {policy.n_quantiles} reward tokens; "
            f"use quantize.py --quantiles {policy.n_quantiles}"
        )


def _resume(optimiser, model, device):
    """Loads the optimiser's state from the checkpoint, if it has one. Returns the steps made so far."""
    file = Path(model) / "optimizer.pt"
    if not file.exists():
        return 0
    try:
        state = torch.load(file, map_location=device, weights_only=True)  # never runs code
        optimiser.load_state_dict(state["optimizer"])
        return int(state["step"])
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(
            f"{file} holds no state of this optimiser: {reason}; remove it to start with a fresh one"
        ) from None


def _check_schedule(args, first_step, rank):
    end = first_step + args.steps
    if args.total_steps < end:
        raise BadInput(
            f"--total-steps {args.total_steps}: {args.model} has made {first_step} steps, and "
            f"{args.steps} more would end with a learning rate of 0; give at least {end}"
        )
    if rank == 0 and args.warmup >= args.total_steps:
        print(
            f"note: with a --warmup of {args.warmup} of {args.total_steps} steps the learning rate "
            f"never reaches --lr {args.lr:g}",
            flush=True,
        )


def _print_summary(metrics):
    last_quarter = metrics[-max(1, len(metrics) // 4) :]
    mean = {}
    for key in ("loss", "lm", "kl", "entropy", "tokens_per_s"):
        mean[key] = np.mean([m[key] for m in last_quarter])
    print(
        f"steps {metrics[0]['step']} to {metrics[-1]['step']}; mean of the last quarter, in nats per "
        f"token: loss {mean['loss']:.3f}, LM {mean['lm']:.3f}, KL {mean['kl']:.3f}, "
        f"entropy {mean['entropy']:.3f}; {mean['tokens_per_s']:.0f} tokens/s"
    )


def parse_options(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--pool", required=True, help="quantized JSONL of quantize.py")
    text = "p_theta to go on from: p0 in the first round, then model/NN"
    add("--model", required=True, help=text)
    add("--reference", required=True, help="p0, the model to stay close to")
    add("--out", required=True, help="checkpoint folder to write, e.g. model/01")
    add = parser.add_argument_group("objective (Eq. 2)").add_argument
    add("--beta", type=float, default=0.05, help="beta, weight of the KL term (default 0.05)")
    text = "forward: KL(p0||p_theta), the paper; reverse: the authors' code\n(default forward)"
    add("--kl", choices=["forward", "reverse"], default="forward", help=text)
    text = "weight of the entropy bonus: 0.06 in the authors' code (default 0)"
    add("--entropy-coef", type=float, default=0.0, help=text)
    text = (
        "compute the gradient from its formula instead of by autograd through\n"
        "quark_loss: the same numbers, less memory with a large vocabulary"
    )
    add("--closed-form", action="store_true", help=text)
    text = "put nothing in front of the prompts: plain fine-tuning (not Quark)"
    add("--no-reward-token", action="store_true", help=text)
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--steps", type=int, default=500, help="updates in this round (default 500)")
    text = "updates in all rounds, where lr reaches 0 (default: the end of\nthis run)"
    add("--total-steps", type=int, help=text)
    add("--batch-size", type=int, default=128, help="examples an update (default 128)")
    text = "pieces a batch is cut into, to save memory (default 1)"
    add("--grad-accum", type=int, default=1, help=text)
    add("--lr", type=float, default=1e-5, help="peak learning rate of Adam (default 1e-5)")
    add("--warmup", type=int, default=500, help="steps of linear warm-up (default 500)")
    text = "largest gradient norm, 0 for no clipping (default 0)"
    add("--clip", type=float, default=0.0, help=text)
    text = "the rows of r_1 ... r_K learn at this times --lr (default 1)"
    add("--reward-token-lr", type=float, default=1.0, help=text)
    text = (
        "normal: each on its own, the authors' code; ordered: along one\ndirection (default normal)"
    )
    add("--reward-token-init", choices=["normal", "ordered"], default="normal", help=text)
    add("--dropout", type=float, default=0.0, help="in p_theta while learning (default 0)")
    text = (
        "multiply in bfloat16, the objective excepted: faster on GPUs, and on\n"
        "CPUs with AVX512-BF16 or AMX"
    )
    add("--bf16", action="store_true", help=text)
    add_seed_and_device(group, "of the batches, of the first r_k and of dropout")
    args = parser.parse_args(argv)
    total_is_enough = args.total_steps is None or args.total_steps >= args.steps
    rules = [
        ("beta", 0 <= args.beta < float("inf"), "at least 0"),
        ("steps", args.steps >= 1, "at least 1"),
        ("batch_size", args.batch_size >= 1, "at least 1"),
        ("grad_accum", 1 <= args.grad_accum <= args.batch_size, "from 1 to --batch-size"),
        ("lr", 0 < args.lr < float("inf"), "above 0"),
        ("warmup", args.warmup >= 0, "at least 0"),
        ("clip", args.clip >= 0, "at least 0"),
        ("dropout", 0 <= args.dropout < 1, "from 0 to below 1"),
        ("entropy_coef", -1e9 < args.entropy_coef < 1e9, "a finite number"),
        ("reward_token_lr", 0 <= args.reward_token_lr < 1e9, "at least 0"),
        ("total_steps", total_is_enough, "at least --steps"),
        ("seed", 0 <= args.seed < 2**31, "from 0 to 2^31 - 1"),
    ]
    check_options(parser, args, rules)
    return args


if __name__ == "__main__":
    run_stage(main)
