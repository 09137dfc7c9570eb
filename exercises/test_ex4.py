"""Exercise 4: the repaired losses against plain loops. Each check shows the symptom of a bug."""

import pytest
import torch

from exercises.adapter import solution
from exercises.helpers import expect

B, T, V, K = 2, 9, 6, 3
PROMPT = [4, 2]  # tokens of x in each row
LENGTH = [7, 9]  # tokens of x and y; the first row ends with two of padding
BETA = 0.3
BUGS = {"a": "alignment", "b": "mask", "c": "gradient"}


def example(seed=0):
    """Logits of both models, ids and mask, as the losses take them."""
    generator = torch.Generator().manual_seed(seed)
    policy = 2 * torch.randn(B, T + 1, V + K, generator=generator, dtype=torch.float64)
    reference = 2 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    ids = torch.randint(V, (B, T), generator=generator)
    is_completion = torch.zeros(B, T, dtype=torch.long)
    for b in range(B):
        is_completion[b, PROMPT[b] : LENGTH[b]] = 1
    return policy, reference, ids, is_completion


def slow_loss(policy, reference, ids, beta):
    """The mean over all tokens of y, one at a time."""
    terms = []
    for b in range(B):
        for t in range(PROMPT[b], LENGTH[b]):
            log_p = policy[b, t, :V].log_softmax(-1)  # r_k, x, y_<t end in column t
            log_p0 = reference[b, t - 1].log_softmax(-1)  # without r_k in column t - 1
            kl = (log_p0.exp() * (log_p0 - log_p)).sum()
            terms.append(-log_p[ids[b, t]] + beta * kl)
    return sum(terms) / len(terms)


def value(name, *inputs, beta=BETA):
    """The student's loss, if it is one number."""
    loss = getattr(solution(4), f"loss_{name}")(*inputs, beta)
    is_number = isinstance(loss, torch.Tensor) and loss.shape == ()
    expect(
        is_number,
        f"loss_{name} returned {type(loss).__name__}; it should be a tensor with one number.",
    )
    return loss


@pytest.mark.parametrize("name", BUGS)
def test_equal_models_have_no_kl(name):
    """If p_theta equals p0 at every token, the KL term is 0, so beta changes nothing."""
    policy, reference, ids, is_completion = example()
    policy[:, 1:, :V] = reference
    inputs = policy, reference, ids, is_completion
    kl = (value(name, *inputs, beta=1.0) - value(name, *inputs, beta=0.0)).item()
    expect(
        abs(kl) < 1e-9,
        f"loss_{name}: with p_theta = p0 the KL should be 0 and is {kl:.3f}; "
        "which column of the logits belongs to which token once r_k stands in front?",
    )


@pytest.mark.parametrize("name", BUGS)
def test_only_completions_count(name):
    """Logits behind the end of y and inside x change nothing; those that predict y_1 do."""
    policy, reference, ids, is_completion = example()
    before = value(name, policy, reference, ids, is_completion).item()

    def change(logits):
        return abs(value(name, logits, reference, ids, is_completion).item() - before)

    after_end = policy.clone()
    after_end[0, LENGTH[0] :, 0] += 5
    expect(
        change(after_end) < 1e-9,
        f"loss_{name} changes when the logits behind the last token of y change; "
        "which positions does the mean run over?",
    )
    in_prompt = policy.clone()
    in_prompt[:, : min(PROMPT), 0] += 5
    expect(
        change(in_prompt) < 1e-9,
        f"loss_{name} changes when the logits inside the prompt change; "
        "which positions does the mean run over?",
    )
    first = policy.clone()
    for b in range(B):
        first[b, PROMPT[b], 0] += 5
    expect(
        change(first) > 1e-3,
        f"loss_{name} does not see how y_1 is predicted: "
        "the first token of every completion is left out.",
    )


@pytest.mark.parametrize("name", BUGS)
def test_value(name):
    """The value of both terms."""
    policy, reference, ids, is_completion = example()
    cases = ((0.0, "without the KL (beta = 0)"), (BETA, "with the KL (beta = 0.3)"))
    for beta, what in cases:
        got = value(name, policy, reference, ids, is_completion, beta=beta).item()
        right = slow_loss(policy, reference, ids, beta).item()
        expect(
            abs(got - right) < 1e-9,
            f"loss_{name} {what} is {got:.4f}, and plain loops over the tokens of y give "
            f"{right:.4f}; compare with the formula at the top of the file.",
        )


@pytest.mark.parametrize("name", BUGS)
def test_gradient(name):
    """The value can be right and the gradient wrong. Only the gradient trains."""
    policy, reference, ids, is_completion = example()
    policy.requires_grad_()
    loss = value(name, policy, reference, ids, is_completion)
    expect(loss.requires_grad, f"loss_{name} has no gradient at all.")
    got = torch.autograd.grad(loss, policy)[0]
    right = torch.autograd.grad(slow_loss(policy, reference, ids, BETA), policy)[0]
    lm_only = torch.autograd.grad(slow_loss(policy, reference, ids, 0.0), policy)[0]
    expect(
        not torch.allclose(got, lm_only),
        f"loss_{name} has the right value, but its gradient does not change with beta: "
        "nothing is learned from the KL.",
    )
    expect(
        torch.allclose(got, right),
        f"loss_{name} has the right value and a wrong gradient, "
        f"off by up to {(got - right).abs().max():.3f}.",
    )


@pytest.mark.parametrize("name", BUGS)
def test_diagnosis(name):
    """The bug's name, in one word."""
    named = solution(4).DIAGNOSIS
    has_word = isinstance(named, dict) and isinstance(named.get(name), str)
    expect(
        has_word,
        f'DIAGNOSIS["{name}"] is empty; name the bug you repaired, in one of the seven words.',
    )
    expect(
        named[name].strip().lower() == BUGS[name],
        f'loss_{name} is repaired, but its bug was not "{named[name]}"; '
        "compare your line with the starter's.",
    )
