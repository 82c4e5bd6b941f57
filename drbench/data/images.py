"""Decoded images with labels and stable ids: what engines and trainings take."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from drbench.errors import DrbenchError

IMAGENET_CLASSES = 1000  # what `within` counts in


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
    within : tuple of int, optional
        If the classes are some of ImageNet's 1,000: their numbers there. ImageNet-A has 200 of them, and a classifier
        of 1,000 classes answers among `logits[:, within]` (`drbench.jobs.restricted`).
    """

    x: Tensor
    y: Tensor
    ids: tuple[int | str, ...]
    dataset: str
    subset: str
    num_classes: int
    within: tuple[int, ...] | None = None

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
    def classifier_classes(self) -> int:
        """Classes of a classifier for these images, which need not be those that occur in them."""
        return IMAGENET_CLASSES if self.within else self.num_classes

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
