"""Statistics of certification: exact binomial bounds, radii, curves and intervals. numpy and scipy only.

Everything here is a pure function of counts, so each table can be recomputed from stored evidence, for another alpha
or another formula, without torch. Main source: Cohen, Rosenfeld, Kolter 2019 (arXiv 1902.02918).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Certificate, Evidence
from drbench.sequential import share_above

VERSIONS = {"gaussian": 1}  # raised when a certifier's numbers may change; part of every record

# ---- exact binomial bounds ----------------------------------------------------------------------------------------


def cp_lower(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson lower limit of a binomial proportion, level 1 - alpha.

    P(limit > p) <= alpha for every true p. Equals `scipy.stats.beta.ppf(alpha, k, n - k + 1)`; 0 for k = 0.
    """
    _check_counts(k, n, alpha)
    return 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, alpha))


def cp_upper(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson upper limit, level 1 - alpha; 1 for k = n."""
    _check_counts(k, n, alpha)
    return 1.0 if k == n else float(special.betainccinv(k + 1, n - k, alpha))


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
    low = optimize.brentq(excess, -1, middle - beside) if excess(-1) > 0 else -1.0
    high = optimize.brentq(excess, middle + beside, 1) if excess(1) > 0 else 1.0
    return float(low), float(high)


# ---- radii --------------------------------------------------------------------------------------------------------


def gaussian_radius(k: int, n: int, alpha: float, sigma: float) -> float:
    """sigma * Phi^-1(p_lower), at least 0 (Cohen et al. 2019, Theorem 1 with p_B = 1 - p_A).

    Computed from the upper tail 1 - p_lower, which keeps full precision when p_lower is close to 1.
    """
    q_upper = cp_upper(n - k, n, alpha)
    return max(0.0, sigma * float(-special.ndtri(q_upper)))


def multiclass_radius(k: int, rival: int, n: int, alpha: float, sigma: float) -> float:
    """(sigma / 2) (Phi^-1(pA_lower) - Phi^-1(pB_upper)), both bounds at alpha / 2 (Cohen et al. 2019, Theorem 1).

    `rival` is the largest count of any other class. Two bounds suffice for any number of classes: the true runner-up
    is one fixed class, and the bound from the largest rival count dominates its own (Voracek 2024, App. B).
    """
    q_a = cp_upper(n - k, n, alpha / 2)  # 1 - pA_lower
    p_b = min(q_a, cp_upper(rival, n, alpha / 2))
    return max(0.0, sigma / 2 * float(-special.ndtri(q_a) - special.ndtri(p_b)))


def ceiling_radius(n: int, alpha: float, sigma: float) -> float:
    """The largest radius that n unanimous votes can certify: sigma * Phi^-1(alpha^(1/n))."""
    return gaussian_radius(n, n, alpha, sigma)


def smallest_votes(n: int, alpha: float, radius_over_sigma: float = 0.0) -> int | None:
    """Fewest votes of n that certify a radius > 0 (or >= `radius_over_sigma` > 0); None if no number does."""

    def certifies(k: int) -> bool:
        radius = gaussian_radius(k, n, alpha, 1.0)
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


# ---- decisions: evidence -> certificate ---------------------------------------------------------------------------


def decide(kind: str, evidence: Evidence, alpha: float) -> Certificate:
    """Turn stored evidence into a certificate. Pure: the same evidence gives the same answer for ever.

    Guarantee: with probability >= 1 - alpha over the draws, the certificate abstains or is true.
    """
    if kind != "gaussian":
        raise DrbenchError(f"unknown certifier {kind!r}; available: {', '.join(VERSIONS)}")
    return decide_gaussian(evidence, alpha)


# Mode of drawing -> the share of alpha that is spent on looking at the votes before the budget ends.
MODES = {"fixed": 0.0, "curtailed": 0.0, "sequential": 1.0, "hybrid": 0.1}


def decide_gaussian(evidence: Evidence, alpha: float, *, mode: str = "fixed", budget: int | None = None) -> Certificate:
    """Cohen's CERTIFY: class from the selection votes (ties: lowest class), bound from the estimation votes.

    Abstains unless p_lower > 1/2. `detail` holds p_lower and, in mode `fixed`, the multi-class radius of the same class
    (certified at alpha by itself: a further column, not a second claim to be combined with the first).

    Parameters
    ----------
    mode : {"fixed", "curtailed", "sequential", "hybrid"}
        How many draws were made: a fixed number; of a fixed number those that could still change the outcome (the rest
        count as votes against the class); or as many as it took, at most `budget`. "sequential" bounds the share at
        any time (`drbench.sequential`), "hybrid" too, with a tenth of alpha, and with the rest by Clopper-Pearson where
        the whole budget was drawn; the better of the two holds by a union bound.
    budget : int, optional
        Most draws of an image; needed in every mode but "fixed".
    """
    if len(evidence.stages) != 1:
        raise DrbenchError(f"certifier 'gaussian' expects evidence of one stage, got {len(evidence.stages)}")
    (stage,) = evidence.stages
    top = top_class(stage.select)
    k = stage.votes.get(top, 0)
    p_lower, q_upper = vote_share(mode, k, stage.n, stage.n if mode == "fixed" else budget, alpha)
    radius = max(0.0, stage.sigma * float(-special.ndtri(q_upper)))
    detail = {"class": top, "p_lower": p_lower}
    if mode == "fixed":
        rival = max((count for c, count in stage.votes.items() if c != top), default=0)
        detail["radius_multiclass"] = multiclass_radius(k, rival, stage.n, alpha, stage.sigma)
    return Certificate(top if radius > 0 else ABSTAIN, radius, detail)


def vote_share(mode: str, k: int, n: int, budget: int | None, alpha: float) -> tuple[float, float]:
    """Lower limit of a share after k votes in n draws, level 1 - alpha, and 1 minus it without loss of digits."""
    if mode not in MODES:
        raise DrbenchError(f"unknown mode {mode!r}; available: {', '.join(MODES)}")
    if budget is None or not 0 <= k <= n <= budget:
        raise DrbenchError(f"mode {mode}: expected k <= n <= budget, got k={k}, n={n}, budget={budget}")
    if mode in ("fixed", "curtailed"):
        return cp_lower(k, budget, alpha), cp_upper(budget - k, budget, alpha)
    limits = [share_above(k, n, MODES[mode] * alpha)]
    if mode == "hybrid" and n == budget:
        limits.append(cp_lower(k, n, (1 - MODES[mode]) * alpha))
    return max(limits), 1 - max(limits)


def top_class(counts: Mapping[int, int]) -> int:
    """Class with the most votes; ties go to the lowest class."""
    return min(counts, key=lambda c: (-counts[c], c))


def predict(votes: Mapping[int, int], alpha: float) -> int:
    """Cohen's PREDICT: the most voted class, or `ABSTAIN` unless the two-sided sign test of the top two has p <= alpha.

    If a class is returned, it is the smoothed classifier's with probability >= 1 - alpha (Hung and Fithian 2019).
    """
    first, second = sorted([*votes.values(), 0, 0], reverse=True)[:2]
    return top_class(votes) if sign_test(first, first + second) <= alpha else ABSTAIN


def sign_test(k: int, n: int) -> float:
    """Two-sided p-value of k successes in n fair coin tosses: min(1, 2 P(Bin(n, 1/2) >= max(k, n - k)))."""
    if n == 0:
        return 1.0
    return min(1.0, 2 * float(special.betainc(max(k, n - k), n - max(k, n - k) + 1, 0.5)))


# ---- quantities over a data set -----------------------------------------------------------------------------------


class Curve(NamedTuple):
    """Certified accuracy at each of `radii`, with two-sided intervals over the images; all of shape (R,)."""

    radii: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray


def certified_accuracy(correct: Sequence[bool], radius: Sequence[float], radii: Sequence[float]) -> Curve:
    """Share of images that are certified correct at each radius, with 95 % Clopper-Pearson intervals.

    An image counts at r iff it is correct (an abstention is not) and its certified radius is >= r; also at r = 0.
    """
    reach = np.sort(np.asarray(radius, float)[np.asarray(correct, bool)])
    images, radii = len(correct), np.asarray(radii, float)
    hits = len(reach) - np.searchsorted(reach, radii, side="left")
    limits = np.array([interval(int(k), images) for k in hits]).reshape(-1, 2)
    return Curve(radii, hits / images, limits[:, 0], limits[:, 1])


def average_certified_radius(correct: Sequence[bool], radius: Sequence[float]) -> float:
    """ACR: mean of correct * radius = area under the certified-accuracy curve (Zhai et al. 2020).

    Depends on n and alpha through the ceiling radius, and is dominated by easy images (Sun et al. 2024): compare it
    only between rows of the same protocol.
    """
    return float(np.mean(np.where(np.asarray(correct, bool), np.asarray(radius, float), 0.0)))


def bootstrap_mean(values: Sequence[float], confidence: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over images; a fixed seed, so a table never changes by itself."""
    values = np.asarray(values, float)
    rng = np.random.Generator(np.random.Philox(key=0))
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
