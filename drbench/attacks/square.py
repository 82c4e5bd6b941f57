"""Square attack: random squares, kept where the margin rises. Andriushchenko et al. 2020, arXiv 1912.00049.

On a randomised defense the margin is a mean over draws, and nothing stops at one misclassification. On images moved by
a flow field the squares of l_inf are painted on the flow (ours).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drbench.attacks.losses import Loss
from drbench.attacks.problem import Problem
from drbench.norms import FLOW

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the area of a square is halved
TINY = 1e-12


def square(problem: Problem, *, queries: int = 5000, draws: int = 1, area: float = 0.8) -> Tensor:
    """Random search of `queries` queries of `draws` draws each; squares first cover the share `area` of the image."""
    margin, moves, painted = Loss("margin"), _Moves(problem), problem.threat.norm in ("linf", FLOW)
    found, active = problem.threat.none(problem.x).clone(), torch.arange(len(problem), device=problem.x.device)
    x_adv = _stripes(problem) if painted else _tiles(problem)
    answer = problem.query(problem.threat.image(x_adv, problem.x), margin, 0, draws=draws, gradient=False)
    loss, failed = answer.loss, answer.failures > 0
    for query in range(1, queries):
        if problem.certain and failed.any():
            found[active[failed]] = x_adv[failed]
            left = (~failed).nonzero().flatten()
            if not len(left):
                return found[:, None]
            active, x_adv, loss, problem = active[left], x_adv[left], loss[left], problem.at(left)
            moves.keep(left)
        move = _recoloured if painted else _moved_mass
        tried = move(problem, x_adv, area / 2 ** sum(query > at for at in HALVED_AT), moves.of(query))
        answer = problem.query(problem.threat.image(tried, problem.x), margin, query, draws=draws, gradient=False)
        better = answer.loss > loss
        x_adv, loss = torch.where(_wide(better), tried, x_adv), torch.where(better, answer.loss, loss)
        failed = better & (answer.failures > 0)
    found[active] = x_adv
    return found[:, None]


class _Moves:
    """Uniform random numbers in [0, 1), a row for each image and query, made for many queries at once."""

    AHEAD = 64

    def __init__(self, problem: Problem):
        self.problem, self.made = problem, -1
        self.size = 5 + _channels(problem)  # two windows, orientation, a sign for each channel

    def of(self, query: int) -> Tensor:
        """(B, 5 + C) numbers of this query."""
        if query // self.AHEAD != self.made:
            self.made = query // self.AHEAD
            self.table = self.problem.random(1 + self.made, self.AHEAD).rand(len(self.problem) * self.AHEAD, self.size)
            self.table = self.table.view(len(self.problem), self.AHEAD, self.size)
        return self.table[:, query % self.AHEAD]

    def keep(self, left: Tensor) -> None:
        """Only these images go on."""
        self.problem, self.table = self.problem.at(left), self.table[left] if self.made >= 0 else None


def _channels(problem: Problem) -> int:
    """Of what squares are painted on: an image, or a flow to the right and down."""
    return 2 if problem.threat.norm == FLOW else problem.x.shape[1]


def _stripes(problem: Problem) -> Tensor:
    """Vertical stripes of +-eps, one sign for each channel and column."""
    b, _, h, w = problem.x.shape
    colour = problem.threat.eps * _signs(problem.random().rand(b, _channels(problem), 1, w))
    everywhere = torch.ones(b, 1, h, w, dtype=torch.bool, device=colour.device)
    return _painted(problem, problem.threat.none(problem.x), everywhere, colour)


def _recoloured(problem: Problem, x_adv: Tensor, share: float, numbers: Tensor) -> Tensor:
    """l_inf and flows: one square of +-eps in each channel."""
    h, w = problem.x.shape[2:]
    window, _ = _window(numbers[:, 0:2], h, w, min(max(round(math.sqrt(share * h * w)), 1), h, w))
    colour = problem.threat.eps * _signs(numbers[:, 5 : 5 + _channels(problem), None, None])
    return _painted(problem, x_adv, window, colour)


def _painted(problem: Problem, x_adv: Tensor, window: Tensor, colour: Tensor) -> Tensor:
    """Examples with a new perturbation (B, C, 1 or H, 1 or W) in a window (B, 1, H, W)."""
    if problem.threat.norm == FLOW:  # (B, H, W, 2)
        return torch.where(window.permute(0, 2, 3, 1), colour.permute(0, 2, 3, 1), x_adv)
    return problem.threat.project(torch.where(window, problem.x + colour, x_adv), problem.x)


def _tiles(problem: Problem) -> Tensor:
    """l2, l1: a tiling of five by five bumps of random sign, of full length."""
    b, c, h, w = problem.x.shape
    side = max(1, min(h, w) // 5)
    rows, columns = -(-h // side), -(-w // side)
    signs = _signs(problem.random().rand(b, c, rows, columns)).repeat_interleave(side, 2).repeat_interleave(side, 3)
    bumps = _bump(side, problem.x.device).repeat(rows, columns)
    return _scaled(problem, (signs * bumps)[..., :h, :w])


def _moved_mass(problem: Problem, x_adv: Tensor, share: float, numbers: Tensor) -> Tensor:
    """l2, l1: empty one window and put what it held, and what is left of eps, into a bump in another one."""
    _, c, h, w = x_adv.shape
    side = min(max(round(math.sqrt(share * h * w)), 3) | 1, h, w)
    p = 2 if problem.threat.norm == "l2" else 1
    into, corner = _window(numbers[:, 0:2], h, w, side)
    out, _ = _window(numbers[:, 2:4], h, w, side)
    delta = x_adv - problem.x

    def mass(values: Tensor, dims) -> Tensor:
        return values.abs().pow(p).sum(dims, keepdim=True)

    budget = (problem.threat.eps**p - mass(delta, (1, 2, 3))).clamp_min(0) / c + mass(delta * (into | out), (2, 3))
    bump = _placed(_dipole(side, numbers[:, 4]), corner, h, w)
    old = delta * into
    fresh = old / (mass(old, (2, 3)) ** (1 / p) + TINY) + bump * _signs(numbers[:, 5 : 5 + c, None, None])
    fresh = fresh / (mass(fresh, (2, 3)) ** (1 / p) + TINY) * budget ** (1 / p)
    return _scaled(problem, torch.where(into, fresh, torch.where(out, 0.0, delta)))


def _scaled(problem: Problem, delta: Tensor) -> Tensor:
    """`delta` stretched to length eps, then in the box."""
    p = 2 if problem.threat.norm == "l2" else 1
    size = torch.linalg.vector_norm(delta.flatten(1), ord=p, dim=1)
    return (problem.x + delta * _wide(problem.threat.eps / (size + TINY))).clamp(0, 1)


def _window(place: Tensor, h: int, w: int, side: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(B, 1, H, W) bool: a square of this side at a `place` (B, 2) in [0, 1) of each image; and its corners."""
    top, left = ((place[:, i] * (size - side + 1)).long().view(-1, 1, 1, 1) for i, size in enumerate((h, w)))
    r, c = (torch.arange(size, device=place.device) for size in (h, w))
    r, c = r.view(1, 1, h, 1), c.view(1, 1, 1, w)
    return (r >= top) & (r < top + side) & (c >= left) & (c < left + side), (top, left)


