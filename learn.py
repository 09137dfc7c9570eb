"""Stage 3, *learn*: fine-tune p_theta on the quantized pool, with r_k in front of every prompt and a KL term to p0.

Reads    --pool, quantized rows ("quantile" in each); --model, the checkpoint to go on from; --reference, p0
Writes   --out, a checkpoint folder: the model, the optimiser's state, metrics.jsonl (a line a step), args.json

    python learn.py --pool runs/try/quantized/00.jsonl --model tiny/lm --reference tiny/lm --steps 50 --total-steps 100 \\
        --batch-size 32 --lr 1e-3 --warmup 10 --out runs/try/model/01
    python learn.py --pool runs/try/quantized/01.jsonl --model runs/try/model/01 --reference tiny/lm --steps 50 --total-steps 100 \\
        --batch-size 32 --lr 1e-3 --warmup 10 --out runs/try/model/02

Equation 2 of the paper. From it the authors' code differs in three ways. Two are flags here: KL(p_theta || p0) instead of
KL(p0 || p_theta) (--kl reverse), and an entropy bonus of 0.06 (--entropy-coef 0.06). The third, the mean over all completion
tokens of a batch instead of the sum over each sequence, is what we do too: within a batch both give every token the same
weight, and the factor between them, the mean length of y, is one that Adam mostly cancels.
"""

from quantize import BadInput, check_options, check_replaceable, read_pool, run_stage, write_json  # first: from here on Ctrl-C is one line

import argparse
import json
import pickle
import time
from pathlib import Path


