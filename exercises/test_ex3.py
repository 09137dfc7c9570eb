"""Exercise 3: both KLs against PyTorch, their gradients against autograd, and what each fits."""

import numpy as np
import torch

from exercises.adapter import solution
from exercises.helpers import array, expect

B, T, V = 2, 3, 7
X = np.linspace(-12, 12, 161)
# p0 has two hills: 65 % of its mass on the left, 35 % on the right.
LEFT, RIGHT, WEIGHT, WIDTH = -3.0, 3.0, 0.65, 0.7


def logits(seed):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(B, T, V)), 2 * rng.normal(size=(B, T, V))


def two_hills():
    left = np.exp(-((X - LEFT) ** 2) / (2 * WIDTH**2))
    right = np.exp(-((X - RIGHT) ** 2) / (2 * WIDTH**2))
    return np.log(WEIGHT * left + (1 - WEIGHT) * right)


def by_autograd(direction, z0, z):
    """Value (B, T) and gradient (B, T, V), by PyTorch."""
    z = torch.tensor(z, requires_grad=True)
    p0 = torch.distributions.Categorical(logits=torch.tensor(z0))
    p = torch.distributions.Categorical(logits=z)
    pair = (p0, p) if direction == "forward" else (p, p0)
    kl = torch.distributions.kl_divergence(*pair)
    return kl.detach().numpy(), torch.autograd.grad(kl.sum(), z)[0].numpy()


def check_value(direction):
    work, name = solution(3), f"{direction}_kl"
    z0, z = logits(1)
    got = array(getattr(work, name)(z0, z), (B, T), name)
    value, _ = by_autograd(direction, z0, z)
    other, _ = by_autograd("reverse" if direction == "forward" else "forward", z0, z)
    expect(
        not np.allclose(got, other),
        f"{name} computes the other direction; forward is KL(p0 || p), whose sum is weighted by "
        "p0, reverse is KL(p || p0).",
    )
    expect(
        not np.allclose(got, -value),
        f"{name} is negative: the sign is wrong, or the fraction in the logarithm is upside down.",
    )
    expect(
        np.allclose(got, value),
        f"{name} is {got[0, 0]:.4f} at the first position, not {value[0, 0]:.4f}; it is a sum over "
        "the vocabulary of probability times the difference of two log-probabilities.",
    )
    far = np.array([[[0.0, -2000.0, 5.0]]])
    array(getattr(work, name)(np.zeros((1, 1, 3)), far), (1, 1), f"{name} with a logit of -2000")


def check_gradient(direction):
    work, name = solution(3), f"{direction}_kl_gradient"
    z0, z = logits(2)
    got = array(getattr(work, name)(z0, z), (B, T, V), name)
    _, expected = by_autograd(direction, z0, z)
    expect(not np.allclose(got, -expected), f"{name} has the wrong sign: descent would go uphill.")
    sums = got.sum(-1)
    expect(
        np.allclose(sums, 0),
        f"{name} sums to {sums[0, 0]:.4f} over the vocabulary, not 0; adding a constant to all "
        "logits changes nothing, so no gradient may point that way: is a term missing?",
    )
    expect(
        np.allclose(got, expected),
        f"{name} is {got[0, 0].round(3).tolist()} at the first position, "
        f"autograd says {expected[0, 0].round(3).tolist()}.",
    )


def test_forward_kl():
    check_value("forward")


def test_reverse_kl():
    check_value("reverse")


def test_forward_gradient():
    check_gradient("forward")


def test_reverse_gradient():
    check_gradient("reverse")


def fitted(direction, mu):
    """mu and sigma of the student's fit."""
    got = array(solution(3).fit(two_hills(), X, direction, mu, np.log(2.0)), (2,), "fit")
    return got[0], np.exp(got[1])


def test_forward_covers():
    """Mass-covering: from any start, fit ends at the mean and the spread of p0, -0.90 and 2.95.

    Two fifths of its mass then lie between the hills.
    """
    p = np.exp(two_hills()) / np.exp(two_hills()).sum()
    mean = (p * X).sum()
    spread = np.sqrt((p * (X - mean) ** 2).sum())
    for start in (-1.0, 1.5):
        mu, sigma = fitted("forward", start)
        expect(
            abs(mu - mean) < 0.05,
            f'fit("forward") from mu = {start} ends at mu = {mu:.2f}; '
            f"forward KL covers both hills and ends at the mean of p0, {mean:.2f}.",
        )
        expect(
            abs(sigma - spread) < 0.15,
            f'fit("forward") from mu = {start} ends with a width of {sigma:.2f}; '
            f"forward KL covers both hills, about {spread:.2f} wide.",
        )


def test_reverse_seeks():
    """Mode-seeking: fit ends at one hill, 0.7 wide. Which one depends on the start."""
    for start, hill in ((-1.0, LEFT), (1.5, RIGHT)):
        mu, sigma = fitted("reverse", start)
        expect(
            abs(mu - hill) < 0.1,
            f'fit("reverse") from mu = {start} ends at mu = {mu:.2f}; '
            f"reverse KL settles on the nearer hill, at {hill}.",
        )
        expect(
            abs(sigma - WIDTH) < 0.05,
            f'fit("reverse") from mu = {start} ends with a width of {sigma:.2f}; '
            f"the hill it settles on is {WIDTH} wide.",
        )


def test_one_step():
    """One step of fit against autograd. A wrong factor in a derivative leads to the same end."""
    for direction in ("forward", "reverse"):
        start = {"mu": -1.0, "log_sigma": np.log(2.0)}
        mu, log_sigma = (torch.tensor(v, requires_grad=True) for v in start.values())
        z = -((torch.tensor(X) - mu) ** 2) / (2 * torch.exp(2 * log_sigma))
        p0 = torch.distributions.Categorical(logits=torch.tensor(two_hills()))
        pair = (p0, torch.distributions.Categorical(logits=z))
        kl = torch.distributions.kl_divergence(*(pair if direction == "forward" else pair[::-1]))
        slopes = torch.autograd.grad(kl, (mu, log_sigma))
        step = f'fit("{direction}", lr=0.1, steps=1)'
        ends = solution(3).fit(two_hills(), X, direction, *start.values(), lr=0.1, steps=1)
        ends = array(ends, (2,), step)
        for (name, value), end, slope in zip(start.items(), ends, slopes):
            expect(
                np.isclose(end - value, -0.1 * float(slope), rtol=1e-4),
                f"{step} moves {name} by {end - value:.4f}, not by {-0.1 * float(slope):.4f}; "
                f"sum the gradient with respect to z times d z / d {name}.",
            )
