"""Allowed perturbations: an l_p ball around each image, cut with the box [0, 1]^d."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drbench import norms
from drbench.attacks.flow import warp
from drbench.draws import Draws
from drbench.errors import DrbenchError

TINY = 1e-12


@dataclass(frozen=True)
class Threat:
    """||x' - x||_p <= eps and 0 <= x' <= 1, pixel units.

    Parameters
    ----------
    norm : {"linf", "l2", "l1"}
    eps : float
        Radius.
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        norms.check(self.norm, self.eps)

    def none(self, x: Tensor) -> Tensor:
        """The example that leaves `x` as it is."""
        return x

    def image(self, example: Tensor, x: Tensor) -> Tensor:
        """What the defense sees; of l_p threats an example is the image itself."""
        return example

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """An allowed image near `x_adv`: the nearest one in l_inf and l1; in l2 the ball's, then the box's."""
        if self.norm == "linf":
            return x_adv.clamp((x - self.eps).clamp_min(0), (x + self.eps).clamp_max(1))
        if self.norm == "l2":
            delta = x_adv - x
            return (x + delta * (self.eps / (_norm(delta) + TINY)).clamp_max(1)).clamp(0, 1)
        return x + project_l1_box(x_adv - x, x, self.eps)

    def step(self, gradient: Tensor, size: Tensor, sparsity: Tensor | None = None) -> Tensor:
        """The step of length `size` (B,) that raises a linear function most: steepest ascent in the norm.

        In l1 that would be a single pixel; there the `sparsity` (B,) largest entries move by equal amounts (Croce and
        Hein 2021, arXiv 2103.01208), by default a fifth of them.
        """
        size = _wide(size, gradient)
        if self.norm == "linf":
            return size * gradient.sign()
        if self.norm == "l2":
            return size * gradient / (_norm(gradient) + TINY)
        flat = gradient.flatten(1).abs()
        kept = torch.full((len(flat),), 0.2 * flat.shape[1]) if sparsity is None else sparsity
        last = (kept.long().clamp(1, flat.shape[1]) - 1).to(flat.device)
        smallest = flat.sort(1, descending=True).values.gather(1, last[:, None])
        sign = gradient.sign() * (flat >= smallest).view_as(gradient)
        return size * sign / (_wide(sign.flatten(1).abs().sum(1), sign) + TINY)

    def start(self, x: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """A random start on the boundary of the ball, then in the box.

        Parameters
        ----------
        uniform, normal : Tensor
            Random numbers of the shape of `x`, in [0, 1) and standard normal.
        """
        if self.norm == "linf":
            delta = 2 * uniform - 1
            delta = delta * self.eps / (_wide(delta.flatten(1).abs().amax(1), delta) + TINY)
        else:
            delta = normal * self.eps / (_norm(normal) + TINY)
        return self.project(x + delta, x)

    def random(self, x: Tensor, draws: Draws) -> Tensor:
        """A random allowed example for each image, from a row of `draws` each."""
        return self.start(x, draws.rand(*x.shape), draws.randn(*x.shape))

    def repair(self, x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images that pass `norms.feasible`, and (B,) bool where the clean image had to be put in place.

        Float32 arithmetic leaves the ball by about 1e-7; what is further out, or not finite, was not made by this
        threat and is not mended.
        """
        clean, mended = x.cpu().numpy(), x_adv
        if self.norm == "linf":  # bounds rounded towards x
            low, high = x.double() - self.eps, x.double() + self.eps
            mended = torch.minimum(torch.maximum(x_adv, _up(low)), _down(high))
        mended = mended.clamp(0, 1)
        for margin in (1e-6, 1e-5, 1e-4, 1e-3):  # rounding to float32 weighs more the smaller eps is
            outside = ~norms.feasible(self.norm, self.eps, mended.cpu().numpy(), clean)
            if not outside.any():
                break
            far = norms.distance(self.norm, x_adv.cpu().numpy(), clean)
            shrink = _wide(torch.from_numpy(self.eps / (far + TINY)).to(x.device).clamp_max(1) * (1 - margin), x)
            shrunk = (x.double() + shrink * (x_adv.double() - x.double())).float().clamp(0, 1)
            mended = torch.where(_wide(torch.from_numpy(outside).to(x.device), x), shrunk, mended)
        near = norms.distance(self.norm, x_adv.cpu().numpy(), clean) <= 1.001 * self.eps + 1e-5
        good = norms.feasible(self.norm, self.eps, mended.cpu().numpy(), clean) & near
        refused = ~torch.from_numpy(good).to(x.device)
        return torch.where(_wide(refused, x), x, mended), refused


class FlowThreat(Threat):
    """Images bent by a flow field, displacements at most `eps` pixels along each axis; an example is the flow."""

    def none(self, x):
        return torch.zeros(len(x), *x.shape[2:], 2, dtype=x.dtype, device=x.device)

    def image(self, example, x):
        return warp(x, example).clamp(0, 1)

    def random(self, x, draws):
        return self.eps * (2 * draws.rand(*self.none(x).shape) - 1)

    def repair(self, example, x):
        bound = _down(torch.tensor(self.eps, dtype=torch.float64))
        mended = example.clamp(-bound, bound)
        refused = ~mended.flatten(1).isfinite().all(1)
        return torch.where(_wide(refused, mended), 0.0, mended), refused

    def project(self, x_adv, x):
        raise DrbenchError(f"this attack is for l_p norms, got {self.norm}; use attack stadv")


def threat(norm: str, eps: float) -> Threat:
    """The threat of that name."""
    return (FlowThreat if norm == norms.FLOW else Threat)(norm, eps)


def project_l1_box(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """The point nearest to `delta` (l2) of {||d||_1 <= eps, 0 <= x + d <= 1}, exactly; float32, worked in float64.

    Entry i is sign(delta_i) min(max(|delta_i| - lambda, 0), room_i), with room_i to the side of the box; the sum of
    sizes falls piecewise linearly in the multiplier lambda >= 0, so lambda follows from the break points |delta_i| and
    |delta_i| - room_i. O(d log d) (Croce and Hein 2021, arXiv 2103.01208, section 3).
    """
    flat, base = delta.double().flatten(1), x.double().flatten(1)
    size, room = flat.abs(), torch.where(flat > 0, 1 - base, base)

    def total(multiplier: Tensor) -> Tensor:
        return torch.minimum((size - multiplier).clamp_min(0), room).sum(1, keepdim=True)

    points = torch.cat([torch.zeros_like(size[:, :1]), size, (size - room).clamp_min(0)], 1).sort(1).values
    low = torch.zeros(len(points), 1, dtype=torch.long, device=x.device)  # total(points[low]) >= eps, if ever
    high = torch.full_like(low, points.shape[1] - 1)  # total there is 0 <= eps
    for _ in range(points.shape[1].bit_length()):
        middle = (low + high) // 2
        above = total(points.gather(1, middle)) >= eps
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    left, right = points.gather(1, low), points.gather(1, high)
    upper, lower = total(left), total(right)
    multiplier = left + (right - left) * ((upper - eps) / (upper - lower).clamp_min(TINY)).clamp(0, 1)
    multiplier = torch.where(upper <= eps, left, multiplier)  # inside the ball already: left is 0
    return (flat.sign() * torch.minimum((size - multiplier).clamp_min(0), room)).view_as(delta).to(delta.dtype)


def _norm(delta: Tensor) -> Tensor:
    return _wide(torch.linalg.vector_norm(delta.flatten(1), dim=1), delta)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _up(bound: Tensor) -> Tensor:
    """The smallest float32 >= a float64."""
    near = bound.float()
    return torch.where(near.double() < bound, torch.nextafter(near, torch.full_like(near, torch.inf)), near)


def _down(bound: Tensor) -> Tensor:
    return -_up(-bound)
