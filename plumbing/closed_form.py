"""Eq. 2 with its gradient written out: the same numbers as learn.quark_loss, in less memory.

`learn.py --closed-form` asks for it. It pays where the vocabulary is large (GPT-2 has 50,257
tokens): autograd through quark_loss keeps half a dozen tensors of (completion tokens, V) alive at
the same time.

With the one-hot target e_y and p = softmax(z), the LM term and the KL are one cross entropy against
the soft target e_y + beta p0, which sums to 1 + beta:

    -log p_y + beta KL(p0 || p) = -sum_v (e_y + beta p0)_v log p_v - beta H(p0)
    d / dz                      = (1 + beta) p - e_y - beta p0

The other two terms: d KL(p || p0) / dz = p (log p - log p0 - KL) and d H(p) / dz = -p (log p + H).
"""

import torch

IN_CACHE = 2**19  # logits per block: with its temporaries, a block fits into a CPU's cache


class ClosedForm(torch.autograd.Function):
    """(4,) sums of loss, lm, kl and entropy over M positions. Only the loss has a gradient.

    hidden (M, d) and weight (V, d) are the policy's last hidden states and output layer; ref_hidden
    and ref_output, a function, are p0's. `chunk` positions at a time go through the output layer,
    and only the gradients of hidden and weight are kept.
    """

    @staticmethod
    def forward(
        ctx,
        hidden,
        weight,
        ref_hidden,
        ref_output,
        targets,
        beta,
        kl,
        entropy_coef,
        bf16=False,
        chunk=1024,
    ):
        sums = hidden.new_zeros(4)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = None
        product_dtype = torch.bfloat16 if bf16 else hidden.dtype
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            z = hidden[rows] @ weight.T  # (m, V)
            z0 = ref_output(ref_hidden[rows])[:, : len(weight)]
            y = targets[rows, None]
            step = max(1, IN_CACHE // len(weight)) if z.is_cpu else chunk
            for i in range(0, len(z), step):
                block = slice(i, i + step)
                block_sums, z[block] = loss_and_gradient(
                    z[block], z0[block], y[block], beta, kl, entropy_coef
                )
                sums += block_sums
            # bf16 rounds the products below, not the loss or its gradient
            grad = z.to(product_dtype)
            grad_hidden[rows] = (grad @ weight.to(product_dtype)).to(hidden.dtype)
            part = grad.T @ hidden[rows].to(product_dtype)  # (V, d)
            if grad_weight is None:
                grad_weight = part.to(weight.dtype)
            else:
                grad_weight.add_(part)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return sums

    @staticmethod
    def backward(ctx, grad_sums):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_sums[0], grad_weight * grad_sums[0], *[None] * 8


def loss_and_gradient(z, z0, y, beta, kl, entropy_coef):
    """(4,) sums of loss, lm, kl, entropy, and the (m, V) gradient of the loss with respect to z.

    z and z0 are the (m, V) logits of p_theta and p0, both overwritten; y is the (m, 1) targets.
    """
    z -= z.amax(-1, keepdim=True)  # the largest logit is now 0
    z0 -= z0.amax(-1, keepdim=True)
    p = z.softmax(-1)
    p0 = z0.softmax(-1)
    log_Z = -p.amax(-1).log()  # the largest p is exp(0) / Z; log p = z - log_Z
    log_Z0 = -p0.amax(-1).log()
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
    grad.scatter_add_(1, y, -torch.ones_like(grad[:, :1]))  # - e_y
    loss = lm + beta * divergence - entropy_coef * entropy  # Eq. 2
    return torch.stack([loss.sum(), lm.sum(), divergence.sum(), entropy.sum()]), grad
