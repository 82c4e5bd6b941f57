"""The paired effect of one side over another, on the same images and at the same draws. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pandas import Series

from drbench import stats
from drbench.comparisons import paired_stats, per_image, sides, thinning
from drbench.comparisons.per_image import COSTS, MEASURES
from drbench.comparisons.sides import NotTested, Side, Trainings, every
from drbench.errors import DrbenchError
from drbench.records.record import Run
from drbench.tables import summary


class Effect(NamedTuple):
    """A minus B over the images (or A, or B / A), with its 95 % interval, in the unit of the measure.

    reference : what no difference is: 0, a number, or 1 for factors.
    base : mean of B, in the unit of the measure; NaN where nothing is paired.
    p : exact two-sided sign test of `up` images against `down`; NaN where nothing is paired.
    p_mean : `drbench.comparisons.paired_stats.exchanged`, the test of the mean; NaN as well.
    """

    effect: float
    low: float
    high: float
    reference: float
    base: float
    p: float
    p_mean: float
    up: int
    down: int
    images: int
    seeds: str
    cost: str
    runs: str
    marks: str
    note: str


class Bench:
    """Runs on one data set, and what was read from them already."""

    def __init__(self, runs: Sequence[Run]):
        self.runs = [run for run in runs if any(run.ordered())]
        self._values: dict[tuple, Series] = {}

    def effect(
        self,
        a: Side,
        b: Side | float,
        *,
        radii: Sequence[float] = (),
        sigmas: Sequence[float] = (),
        threats: Sequence[tuple] = (),
        equal: bool = True,
    ) -> Effect:
        """The effect of A over B, or over a number; `NotTested` if a run is missing.

        Parameters
        ----------
        radii, sigmas, threats : sequence
            Of certified accuracy; noise levels of sides that name none; (norm, eps) of attacks. The number of an image
            is the mean over them.
        equal : bool
            Compare runs at the draws of the smallest one, where the others hold votes at one noise level.
        """
        conditions = list(threats if MEASURES[a.measure].task == "attack" else sigmas) or [None]
        of = [side for side in (a, b) if isinstance(side, Side)]
        found = [side.trainings(self.runs, conditions) for side in of]
        notes = [_words(of, condition) for condition in conditions]
        if a.measure in COSTS:
            facts = _factors(found, a.measure)
        else:
            numbers = self._numbers(of, found, notes, radii, equal)
            facts = _difference(numbers, MEASURES[a.measure].unit, None if isinstance(b, Side) else b)
        notes += [facts.pop("by seed", ""), *sides.remarks(found, self.runs)]
        return Effect(
            **facts,
            seeds="" if a.measure in COSTS else " / ".join(str(len(side)) for side in found),
            cost="; ".join(f"{name} {sides.costs(side)}" for name, side in zip("AB", found, strict=False)),
            runs=" ".join(sorted({summary.place(run) for side in found for run in every(side)})),
            marks=sides.marks(found),
            note="; ".join(filter(None, notes)),
        )

    def values(self, run: Run, measure: str, radii: Sequence[float], draws: int | None) -> Series:
        """`per_image.values`, at so many draws where they can be thinned."""
        draws = draws if thinning.can_thin(run) else None
        key = run.folder, measure, tuple(radii), draws
        if key not in self._values:
            self._values[key] = per_image.values(run, measure, radii=radii, draws=draws)
        return self._values[key]

    def _numbers(
        self, of: list[Side], found: list[Trainings], notes: list[str], radii: Sequence[float], equal: bool
    ) -> list[list[Series]]:
        """For each side and training the numbers of the images, mean over the conditions; adds to the notes."""
        parts: list[list[list[Series]]] = [[[] for _ in side] for side in found]
        for place in range(len(notes)):
            runs = [[trained[place] for trained in side.values()] for side in found]
            chosen = [run for side in runs for run in side]
            _comparable(chosen)
            draws = sorted({run.header["engine"].get("n", 0) for run in chosen})
            n = draws[0] if equal and all(_can_have(run, draws[0]) for run in chosen) else None
            within = list(radii)
            if of[0].measure == "certified":
                reach = min(thinning.reach(run, n) for run in chosen)
                within = [radius for radius in radii if radius <= reach]
                notes[place] += f", r {', '.join(f'{r:g}' for r in within) or 'out of reach'}"
            if len(draws) > 1:
                how = "as recorded, draws" if n is None else f"at {n:,} draws of"
                notes[place] += f", {how} {' and '.join(f'{k:,}' for k in draws)}"
            if of[0].measure == "certified" and not within:
                continue
            for side, group, numbers in zip(of, runs, parts, strict=True):
                for run, gathered in zip(group, numbers, strict=True):
                    gathered.append(self.values(run, side.measure, within, n))
        if not parts[0][0]:
            raise NotTested(f"no radius is within reach of these draws: {'; '.join(notes)}")
        return [[sum(gathered) / len(gathered) for gathered in side] for side in parts]


def _words(of: Sequence[Side], condition) -> str:
    words = [side.under(condition) for side in of]
    return words[0] if len(set(words)) == 1 else f"A {words[0]}, B {words[1]}"


def _can_have(run: Run, n: int) -> bool:
    """Whether the run has `n` draws at each noise level, or more of them that can be thinned."""
    engine = run.header["engine"]
    return thinning.can_thin(run) or (engine.get("certifier") == "cascade" and engine["n"] == n)


def _comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that disagree on a label, for one of them is of other images; radii of two norms are not compared."""
    labels: dict = {}
    for run in runs:
        for row in run.ordered():
            if labels.setdefault(row.id, row.label) != row.label:
                raise DrbenchError(
                    f"{run.folder}: image {row.id} has label {row.label}, in another run of "
                    f"{run.header['data']['name']} {labels[row.id]}: they are not of the same images; leave one out"
                )
    norms = sorted({stats.norm(run.header["engine"]) for run in runs if run.task == "certify"})
    if len(norms) > 1:
        raise NotTested(f"the runs certify in different norms, {' and '.join(norms)}")


