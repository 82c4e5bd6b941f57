"""When an image has been drawn often enough: stopping rules of the modes that look at the votes before the budget ends.

A rule only decides how long to draw. What may be claimed from the votes is `drbench.stats.decide`'s affair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from drbench import stats
from drbench.sequential import log_e_above


class Rule(NamedTuple):
    """When to stop drawing, as integers; decisions are taken at `points` only, so they depend on the counts alone.

    points : (P,) numbers of draws. reached, refuted : (P, T) for each of T targets the fewest votes that reach it, and
    the most votes that rule it out.
    """

    points: np.ndarray
    reached: np.ndarray
    refuted: np.ndarray

    def stops(self, votes: int, point: int) -> bool:
        """Whether all targets are settled at `points[point]`; always at the last one."""
        settled = (votes >= self.reached[point]) | (votes <= self.refuted[point])
        return bool(settled.all()) or point == len(self.points) - 1


def rule(
    mode: str, radii_over_sigma: Sequence[float], budget: int, alpha: float, *, give_up: float = 0.01, block: int = 100
) -> Rule:
    """The stopping rule of a mode for these target radii (in units of sigma) and at most `budget` draws.

    curtailed : stops as soon as the remaining draws of the budget cannot change what a fixed-size test says about any
        target: the same decisions as `fixed`.
    sequential, hybrid : stops when each target is reached by the anytime lower limit, or ruled out by the anytime upper
        limit at level `give_up`, which costs certified accuracy and never soundness.
    """
    points = np.array(checkpoints(budget, block))
    reached, refuted = (np.empty((len(points), len(radii_over_sigma)), np.int64) for _ in range(2))
    for target, radius in enumerate(radii_over_sigma):
        if mode == "curtailed":
            needed = stats.smallest_votes(budget, alpha, radius)
            needed = budget + 1 if needed is None else needed
            reached[:, target], refuted[:, target] = needed, points - (budget - needed) - 1
            continue
        share, level = float(special.ndtr(radius)), stats.MODES[mode] * alpha
        if radius > stats.ceiling_radius(budget, alpha, 1.0):  # beyond what any votes can show
            reached[:, target], refuted[:, target] = budget + 1, budget
            continue
        for point, draws in enumerate(points.tolist()):
            reached[point, target] = _fewest(draws, share, level)
            # Votes that rule out "at least share" are misses that rule out "at most 1 - share".
            refuted[point, target] = draws - _fewest(draws, 1 - share, give_up)
    return Rule(points, reached, refuted)


def _fewest(draws: int, share: float, level: float) -> int:
    """Fewest votes of `draws` that show, at any time, that their share exceeds `share`; draws + 1 if none do."""
    low, high = math.ceil(share * draws), draws + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if log_e_above(middle, draws, share) >= -math.log(level) else (middle + 1, high)
    return low


def plan(
    mode: str, sigma: float, n: int, alpha: float, radii: Sequence[float] | None = None, give_up: float = 0.01
) -> dict:
    """What a run's header says about a mode that stops early; targets are by default 0, 0.25, ... up to the ceiling."""
    if radii is None:
        radii = np.arange(math.floor(4 * stats.ceiling_radius(n, alpha, sigma)) + 1) / 4
    return {"options": {"mode": mode, "budget": n}, "radii": sorted(map(float, radii)), "give_up": give_up}


def checkpoints(most: int, block: int = 100, growth: float = 1.1) -> list[int]:
    """Numbers of draws at which decisions are taken: multiples of `block`, about `growth` apart, the last is `most`."""
    found = [min(block, most)]
    while found[-1] < most:
        step = max(block, round(found[-1] * (growth - 1) / block) * block)
        found.append(min(found[-1] + step, most))
    return found
