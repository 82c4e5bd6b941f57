"""What happens to pixels in [0, 1] before a network sees them: resizing and normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from drbench.errors import DrbenchError

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


class Resize(NamedTuple):
    """Brings images to one size, differentiably; made by `resizing`. Arguments of torch's `interpolate`."""

    size: tuple[int, int]
    how: dict

    def __call__(self, x: Tensor) -> Tensor:
        return x if tuple(x.shape[2:]) == self.size else interpolate(x, self.size, **self.how)


class Prepared(nn.Module):
    """A network behind its preprocessing; built by `prepared`. Differentiable in the pixels."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor, resize: Resize | None):
        super().__init__()
        self.network, self.resize = network, resize
        self.register_buffer("mean", mean, persistent=False)  # part of the configuration, not of the weights
        self.register_buffer("std", std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.resize is not None:
            x = self.resize(x)
        return self.network((x - self.mean) / self.std)


def resizing(spec: Mapping | int) -> Resize:
    """What brings images to a size.

    Parameters
    ----------
    spec : mapping or int
        `size` (side, or height and width), `interpolation` ("bicubic", "bilinear", "nearest") and `antialias` (as
        torchvision does by default; PIL always does). An int is a size, bicubic with antialias. Half-pixel centres.
    """
    given = {"size": spec} if isinstance(spec, int) else dict(spec)
    side, mode = given.pop("size", None), given.pop("interpolation", "bicubic")
    antialias = given.pop("antialias", True)
    size = (side, side) if isinstance(side, int) else tuple(side or ())
    if given or mode not in INTERPOLATIONS or len(size) != 2:
        raise DrbenchError(
            f"resize takes size (int or two), interpolation ({', '.join(INTERPOLATIONS)}) and antialias, got {spec}"
        )
    return Resize(
        size,
        {"mode": mode} if mode == "nearest" else {"mode": mode, "antialias": bool(antialias), "align_corners": False},
    )


def prepared(
    network: nn.Module, mean: Sequence[float], std: Sequence[float], resize: Mapping | int | None = None
) -> Prepared:
    """Put preprocessing before a network of normalised images.

    Parameters
    ----------
    mean, std : sequence of float
        Of each channel, of pixels in [0, 1].
    resize : mapping or int, optional
        See `resizing`.
    """
    if len(mean) != len(std) or any(not value > 0 for value in std):
        raise DrbenchError(f"classifier: expected a mean and a positive std for each channel, got {mean} and {std}")
    shape = (1, -1, 1, 1)
    made = None if resize is None else resizing(resize)
    return Prepared(network, torch.tensor(mean).view(shape), torch.tensor(std).view(shape), made)
