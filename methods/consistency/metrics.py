"""Distances between images by name: LPIPS where its network is on disk, and substitutes that are never called LPIPS.

All take two batches (B, C, H, W) in network units and return (B,). LPIPS: Zhang et al. 2018, arXiv 1801.03924.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from drbench import weights
from drbench.api import DrbenchError
from drbench.diffusion.consistency import Distance
from drbench.recipe import Recipe
from methods.consistency.features import PRETEXTS, Encoder, fit_encoder

VGG = "vgg16-397923af.pth"  # torchvision's ImageNet weights, version 1
VGG_SHA256 = "397923af"  # the first digits, which torchvision puts into the name
METRICS = ("lpips_vgg", *PRETEXTS, "multiscale_l1", "l1", "l2")


def check(name: str) -> None:
    """Raise `DrbenchError` for an unknown metric."""
    if name not in METRICS:
        raise DrbenchError(f"unknown metric {name!r}; available: {', '.join(METRICS)}")


def metric(name: str, x: Tensor, y: Tensor, num_classes: int, recipe: Recipe, width: int = 16) -> Distance:
    """The distance of that name.

    Parameters
    ----------
    name : str
        "lpips_vgg", real LPIPS. "feat_aux", "feat_ssl": the same form on a small encoder that is first trained here, on
        the images `x` (N, C, H, W) in [0, 1] with their labels `y`, or without. "multiscale_l1", "l1", "l2".
    recipe : Recipe
        Training of the encoder, if there is one; `width` is its width.
    """
    check(name)
    if name == "lpips_vgg":
        return lpips_vgg(x.device)
    if name in PRETEXTS:
        return FeatureDistance(fit_encoder(name, x, y, num_classes, recipe, width))
    return {"l1": l1, "l2": l2, "multiscale_l1": multiscale_l1}[name]


def l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().flatten(1).mean(1)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean square, as in the released code of consistency models."""
    return (a - b).square().flatten(1).mean(1)


def multiscale_l1(a: Tensor, b: Tensor) -> Tensor:
    """L1 of the images plus L1 of their gradients (neighbours' differences), summed over pools of 1, 2 and 4 pixels."""
    total = torch.zeros(len(a), device=a.device)
    for pool in (1, 2, 4):
        difference = avg_pool2d(a - b, pool)
        total = total + difference.abs().flatten(1).mean(1)
        for axis in (2, 3):
            if difference.shape[axis] > 1:  # the coarsest pool of a small image has no neighbours
                total = total + difference.diff(dim=axis).abs().flatten(1).mean(1)
    return total


class FeatureDistance(nn.Module):
    """The form of LPIPS on a given encoder: maps with unit channels, squared difference, spatial mean, sum over layers.

    All heads are uniform (weight 1), which the trained heads of LPIPS are not.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.encoder.maps(a), self.encoder.maps(b), strict=True)
        return sum((_unit(p) - _unit(q)).square().sum(1).mean((1, 2)) for p, q in pairs)


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True) + 1e-10).sqrt()  # smooth at 0, unlike a norm


def lpips_vgg(device: torch.device) -> Distance:
    """LPIPS (VGG16, version 0.1) on bilinear 224x224 resizes; grey images are repeated over the colours.

    Nothing is downloaded: the trunk must lie in torch's hub folder. The trained heads come with the package `lpips`.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / VGG
    if not file.is_file():
        raise DrbenchError(
            f"metric lpips_vgg needs torchvision's VGG16 weights at {file}, and nothing is downloaded: put the file "
            f"there (TORCH_HOME names another folder), or choose one of {', '.join(METRICS[1:])}, which are not LPIPS"
        )
    if not (found := weights.sha256_of(file)).startswith(VGG_SHA256):  # torch unpickles what lies there without a look
        raise DrbenchError(
            f"{file}: expected torchvision's VGG16 weights, whose sha256 begins with {VGG_SHA256}, got {found}; "
            "the file is damaged or another one: fetch it again"
        )
    from lpips import LPIPS

    network = LPIPS(net="vgg", verbose=False).to(device).requires_grad_(False)

    def resized(x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        return interpolate(x, (224, 224), mode="bilinear", align_corners=False) if min(x.shape[2:]) < 256 else x

    return lambda a, b: network(resized(a), resized(b)).flatten()
