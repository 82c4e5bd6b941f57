"""Statistics of paired numbers: trainings x images, differences of two methods or the numbers of one. No torch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from drbench import stats

FLIPS, RESAMPLES = 9_999, 2_000


def interval(numbers: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of (T, N) numbers over T trainings and N images.

    Of one training whose images differ by -1, 0 or 1: Tango's score interval (`stats.paired_interval`). Else a
    percentile bootstrap that draws images, and trainings where there are several; a fixed seed, so a table never
    changes by itself.
    """
    trainings, images = numbers.shape
    if trainings == 1 and np.isin(numbers, (-1.0, 0.0, 1.0)).all():
        return stats.paired_interval(int((numbers > 0).sum()), int((numbers < 0).sum()), images)
    if trainings == 1:
        return stats.bootstrap_mean(numbers[0])
    of_trainings, of_images = _resampled(trainings, images)
    picked = np.take_along_axis(numbers[of_trainings].mean(axis=1), of_images, axis=1)
    low, high = np.quantile(picked.mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resampled(trainings: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=0))
    return rng.integers(0, trainings, (RESAMPLES, trainings)), rng.integers(0, images, (RESAMPLES, images))


def exchanged(gaps: np.ndarray) -> float:
    """Two-sided p-value of the mean of N differences A - B if A and B of each image might as well be exchanged.

    Where all differences are of one size, this is the exact sign test; else `FLIPS` random sign flips, counting the
    observed one (Fisher's randomization test).
    """
    differ = gaps[gaps != 0]
    if len(set(np.abs(differ))) <= 1:
        return stats.sign_test(int((differ > 0).sum()), len(differ))
    rng = np.random.Generator(np.random.Philox(key=0))
    sums = (2.0 * rng.integers(0, 2, (FLIPS, len(differ)), dtype=np.int8) - 1.0) @ differ
    return float((1 + (np.abs(sums) >= abs(differ.sum()) - 1e-9).sum()) / (1 + FLIPS))
