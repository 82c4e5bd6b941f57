"""Data sets: `load(name, split, subset)` gives `Images` with stable ids and pixels in [0, 1].

A data set is a module with `open_split(split, root, name) -> Source`; only the images of the subset are decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drbench.data.subsets import choose, label
from drbench.errors import DrbenchError, did_you_mean

DATASETS = {
    "digits": "drbench.data.digits",
    "cifar10": "drbench.data.cifar10",
    "cifar10-jpeg": "drbench.data.cifar10",
}


@dataclass(frozen=True)
class Source:
    """One split of a data set before a subset is chosen and decoded.

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
    """

    ids: Sequence[int | str]
    labels: Sequence[int]
    num_classes: int
    shape: tuple[int, int, int]
    read: Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Images:
    """A named, decoded set of images.

    Parameters
    ----------
    x : Tensor
        (M, C, H, W) float32 in [0, 1].
    y : Tensor
        (M,) int64.
    ids : tuple
        M stable ids, unique.
    dataset, subset : str
        Printed in every table, e.g. "digits", "test/first100".
    num_classes : int
    """

    x: Tensor
    y: Tensor
    ids: tuple[int | str, ...]
    dataset: str
    subset: str
    num_classes: int

    def __post_init__(self) -> None:
        name = f"data '{self.dataset}/{self.subset}'"
        if self.x.ndim != 4 or self.x.dtype != torch.float32:
            raise DrbenchError(
                f"{name}: expected float32 images (M, C, H, W), got {self.x.dtype} {tuple(self.x.shape)}"
            )
        if not len(self.x) == len(self.y) == len(self.ids) == len(set(self.ids)):
            raise DrbenchError(
                f"{name}: expected as many labels and unique ids as images, got {len(self.x)} images, "
                f"{len(self.y)} labels, {len(set(self.ids))} unique ids"
            )
        if len(self.x) and not (self.x.min() >= 0 and self.x.max() <= 1):
            raise DrbenchError(
                f"{name} produced pixels in [{self.x.min():.2f}, {self.x.max():.2f}]; drbench images are in [0, 1]"
            )
        if len(self.y) and not (self.y.min() >= 0 and self.y.max() < self.num_classes):
            raise DrbenchError(
                f"{name}: expected labels in 0..{self.num_classes - 1}, got {self.y.min()}..{self.y.max()}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.x.shape[1:])

    @property
    def grid(self) -> int | None:
        """L if all pixels are multiples of 1 / L, of the L that scans and 8-bit files have; None for other images."""
        scaled = ((grid, self.x * grid) for grid in (16, 255))
        return next((grid for grid, x in scaled if float((x - x.round()).abs().max()) < 1e-3), None)

    @property
    def sha256(self) -> str:
        """Hash of ids, labels and pixels: two runs with the same hash saw the same images."""
        digest = hashlib.sha256(repr((self.ids, self.y.tolist(), self.shape)).encode())
        digest.update(self.x.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load(name: str, split: str = "test", subset: str = "all", root: str | Path | None = None) -> Images:
    """Load a named subset of a data set.

    Parameters
    ----------
    name : str
        A key of `DATASETS`.
    split : str
        e.g. "train", "validation", "test".
    subset : str
        "all", "firstN", "everyN" or "ids:FILE" (see `drbench.data.subsets.choose`).
    root : path, optional
        Folder of the data set's files; digits need none.
    """
    if name not in DATASETS:
        raise DrbenchError(f"unknown data set {name!r}{did_you_mean(name, DATASETS)}")
    source = import_module(DATASETS[name]).open_split(split, root, name)
    return from_source(source, name, split, subset)


def from_source(source: Source, name: str, split: str, subset: str = "all") -> Images:
    """Decode the chosen images of a source."""
    chosen = choose(subset, source.ids)
    pixels = [np.asarray(source.read(i), np.float32) for i in chosen]
    if any(image.shape != tuple(source.shape) for image in pixels):
        raise DrbenchError(
            f"data '{name}': expected images of shape {tuple(source.shape)} (C, H, W), "
            f"got {sorted({image.shape for image in pixels})}"
        )
    return Images(
        x=torch.from_numpy(np.stack(pixels)),
        y=torch.tensor([int(source.labels[i]) for i in chosen]),
        ids=tuple(source.ids[i] for i in chosen),
        dataset=name,
        subset=label(split, subset),
        num_classes=source.num_classes,
    )
