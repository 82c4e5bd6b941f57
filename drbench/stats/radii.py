"""Certified radii of votes under noise, and what a number of draws can certify at most.

Source: Cohen, Rosenfeld, Kolter 2019 (arXiv 1902.02918).
"""

from __future__ import annotations

import math

from scipy import special

from drbench.errors import DrbenchError
from drbench.stats import noises
from drbench.stats.binomial import cp_upper, remembered


def gaussian_radius(k: int, n: int, alpha: float, sigma: float) -> float:
    """sigma * Phi^-1(p_lower), at least 0 (Cohen et al. 2019, Theorem 1 with p_B = 1 - p_A).

    Computed from the upper tail 1 - p_lower, which keeps full precision when p_lower is close to 1.
    """
    q_upper = cp_upper(n - k, n, alpha)
    return max(0.0, sigma * float(-special.ndtri(q_upper)))


@remembered
def multiclass_radius(k: int, rival: int, n: int, alpha: float, sigma: float) -> float:
    """(sigma / 2) (Phi^-1(pA_lower) - Phi^-1(pB_upper)), both bounds at alpha / 2 (Cohen et al. 2019, Theorem 1).

    `rival` is the largest count of any other class. Two bounds suffice for any number of classes: the true runner-up
    is one fixed class, and the bound from the largest rival count dominates its own (Voracek 2024, App. B).
    """
    q_a = cp_upper(n - k, n, alpha / 2)  # 1 - pA_lower
    p_b = min(q_a, cp_upper(rival, n, alpha / 2))
    return max(0.0, sigma / 2 * float(-special.ndtri(q_a) - special.ndtri(p_b)))


def ceiling_radius(n: int, alpha: float, sigma: float, noise: str = "gaussian") -> float:
    """The largest radius that n unanimous votes can certify: sigma * Phi^-1(alpha^(1/n)) for Gaussian noise."""
    return noises.radius(cp_upper(0, n, alpha), sigma, noise)


def smallest_votes(n: int, alpha: float, radius_over_sigma: float = 0.0, noise: str = "gaussian") -> int | None:
    """Fewest votes of n that certify a radius > 0 (or >= `radius_over_sigma` > 0); None if no number does."""

    def certifies(k: int) -> bool:
        radius = noises.radius(cp_upper(n - k, n, alpha), 1.0, noise)
        return radius > 0 if radius_over_sigma == 0 else radius >= radius_over_sigma

    if not certifies(n):
        return None
    low, high = 0, n  # certifies(low) is false, certifies(high) is true
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if certifies(middle) else (middle, high)
    return high


def check_budget(n: int, alpha: float) -> None:
    """Raise `DrbenchError` if even n unanimous votes abstain."""
    if smallest_votes(n, alpha) is None:
        needed = math.floor(math.log(alpha) / math.log(0.5)) + 1
        raise DrbenchError(
            f"n={n} draws can certify nothing at alpha={alpha:g}: even a unanimous vote abstains; "
            f"expected n >= {needed} (and thousands for a useful radius)"
        )
