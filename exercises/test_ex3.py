"""Exercise 3: both directions of the KL against PyTorch, their gradients against autograd, and the two shapes they fit."""

import numpy as np
import torch

from exercises.adapter import solution
from exercises.helpers import array, expect

B, T, V = 2, 3, 7
X = np.linspace(-12, 12, 161)
LEFT, RIGHT, WEIGHT, WIDTH = -3.0, 3.0, 0.65, 0.7  # p0: a hill of 65 % on the left, one of 35 % on the right


def logits(seed):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(B, T, V)), 2 * rng.normal(size=(B, T, V))


def two_hills():
    p = WEIGHT * np.exp(-((X - LEFT) ** 2) / (2 * WIDTH**2)) + (1 - WEIGHT) * np.exp(-((X - RIGHT) ** 2) / (2 * WIDTH**2))
    return np.log(p)


def by_autograd(direction, z0, z):
    """Value (B, T) and gradient (B, T, V), by PyTorch."""
    z0, z = torch.tensor(z0), torch.tensor(z, requires_grad=True)
    p0, p = torch.distributions.Categorical(logits=z0), torch.distributions.Categorical(logits=z)
    kl = torch.distributions.kl_divergence(p0, p) if direction == "forward" else torch.distributions.kl_divergence(p, p0)
    return kl.detach().numpy(), torch.autograd.grad(kl.sum(), z)[0].numpy()


def check_value(direction):
    work, name = solution(3), f"{direction}_kl"
    z0, z = logits(1)
    got = array(getattr(work, name)(z0, z), (B, T), name)
    value, other = (by_autograd(d, z0, z)[0] for d in (direction, "reverse" if direction == "forward" else "forward"))
    expect(not np.allclose(got, other), f"{name} computes the other direction; forward is KL(p0 || p), whose sum is weighted by p0, "
           "reverse is KL(p || p0).")  # fmt: skip
    expect(not np.allclose(got, -value), f"{name} is negative: the sign is wrong, or the fraction in the logarithm is upside down.")
    expect(np.allclose(got, value),
           f"{name} is {got[0, 0]:.4f} at the first position, not {value[0, 0]:.4f}; it is a sum over the vocabulary of probability times "
           "the difference of two log-probabilities.")  # fmt: skip
    far = np.array([[[0.0, -2000.0, 5.0]]])
    array(getattr(work, name)(np.zeros((1, 1, 3)), far), (1, 1), f"{name} with a logit of -2000")


def check_gradient(direction):
    work, name = solution(3), f"{direction}_kl_gradient"
    z0, z = logits(2)
    got = array(getattr(work, name)(z0, z), (B, T, V), name)
    expected = by_autograd(direction, z0, z)[1]
    expect(not np.allclose(got, -expected), f"{name} has the wrong sign: descent would go uphill.")
    sums = got.sum(-1)
    expect(np.allclose(sums, 0), f"{name} sums to {sums[0, 0]:.4f} over the vocabulary, not 0; adding a constant to all logits changes nothing, so "
           "no gradient may point that way: is a term missing?")  # fmt: skip
    expect(np.allclose(got, expected), f"{name} is {got[0, 0].round(3).tolist()} at the first position, "
           f"autograd says {expected[0, 0].round(3).tolist()}.")  # fmt: skip


def test_forward_kl():
    check_value("forward")


def test_reverse_kl():
    check_value("reverse")


def test_forward_gradient():
    check_gradient("forward")


def test_reverse_gradient():
    check_gradient("reverse")


def fitted(direction, mu):
    got = array(solution(3).fit(two_hills(), X, direction, mu, np.log(2.0)), (2,), "fit")
    return got[0], np.exp(got[1])


def test_forward_covers():
    """Mass-covering: mean and spread of p0 itself, -0.90 and 2.95, wherever it starts. Two fifths of its mass lie between the hills."""
    p = np.exp(two_hills()) / np.exp(two_hills()).sum()
    mean = (p * X).sum()
    spread = np.sqrt((p * (X - mean) ** 2).sum())
    for start in (-1.0, 1.5):
        mu, sigma = fitted("forward", start)
        expect(abs(mu - mean) < 0.05, f'fit("forward") from mu = {start} ends at mu = {mu:.2f}; '
               f'forward KL covers both hills and ends at the mean of p0, {mean:.2f}.')  # fmt: skip
        expect(abs(sigma - spread) < 0.15, f'fit("forward") from mu = {start} ends with a width of {sigma:.2f}; '
               f'forward KL covers both hills, about {spread:.2f} wide.')  # fmt: skip


def test_reverse_seeks():
    """Mode-seeking: one hill, 0.7 wide; which one depends on the start."""
    for start, hill in ((-1.0, LEFT), (1.5, RIGHT)):
        mu, sigma = fitted("reverse", start)
        expect(abs(mu - hill) < 0.1, f'fit("reverse") from mu = {start} ends at mu = {mu:.2f}; reverse KL settles on the nearer hill, at {hill}.')
        expect(abs(sigma - WIDTH) < 0.05, f'fit("reverse") from mu = {start} ends with a width of {sigma:.2f}; '
               f'the hill it settles on is {WIDTH} wide.')  # fmt: skip