def _bump(height: int, device, width: int | None = None) -> Tensor:
    """Concentric rectangles whose weights fall with the square of their number from the centre; length 1."""
    width = height if width is None else width
    r, c = (
        (torch.arange(size, device=device) - size // 2).abs().float() for size in (height, width)
    )  # fmt: skip
    ring = torch.maximum(r[:, None], c[None, :])
    most = int(ring.max())
    bump = sum(((ring <= k) / (k + 1.0) ** 2 for k in range(most + 1)), torch.zeros(height, width, device=device))
    return bump / bump.norm()


def _dipole(side: int, numbers: Tensor) -> Tensor:
    """(B, 1, side, side): a bump beside its negative, upright or lying as the (B,) numbers in [0, 1) say."""
    half = side // 2
    upright = torch.cat([_bump(height, numbers.device, side) * sign for height, sign in ((half, 1), (side - half, -1))
                         if height])  # fmt: skip
    upright = upright / upright.norm()
    return torch.where((numbers < 0.5).view(-1, 1, 1), upright.T, upright)[:, None]


def _placed(bumps: Tensor, corner: tuple[Tensor, Tensor], h: int, w: int) -> Tensor:
    """Bumps (B, 1, s, s) at their corners in images (B, 1, H, W) of zeros."""
    b, _, side, _ = bumps.shape
    top, left = (place.view(b, 1, 1) for place in corner)
    s = torch.arange(side, device=bumps.device)
    at = (top + s.view(1, side, 1)) * w + left + s.view(1, 1, side)
    return torch.zeros(b, h * w, device=bumps.device).scatter(1, at.flatten(1), bumps.flatten(1)).view(b, 1, h, w)


def _signs(numbers: Tensor) -> Tensor:
    """Numbers in [0, 1) -> -1 or 1."""
    return (numbers < 0.5) * 2.0 - 1


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
