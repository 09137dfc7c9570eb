"""Exercise 7: DExperts and GeDi, two ways to steer p0 by two other models."""

import numpy as np

from exercises.adapter import solution
from exercises.helpers import array, expect

P0 = np.log([0.2, 0.4, 0.02, 0.3, 0.08])
PLUS = np.log([0.2, 0.1, 0.4, 0.2, 0.1])
MINUS = np.log([0.1, 0.4, 0.1, 0.2, 0.2])
READ = np.array([-1.0, -2.5, -0.5]), np.array([-1.5, -2.0, -2.0])  # good by 1.5 nats
P_GOOD = np.array([0.5, 0.2, 0.4, 0.9, 0.7])


def written_by(function, arguments, what):
    """The five probabilities that a student's function returns."""
    p = array(getattr(solution(7), function)(*arguments), (5,), what)
    expect(
        np.isclose(p.sum(), 1) and (p >= 0).all(),
        f"{what} returned numbers that sum to {p.sum():.3f}; return probabilities.",
    )
    return p


def test_dexperts_mixes():
    """Of all tokens: p0 (p_plus / p_minus)^alpha; alpha 0 is p0, a negative one steers back."""
    for alpha in (0.0, 1.0, 2.5, -1.0):
        p = written_by("dexperts", (P0, PLUS, MINUS, alpha, 1.0), f"dexperts(alpha={alpha})")
        weights = np.exp(P0) * np.exp(PLUS - MINUS) ** alpha
        right = weights / weights.sum()
        expect(
            np.allclose(p, right),
            f"dexperts(alpha={alpha}, top_p=1) gives {p.round(3).tolist()}, not "
            f"{right.round(3).tolist()}; it is p0 times (p_plus / p_minus)^alpha.",
        )


def test_the_nucleus_comes_first():
    """p0's .4 .3 .2 hold .85; token 2, which the expert loves, is not among them."""
    p = written_by("dexperts", (P0, PLUS, MINUS, 2.0, 0.85), "dexperts(top_p=0.85)")
    inside = np.flatnonzero(p > 0).tolist()
    expect(
        inside == [0, 1, 3],
        f"dexperts(top_p=0.85) writes tokens {inside}; the nucleus of p0 is [0, 1, 3], and it is "
        "cut from p0 before the mixing.",
    )


def test_posterior():
    """Bayes' rule with the mean over the four tokens: sigmoid(scale (1.5 + next) / 4)."""
    for scale in (1.0, 8.0):
        what = f"posterior(scale={scale})"
        p = array(solution(7).posterior(*READ, PLUS, MINUS, scale), (5,), what)
        expect(
            ((p > 0) & (p < 1)).all(), f"{what} returned {p.round(3).tolist()}; return P(good | v)."
        )
        odds = np.log(p / (1 - p)) / scale
        expect(
            not np.allclose(odds, PLUS - MINUS),
            f"{what} looks at the next token only; the tokens that were read count as well.",
        )
        expect(
            not np.allclose(odds, 1.5 + PLUS - MINUS),
            f"{what} sums over the tokens; GeDi takes the mean over the 4 of them, or the class "
            "of a long text would be certain.",
        )
        expect(
            np.allclose(odds, (1.5 + PLUS - MINUS) / 4),
            f"{what} has the log odds {(odds * scale).round(3).tolist()}, not "
            f"{(scale * (1.5 + PLUS - MINUS) / 4).round(3).tolist()}.",
        )


def test_gedi_reweights():
    """With nothing to filter: p0 P(good | v)^omega."""
    for omega in (0.0, 1.0, 5.0):
        p = written_by("gedi", (P0, P_GOOD, omega, 0.0, 1.0), f"gedi(omega={omega}, filter_mass=0)")
        right = np.exp(P0) * P_GOOD**omega
        right /= right.sum()
        expect(
            np.allclose(p, right),
            f"gedi(omega={omega}, filter_mass=0) gives {p.round(3).tolist()}, not "
            f"{right.round(3).tolist()}; with filter_mass 0 no token goes.",
        )


def test_gedi_filters():
    """In ascending order of P .2 .4 .5 .7 .9 the masses so far are .4 .42 .62 .7 1 with omega 0.

    With omega 1, those of p0 P are .16 .17 .37 .47 1.
    """
    cases = [(0, 0.65, 0.8, [3, 4]), (0, 0.65, 0.45, [0, 3, 4]), (0, 0.8, 0.8, [3])]
    for omega, filter_mass, tau, stay in [*cases, (1, 0.39, 0.8, [3, 4])]:
        what = f"gedi(omega={omega}, filter_mass={filter_mass}, tau={tau})"
        p = written_by("gedi", (P0, P_GOOD, float(omega), filter_mass, tau), what)
        left = np.flatnonzero(p > 0).tolist()
        expect(
            left == stay,
            f"{what} leaves tokens {left}, not {stay}; from the lowest P(good | v) up, a token "
            "below tau goes while those so far, itself included, hold less than filter_mass of "
            "p0 P^omega.",
        )


def test_effective_alpha():
    """Against a difference quotient of omega log P by the log odds of the next token."""
    work = solution(7)
    for omega, scale, t in ((1.0, 1.0, 0), (30.0, 1.0, 3), (30.0, 4.0, 9)):
        for odds in (-2.0, 0.5, 3.0):

            def log_weight(x, omega=omega, scale=scale, t=t):
                return -omega * np.log1p(np.exp(-scale * x / (t + 1)))

            right = (log_weight(odds + 1e-5) - log_weight(odds - 1e-5)) / 2e-5
            p_good = 1 / (1 + np.exp(-scale * odds / (t + 1)))
            got = work.effective_alpha(p_good, omega, scale, t)
            what = f"effective_alpha({p_good:.2f}, omega={omega:g}, scale={scale:g}, t={t})"
            expect(got is not None, f"{what} returned None; is a return missing?")
            expect(
                np.isclose(got, right, rtol=1e-4),
                f"{what} is {got:.3f}, not {right:.3f}; differentiate omega log P, where "
                "P = sigmoid(scale (log odds) / (t + 1)).",
            )