def arguments(argv=None):
    """The stage's options, checked: what cannot be ends here with one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", required=True, help="quantized JSONL of quantize.py")
    parser.add_argument("--model", required=True, help="p_theta to go on from: p0 in the first round, then model/NN")
    parser.add_argument("--reference", required=True, help="p0, the model to stay close to")
    parser.add_argument("--out", required=True, help="checkpoint folder to write, e.g. model/01")
    objective = parser.add_argument_group("objective (Eq. 2)")
    objective.add_argument("--beta", type=float, default=0.05, help="beta, weight of the KL term (default 0.05)")
    objective.add_argument("--kl", choices=["forward", "reverse"], default="forward",
                           help="forward: KL(p0||p_theta), the paper; reverse: the authors' code (default forward)")  # fmt: skip
    objective.add_argument("--entropy-coef", type=float, default=0.0,
                           help="weight of the entropy bonus: 0 in the paper, 0.06 in the authors' code (default 0)")  # fmt: skip
    objective.add_argument("--open-form", action="store_true", help="compute it by quark_loss, which is there to be read and changed, instead of by\n"
                           "ClosedForm: the same numbers, slower (test_closed_form_is_the_open_form)")  # fmt: skip
    objective.add_argument("--no-reward-token", action="store_true", help="put nothing in front of the prompts: plain fine-tuning on the pool (not Quark)")
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=int, default=500, help="updates in this round (default 500)")
    training.add_argument("--total-steps", type=int, help="updates in all rounds, where lr reaches 0 (default: the end of this run)")
    training.add_argument("--batch-size", type=int, default=128, help="examples an update (default 128)")
    training.add_argument("--grad-accum", type=int, default=1, help="pieces a batch is cut into, to save memory (default 1)")
    training.add_argument("--lr", type=float, default=1e-5, help="peak learning rate of Adam (default 1e-5)")
    training.add_argument("--warmup", type=int, default=500, help="steps of linear warm-up (default 500)")
    training.add_argument("--clip", type=float, default=0.0, help="largest gradient norm, 0 for no clipping (default 0)")
    training.add_argument("--reward-token-lr", type=float, default=1.0,
                          help="the rows of r_1 ... r_K learn at this times --lr (default 1)")  # fmt: skip
    training.add_argument("--reward-token-init", choices=["normal", "ordered"], default="normal",
                          help="normal: each on its own, the authors' code; ordered: along one direction (default normal)")  # fmt: skip
    training.add_argument("--dropout", type=float, default=0.0, help="in p_theta while learning (default 0)")
    training.add_argument("--bf16", action="store_true", help="multiply in bfloat16 inside the transformer and in the backward pass, the\n"
                          "objective stays in float32; faster on GPUs and on CPUs with AVX512-BF16 or AMX, slower on others")  # fmt: skip
    training.add_argument("--seed", type=int, default=0, help="of the batches drawn, of r_k's start and of dropout (default 0)")
    training.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="auto: a GPU if there is one (default auto)")
    args = parser.parse_args(argv)
    check_options(parser, args, [
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
        ("total_steps", args.total_steps is None or args.total_steps >= args.steps, "at least --steps"),
        ("seed", 0 <= args.seed < 2**31, "from 0 to 2^31 - 1"),
    ])  # fmt: skip
    return args


if __name__ == "__main__":
    arguments()  # --help and wrong options are answered here: the imports below take seconds

import numpy as np
import torch
from tqdm import tqdm

from explore import finish, laid_out, load_policy, pick_device, processes, without_eos

# ---------------------------------------------------------------------------------------- the objective, as one reads it


def token_kl(logits_p, logits_q):
    """KL(p || q) = sum_v p(v) log(p(v) / q(v)) in nats, exact, at every position: two (B, T, V) -> (B, T)."""
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def quark_loss(policy_logits, reference_logits, targets, mask, beta, kl="forward", entropy_coef=0.0):
    """The negative of Eq. 2, a mean over completion tokens.

    policy_logits (B, T, V + K), reference_logits (B, T, V): position t predicts targets[:, t] (B, T), any id where the mask is 0;
    mask (B, T) is 1 on completion tokens. Returns (loss, parts): lm, kl and entropy in nats per token, mean over the mask.
    batch_loss calls it with B = 1 and all completions of a batch behind one another: it does not tell sequences apart.
    """
    policy_logits = policy_logits[..., : reference_logits.shape[-1]]  # the K reward tokens are never predicted
    log_p = policy_logits.log_softmax(-1)
    lm = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (B, T)  -log p_theta(y_t | y_<t, x, r_k)
    if kl == "forward":
        divergence = token_kl(reference_logits, policy_logits)  # the paper: KL(p0 || p_theta)
    else:
        divergence = token_kl(policy_logits, reference_logits)  # the authors' code: KL(p_theta || p0)
    entropy = -(log_p.exp() * log_p).sum(-1)
    lm, divergence, entropy = (_masked_mean(term, mask) for term in (lm, divergence, entropy))
    loss = lm + beta * divergence - entropy_coef * entropy  # Eq. 2
    return loss, {"lm": lm, "kl": divergence, "entropy": entropy}


def _masked_mean(term, mask):
    return term[mask.bool()].sum() / mask.sum()


# ------------------------------------------------------------------------- the same, in closed form, as the training uses it


IN_CACHE = 2**19  # so many probabilities, and what is computed from them, stay in a CPU's cache


class ClosedForm(torch.autograd.Function):
    """The loss from the last hidden states, with its gradient at the logits z written out.

    With the one-hot target e_y and p = softmax(z), the LM term and the KL are one cross entropy whose target sums to 1 + beta:

        -log p_y + beta KL(p0 || p) = -sum_v (e_y + beta p0)_v log p_v - beta H(p0)
        d / dz                      = (1 + beta) p - e_y - beta p0

    For the KL of the authors' code and its entropy bonus: d KL(p || p0) / dz = p (log p - log p0 - KL), d H / dz = -p (log p + H).

    Autograd would keep half a dozen (M, V) tensors alive; here `chunk` positions at a time pass through the output layer
    and only the gradients of the hidden states (M, d) and of the embedding (V, d) stay. Of the four sums that come back only
    the first, the loss, has a gradient.
    """

    @staticmethod
    def forward(ctx, hidden, weight, ref_hidden, ref_output, targets, beta, kl, entropy_coef, bf16=False, chunk=1024):
        sums = hidden.new_zeros(4)  # loss, lm, kl, entropy
        grad_hidden, grad_weight = torch.empty_like(hidden), None
        product = torch.bfloat16 if bf16 else hidden.dtype
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            z, z0 = hidden[rows] @ weight.T, ref_output(ref_hidden[rows])[:, : len(weight)]  # (m, V)
            y = targets[rows, None]
            few = max(1, IN_CACHE // len(weight)) if z.is_cpu else chunk  # positions at a time
            for i in range(0, len(z), few):
                some, z[i : i + few] = _objective(z[i : i + few], z0[i : i + few], y[i : i + few], beta, kl, entropy_coef)
                sums += some
            grad = z.to(product)  # with bf16 the loss and d loss / d z are float32's; only their products are not
            grad_hidden[rows] = (grad @ weight.to(product)).to(hidden.dtype)
            part = grad.T @ hidden[rows].to(product)  # (V, d), large: the first is taken as it is
            grad_weight = part.to(weight.dtype) if grad_weight is None else grad_weight.add_(part)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return sums

    @staticmethod
    def backward(ctx, grad_sums):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_sums[0], grad_weight * grad_sums[0], *[None] * 8


def _objective(z, z0, y, beta, kl, entropy_coef):
    """(m, V) logits of pθ and of p0, both used up, (m, 1) tokens -> (4,) sums of loss, lm, kl, entropy, and (m, V) d loss / d z."""
    z -= z.amax(-1, keepdim=True)  # in place; the likeliest token's is 0 from here on
    z0 -= z0.amax(-1, keepdim=True)
    p, p0 = z.softmax(-1), z0.softmax(-1)
    log_Z, log_Z0 = -p.amax(-1).log(), -p0.amax(-1).log()  # log p = z - log Z: no second exponential
    lm = log_Z - z.gather(1, y).squeeze(1)
    entropy = log_Z - (p * z).sum(-1)
    if kl == "forward":
        divergence = (p0 * (z0 - z)).sum(-1) - log_Z0 + log_Z
        grad = torch.lerp(p0, p, 1 + beta)  # (1 + beta) p - beta p0
    else:
        log_ratio = z - z0 - (log_Z - log_Z0)[:, None]  # log p - log p0
        divergence = (p * log_ratio).sum(-1)
        grad = p + beta * p * (log_ratio - divergence[:, None])
    if entropy_coef:
        grad += entropy_coef * p * (z - log_Z[:, None] + entropy[:, None])
    grad.scatter_add_(1, y, -torch.ones_like(grad[:, :1]))
    loss = lm + beta * divergence - entropy_coef * entropy  # Eq. 2
    return torch.stack([loss.sum(), lm.sum(), divergence.sum(), entropy.sum()]), grad


def batch_loss(policy, reference, batch, beta, kl="forward", entropy_coef=0.0, bf16=False, open_form=False):
    """Sums over the completion tokens of `batch`, a list of (k, prompt_ids, completion_ids); k None in all: no token in front.

    open_form: by quark_loss and autograd instead of ClosedForm. Returns ((4,) tensor: loss, lm, kl, entropy; number of completion tokens).
    """
    policy_in, reference_in, rows, columns, targets = [], [], [], [], []
    for row, (k, prompt_ids, completion_ids) in enumerate(batch):
        x, y = policy.start_of(prompt_ids), list(completion_ids)
        front = [policy.reward_token_id(k)] if k else []
        policy_in.append([*front, *x, *y[:-1]])  # r_k is prepended to the prompt ...
        reference_in.append([*x, *y[:-1]])  # ... and p0 never sees it
        rows += [row] * len(y)
        columns += range(len(x) - 1, len(x) - 1 + len(y))  # in p0's input: the position before y_t predicts y_t
        targets += y
    rows, columns, targets = (torch.tensor(t, device=policy.device) for t in (rows, columns, targets))
    hidden = _hidden(policy, policy_in, bf16)[rows, columns + len(front)]  # (M, d), one column further right for r_k
    with torch.no_grad():
        ref_hidden = _hidden(reference, reference_in, bf16)[rows, columns]
    weight = policy.model.lm_head.weight[: policy.vocab_size]
    if open_form:
        with torch.no_grad():
            z0 = reference.model.lm_head(ref_hidden)[:, : len(weight)]
        z = hidden @ weight.T  # (M, V): all completions behind one another, no padding
        loss, parts = quark_loss(z[None], z0[None], targets[None], torch.ones_like(targets)[None], beta, kl, entropy_coef)
        return torch.stack([loss, parts["lm"], parts["kl"], parts["entropy"]]) * len(targets), len(targets)
    sums = ClosedForm.apply(hidden, weight, ref_hidden, reference.model.lm_head, targets, beta, kl, entropy_coef, bf16)
    return sums, len(targets)


def _hidden(policy, sequences, bf16=False):
    """Last hidden states (B, T, d), in the dtype of the weights. Padded on the right, where causal attention needs no mask."""
    longest = max(map(len, sequences))
    ids = torch.tensor([s + [policy.eos_id] * (longest - len(s)) for s in sequences], device=policy.device)
    with torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=bf16):
        return policy.model.transformer(ids, use_cache=False).last_hidden_state.to(policy.model.dtype)


# ----------------------------------------------------------------------------------------------------- data and schedule


def load_quantized(path, policy, reward_tokens=True):
    """The quantized pool as D^1 ... D^K: a list of K lists of (k, prompt_ids, completion_ids), ids as int32 arrays.

    The sampled ids are used where the row has them, <|endoftext|> included where it was produced. Otherwise the texts are
    encoded, and nothing is known of the completion's end: no <|endoftext|> is added. reward_tokens False: all rows are one
    part, with None in place of k.
    """
    parts = {}
    for place, row in read_pool([path]):
        if reward_tokens and "quantile" not in row:
            raise BadInput(f'{place}: "quantile" is missing; run quantize.py on the pool first')
        x, y = _ids(row, "prompt", policy, place), _ids(row, "completion", policy, place)
        room = policy.context - 1 - len(y)
        if room < 1:
            raise BadInput(f"{place}: the completion has {len(y)} tokens, more than the model's context of {policy.context} holds")
        if y:  # an empty completion has no token to learn from
            k = row["quantile"] if reward_tokens else None
            parts.setdefault(k, []).append((k, np.array(x[-room:], np.int32), np.array(y, np.int32)))
    if not parts:
        raise BadInput(f"{path}: no rows to learn from; run explore.py and quantize.py first")
    if not reward_tokens:
        return [parts[None]]
    K = max(parts)
    if missing := next((k for k in range(1, K + 1) if k not in parts), None):
        raise BadInput(f"{path}: no row has quantile {missing} of {K}; choose fewer --quantiles in quantize.py")
    return [parts[k] for k in range(1, K + 1)]


def _ids(row, field, policy, place):
    ids = row.get(field + "_ids")
    if ids is None:
        return policy.encode(row[field])
    if ids and max(ids) >= policy.vocab_size:
        raise BadInput(f'{place}: "{field}_ids" holds {max(ids)}, but the model has {policy.vocab_size} tokens; '
                       'sampled with another tokenizer? Remove the ids to have the text encoded again')  # fmt: skip
    spelt = policy.decode(without_eos(policy, ids))
    if field == "prompt":  # explore.py cuts a long one from the left, perhaps within a character
        spells = row["prompt"].endswith(spelt.lstrip("\ufffd")) and bool(ids) == bool(row["prompt"])
    else:
        spells = spelt == row["completion"]
    if not spells:
        raise BadInput(f'{place}: "{field}_ids" do not spell "{field}"; sampled with another tokenizer, or the text '
                       "was edited? Remove the ids to have the text encoded again")  # fmt: skip
    return ids


def draw_batch(parts, batch_size, rng):
    """k ~ U(1, K), then (x, y) uniformly from D^k, as in Eq. 2: every quantile weighs the same, however full it is."""
    K = len(parts)
    return [parts[k][rng.integers(len(parts[k]))] for k in rng.integers(K, size=batch_size)]


def learning_rate(step, lr, warmup, total_steps):
    """Linear from 0 to lr in `warmup` steps, then linear to 0 at `total_steps`; step counts from 0 over all rounds."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * max(0.0, (total_steps - step) / max(1, total_steps - warmup))


