"""Two sides of a claim on the same images: which runs stand for them, and the paired effect. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
from pandas import DataFrame, Series

from drbench import per_image, stats, summary, thinning
from drbench.errors import DrbenchError
from drbench.per_image import COSTS, MEASURES
from drbench.record import Run

CASCADE = "cascade"  # as the sigma of a side: the runs over several noise levels
FLIPS = 9_999


class NotTested(Exception):
    """The runs at hand cannot say; the text says what is missing."""


class Side(NamedTuple):
    """The runs of one side: names as tables print them, `*` for any text (every match is one training).

    sigma: its own noise level, `CASCADE`, or None for those of the claim. measure: its own, or that of the claim.
    """

    rows: tuple[str, ...]
    measure: str
    sigma: float | str | None = None

    @property
    def title(self) -> str:
        return " or ".join(self.rows)


class Effect(NamedTuple):
    """A minus B over the images (or A, or B / A), with its 95 % interval, in the unit of the measure.

    reference : what no difference is: 0, a number, or 1 for factors.
    p : exact two-sided sign test of `up` images against `down`; NaN where nothing is paired.
    p_mean : of the mean, when A and B are exchanged within images at random: where every image is right or wrong the
        sign test again, else `FLIPS` sign flips (Fisher's randomization test).
    """

    effect: float
    low: float
    high: float
    reference: float
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
        self.runs = sorted((run for run in runs if any(run.ordered())), key=_worth)
        self._values: dict[tuple, Series] = {}
        self._thinned: dict[tuple, Run] = {}

    def effect(
        self, a: Side, b: Side | float, *, radii: Sequence[float], sigmas: Sequence[float], threats: Sequence[tuple],
        equal: bool = True,
    ) -> Effect:  # fmt: skip
        """The effect of A over B, or over a number; `NotTested` if a run is missing.

        Parameters
        ----------
        radii, sigmas, threats : sequence
            Of certified accuracy; noise levels of sides that name none; (norm, eps) of attacks. Numbers of an image are
            means over them.
        equal : bool
            Compare runs at the draws of the smallest one, where votes of one noise level allow it.
        """
        conditions = list(threats if MEASURES[a.measure].task == "attack" else sigmas) or [None]
        sides = [self._runs(side, conditions) for side in (a, b) if isinstance(side, Side)]
        notes = [_conditions(a, b, condition) for condition in conditions]
        if a.measure in COSTS:
            found = _factors(sides, a.measure)
        else:
            numbers, notes = self._numbers(sides, (a, b), conditions, notes, radii, equal)
            found = _difference(numbers, MEASURES[a.measure].unit, None if isinstance(b, Side) else b)
        text = found.pop("by seed", "")
        return Effect(
            **found,
            seeds="" if a.measure in COSTS else " / ".join(str(len(side)) for side in sides),
            cost="; ".join(f"{name} {_cost(side)}" for name, side in zip("AB", sides, strict=False)),
            runs=" ".join(sorted({summary.place(run) for side in sides for runs in side.values() for run in runs})),
            marks="; ".join(_marks(sides)),
            note="; ".join(filter(None, [*notes, text, _presets(sides), *_others(sides, self.runs)])),
        )

    def _runs(self, side: Side, conditions: Sequence) -> dict[str, list[Run]]:
        """Name of a training -> its best run under each condition."""
        found: dict[str, list[Run | None]] = {}
        for place, condition in enumerate(conditions):
            for run in self.runs:  # the best come last
                name = title(run)
                if any(fnmatchcase(name, row) for row in side.rows) and _fits(run, side, condition):
                    found.setdefault(name, [None] * len(conditions))[place] = run
        whole = {name: runs for name, runs in sorted(found.items()) if all(runs)}
        if not whole:
            seen = [any(runs[place] for runs in found.values()) for place in range(len(conditions))]
            lacking = [_condition(side, c) for c, there in zip(conditions, seen, strict=True) if not there]
            kind = "attack" if MEASURES[side.measure].task == "attack" else "certification"
            raise NotTested(f"no {kind} of {side.title}: {', '.join(lacking) or 'under all conditions at once'}")
        return whole

    def _numbers(self, sides, of, conditions, notes, radii, equal) -> tuple[list[list[Series]], list[str]]:
        """For each side and training the numbers of the images, mean over the conditions."""
        parts: list[list[list[Series]]] = [[[] for _ in side] for side in sides]
        for place in range(len(conditions)):
            runs = [[trained[place] for trained in side.values()] for side in sides]
            everyone = [run for side in runs for run in side]
            n = min(run.header["engine"]["n"] for run in everyone) if all(map(thinning.can_thin, everyone)) else None
            runs = [[self._at(run, n if equal else None) for run in side] for side in runs]
            within = radii
            if of[0].measure == "certified":
                reach = min(summary.reach(run) for side in runs for run in side)
                within = [radius for radius in radii if radius <= reach]
                notes[place] += f", r {', '.join(f'{r:g}' for r in within) or 'out of reach'}"
            drawn = sorted({run.header["engine"].get("n", 0) for run in everyone})
            if len(drawn) > 1:
                what = f"at {n:,} draws of" if n and equal else "as recorded, draws"
                notes[place] += f", {what} {' and '.join(f'{k:,}' for k in drawn)}"
            if of[0].measure == "certified" and not within:
                continue
            _same_images(everyone)
            for side, group, numbers in zip(of, runs, parts, strict=False):
                for run, gathered in zip(group, numbers, strict=True):
                    gathered.append(self._of(run, side.measure, within))
        if not parts[0][0]:
            raise NotTested(f"no radius within reach of the draws: {'; '.join(notes)}")
        return [[sum(gathered) / len(gathered) for gathered in side] for side in parts], notes

    def _at(self, run: Run, n: int | None) -> Run:
        if n is None or run.header["engine"]["n"] == n:
            return run
        key = (run.folder, n)
        if key not in self._thinned:
            self._thinned[key] = thinning.thinned(run, n)
        return self._thinned[key]

    def _of(self, run: Run, measure: str, radii: Sequence[float]) -> Series:
        key = (run.folder, run.header["engine"].get("n"), measure)
        if key not in self._values:
            self._values[key] = per_image.values(run, measure)
        found = self._values[key]
        return found if measure != "certified" else sum((found >= r).astype(float) for r in radii) / len(radii)


def title(run: Run) -> str:
    """`name` or `name (variant)`, as tables print it."""
    defense = run.header["defense"]
    return f"{defense['name']} ({defense['variant']})" if defense["variant"] else defense["name"]


def _worth(run: Run) -> tuple:
    """Sort key: of several runs of a row the last one stands for it."""
    return not summary.marks(run), len(run.rows), run.header["engine"].get("n", 0), str(run.folder)


def _fits(run: Run, side: Side, condition) -> bool:
    engine, task = run.header["engine"], MEASURES[side.measure].task
    if run.task != ("attack" if task == "attack" else "certify"):
        return False
    if task == "attack":
        several = engine["decision"].startswith("cascade")
        same = engine["norm"] == condition[0] and math.isclose(engine["eps"], condition[1])
        return same and (side.sigma is None or (several if side.sigma == CASCADE else engine["sigma"] == side.sigma))
    several = engine["certifier"] == "cascade"
    if task == "cascade" or side.sigma == CASCADE:
        return several
    return not several and engine["sigma"] == (condition if side.sigma is None else side.sigma)


def _condition(side: Side, condition) -> str:
    if isinstance(condition, tuple):
        return f"{condition[0]} {condition[1]:g}"
    sigma = condition if side.sigma is None else side.sigma
    return f"σ {sigma:g}" if isinstance(sigma, float | int) else "all noise levels"


def _conditions(a: Side, b: Side | float, condition) -> str:
    words = [_condition(side, condition) for side in (a, b) if isinstance(side, Side)]
    return words[0] if len(set(words)) == 1 else f"A {words[0]}, B {words[1]}"


def _same_images(runs: Sequence[Run]) -> None:
    """Refuse runs that disagree on a label: one of them is of other images."""
    labels: dict = {}
    for run in runs:
        for row in run.ordered():
            if labels.setdefault(row.id, row.label) != row.label:
                raise DrbenchError(
                    f"{run.folder}: image {row.id} has label {row.label}, in another run of "
                    f"{run.header['data']['name']} {labels[row.id]}: they are not of the same images"
                )


def _difference(sides: list[list[Series]], unit: str, constant: float | None) -> dict:
    """Effect over the images that all runs have recorded; trainings are paired in order, or with the others' mean."""
    shared = [i for i in sides[0][0].index if all(i in one.index for side in sides for one in side)]
    if not shared:
        raise NotTested("the runs have no recorded image in common")
    each = [np.array([one.loc[shared].to_numpy() for one in side]) for side in sides]
    if constant is None and len(each[0]) != len(each[1]):
        each = [side if len(side) == max(map(len, each)) else side.mean(axis=0, keepdims=True) for side in each]
    gaps = each[0] if constant is not None else each[0] - each[1]
    scale, mean = 100.0 if unit == "points" else 1.0, gaps.mean(axis=0).round(12)  # means of equal numbers are equal
    up, down = (int((sign * mean > 0).sum()) if constant is None else 0 for sign in (1, -1))
    low, high = _interval(gaps)
    by_seed = ", ".join(f"{scale * gap:+.2f}" for gap in gaps.mean(axis=1))
    return {
        "effect": scale * float(mean.mean()), "low": scale * low, "high": scale * high,
        "reference": 0.0 if constant is None else float(constant),
        "p": stats.sign_test(up, up + down) if constant is None else math.nan,
        "p_mean": _exchanged(mean) if constant is None else math.nan,
        "up": up, "down": down, "images": len(shared), "by seed": f"by seed {by_seed}" * (len(gaps) > 1),
    }  # fmt: skip


def _exchanged(gaps: np.ndarray) -> float:
    """Two-sided p-value of the mean if A and B of each image might as well be exchanged."""
    differ = gaps[gaps != 0]
    if len(set(np.abs(differ))) <= 1:
        return stats.sign_test(int((differ > 0).sum()), len(differ))
    rng = np.random.Generator(np.random.Philox(key=0))
    sums = (2.0 * rng.integers(0, 2, (FLIPS, len(differ)), dtype=np.int8) - 1.0) @ differ
    return float((1 + (np.abs(sums) >= abs(differ.sum()) - 1e-9).sum()) / (1 + FLIPS))


def _interval(gaps: np.ndarray, resamples: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of (trainings, images): both are resampled if there are several trainings."""
    trainings, images = gaps.shape
    if trainings == 1 and np.isin(gaps, (-1.0, 0.0, 1.0)).all():
        return stats.paired_interval(int((gaps > 0).sum()), int((gaps < 0).sum()), images)
    if trainings == 1:
        return stats.bootstrap_mean(gaps[0])
    rng = np.random.Generator(np.random.Philox(key=0))
    shares = [rng.multinomial(size, np.full(size, 1 / size), resamples) / size for size in (trainings, images)]
    low, high = np.quantile(np.einsum("rt,ti,ri->r", shares[0], gaps, shares[1], optimize="greedy"), (0.025, 0.975))
    return float(low), float(high)


def _factors(sides: list[dict[str, list[Run]]], measure: str) -> dict:
    """Cost of B over that of A, for each pair of runs: mean, smallest and largest."""
    first, second = ([[per_image.cost(run, measure) for run in runs] for runs in side.values()] for side in sides)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.array([np.divide(theirs, ours) for ours in first for theirs in second])
    if not np.isfinite(factors).all():
        raise NotTested("a side costs nothing, or its cost is unknown")
    images = min(len(run.rows) for side in sides for runs in side.values() for run in runs)
    return {"effect": float(factors.mean()), "low": float(factors.min()), "high": float(factors.max()),
            "reference": 1.0, "p": math.nan, "p_mean": math.nan, "up": 0, "down": 0, "images": images}  # fmt: skip


def _cost(side: dict[str, list[Run]]) -> str:
    runs = [run for found in side.values() for run in found]
    calls = sorted({per_image.cost(run, "calls") for run in runs})
    text = " to ".join(f"{count:g}" for count in dict.fromkeys((calls[0], calls[-1]))) + " calls"
    if any(run.task != "certify" or run.header["engine"]["certifier"] == "imported" for run in runs):
        return text
    return f"{text}, {1000 * np.mean([per_image.cost(run, 'seconds') for run in runs]):.2g} ms"


def _marks(sides: list[dict[str, list[Run]]]) -> Iterator[str]:
    for name, side in zip("AB", sides, strict=False):
        runs = [run for found in side.values() for run in found]
        imported = any(run.header["engine"].get("certifier") == "imported" for run in runs)
        marks = sorted({mark for run in runs for mark in summary.marks(run)} | ({"imported"} if imported else set()))
        if marks:
            yield f"{name}: {', '.join(marks)}"


def _presets(sides: list[dict[str, list[Run]]]) -> str:
    """A word on attacks of unequal strength."""
    presets = [" and ".join(sorted({run.header["engine"]["preset"] for found in side.values() for run in found}))
               for side in sides if all(run.task == "attack" for found in side.values() for run in found)]  # fmt: skip
    return f"attacks: A {presets[0]}, B {presets[1]}" if len(set(presets)) > 1 else ""


def _others(sides: list[dict[str, list[Run]]], runs: Sequence[Run]) -> Iterator[str]:
    """A word on other runs of the same row and conditions, which were passed over."""
    chosen = {run.folder: run for side in sides for found in side.values() for run in found}
    alike = [summary.place(run) for run in runs if run.folder not in chosen and _twin(run, chosen.values())]
    if alike:
        yield f"passed over: {', '.join(sorted(alike))}"


def _twin(run: Run, chosen) -> bool:
    def key(each: Run) -> DataFrame:
        engine = each.header["engine"]
        return (title(each), each.task, engine.get("certifier"), engine.get("norm"), engine.get("eps"),
                engine["sigma"], engine.get("decision"))  # fmt: skip

    return any(key(run) == key(each) for each in chosen)
