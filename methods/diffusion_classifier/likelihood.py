"""Likelihood maximisation (LM): a few steps that make an image likelier under the unconditional diffusion model.

Chen et al. 2024, arXiv 2305.15241, Eq. 6 and Algorithm 1. At each step one noise level and one noise per image, and the
gradient of E ||D(u + s e; s) - u||^2 in u, through both arguments. Network units: images in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from drbench.api import Draws

FORMS = ("linf_momentum", "adam_free")
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
TINY = 1e-24  # keeps the square root's slope finite at 0


class Ascent(NamedTuple):
    """How the likelihood is maximised.

    Parameters
    ----------
    form : {"linf_momentum", "adam_free"}
        The paper's Algorithm 1: m <- momentum m - g / mean|g|, u <- u + rate m, kept within `eta` of the image. Or that
        of the official code: Adam without a constraint.
    steps : int
    rate : float
        Size of a step in network units: mean absolute change of a pixel, or Adam's learning rate (official: 0.1).
    momentum, eta : float
        Of the first form; `eta` in pixel units (8/255 in the paper, for CIFAR-10).
    levels : pair of float
        Noise levels are drawn uniformly from this interval (official: 0.4 to 0.6).
    """

    form: str = "linf_momentum"
    steps: int = 5
    rate: float = 0.1
    momentum: float = 1.0
    eta: float = 8 / 255
    levels: tuple[float, float] = (0.4, 0.6)


def maximize(denoise: Callable, x_net: Tensor, ascent: Ascent, draws: Draws, chunk: int) -> Tensor:
    """Likelier images (B, C, H, W) in [-1, 1], differentiable in `x_net` through every step.

    Works under inference mode too: the steps need gradients of their own. The backward pass repeats one step at a time,
    `chunk` rows at a time, so that memory does not grow with the number of steps or of images; what it would repeat is
    kept where the rows of all steps together are no more than `chunk`.
    """
    grad = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        start = x_net.clone()
        state = start, torch.zeros_like(start), torch.zeros_like(start)
        low, high = ascent.levels
        for number in range(ascent.steps):
            level = (low + (high - low) * draws.rand(len(start), 1)).flatten()
            noise = draws.randn(*start.shape)
            state = _Step.apply(start, *state, noise, level, denoise, ascent, number, chunk)
        return state[0].clamp(-1, 1)


class _Step(torch.autograd.Function):
    """One step, recomputed in the backward pass unless it was kept: by the same operations, so with the same bits."""

    @staticmethod
    def forward(ctx, start, image, first, second, noise, level, denoise, ascent, number, chunk):
        tensors = start, image, first, second, noise, level
        ctx.save_for_backward(*tensors)
        ctx.rest, tracked = (denoise, ascent, number, chunk), any(ctx.needs_input_grad)
        ctx.kept, outputs = None, []
        for rows in _rows(tensors, chunk):
            ends, found = _tracked(rows, *ctx.rest[:3]) if tracked else ((), _step(*rows, denoise, ascent, number))
            outputs.append([each.detach() for each in found])
            if tracked and len(start) * ascent.steps <= chunk:
                ctx.kept = [(ends, found)]  # all rows
            del ends, found  # before the next chunk has a graph of its own
        return tuple(map(torch.cat, zip(*outputs, strict=True)))

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        *rest, chunk = ctx.rest
        kept, ctx.kept = ctx.kept, None  # its graph can be used once
        parts = kept or (_tracked(rows, *rest) for rows in _rows(ctx.saved_tensors, chunk))
        slopes = [
            torch.autograd.grad(outputs, ends, rows, materialize_grads=True)
            for (ends, outputs), rows in zip(parts, _rows(gradients, chunk), strict=True)
        ]
        return *map(torch.cat, zip(*slopes, strict=True)), *[None] * 6


def _tracked(rows, denoise, ascent: Ascent, number: int):
    """What a step can be differentiated in, and its outputs with their graph."""
    with torch.enable_grad():
        ends = [part.detach().requires_grad_() for part in rows[:4]]
        return ends, _step(*ends, *rows[4:6], denoise, ascent, number)


def _rows(tensors, chunk: int):
    return zip(*(tensor.split(chunk) for tensor in tensors), strict=True)


def _step(start, image, first, second, noise, level, denoise, ascent: Ascent, number: int):
    """(image, first, second) after step `number`: the two are the momentum, or the moments of Adam."""
    slope = loss_slope(denoise, image, noise, level)
    if ascent.form == "linf_momentum":
        first = ascent.momentum * first - slope / slope.abs().flatten(1).mean(1).clamp_min(TINY).view(-1, 1, 1, 1)
        moved, reach = image + ascent.rate * first, 2 * ascent.eta
        return torch.maximum(torch.minimum(moved, start + reach), start - reach), first, second
    first, second = (b * m + (1 - b) * g for b, m, g in zip(BETAS, (first, second), (slope, slope**2), strict=True))
    mean, square = (m / (1 - b ** (number + 1)) for b, m in zip(BETAS, (first, second), strict=True))
    return image - ascent.rate * mean / (square.clamp_min(TINY).sqrt() + EPSILON), first, second


def loss_slope(denoise: Callable, image: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Gradient of mean over pixels (D(u + s e; s) - u)^2 in u, row by row; differentiable if `image` is tracked."""
    tracked = torch.is_grad_enabled() and image.requires_grad
    with torch.enable_grad():
        point = image if tracked else image.detach().requires_grad_()
        error = denoise(point + level.view(-1, 1, 1, 1) * noise, level) - point
        return torch.autograd.grad(error.square().flatten(1).mean(1).sum(), point, create_graph=tracked)[0]