# ------------------------------------------------------------------------------------------------------------ stage 3


def learn(policy, reference, parts, args, optimiser, first_step):
    """`args.steps` updates. Yields one dict of metrics a step.

    Under torchrun each process takes its share of every batch, and the gradients are summed over the processes: the same
    step as one process makes, to rounding.
    """
    rank, world = processes()
    model, V = policy.model, policy.vocab_size
    parameters = list(model.parameters())
    embedding = model.get_input_embeddings().weight
    for step in range(first_step, first_step + args.steps):
        start = time.perf_counter()
        # Every step has its own generator, so that N short runs draw the same batches as one long run.
        batch = draw_batch(parts, args.batch_size, np.random.default_rng([args.seed, step]))
        torch.manual_seed((args.seed << 32) + step + rank * 2**31)  # dropout, if any
        batch.sort(key=lambda row: len(row[1]) + len(row[2]))  # similar lengths in a piece: little padding
        tokens = sum(len(y) for _, _, y in batch)
        totals = torch.zeros(4, device=policy.device, dtype=model.dtype)
        mine = batch[rank::world]
        for piece in range(args.grad_accum):
            rows = mine[piece * len(mine) // args.grad_accum : (piece + 1) * len(mine) // args.grad_accum]
            if not rows:
                continue
            sums, _ = batch_loss(policy, reference, rows, args.beta, args.kl, args.entropy_coef, args.bf16, args.open_form)
            (sums[0] / tokens).backward()
            totals += sums.detach()
        if world > 1:
            _sum_over_processes([totals, *_gradients(parameters)])
        norm = torch.nn.utils.clip_grad_norm_(parameters, args.clip or float("inf"))
        loss, lm, kl, entropy = (totals / tokens).tolist()
        if not np.isfinite([loss, norm.item()]).all():
            raise BadInput(f"the loss is {loss} and its gradient's norm {norm.item()} at step {step}; lower --lr or set --clip 1")
        rate = learning_rate(step, args.lr, args.warmup, args.total_steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        before = embedding.data[V:].clone()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        embedding.data[V:] = before + args.reward_token_lr * (embedding.data[V:] - before)
        yield {"step": step, "loss": loss, "lm": lm, "kl": kl, "entropy": entropy, "grad_norm": norm.item(),
               "lr": rate, "tokens_per_s": tokens / (time.perf_counter() - start)}  # fmt: skip


def _gradients(parameters):
    """Every parameter's gradient; zeros where this process had no row."""
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    return [p.grad for p in parameters]


def _sum_over_processes(tensors):
    for work in [torch.distributed.all_reduce(t, async_op=True) for t in tensors]:
        work.wait()


def main(argv=None):
    args = arguments(argv)
    if Path(args.out).resolve() == Path(args.reference).resolve():
        raise BadInput(f"--out {args.out} is the reference model, which must stay as it is; choose another --out")
    if processes()[0] == 0:
        check_replaceable(args.out)  # better now than after the training
    device = pick_device(args.device)
    policy, reference = load_policy(args.model, device), load_policy(args.reference, device)
    if policy.files != reference.files:
        raise BadInput(f"--model {args.model} and --reference {args.reference} have different vocabularies; "
                       "give the p0 that the model started from")  # fmt: skip
    parts = load_quantized(args.pool, policy, not args.no_reward_token)
    if args.no_reward_token:
        pass  # the vocabulary stays as it is
    elif policy.n_quantiles == 0:
        policy.add_reward_tokens(len(parts), args.seed, ordered=args.reward_token_init == "ordered")
    elif policy.n_quantiles != len(parts):
        raise BadInput(f"{args.pool} has {len(parts)} quantiles, but {args.model} has {policy.n_quantiles} reward tokens; "
                       f"use quantize.py --quantiles {policy.n_quantiles}")  # fmt: skip
    if args.dropout:
        for module in policy.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = args.dropout
        policy.model.train()

    if device == "cpu":
        laid_out(reference.model, args.bf16)  # p0 is only read
    optimiser, first_step = torch.optim.Adam(policy.model.parameters(), lr=args.lr, eps=1e-5, fused=True), 0
    state_file = Path(args.model) / "optimizer.pt"
    if state_file.exists():
        try:
            state = torch.load(state_file, map_location=device, weights_only=True)  # tensors and numbers, never code
            optimiser.load_state_dict(state["optimizer"])
            first_step = int(state["step"])
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise BadInput(f"{state_file} holds no state of this optimiser: {reason}; remove it to start with a fresh one") from None
    args.total_steps = args.total_steps or first_step + args.steps
    if args.total_steps < first_step + args.steps:
        raise BadInput(f"--total-steps {args.total_steps}: {args.model} has made {first_step} steps, and {args.steps} more would "
                       f"end with a learning rate of 0; give at least {first_step + args.steps}")  # fmt: skip

    metrics, rank = [], processes()[0]
    if rank == 0 and args.warmup >= args.total_steps:
        print(f"note: with a --warmup of {args.warmup} of {args.total_steps} steps the learning rate never reaches --lr {args.lr:g}", flush=True)
    bar = tqdm(learn(policy, reference, parts, args, optimiser, first_step), total=args.steps, desc="learning", unit="step",
               disable=rank > 0)  # fmt: skip
    for line in bar:
        metrics.append(line)
        bar.set_postfix(lm=f"{line['lm']:.3f}", kl=f"{line['kl']:.3f}")

    def training_state(folder):
        torch.save({"optimizer": optimiser.state_dict(), "step": first_step + args.steps}, folder / "optimizer.pt")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics), encoding="utf-8")
        write_json(folder / "args.json", vars(args))

    if rank == 0:
        policy.save(args.out, training_state)
    finish()
    if rank > 0:
        return
    tail = metrics[-max(1, len(metrics) // 4) :]
    means = {key: np.mean([m[key] for m in tail]) for key in ("loss", "lm", "kl", "entropy", "tokens_per_s")}
    print(f"steps {first_step} to {first_step + args.steps - 1}; mean of the last quarter, in nats per token: loss {means['loss']:.3f}, "
          f"LM {means['lm']:.3f}, KL {means['kl']:.3f}, entropy {means['entropy']:.3f}; {means['tokens_per_s']:.0f} tokens/s")  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
