"""Quantities over a data set: curves, averages and their intervals over the images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from drbench.errors import DrbenchError
from drbench.stats.binomial import interval


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


@lru_cache(maxsize=4)
def _resampled(images: int, resamples: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=0))
    return rng.integers(0, images, (resamples, images))


def share_interval(values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Interval of the mean of numbers in [0, 1], one an image: Clopper-Pearson if all are 0 or 1, else Gaffke's.

    A Bayesian bootstrap with one more image at the far end, 0 for the lower limit and 1 for the upper one (Gaffke 2005;
    Learned-Miller and Thomas 2019, arXiv 1905.06208). Of zeros and ones that is Clopper-Pearson; elsewhere no case is
    known in which it misses too often, while the percentile bootstrap does with few images or a mean near an end. A
    fixed seed, so a table never changes by itself.
    """
    values = np.asarray(values, float)
    if not ((values >= 0) & (values <= 1)).all():
        raise DrbenchError(f"expected numbers in [0, 1], got {values.min():g} to {values.max():g}")
    if np.isin(values, (0.0, 1.0)).all():
        return interval(int(values.sum()), len(values), confidence)
    of_images, of_end = _weighed(len(values), resamples)
    inside, tail = of_images @ values, (1 - confidence) / 2
    low, high = np.quantile(inside, tail), np.quantile(inside + of_end, 1 - tail)
    return round(float(low), 6), round(float(high), 6)  # the last bits of a matrix product depend on the machine


@lru_cache(maxsize=4)
def _weighed(images: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the images, (resamples, images), and of one more; each row is uniform on the simplex."""
    weights = np.random.Generator(np.random.Philox(key=0)).standard_exponential((resamples, images + 1))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights[:, :-1], weights[:, -1]


def bootstrap_mean(values: Sequence[float], confidence: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over images; a fixed seed, so a table never changes by itself."""
    values = np.asarray(values, float)
    means = values.take(_resampled(len(values), resamples)).mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
