"""Exercise 4: the repaired losses against plain loops, by the symptoms that give each bug away."""

import pytest
import torch

from exercises.adapter import solution
from exercises.helpers import expect

B, T, V, K = 2, 9, 6, 3
PROMPT, LENGTH = [4, 2], [7, 9]  # tokens of x, and of x and y; the first row ends with two of padding
BETA = 0.3
BUGS = {"a": "alignment", "b": "mask", "c": "gradient"}


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    policy = 2 * torch.randn(B, T + 1, V + K, generator=generator, dtype=torch.float64)
    reference = 2 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    ids = torch.randint(V, (B, T), generator=generator)
    is_completion = torch.tensor([[int(x <= t < n) for t in range(T)] for x, n in zip(PROMPT, LENGTH)])
    return policy, reference, ids, is_completion


def slow_loss(policy, reference, ids, beta):
    """The mean over all tokens of y, one at a time."""
    terms = []
    for b in range(B):
        for t in range(PROMPT[b], LENGTH[b]):
            log_p = policy[b, t, :V].log_softmax(-1)  # r_k, x, y_<t end in column t
            log_p0 = reference[b, t - 1].log_softmax(-1)  # without r_k in column t - 1
            terms.append(-log_p[ids[b, t]] + beta * (log_p0.exp() * (log_p0 - log_p)).sum())
    return sum(terms) / len(terms)


def value(name, *inputs, beta=BETA):
    loss = getattr(solution(4), f"loss_{name}")(*inputs, beta)
    expect(isinstance(loss, torch.Tensor) and loss.shape == (), f"loss_{name} returned {type(loss).__name__}; "
           "it should be a tensor with one number.")  # fmt: skip
    return loss


@pytest.mark.parametrize("name", BUGS)
def test_equal_models_have_no_kl(name):
    """Where p_theta says what p0 says at every token, the KL term is nothing: beta must not matter."""
    policy, reference, ids, is_completion = example()
    policy[:, 1:, :V] = reference
    with_kl, without = (value(name, policy, reference, ids, is_completion, beta=beta).item() for beta in (1.0, 0.0))
    expect(abs(with_kl - without) < 1e-9, f"loss_{name}: with p_theta = p0 the KL should be 0 and is {with_kl - without:.3f}; "
           "which column of the logits belongs to which token once r_k stands in front?")  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_only_completions_count(name):
    """What the models say after y has ended, and how they predict x, changes nothing; how they predict y_1 does."""
    policy, reference, ids, is_completion = example()
    before = value(name, policy, reference, ids, is_completion).item()
    after_end = policy.clone()
    after_end[0, LENGTH[0] :, 0] += 5
    expect(abs(value(name, after_end, reference, ids, is_completion).item() - before) < 1e-9,
           f"loss_{name} changes when the logits behind the last token of y change; which positions does the mean run over?")  # fmt: skip
    in_prompt = policy.clone()
    in_prompt[:, : min(PROMPT), 0] += 5
    expect(abs(value(name, in_prompt, reference, ids, is_completion).item() - before) < 1e-9,
           f"loss_{name} changes when the logits inside the prompt change; which positions does the mean run over?")  # fmt: skip
    first = policy.clone()
    for b in range(B):
        first[b, PROMPT[b], 0] += 5
    expect(abs(value(name, first, reference, ids, is_completion).item() - before) > 1e-3,
           f"loss_{name} does not see how y_1 is predicted: the first token of every completion is left out.")  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_value(name):
    """The value of both terms."""
    policy, reference, ids, is_completion = example()
    for beta, what in ((0.0, "without the KL (beta = 0)"), (BETA, "with the KL (beta = 0.3)")):
        got, right = value(name, policy, reference, ids, is_completion, beta=beta).item(), slow_loss(policy, reference, ids, beta).item()
        expect(abs(got - right) < 1e-9, f"loss_{name} {what} is {got:.4f}, and plain loops over the tokens of y give {right:.4f}; "
               "compare with the formula at the top of the file.")  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_gradient(name):
    """The right value can have a wrong gradient, and only the gradient trains."""
    policy, reference, ids, is_completion = example()
    policy.requires_grad_()
    loss = value(name, policy, reference, ids, is_completion)
    expect(loss.requires_grad, f"loss_{name} has no gradient at all.")
    got = torch.autograd.grad(loss, policy)[0]
    right = torch.autograd.grad(slow_loss(policy, reference, ids, BETA), policy)[0]
    lm_only = torch.autograd.grad(slow_loss(policy, reference, ids, 0.0), policy)[0]
    expect(not torch.allclose(got, lm_only), f"loss_{name} has the right value, but its gradient does not change with beta: "
           "nothing is learned from the KL.")  # fmt: skip
    expect(torch.allclose(got, right), f"loss_{name} has the right value and a wrong gradient, off by up to {(got - right).abs().max():.3f}.")


@pytest.mark.parametrize("name", BUGS)
def test_diagnosis(name):
    """What it was, in one word."""
    said = solution(4).DIAGNOSIS
    expect(isinstance(said, dict) and isinstance(said.get(name), str), f'DIAGNOSIS["{name}"] is empty; '
           'name the bug you repaired, in one of the seven words.')  # fmt: skip
    expect(said[name].strip().lower() == BUGS[name], f'loss_{name} is repaired, but its bug was not "{said[name]}"; '
           'compare your line with the starter\'s.')  # fmt: skip
