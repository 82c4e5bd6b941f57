"""The inner maximisation of adversarial training: projected gradient ascent. Madry et al. 2018, arXiv 1706.06083."""

from collections.abc import Callable

import torch
from torch import Tensor

NORMS = ("linf", "l2")


def worst_nearby(
    loss: Callable[[Tensor], Tensor], x: Tensor, norm: str, eps: float, steps: int, rng: torch.Generator
) -> Tensor:
    """Ascend `loss` from a random point of the ball around each image, in steps of 2.5 eps / steps.

    Section 3 of the paper; the step size is that of its authors' later code: long enough to cross the ball.

    Parameters
    ----------
    loss : callable
        (B, C, H, W) -> scalar, a sum over rows.
    x : Tensor (B, C, H, W)
        Pixels in [0, 1].
    norm : {"linf", "l2"}
    eps : float
        Radius in that norm, pixel units.
    rng : torch.Generator
        On the CPU; gives the starting points.

    Returns
    -------
    Tensor (B, C, H, W)
        In the ball and in [0, 1], without a graph.
    """
    moved = _project(x, eps * _direction(torch.randn(x.shape, generator=rng).to(x), norm), norm, eps)
    for _ in range(steps):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(loss(moved), moved)
        moved = _project(x, moved.detach() - x + 2.5 * eps / steps * _direction(slope, norm), norm, eps)
    return moved


def _direction(slope: Tensor, norm: str) -> Tensor:
    """Steepest ascent of length 1 in the norm."""
    if norm == "linf":
        return slope.sign()
    return slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


def _project(x: Tensor, delta: Tensor, norm: str, eps: float) -> Tensor:
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        delta = delta * (eps / delta.flatten(1).norm(dim=1).clamp_min(eps)).view(-1, 1, 1, 1)
    return (x + delta).clamp(0, 1)
