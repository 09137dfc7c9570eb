"""Wrong: loss_a moves p0 to the right instead of p_theta, so the two are even further apart."""

from exercise_solutions.reference.ex4_loss import *


def loss_a(policy_logits, reference_logits, ids, is_completion, beta):
    T, V = reference_logits.shape[1:]
    targets, mask = ids[:, 1:], is_completion[:, 1:].bool()
    log_p = policy_logits[:, 1:T, :V].log_softmax(-1)
    lm = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    log_p0 = reference_logits[:, 1:].log_softmax(-1)
    kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
    return (lm + beta * kl)[mask].mean()