def _difference(numbers: list[list[Series]], unit: str, constant: float | None) -> dict:
    """Effect over the images that all runs have recorded; trainings are paired in order, or with the others' mean."""
    series = [one for side in numbers for one in side]
    shared = [image for image in series[0].index if all(image in one.index for one in series)]
    if not shared:
        raise NotTested("the runs have no recorded image in common")
    each = [np.array([one.loc[shared].to_numpy() for one in side]) for side in numbers]
    if constant is None and len(each[0]) != len(each[1]):
        most = max(map(len, each))
        each = [side if len(side) == most else side.mean(axis=0, keepdims=True) for side in each]
    gaps = each[0] if constant is not None else each[0] - each[1]
    scale, mean = 100.0 if unit == "points" else 1.0, gaps.mean(axis=0).round(12)  # equal numbers leave no gap
    low, high = paired_stats.interval(gaps)
    facts = {"effect": scale * float(mean.mean()), "low": scale * low, "high": scale * high, "images": len(shared)}
    if len(gaps) > 1:
        facts["by seed"] = "by seed " + ", ".join(f"{scale * gap:+.2f}" for gap in gaps.mean(axis=1))
    if constant is not None:
        return facts | {
            "reference": float(constant),
            "base": math.nan,
            "p": math.nan,
            "p_mean": math.nan,
            "up": 0,
            "down": 0,
        }
    up, down = int((mean > 0).sum()), int((mean < 0).sum())
    tests = {"p": stats.sign_test(up, up + down), "p_mean": paired_stats.exchanged(mean)}
    return facts | tests | {"reference": 0.0, "base": scale * float(each[1].mean()), "up": up, "down": down}


def _factors(found: list[Trainings], measure: str) -> dict:
    """Cost of B over that of A for each pair of runs: mean, smallest and largest."""
    ours, theirs = ([per_image.cost(runs[place], measure) for runs in side.values() for place in range(len(runs))]
                    for side in found)  # fmt: skip
    if not all(cost > 0 for cost in ours + theirs):
        raise NotTested("a side costs nothing, or its cost is unknown")
    levels = len(next(iter(found[0].values())))
    factors = [b / a for i, a in enumerate(ours) for j, b in enumerate(theirs) if i % levels == j % levels]
    images = min(len(run.rows) for side in found for run in every(side))
    return {"effect": sum(factors) / len(factors), "low": min(factors), "high": max(factors), "reference": 1.0,
            "base": math.nan, "p": math.nan, "p_mean": math.nan, "up": 0, "down": 0, "images": images}  # fmt: skip
