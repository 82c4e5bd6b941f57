"""The two strong views of contrastive pre-training, reduced from the recipe of arXiv 2501.13094 (MoCo v3 and BYOL)."""

import math

import torch
from torch import Generator, Tensor, nn

LUMA = (0.299, 0.587, 0.114)


def strong(x: Tensor, rng: Generator) -> Tensor:
    """A strong view of each image, (B, C, H, W) in [0, 1]: `colour` with three channels, else `grey`."""
    return colour(x, rng) if x.shape[1] == 3 else grey(x, rng)


def light(x: Tensor, rng: Generator) -> Tensor:
    """The view that is followed along the path: colour images are flipped half of the time, others are left alone."""
    return flip(x, rng) if x.shape[1] == 3 else x


def grey(x: Tensor, rng: Generator) -> Tensor:
    """Shift up to 1 pixel, scale 0.85 to 1.2, rotation up to 15 degrees, brightness 0.7 to 1.3; no flip (digits)."""
    turn, size, right, down, light = _uniform(5, x, rng)
    angle, size = math.radians(15) * (2 * turn - 1), 0.85 + 0.35 * size
    offsets = (2 / x.shape[3]) * (2 * right - 1), (2 / x.shape[2]) * (2 * down - 1)
    rows = (angle.cos() / size, -angle.sin() / size, offsets[0]), (angle.sin() / size, angle.cos() / size, offsets[1])
    return (_affine(x, *rows) * _column(0.7 + 0.6 * light)).clamp(0, 1)


def colour(x: Tensor, rng: Generator) -> Tensor:
    """Random resized crop (area 0.08 to 1), flip, jitter of brightness, contrast and saturation (0.8), grey (0.2)."""
    area, ratio, right, down = _uniform(4, x, rng)
    ratio = ((2 * ratio - 1) * math.log(4 / 3)).exp().sqrt()
    side = (0.08 + 0.92 * area).sqrt()
    wide, high = (side * ratio).clamp(max=1), (side / ratio).clamp(max=1)
    zero = torch.zeros_like(wide)
    x = _affine(x, (wide, zero, (1 - wide) * (2 * right - 1)), (zero, high, (1 - high) * (2 * down - 1)))
    x = flip(x, rng)
    jittered, greyed, *factors = _uniform(5, x, rng)
    factors = [
        1 + _column(jittered < 0.8) * strength * _column(2 * f - 1)
        for f, strength in zip(factors, (0.4, 0.4, 0.2), strict=True)
    ]
    x = (x * factors[0]).clamp(0, 1)
    x = _blend(_luma(x).mean((2, 3), keepdim=True), x, factors[1])
    x = _blend(_luma(x), x, factors[2])
    return torch.where(_column(greyed < 0.2), _luma(x), x)


def flip(x: Tensor, rng: Generator) -> Tensor:
    """Mirror half of the images, left to right."""
    (coin,) = _uniform(1, x, rng)
    return torch.where(_column(coin < 0.5), x.flip(3), x)


def _uniform(count: int, x: Tensor, rng: Generator) -> Tensor:
    return torch.rand(count, len(x), generator=rng).to(x.device)


def _affine(x: Tensor, across: tuple, along: tuple) -> Tensor:
    grid = torch.stack((torch.stack(across, 1), torch.stack(along, 1)), 1)
    grid = nn.functional.affine_grid(grid, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _luma(x: Tensor) -> Tensor:
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return (a + weight * (b - a)).clamp(0, 1)
