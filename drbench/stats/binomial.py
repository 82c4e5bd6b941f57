"""Exact limits and tests of binomial proportions. Pure functions of counts."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import special

from drbench.errors import DrbenchError
from drbench.stats.sequential import root

remembered = lru_cache(maxsize=1 << 16)  # tables ask for the limits of the same few counts again and again


@remembered
def cp_lower(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson lower limit of a binomial proportion, level 1 - alpha.

    P(limit > p) <= alpha for every true p. Equals `scipy.stats.beta.ppf(alpha, k, n - k + 1)`; 0 for k = 0.
    """
    _check_counts(k, n, alpha)
    return 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, alpha))


@remembered
def cp_upper(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson upper limit, level 1 - alpha; 1 for k = n."""
    _check_counts(k, n, alpha)
    return 1.0 if k == n else float(special.betainccinv(k + 1, n - k, alpha))


def randomized_upper(k: int, n: int, alpha: float, uniform: float) -> float:
    """Upper limit of a proportion, level exactly 1 - alpha (Stevens 1950; Voracek 2024, Definition 2.3).

    The p at which P(Bin(n, p) < k) + u P(Bin(n, p) = k) = alpha, with u = `uniform` drawn once from (0, 1),
    independently of the counts: between the Clopper-Pearson limits of k - 1 and of k. 0 if k = 0 and u <= alpha.
    """
    _check_counts(k, n, alpha)
    if not 0 <= uniform <= 1:
        raise DrbenchError(f"expected a uniform number in [0, 1] for a randomized limit, got {uniform}")
    if k == 0:
        return float(-np.expm1(math.log(alpha / uniform) / n)) if uniform > alpha else 0.0

    def excess(p: float) -> float:
        below, up_to = special.bdtr(k - 1, n, p), special.bdtr(k, n, p) if k < n else 1.0
        return float((1 - uniform) * below + uniform * up_to) - alpha

    low, high = cp_upper(k - 1, n, alpha), cp_upper(k, n, alpha)
    if excess(high) >= 0:  # u = 1, or rounding
        return high
    return low if excess(low) <= 0 else root(excess, low, high, xtol=1e-300, rtol=1e-12)


def _check_counts(k: int, n: int, alpha: float) -> None:
    if not (0 <= k <= n and n > 0):
        raise DrbenchError(f"expected 0 <= k <= n successes of n > 0 draws, got k={k}, n={n}")
    if not 0 < alpha < 1:
        raise DrbenchError(f"expected a failure probability alpha in (0, 1), got {alpha}")


def interval(k: int, n: int, confidence: float = 0.95, method: str = "clopper-pearson") -> tuple[float, float]:
    """Two-sided interval of a proportion: k of n images.

    Parameters
    ----------
    method : {"clopper-pearson", "wilson"}
        Exact (never below the confidence), or Wilson 1927 (close to it on average).
    """
    alpha = 1 - confidence
    if method == "clopper-pearson":
        return cp_lower(k, n, alpha / 2), cp_upper(k, n, alpha / 2)
    if method != "wilson":
        raise DrbenchError(f"unknown interval method {method!r}; available: clopper-pearson, wilson")
    _check_counts(k, n, alpha)
    z = float(-special.ndtri(alpha / 2))
    centre, shrink = (k + z * z / 2) / (n + z * z), 1 / (1 + z * z / n)
    half = shrink * z * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of p_A - p_B for two methods on the same n images; not degenerate without differences.

    `only_a` images are right under A alone, `only_b` under B alone. A limit is a difference d whose score
    (only_a - only_b - n d) / sqrt(n (2 q + d (1 - d))) is +-z, where q is the maximum-likelihood estimate of
    P(B alone) given d (Tango 1998, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17).
    """
    if not (min(only_a, only_b) >= 0 and only_a + only_b <= n and n > 0):
        raise DrbenchError(f"expected counts of n > 0 images, got only_a={only_a}, only_b={only_b}, n={n}")
    z = float(-special.ndtri((1 - confidence) / 2))

    def excess(d: float) -> float:  # (score^2 - z^2) times the squared denominator
        b = -only_a - only_b + (2 * n - only_a + only_b) * d
        q = (math.sqrt(max(0.0, b * b + 8 * n * only_b * d * (1 - d))) - b) / (4 * n)
        return (only_a - only_b - n * d) ** 2 - z * z * n * (2 * q + d * (1 - d))

    middle, beside = (only_a - only_b) / n, 1e-9  # without any difference the excess vanishes at the middle too
    low = root(excess, -1, middle - beside) if excess(-1) > 0 else -1.0
    high = root(excess, middle + beside, 1) if excess(1) > 0 else 1.0
    return low, high


def sign_test(k: int, n: int) -> float:
    """Two-sided p-value of k successes in n fair coin tosses: min(1, 2 P(Bin(n, 1/2) >= max(k, n - k)))."""
    if n == 0:
        return 1.0
    return min(1.0, 2 * float(special.betainc(max(k, n - k), n - max(k, n - k) + 1, 0.5)))


def hypergeometric(n: int, right: int, total: int) -> np.ndarray:
    """Chances of 0, 1, ... n right ones among `n` that are picked from `total`, of which `right` are right; (n + 1,).

    C(right, k) C(total - right, n - k) / C(total, n), by logarithms.
    """
    k = np.arange(max(0, n - total + right), min(n, right) + 1)  # what is possible
    logs = -(special.gammaln(k + 1) + special.gammaln(right - k + 1))
    logs -= special.gammaln(n - k + 1) + special.gammaln(total - right - n + k + 1)
    found = np.zeros(n + 1)
    found[k] = np.exp(logs - logs.max())
    return found / found.sum()
