"""Exercise 4, a solution: in each copy the line that was wrong is marked."""

DIAGNOSIS = {"a": "alignment", "b": "mask", "c": "gradient"}


def loss_a(policy_logits, reference_logits, ids, is_completion, beta):
    T, V = reference_logits.shape[1:]
    policy_logits = policy_logits[..., :V]
    targets, mask = ids[:, 1:], is_completion[:, 1:].bool()
    # The KL took p_theta one column too early: it forgot r_k.
    log_p = policy_logits[:, 1:T].log_softmax(-1)
    lm = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    log_p0 = reference_logits[:, : T - 1].log_softmax(-1)
    kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
    return (lm + beta * kl)[mask].mean()


def loss_b(policy_logits, reference_logits, ids, is_completion, beta):
    T, V = reference_logits.shape[1:]
    policy_logits = policy_logits[..., :V]
    # The mask is shifted like the targets. It was [:, :-1].
    targets, mask = ids[:, 1:], is_completion[:, 1:].bool()
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
    # Only p0 is without gradient. The KL was, too.
    log_p0 = reference_logits[:, :-1].log_softmax(-1).detach()
    kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
    return (lm + beta * kl)[mask].mean()
