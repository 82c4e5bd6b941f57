"""FAB-T: the nearest point across a linearised boundary, again and again. Croce and Hein 2020, arXiv 1907.02044.

A minimum-norm attack for deterministic defenses: its examples count where they are within eps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drbench.attacks.losses import Loss
from drbench.attacks.problem import Problem
from drbench.errors import DrbenchError

MOST_OF_CLEAN = 0.1  # alpha_max: weight of the projection of the clean image
OVERSHOOT, BACK = 1.05, 0.9
TINY = 1e-8


def fab_t(problem: Problem, *, steps: int = 100, targets: int = 9) -> Tensor:
    """Towards each of the `targets` likeliest wrong classes in turn; only images that are not yet broken."""
    if not problem.certain:
        raise DrbenchError("fab_t is for deterministic defenses: one misclassification must settle an image")
    ranked = problem.ranked()[:, :targets]
    x, eps = problem.x, problem.threat.eps
    nearest, distance = x.clone(), torch.full((len(problem),), torch.inf, device=x.device)
    for aim in ranked.T:
        left = (distance > eps).nonzero().flatten()
        if not len(left):
            break
        nearest[left], distance[left] = _towards(problem.at(left), aim[left], steps, nearest[left], distance[left])
    return torch.where((distance <= eps).view(-1, 1, 1, 1), nearest, x)[:, None]


def _towards(problem: Problem, target: Tensor, steps: int, nearest: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest misclassified image found so far, and its distance."""
    nearest, distance = nearest.clone(), distance.clone()
    active, x, margin = torch.arange(len(problem), device=problem.x.device), problem.x, Loss("margin")
    for step in range(steps):
        answer = problem.query(x, margin, 2 * step, target=target)
        slope, value = answer.gradient.flatten(1), answer.loss
        here, clean = x.flatten(1), problem.x.flatten(1)
        # the plane value + slope (v - here) = 0, from here and from the clean image
        rest = -value - (slope * (clean - here)).sum(1)
        from_here = to_plane(here, slope, -value, problem.threat.norm)
        from_clean = to_plane(clean, slope, rest, problem.threat.norm)
        a, b = (length(d, problem.threat.norm).clamp_min(TINY) for d in (from_here, from_clean))
        share = (a / (a + b)).clamp_max(MOST_OF_CLEAN)[:, None]
        moved = (here + OVERSHOOT * from_here) * (1 - share) + (clean + OVERSHOOT * from_clean) * share
        x = moved.clamp(0, 1).view_as(x)
        failed = problem.query(x, margin, 2 * step + 1, gradient=False).failures > 0
        far = length((x - problem.x).flatten(1), problem.threat.norm)
        closer = failed & (far < distance[active])
        nearest[active[closer]], distance[active[closer]] = x[closer], far[closer]
        x = torch.where(failed.view(-1, 1, 1, 1), problem.x + BACK * (x - problem.x), x)
        left = (distance[active] > problem.threat.eps).nonzero().flatten()
        if len(left) < len(active):
            active, x, target, problem = active[left], x[left], target[left], problem.at(left)
        if not len(left):
            break
    return nearest, distance


def length(delta: Tensor, norm: str) -> Tensor:
    """(B, d) -> (B,)."""
    return torch.linalg.vector_norm(delta, ord={"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)


def to_plane(x: Tensor, slope: Tensor, rise: Tensor, norm: str) -> Tensor:
    """The shortest (B, d) step from x (B, d) in [0, 1] that raises slope . x by `rise` (B,) and stays in the box.

    Where the box does not reach so far, the step to its corner. Exact: entries move in the direction of their slope
    until their room is used up, all at one speed (l_inf), at the speed of their slope (l2), or one after the other from
    the steepest (l1); the sum over used-up entries is a sorted cumulative sum.
    """
    toward = slope * rise.sign()[:, None]
    steep, room, wanted = toward.abs(), torch.where(toward > 0, 1 - x, x), rise.abs()[:, None]
    full = steep * room
    if norm == "l1":
        order = steep.argsort(1, descending=True)
        used = torch.zeros_like(full).scatter(1, order, full.gather(1, order).cumsum(1)) - full
        size = torch.minimum(((wanted - used) / (steep + 1e-30)).clamp_min(0), room)
        return toward.sign() * size
    speed = torch.ones_like(steep) if norm == "linf" else steep
    order = (ends := room / (speed + 1e-30)).argsort(1)
    ends, full, rate = (part.gather(1, order) for part in (ends, full, steep * speed))
    before = full.cumsum(1) - full  # gained by entries whose room ended earlier
    running = rate.flip(1).cumsum(1).flip(1)  # rate of this entry and of those whose room ends later
    reached = before + ends * running >= wanted
    place = torch.where(reached.any(1), reached.float().argmax(1), ends.shape[1] - 1)[:, None]
    time = (wanted - before.gather(1, place)) / (running.gather(1, place) + 1e-30)
    return toward.sign() * torch.minimum(time * speed, room)
