"""Consistency functions: one call from any point of a probability-flow trajectory to its clean end, and their training.

Song et al. 2023, "Consistency Models", arXiv 2303.01469; fine-tuning: Li et al. 2024, "Consistency Purification", arXiv
2407.00623. Times are noise levels in network units, on a Karras grid that descends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Generator, Tensor, nn

from drbench.diffusion.denoiser import Denoiser, per_row
from drbench.diffusion.precond import EDMDenoiser
from drbench.diffusion.samplers import heun_step

Distance = Callable[[Tensor, Tensor], Tensor]  # two batches (B, C, H, W) in network units -> (B,)


class ConsistencyFunction(EDMDenoiser):
    """f(z, t) = c_skip(t) z + c_out(t) F(c_in(t) z, ln(t) / 4), with f(z, t_min) = z exactly.

    c_skip = s^2 / ((t - t_min)^2 + s^2) and c_out = (t - t_min) s / sqrt(t^2 + s^2); c_in, c_noise and all parameters
    are those of `EDMDenoiser`, so that the weights of a denoiser are a start for it, and its call has the same form.

    References
    ----------
    Song et al. 2023, appendix C, with sigma_data = s and epsilon = t_min.
    """

    def __init__(self, network: nn.Module, sigma_data: float, num_classes: int | None = None, t_min: float = 0.002):
        super().__init__(network, sigma_data, num_classes)
        self.t_min = t_min

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        shifted, s = sigma - self.t_min, self.sigma_data
        return s**2 / (shifted**2 + s**2), shifted * s / (sigma**2 + s**2).sqrt()

    def teacher(self) -> EDMDenoiser:
        """The denoiser that a copy of the network is: what these weights were before they were distilled."""
        return EDMDenoiser(deepcopy(self.network), float(self.sigma_data), self.num_classes)


def preconditioned(
    network: nn.Module, sigma_data: float, num_classes: int | None = None, t_min: float | None = None
) -> EDMDenoiser:
    """A raw network as a denoiser, or as a consistency function where there is a smallest time `t_min`."""
    if t_min is None:
        return EDMDenoiser(network, sigma_data, num_classes)
    return ConsistencyFunction(network, sigma_data, num_classes, t_min)


def nearest(level: float, grid: Sequence[float]) -> float:
    """The point of the grid that is nearest to a noise level; of two equally near ones the first."""
    return min(grid, key=lambda point: abs(point - level))


class ConsistencyTraining(nn.Module):
    """The student, its moving target, and the loss of one step: weight(t) distance(f(z, t), f_target(z', t')).

    t > t' are neighbours on the grid, drawn uniformly for each image; z = x + t n. With a teacher (distillation), z' is
    one Heun step of its probability-flow ODE from z; without one (training in isolation), z' = x + t' n.

    Parameters
    ----------
    student : ConsistencyFunction
        Trained in place.
    grid_at, ema_at : callable
        Step -> grid of times, and decay of the target after that step. The target has no gradient.
    distance : Distance
    teacher : Denoiser, optional
        Frozen.
    moving : bool
        False if the decay is always 0: the target then is the student itself.
    weight : {"uniform", "karras"}
        1, as in every released run; or 1 / t^2 + 1 / s^2, an option of the released code, which is 1 / c_out^2 at
        t_min = 0: an error of the network counts alike at all times.

    References
    ----------
    Song et al. 2023, algorithms 2 and 3.
    """

    def __init__(
        self,
        student: ConsistencyFunction,
        grid_at: Callable[[int], Sequence[float]],
        ema_at: Callable[[int], float],
        distance: Distance,
        teacher: Denoiser | None = None,
        moving: bool = True,
        weight: str = "uniform",
    ):
        super().__init__()
        self.student = student
        self.average = deepcopy(student).requires_grad_(False) if moving else None
        self.grid_at, self.ema_at, self.distance, self.weight = grid_at, ema_at, distance, weight
        self.teacher = (teacher,)  # in a tuple: its weights are no part of this module
        self.register_buffer("step", torch.tensor(0))  # stored with the weights, so that a resumed run knows it

    def loss(self, x_net: Tensor, rng: Generator) -> Tensor:
        """Mean loss of a batch of clean images (B, C, H, W) in [-1, 1]."""
        step = int(self.step)
        if step and self.average is not None:
            self._move_target(self.ema_at(step - 1))
        self.step += 1
        grid = torch.tensor(self.grid_at(step))
        place = torch.randint(len(grid) - 1, (len(x_net),), generator=rng)
        t, t_next = (per_row(grid[i], x_net) for i in (place, place + 1))
        noise = torch.randn(x_net.shape, generator=rng).to(x_net.device)
        z, target = x_net + t * noise, self.average or self.student
        with torch.no_grad():
            goal = target(self._next(x_net, noise, z, t, t_next), t_next.flatten())
        weight = t.flatten() ** -2 + self.student.sigma_data**-2 if self.weight == "karras" else 1
        return (weight * self.distance(self.student(z, t.flatten()), goal)).mean()

    def _next(self, x_net: Tensor, noise: Tensor, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        (teacher,) = self.teacher
        if teacher is None:
            return x_net + t_next * noise
        return heun_step(lambda z, level, labels: teacher(z, level.flatten(), labels), z, t, t_next)

    @torch.no_grad()
    def _move_target(self, decay: float) -> None:
        for old, new in zip(self.average.parameters(), self.student.parameters(), strict=True):
            old.lerp_(new, 1 - decay)


def scale_at(step: int, steps: int, first: int, last: int) -> int:
    """s(k): intervals of the grid at step k of K in training without a teacher, growing from `first` to `last`.

    s(k) = max(1, ceil(sqrt(k/K ((last + 1)^2 - first^2) + first^2) - 1)); the grid has s(k) + 1 points. The released
    code of Song et al. 2023 (their appendix C, whose N(k) is s(k) + 1).
    """
    return max(1, math.ceil(math.sqrt(step / steps * ((last + 1) ** 2 - first**2) + first**2) - 1))


def ema_at(scale: int, first: int, decay: float) -> float:
    """mu(k) = exp(first ln(decay) / s(k)): decay of the target, from about `decay` towards 1 as the grid grows."""
    return math.exp(first * math.log(decay) / scale)


def tuning_loss(
    purifier: Denoiser, x_net: Tensor, levels: Sequence[tuple[float, float]], distance: Distance, rng: Generator
) -> Tensor:
    """Consistency Fine-tuning: mean distance of f(x + a n, t) to the clean x, with (a, t) drawn from `levels`.

    Parameters
    ----------
    purifier : Denoiser
        A consistency function, or a denoiser.
    x_net : Tensor (B, C, H, W)
        Clean images in [-1, 1]: the target, constant.
    levels : sequence of pairs
        Noise std a, 2 sigma, and the time t that the purifier is told at this sigma; drawn uniformly for each image.

    References
    ----------
    Li et al. 2024, official code: no teacher, no target network, no consistency term.
    """
    pairs = torch.tensor(levels)[torch.randint(len(levels), (len(x_net),), generator=rng)].to(x_net.device)
    noise = torch.randn(x_net.shape, generator=rng).to(x_net.device)
    return distance(purifier(x_net + per_row(pairs[:, 0], x_net) * noise, pairs[:, 1]), x_net).mean()
