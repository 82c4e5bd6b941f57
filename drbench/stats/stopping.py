"""When an image has been drawn often enough: stopping rules of the modes that look at the votes before the budget ends.

A rule only decides how long to draw. What may be claimed from the votes is `drbench.stats.decide`'s affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from drbench import stats
from drbench.evidence import Evidence
from drbench.stats import noises
from drbench.stats.sequential import checkpoints, log_e_above, union_level

MARGIN = 2.33  # standard deviations that a forecast must leave: it is exceeded about once in a hundred tables


class Rule(NamedTuple):
    """When to stop drawing, as integers; decisions are taken at `points` only, so they depend on the counts alone.

    points : (P,) numbers of draws. reached, hopeless : (P, T) for each of T targets the fewest votes that reach it, and
    the most after which it is given up. final : (T,) fewest votes of the whole budget that reach it in mode fixed.
    """

    points: np.ndarray
    reached: np.ndarray
    hopeless: np.ndarray
    final: np.ndarray

    def open_targets(self, votes: int, point: int) -> np.ndarray:
        """(T,) which targets are not settled by these votes at `points[point]`."""
        return (votes < self.reached[point]) & (votes > self.hopeless[point])

    def stops(self, votes: int, point: int) -> bool:
        """Whether all targets are settled at `points[point]`; always at the last one."""
        return not self.open_targets(votes, point).any() or point == len(self.points) - 1

    def may_pass(self, votes: int, point: int) -> bool:
        """Whether some votes at the checkpoint before `point` leave a target open and can become `votes` here."""
        if point == 0:
            return True
        least, most = (
            max(0, votes - int(self.points[point] - self.points[point - 1])),
            min(votes, int(self.points[point - 1])),
        )
        low = np.maximum(self.hopeless[point - 1] + 1, least)
        high = np.minimum(self.reached[point - 1] - 1, most)
        return bool((low <= high).any())


class Table:
    """When the images of a table, drawn on in step, need no more draws for what a tolerance asks.

    A column of the table of mode fixed may hold images that are still open here. How many is forecast from the votes;
    the table stops when in every column the forecast, plus `MARGIN` standard deviations, is within the tolerance. As
    every rule it decides how long to draw, never what is claimed.

    Parameters
    ----------
    rule : Rule
    tolerance : float or None
        Share of the images by which a column may still rise; None: never stops the whole.
    done : sequence of Evidence or None
        Of images of an earlier session (None: failed). As far as they were drawn, the table did not stop.
    total : int
        Number of all images.
    """

    def __init__(self, rule: Rule, tolerance: float | None, done: Sequence[Evidence | None], total: int):
        self.rule, self.tolerance, self.done, self.total = rule, tolerance, len(done), total
        stages = [evidence.stages[0] for evidence in done if evidence] if tolerance is not None else []
        ends = [(stage.votes.get(stats.top_class(stage.select), 0), stage.n) for stage in stages]
        self.ended = [(votes, int(np.searchsorted(rule.points, draws))) for votes, draws in ends]
        self.earliest = max((point for _, point in self.ended), default=0)

    def enough(self, images: Sequence[tuple[int, int]], ended: int = 0) -> bool:
        """Whether to stop now: `images` are the votes and the checkpoint of each that is still drawn on.

        `ended` others came to their ends before. Never, if these and `done` are not the whole table.
        """
        if self.tolerance is None or not images or max(point for _, point in images) < self.earliest:
            return False
        return len(images) + ended + self.done == self.total and self.rise(images) <= self.tolerance

    def rise(self, images: Sequence[tuple[int, int]] = ()) -> float:
        """Share of the images by which the column that rises most may still rise, by the forecast."""
        votes, points = (np.array(part, int).reshape(-1, 1) for part in zip(*images, *self.ended, strict=True))
        at = points[:, 0]
        open_ = (votes < self.rule.reached[at]) & (votes > self.rule.hopeless[at])
        chance = np.where(
            open_, _chance(votes, self.rule.points[points], self.rule.final, int(self.rule.points[-1])), 0.0
        )
        most = np.minimum(chance.sum(0) + MARGIN * np.sqrt((chance * (1 - chance)).sum(0)), open_.sum(0))
        return float(most.max(initial=0.0) / self.total)


def rule(
    mode: str,
    radii_over_sigma: Sequence[float],
    budget: int,
    alpha: float,
    *,
    give_up: float = 0.01,
    block: int = 100,
    sequence: str = "e-process",
    noise: str = "gaussian",
) -> Rule:
    """The stopping rule of a mode for these target radii (in units of sigma) and at most `budget` draws.

    curtailed : stops as soon as the remaining draws of the budget cannot change what a fixed-size test says about any
        target: the same decisions as `fixed`.
    sequential, hybrid : stops when each target is reached by the anytime lower limit, or when the whole budget would
        reach it with a chance below `give_up` only, by the forecast of `_chance`. Giving up costs certified accuracy
        and never soundness, so a forecast is enough, and far cheaper than a proof that the share is too small.
    """
    points = np.array(checkpoints(budget, block))
    reached, hopeless = (np.empty((len(points), len(radii_over_sigma)), np.int64) for _ in range(2))
    final = np.array([_needed(budget, alpha, radius, noise) for radius in radii_over_sigma], int)
    for target, radius in enumerate(radii_over_sigma):
        if mode == "curtailed":
            reached[:, target] = final[target]
            hopeless[:, target] = points - (budget - final[target]) - 1
            continue
        if radius > stats.ceiling_radius(budget, alpha, 1.0, noise):  # beyond what any votes can show
            reached[:, target], hopeless[:, target] = budget + 1, budget
            continue
        share, level = 1 - noises.NOISES[noise].tail(radius), stats.MODES[mode] * alpha
        shows = [_shows(int(draws), share, level, points.tolist(), sequence) for draws in points]
        reached[:, target] = [_fewest(int(draws), share, each) for draws, each in zip(points, shows, strict=True)]
        last = reached[-1, target]
        if mode == "hybrid":
            last = min(last, _needed(budget, (1 - stats.MODES[mode]) * alpha, radius, noise))
        hopeless[:, target] = _most_hopeless(points, last, give_up)
    return Rule(points, reached, hopeless, final)


def _needed(budget: int, alpha: float, radius: float, noise: str) -> int:
    """Fewest votes of the whole budget with which a test of fixed size reaches a radius; budget + 1 if none do."""
    found = stats.smallest_votes(budget, alpha, radius, noise)
    return budget + 1 if found is None else found


def _most_hopeless(points: np.ndarray, final: int, give_up: float) -> np.ndarray:
    """(P,) at each checkpoint the most votes with a chance below `give_up` of `final` votes at the last; -1: none."""
    low, high = np.full(len(points), -1), np.minimum(points, final - 1)
    while (low < high).any():
        middle = (low + high + 1) // 2
        hopeless = _chance(middle, points, final, int(points[-1])) < give_up
        low, high = np.where(hopeless, middle, low), np.where(hopeless, high, middle - 1)
    return low


def _chance(votes: np.ndarray, draws: np.ndarray, final: np.ndarray | int, budget: int) -> np.ndarray:
    """P(at least `final` votes of the budget), given `votes` of `draws`; arrays broadcast.

    Normal approximation of the beta-binomial that follows from Beta(1/2, 1/2) before the first draw.
    """
    left, hits, misses = budget - draws, votes + 0.5, draws - votes + 0.5
    share = hits / (draws + 1)
    spread = np.sqrt(left * share * misses / (draws + 1) * (draws + 1 + left) / (draws + 2))
    lead = votes + left * share - final + 0.5
    return np.where(votes + left < final, 0.0, special.ndtr(lead / np.maximum(spread, 1e-9)))


def _shows(draws: int, share: float, level: float, points: Sequence[int], sequence: str) -> Callable[[int], bool]:
    """Whether so many votes of `draws` show, at any checkpoint, that their share exceeds `share`."""
    if sequence == "union":
        spent = union_level(level, draws, points)
        return lambda votes: stats.cp_lower(votes, draws, spent) >= share
    return lambda votes: log_e_above(votes, draws, share) >= -math.log(level)


def _fewest(draws: int, share: float, shows: Callable[[int], bool]) -> int:
    """Fewest votes of `draws` that show that their share exceeds `share`; draws + 1 if none do."""
    low, high = math.ceil(share * draws), draws + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle + 1, high)
    return low


def simulate(rule: Rule, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """Votes and draws at which one stream with this true share stops: for forecasts and benchmarks."""
    votes = np.cumsum(rng.binomial(np.diff(rule.points, prepend=0), share))
    point = next(point for point in range(len(votes)) if rule.stops(int(votes[point]), point))
    return int(votes[point]), int(rule.points[point])


def plan(
    mode: str,
    sigma: float,
    n: int,
    alpha: float,
    radii: Sequence[float] | None = None,
    give_up: float = 0.01,
    noise: str = "gaussian",
) -> dict:
    """What a run's header says about a mode that stops early; targets are by default 0, 0.25, ... up to the ceiling."""
    if radii is None:
        radii = np.arange(math.floor(4 * stats.ceiling_radius(n, alpha, sigma, noise)) + 1) / 4
    return {"options": {"mode": mode, "budget": n}, "radii": sorted(map(float, radii)), "give_up": give_up}
