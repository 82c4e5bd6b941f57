"""Quantities over the images of a run that stand beside its curve: what noise, luck and easy images contribute.

Pure functions. numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

RHO = 0.001  # failure probability of a statement about all certificates of a run at once
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def false_certificates(images: int, alpha: float, rho: float = RHO) -> int:
    """Most false certificates among `images`, with probability >= 1 - rho over the draws.

    Each certificate fails with probability at most alpha, independently of the others: their number is stochastically
    at most Bin(images, alpha), whose (1 - rho) quantile this is. Exact, where Cohen et al. 2019 (released code) have a
    Bernstein bound.
    """
    return next(count for count in range(images + 1) if special.bdtr(count, images, alpha) >= 1 - rho)


def easiest_share(correct: Sequence[bool], radius: Sequence[float], part: float = 0.1) -> float:
    """Share of the average certified radius that the easiest `part` of all images makes up; NaN if it is 0.

    At least `part`; all of it if only so few images are certified (Sun et al. 2024, arXiv 2410.06895: ACR is
    dominated by easy images).
    """
    held = np.sort(np.where(np.asarray(correct, bool), np.asarray(radius, float), 0.0))[::-1]
    total = held.sum()
    return float(held[: int(np.ceil(part * len(held)))].sum() / total) if total else float("nan")


def constant_acr(labels: Sequence[int], ceiling: float) -> float:
    """ACR of the constant answer to the most frequent label, under the same protocol: its share times the ceiling.

    It grows without limit with sigma, although the classifier is useless (Sun et al. 2024, Section 3).
    """
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    return float(counts.max() / len(labels) * ceiling)


def ecdf(values: Sequence[float], at: Sequence[float]) -> np.ndarray:
    """Empirical distribution function: share of the values that are at most each of `at`."""
    return np.searchsorted(np.sort(np.asarray(values, float)), np.asarray(at, float), side="right") / len(values)
