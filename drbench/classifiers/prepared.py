"""What happens to pixels in [0, 1] before a network sees them: resizing and normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from drbench.errors import DrbenchError

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


class Prepared(nn.Module):
    """A network behind its preprocessing; built by `prepared`. Differentiable in the pixels."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor, size: tuple[int, int] | None, how: dict):
        super().__init__()
        self.network, self.size, self.how = network, size, how
        self.register_buffer("mean", mean, persistent=False)  # part of the configuration, not of the weights
        self.register_buffer("std", std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = interpolate(x, self.size, **self.how)
        return self.network((x - self.mean) / self.std)


def prepared(
    network: nn.Module, mean: Sequence[float], std: Sequence[float], resize: Mapping | int | None = None
) -> Prepared:
    """Put preprocessing before a network of normalised images.

    Parameters
    ----------
    mean, std : sequence of float
        Of each channel, of pixels in [0, 1].
    resize : mapping or int, optional
        `size` (side, or height and width), `interpolation` ("bicubic", "bilinear", "nearest") and `antialias` (as
        torchvision does by default; PIL always does). An int is a size, bicubic with antialias. Half-pixel centres.
    """
    if len(mean) != len(std) or any(not value > 0 for value in std):
        raise DrbenchError(f"classifier: expected a mean and a positive std for each channel, got {mean} and {std}")
    size, how = None, {}
    if resize is not None:
        given = {"size": resize} if isinstance(resize, int) else dict(resize)
        side, mode = given.pop("size", None), given.pop("interpolation", "bicubic")
        antialias = given.pop("antialias", True)
        size = (side, side) if isinstance(side, int) else tuple(side or ())
        if given or mode not in INTERPOLATIONS or len(size) != 2:
            raise DrbenchError(
                f"classifier: resize takes size (int or two), interpolation ({', '.join(INTERPOLATIONS)}) and "
                f"antialias, got {resize}"
            )
        how = {"mode": mode}
        if mode != "nearest":
            how |= {"antialias": bool(antialias), "align_corners": False}
    shape = (1, -1, 1, 1)
    return Prepared(network, torch.tensor(mean).view(shape), torch.tensor(std).view(shape), size, how)
