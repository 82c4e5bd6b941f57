"""Statistics of paired numbers: trainings x images, differences of two methods or the numbers of one. No torch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from drbench import stats

FLIPS, RESAMPLES = 9_999, 2_000
PART = 200  # flips at a time: they fit into the cache; a multiple of 4, so that no random bits are left over


def interval(numbers: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of (T, N) numbers over T trainings and N images.

    Of one training whose images differ by -1, 0 or 1: Tango's score interval (`stats.paired_interval`). Else a
    percentile bootstrap that draws images, and trainings where there are several; a fixed seed, so a table never
    changes by itself.
    """
    trainings, images = numbers.shape
    if trainings == 1 and np.isin(numbers, (-1.0, 0.0, 1.0)).all():
        return stats.paired_interval(int((numbers > 0).sum()), int((numbers < 0).sum()), images)
    of_trainings, of_images = _weights(trainings, images)
    low, high = np.quantile((of_trainings * (of_images @ numbers.T)).sum(axis=1), (0.025, 0.975))
    return float(low), float(high)


@lru_cache(maxsize=8)
def _weights(trainings: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each resample draws each training and each image, as shares: (RESAMPLES, T) and (RESAMPLES, N)."""
    rng = np.random.Generator(np.random.Philox(key=0))
    return _shares(rng, trainings), _shares(rng, images)


def _shares(rng: np.random.Generator, many: int) -> np.ndarray:
    drawn = rng.integers(0, many, (RESAMPLES, many)) + many * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * many).reshape(RESAMPLES, many) / many


def exchanged(gaps: np.ndarray) -> float:
    """Two-sided p-value of the mean of N differences A - B if A and B of each image might as well be exchanged.

    Where all differences are of one size, this is the exact sign test; else `FLIPS` random sign flips, counting the
    observed one (Fisher's randomization test).
    """
    differ = gaps[gaps != 0]
    if len(set(np.abs(differ))) <= 1:
        return stats.sign_test(int((differ > 0).sum()), len(differ))
    rng = np.random.Generator(np.random.Philox(key=0))
    parts = (min(PART, FLIPS - start) for start in range(0, FLIPS, PART))
    kept = np.concatenate([rng.integers(0, 2, (part, len(differ)), dtype=np.int8) @ differ for part in parts])
    sums = 2 * kept - differ.sum()
    return float((1 + (np.abs(sums) >= abs(differ.sum()) - 1e-9).sum()) / (1 + FLIPS))
