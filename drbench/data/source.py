"""A split of a data set before a subset is chosen and decoded. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Source:
    """One split of a data set.

    Parameters
    ----------
    ids : sequence of int or str
        Stable name of each image in the full data set; never a position in a subset.
    labels : sequence of int
    num_classes : int
    shape : tuple of int
        (C, H, W) after preprocessing.
    read : callable
        Position in the split -> (C, H, W) float32 array in [0, 1]. Called for chosen images only.
    within : tuple of int, optional
        As in `Images`.
    """

    ids: Sequence[int | str]
    labels: Sequence[int]
    num_classes: int
    shape: tuple[int, int, int]
    read: Callable[[int], np.ndarray]
    within: tuple[int, ...] | None = None


def unit(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) bytes -> (C, H, W) float32 in [0, 1]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 255
