"""The published 64x64 ImageNet, made with a box filter: `val_data.npz`. Nothing is downloaded.

Source: P. Chrabaszcz, I. Loshchilov, F. Hutter, "A downsampled variant of ImageNet as an alternative to the CIFAR
datasets", arXiv 1707.08819. Its labels count from 1 in the order of the ILSVRC development kit, which is not that of
the WordNet ids; here they become the classes of all other ImageNet data sets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drbench.data import arrays, folders
from drbench.data.source import Source, unit
from drbench.errors import DrbenchError
from drbench.files import datasets

ROWS = 50_000
SIDE = 64


def open_split(split: str, root: str | Path | None, name: str = "imagenet64") -> Source:
    """Source of "val" (50,000); ids are row numbers of the file."""
    if split != "val":
        raise DrbenchError(f"unknown split {split!r} of {name}; available: val")
    path = datasets.check(name, datasets.folder(name, root), "val_data.npz")
    pixels = arrays.Zipped(path, "data", ROWS)
    numbers = arrays.Zipped(path, "labels", ROWS).whole()
    if pixels.shape[1:] != (3 * SIDE * SIDE,) or pixels.dtype != np.uint8:
        raise DrbenchError(
            f"{path}: expected bytes of shape ({ROWS}, {3 * SIDE * SIDE}), got {pixels.dtype} {pixels.shape}"
        )
    if numbers.ndim != 1 or numbers.min() < 1 or numbers.max() > 1000:
        raise DrbenchError(f"{path}: expected labels in 1..1000, got {numbers.min()}..{numbers.max()}; get it again")
    kit = [folders.number(wnid) for wnid in folders.wnids("imagenet64_wnids.txt")]
    labels = [kit[n - 1] for n in numbers.tolist()]

    def read(row: int) -> np.ndarray:
        return unit(pixels[row].reshape(3, SIDE, SIDE).transpose(1, 2, 0))

    return Source(range(ROWS), labels, 1000, (3, SIDE, SIDE), read)
