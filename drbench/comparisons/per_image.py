"""One number for each image of a run: what claims about runs are averages of. No torch.

Every recorded image has a number; an error, an abstention and a wrong class count as 0 certified and 0 right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pandas import Series

from drbench import stats
from drbench.comparisons import thinning
from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Certificate
from drbench.records.record import Row, Run
from drbench.tables import summary


class Measure(NamedTuple):
    """Which task records it ("cascade": a certification over several noise levels), in which unit it is printed."""

    task: str
    unit: str  # "points" is 100 times the number
    meaning: str


MEASURES = {
    "certified": Measure("certify", "points", "certified accuracy, mean over the radii and noise levels"),
    "radius": Measure("certify", "radius", "average certified radius, mean over the noise levels"),
    "right": Measure("cascade", "points", "accuracy of the cascade, with the clean classifier where it abstains"),
    "mixed": Measure("cascade", "points", "accuracy with the votes as a prior on the clean logits"),
    "plain": Measure("cascade", "points", "accuracy of the clean classifier alone"),
    "levels": Measure("cascade", "levels", "noise levels that an image takes"),
    "passed": Measure("cascade", "points", "images that no class wins at the largest noise level"),
    "wrong": Measure("cascade", "points", "images that halt on a wrong class"),
    "robust": Measure("attack", "points", "average robust accuracy under attack, mean over the threats"),
    "clean": Measure("attack", "points", "average accuracy on the clean images of an attack run"),
    "calls": Measure("certify", "times", "network calls of a noisy draw, those of B over those of A"),
    "seconds": Measure("certify", "times", "wall time of a noisy draw, that of B over that of A"),
}
COSTS = ("calls", "seconds")  # of a run, not of an image


def values(run: Run, measure: str, *, radii: Sequence[float] = (), draws: int | None = None) -> Series:
    """Numbers by image id, in the order of the subset.

    radii : of "certified", which is the share of them at which the image is certified.
    draws : of a certification at one noise level, fewer than it made: what is expected of so many (`thinning`).
    """
    if draws is not None and draws != run.header["engine"]["n"]:
        return thinning.expected(run, draws, lambda fewer: values(fewer, measure, radii=radii))
    rows, task = list(run.ordered()), MEASURES[measure].task
    if measure == "certified":
        found = summary.certified(run)
        numbers = np.mean([found.correct & (found.radius >= radius) for radius in radii], axis=0)
    elif measure == "radius":
        found = summary.certified(run)
        numbers = found.radius.where(found.correct, 0.0)
    elif task == "attack":
        numbers = [_of_attack(row, measure) if row.evidence else 0.0 for row in rows]
    else:
        each = zip(rows, summary.conclusions(run), strict=True)
        numbers = [_of_cascade(run, row, found, measure) if row.evidence else 0.0 for row, found in each]
    return Series([float(number) for number in numbers], index=[row.id for row in rows])


def _of_attack(row: Row, measure: str) -> float:
    answers = row.evidence.adversarial if measure == "robust" else row.evidence.clean
    return 1 - answers.wrong(row.label) / answers.count


def _of_cascade(run: Run, row: Row, found: Certificate, measure: str) -> float:
    levels = len(row.evidence.stages)
    if measure in ("levels", "passed"):
        return float(levels if measure == "levels" else levels > 1)
    if measure == "wrong":  # a radius of 0 is an abstention, but the cascade did answer
        answer = found.detail["class"] if found.detail.get("reason") == "no radius" else found.prediction
        return float(answer not in (row.label, ABSTAIN))
    free = stats.empirical(row.evidence, found, run.header["engine"]["options"]["p0"])
    if free is None:
        raise DrbenchError(f"{run.folder}: image {row.id} has no clean logits, which {measure!r} is about")
    return float({"right": free.fallback, "mixed": free.mixed, "plain": free.clean}[measure] == row.label)


def cost(run: Run, measure: str) -> float:
    """Network calls, or seconds, of one noisy draw; a cascade's calls are those at its largest level."""
    if measure == "calls":
        return float(sum(run.header["defense"]["nfe"].values()))
    rows = list(run.ordered())
    draws = sum(stage.n0 + stage.n for row in rows if row.evidence for stage in row.evidence.stages)
    return sum(row.seconds for row in rows) / draws if draws else float("nan")
