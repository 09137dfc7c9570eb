"""The closed form of Eq. 2: the numbers and gradients of learn.quark_loss."""

import pytest
import torch

import plumbing.closed_form
from learn import quark_loss
from plumbing.closed_form import ClosedForm

v, M, d = 13, 9, 5  # tokens, completion tokens and the width of the policy; p0's width is d + 1


def hidden_example():
    """The policy's hidden states and output layer, p0's, and the M targets."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(v, (M,), generator=generator)
    return draw(M, d), draw(v, d), draw(M, d + 1), draw(v, d + 1), targets


# Chunks that do and do not divide M = 9, and blocks of `few` positions within a chunk.
CHUNKS = [(1, 9), (4, 9), (4, 3), (9, 2), (1024, 1), (1024, 4)]
VARIANTS = [("forward", 0.0), ("forward", 0.06), ("reverse", 0.0), ("reverse", 0.06)]


@pytest.mark.parametrize("chunk, few", CHUNKS)
@pytest.mark.parametrize("kl, entropy_coef", VARIANTS)
def test_closed_form_is_the_open_form(monkeypatch, kl, entropy_coef, chunk, few):
    """The sums and both gradients are those of autograd through quark_loss, in float64.

    The factor 2.5 in front of the loss arrives at the gradients.
    """
    hidden, weight, ref_hidden, ref_weight, targets = hidden_example()
    monkeypatch.setattr(plumbing.closed_form, "IN_CACHE", few * v)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()

    def ref_output(states):
        return states @ ref_weight.T

    sums = ClosedForm.apply(
        h, w, ref_hidden, ref_output, targets, 0.3, kl, entropy_coef, False, chunk
    )
    (2.5 * sums[0]).backward()

    hidden.requires_grad_()
    weight.requires_grad_()
    loss, parts = quark_loss(
        (hidden @ weight.T)[None],
        ref_output(ref_hidden)[None],
        targets[None],
        torch.ones(1, M),
        0.3,
        kl,
        entropy_coef,
    )
    (2.5 * M * loss).backward()
    means = [x.item() for x in (loss, parts["lm"], parts["kl"], parts["entropy"])]
    assert (sums / M).tolist() == pytest.approx(means, rel=1e-12)
    assert torch.allclose(h.grad, hidden.grad, rtol=1e-10, atol=1e-12)
    assert torch.allclose(w.grad, weight.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_closed_form_by_finite_differences(kl):
    """PyTorch's own check of a gradient that was written by hand."""
    hidden, weight, ref_hidden, ref_weight, targets = hidden_example()

    def ref_output(states):
        return states @ ref_weight.T

    def loss(h, w):
        return ClosedForm.apply(h, w, ref_hidden, ref_output, targets, 0.3, kl, 0.06, False, 4)[0]

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), weight.requires_grad_()))


def test_bfloat16_rounds_the_products_alone():
    """The sums are the same. The gradients are in float32, to the three digits of bfloat16."""
    hidden, weight, ref_hidden, ref_weight, targets = (
        t.float() if t.is_floating_point() else t for t in hidden_example()
    )

    def sums_and_gradients(bf16):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        states = (h, w, ref_hidden, lambda x: x @ ref_weight.T, targets)
        sums = ClosedForm.apply(*states, 0.3, "forward", 0.06, bf16, 4)
        sums[0].backward()
        return sums, h.grad, w.grad

    exact, rough = sums_and_gradients(False), sums_and_gradients(True)
    assert torch.equal(exact[0], rough[0])
    for a, b in zip(exact[1:], rough[1:]):
        assert b.dtype == torch.float32
        assert 0 < (a - b).abs().max() < 0.02 * a.abs().max()
