"""The sides of a comparison: which of the runs at hand stand for a row, and what to say about them. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from drbench import stats
from drbench.attacks.presets import FLAG, budget
from drbench.comparisons import per_image
from drbench.comparisons.per_image import MEASURES
from drbench.records.record import Run
from drbench.tables import summary

CASCADE = "cascade"  # as the sigma of a side: the runs over several noise levels
Trainings = dict[str, list[Run]]  # name of a training -> its run under each condition


class NotTested(Exception):
    """The runs at hand cannot say; the text says what is missing."""


class Side(NamedTuple):
    """The runs of one side.

    rows : names as tables print them, `*` for any text; each match is a training (of costs: or another row). Of
        alternatives, `one | other`, the first counts that there is a run of: rows have other names on other data sets.
    sigma : its own noise level, `CASCADE`, or None for those of the comparison.
    """

    rows: tuple[str, ...]
    measure: str
    sigma: float | str | None = None

    def fits(self, run: Run, condition) -> bool:
        """Whether a run stands for this side under a condition: a noise level, or (norm, eps)."""
        engine, task = run.header["engine"], MEASURES[self.measure].task
        if run.task != ("attack" if task == "attack" else "certify"):
            return False
        if not any(fnmatchcase(title(run), row) for row in self.rows):
            return False
        if task == "attack":
            own = several(run) if self.sigma == CASCADE else not several(run) and engine["sigma"] == self.sigma
            same = engine["norm"] == condition[0] and math.isclose(engine["eps"], condition[1])
            return same and (own or self.sigma is None)
        if task == "cascade" or self.sigma == CASCADE:
            return several(run)
        return not several(run) and engine["sigma"] == (condition if self.sigma is None else self.sigma)

    def under(self, condition) -> str:
        """A condition in words."""
        if isinstance(condition, tuple):
            return f"{condition[0]} {condition[1]:g}"
        sigma = condition if self.sigma is None else self.sigma
        return f"σ {sigma:g}" if isinstance(sigma, float | int) else "all noise levels"

    def trainings(self, runs: Sequence[Run], conditions: Sequence) -> Trainings:
        """The best run of each training under each condition; `NotTested` if there is no training with all of them."""
        found: dict[str, list[Run | None]] = {}
        own = self._replace(rows=tuple(_alternative(row, runs) for row in self.rows))
        for place, condition in enumerate(conditions):
            for run in sorted((run for run in runs if own.fits(run, condition)), key=worth):
                found.setdefault(title(run), [None] * len(conditions))[place] = run  # the best come last
        whole = {name: each for name, each in sorted(found.items()) if all(each)}
        if not whole:
            seen = [any(each[place] for each in found.values()) for place in range(len(conditions))]
            lacking = [self.under(c) for c, there in zip(conditions, seen, strict=True) if not there]
            kind = "attack on" if MEASURES[self.measure].task == "attack" else "certification of"
            raise NotTested(f"no {kind} {' or '.join(self.rows)}: {', '.join(lacking) or 'at all of these at once'}")
        if MEASURES[self.measure].task == "attack":
            fitting = [run for run in runs if title(run) in whole and any(own.fits(run, each) for each in conditions)]
            if len(levels := sorted(set(map(_deployed, fitting)))) > 1:
                raise NotTested(f"{' or '.join(self.rows)}: attacked {' and '.join(levels)}; give the side a sigma")
        return whole


def _alternative(row: str, runs: Sequence[Run]) -> str:
    patterns = row.split(" | ")
    return next((each for each in patterns if any(fnmatchcase(title(run), each) for run in runs)), patterns[0])


def title(run: Run) -> str:
    """`name` or `name (variant)`, as tables print it."""
    defense = run.header["defense"]
    return f"{defense['name']} ({defense['variant']})" if defense["variant"] else defense["name"]


def several(run: Run) -> bool:
    """Whether the run is of a cascade over several noise levels."""
    engine = run.header["engine"]
    return engine["decision"].startswith("cascade") if run.task == "attack" else engine["certifier"] == "cascade"


def _deployed(run: Run) -> str:
    """Noise at which an attacked defense answers, in words."""
    return "as a cascade" if several(run) else f"at σ {run.header['engine']['sigma']:g}"


def worth(run: Run) -> tuple:
    """Sort key: of several runs of a row the last one stands for it.

    Gaussian noise, which tables and papers are about, before other noise; of attacks the one with the largest
    budget, for a weaker attack only leaves a higher upper bound. That is so if its audit raised a flag, too: the truth
    may be lower still.
    """
    engine = run.header["engine"]
    gaussian, asked = stats.noise(engine) == "gaussian", sum(map(budget, engine.get("attacks", {}).values()))
    spotless = all(mark.startswith(FLAG) for mark in all_marks([run]))
    return gaussian, spotless, asked, len(run.rows), engine.get("n", 0), str(run.folder)


def every(side: Trainings) -> list[Run]:
    return [run for runs in side.values() for run in runs]


def all_marks(runs: Iterable[Run]) -> list[str]:
    """What a reader has to know of any of these runs."""
    runs = list(runs)
    imported = {"imported" for run in runs if run.header["engine"].get("certifier") == "imported"}
    return sorted({mark for run in runs for mark in summary.marks(run)} | imported)


def marks(sides: Sequence[Trainings]) -> str:
    found = {name: all_marks(every(side)) for name, side in zip("AB", sides, strict=False)}
    return "; ".join(f"{name}: {', '.join(each)}" for name, each in found.items() if each)


def costs(side: Trainings) -> str:
    """Network calls, and of certifications the time, of one noisy draw (of an answer under attack)."""
    runs = every(side)
    calls = sorted({per_image.cost(run, "calls") for run in runs})
    text = " to ".join(f"{count:g}" for count in dict.fromkeys((calls[0], calls[-1])))
    text += " call" if text == "1" else " calls"
    if any(run.task != "certify" or run.header["engine"]["certifier"] == "imported" for run in runs):
        return text
    return f"{text}, {1000 * sum(per_image.cost(run, 'seconds') for run in runs) / len(runs):.2g} ms"


def remarks(sides: Sequence[Trainings], runs: Sequence[Run]) -> Iterator[str]:
    """Words on protocols that differ, and on runs that were passed over for better ones of the same row."""
    chosen = [run for side in sides for run in every(side)]
    for key, word in (("preset", "attack preset"), ("n0", "selection draws"), ("alpha", "alpha")):
        each = [
            sorted({run.header["engine"][key] for run in every(side) if key in run.header["engine"]}) for side in sides
        ]
        if len({value for values in each for value in values}) > 1:
            values = (f"{name} {' and '.join(map(str, given))}" for name, given in zip("AB", each, strict=False))
            yield f"{word}: {', '.join(values)}"
    alike, folders = {_kind(run) for run in chosen}, {run.folder for run in chosen}
    others = sorted(summary.place(run) for run in runs if run.folder not in folders and _kind(run) in alike)
    if others:
        yield f"passed over: {', '.join(others)}"


def _kind(run: Run) -> tuple:
    engine = run.header["engine"]
    return (title(run), run.task, engine["sigma"],
            *(engine.get(key) for key in ("certifier", "norm", "eps", "decision")))  # fmt: skip
