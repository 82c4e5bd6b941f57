"""Robust accuracy from the answers of attack runs: numpy and scipy only, so that tables need no torch.

A_ij = 1 if evaluation j of image i was wrong, n_i = sum over the N evaluations. Sources: Liu et al. 2024 (arXiv
2404.14309) and DiffHammer (NeurIPS 2024) for why one number is not enough for a randomised defense.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import Answers

VERSION = 1  # raised when the numbers of attack runs may change; part of every record


class Estimate(NamedTuple):
    """A share of images in [0, 1] with its 95 % interval over the images."""

    value: float
    low: float
    high: float


class Robustness(NamedTuple):
    """Four answers to "how robust"; each also has a value on clean images, which it must be compared with.

    average : one evaluation, in expectation.
    majority : of all N evaluations; a tie is wrong.
    worst : of M evaluations, for an attacker who may try M times.
    one_shot : the first evaluation alone, as most papers count.
    """

    average: Estimate
    majority: Estimate
    worst: Estimate
    one_shot: Estimate


def robustness(answers: Sequence[Answers], labels: Sequence[int], worst_of: int = 10) -> Robustness:
    """Robust accuracies from N answers to each of S images, `ABSTAIN` among them as wrong.

    Parameters
    ----------
    answers, labels
        S of each.
    worst_of : int
        M; N = 1 (a deterministic defense) stands for any number of equal answers.
    """
    counts = {each.count for each in answers}
    if len(counts) != 1 or len(answers) != len(labels):
        raise DrbenchError(f"expected equally many answers to each labelled image, got {sorted(counts)} answers")
    (n,), pairs = counts, list(zip(answers, labels, strict=True))
    failures = np.array([each.wrong(label) for each, label in pairs])
    return Robustness(
        _mean(1 - failures / n),
        _mean(np.array([float(majority(each) == label) for each, label in pairs])),
        _mean(worst_of_m(failures, n, worst_of)),
        _mean(np.array([float(each.first == label) for each, label in pairs])),
    )


def majority(answers: Answers) -> int | None:
    """The most frequent answer; None if several are."""
    most = max(answers.votes.values())
    first, *others = [c for c, k in answers.votes.items() if k == most]
    return None if others else first


def worst_of_m(failures: np.ndarray, evaluations: int, m: int) -> np.ndarray:
    """Unbiased estimate of P(M fresh evaluations are all right), from n failures in N >= M: C(N - n, M) / C(N, M).

    The plug-in (1 - n/N)^M is biased upwards. With one evaluation of a deterministic defense M does not matter.
    """
    failures = np.asarray(failures)
    if evaluations == 1:
        return 1.0 - failures
    if not 1 <= m <= evaluations:
        raise DrbenchError(f"expected worst_of between 1 and the {evaluations} evaluations, got {m}")
    j = np.arange(m)
    return np.clip((evaluations - failures[:, None] - j) / (evaluations - j), 0, None).prod(axis=1)


def _mean(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), *stats.share_interval(values))
