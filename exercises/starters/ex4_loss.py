"""Exercise 4: three copies of the objective (Eq. 2), with a silent bug in each.

None crashes, and all three train. They get the logits of whole sequences and cut them themselves:

    policy_logits     (B, T + 1, V + K)  p_theta has read [r_k, x, y, padding]
    reference_logits  (B, T, V)          p0 has read [x, y, padding], never r_k
    ids               (B, T)             the tokens [x, y, padding]
    is_completion     (B, T)             1 on the tokens of y, 0 on x and on padding

The logits at a position predict the *next* token. The loss is the mean over the tokens of y of

    -log p_theta(y_t | y_<t, x, r_k) + beta KL(p0 || p_theta),

both terms over the V ordinary tokens alone.

Repair each function and name its bug. learn.py has the objective right. Do not copy it; find the
difference.
"""

import torch

# One word for each bug. The choice:
#   "alignment"   two things that belong to different positions are compared
#   "mask"        the mean is over the wrong tokens
#   "direction"   KL(p || p0)
#   "vocabulary"  reward tokens take part in the softmax
#   "gradient"    a term counts in the value, but nothing is learned from it
#   "sign"        a term has the wrong sign
#   "reduction"   a sum, or a mean of means
DIAGNOSIS = {"a": None, "b": None, "c": None}


def loss_a(policy_logits, reference_logits, ids, is_completion, beta):
    T, V = reference_logits.shape[1:]
    policy_logits = policy_logits[..., :V]
    targets, mask = ids[:, 1:], is_completion[:, 1:].bool()
    log_p = policy_logits[:, 1:T].log_softmax(-1)
    lm = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    log_p = policy_logits[:, : T - 1].log_softmax(-1)
    log_p0 = reference_logits[:, : T - 1].log_softmax(-1)
    kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
    return (lm + beta * kl)[mask].mean()


def loss_b(policy_logits, reference_logits, ids, is_completion, beta):
    T, V = reference_logits.shape[1:]
    policy_logits = policy_logits[..., :V]
    targets, mask = ids[:, 1:], is_completion[:, :-1].bool()
    log_p = policy_logits[:, 1:T].log_softmax(-1)
    log_p0 = reference_logits[:, :-1].log_softmax(-1)
    lm = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
    return (lm + beta * kl)[mask].mean()


def loss_c(policy_logits, reference_logits, ids, is_completion, beta):
    T, V = reference_logits.shape[1:]
    policy_logits = policy_logits[..., :V]
    targets, mask = ids[:, 1:], is_completion[:, 1:].bool()
    log_p = policy_logits[:, 1:T].log_softmax(-1)
    lm = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():  # p0 is not trained
        log_p0 = reference_logits[:, :-1].log_softmax(-1)
        kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
    return (lm + beta * kl)[mask].mean()
