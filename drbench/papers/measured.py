"""What a run measures of the numbers that papers print. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pandas import DataFrame

from drbench import stats
from drbench.norms import FLOW
from drbench.records.record import Run
from drbench.stats.robustness import robustness
from drbench.tables import halting, summary

SECONDS = ("latency_s_per_image", "seconds_per_image")
COSTS = ("network_calls_per_noise_sample", "nfe_per_image", *SECONDS)
# metric of an attack run -> which answers, and which accuracy of `stats.robustness`; "worst" is the worst of ten
ATTACKED = {
    "robust_accuracy": ("adversarial", "average"),
    "robust_accuracy_average": ("adversarial", "average"),
    "robust_accuracy_worst_of_10": ("adversarial", "worst"),
    "clean_accuracy": ("clean", "average"),
    "clean_accuracy_average": ("clean", "average"),
    "standard_accuracy": ("clean", "average"),
    "clean_accuracy_worst_of_10": ("clean", "worst"),
}
WORST_OF = 10
Measured = tuple[float, float, float]  # value and 95 % interval for the choice of images; shares in percent


@dataclass(frozen=True)
class Known:
    """A run that may stand for rows of a paper; of certifications its certificates in l2."""

    run: Run
    images: DataFrame | None

    @property
    def method(self) -> tuple[str, str]:
        return self.run.header["defense"]["name"], self.run.header["defense"]["variant"]

    @property
    def count(self) -> int:
        return len(self.run.rows) if self.images is None else len(self.images)

    def measure(self, row: Mapping, radius: float | None) -> Measured | None:
        """The row's metric; None if the run says nothing of it.

        Clean accuracy of a smoothed classifier is what it certifies at radius 0, as in Carlini et al. 2023.
        """
        metric = row["metric"]
        if metric in COSTS:
            value = self._cost(metric)
            return None if value is None else (value, value, value)
        if self.images is None:
            return self._attacked(metric, row["norm"], radius)
        if metric == "standard_accuracy":
            return self._empirical()
        if row["norm"] != "l2":
            return None
        if metric == "average_certified_radius":
            radii = self.images["radius"].where(self.images["correct"], 0.0)
            return (float(radii.mean()), *stats.bootstrap_mean(radii))
        if radius is None or not (metric == "certified_accuracy" or (metric == "clean_accuracy" and radius == 0)):
            return None
        certified = int((self.images["correct"] & (self.images["radius"] >= radius)).sum())
        low, high = stats.interval(certified, self.count)
        return 100 * certified / self.count, 100 * low, 100 * high

    def _empirical(self) -> Measured | None:
        """Of a cascade, without certificate: its votes as a prior on the clean logits, as its paper measures it."""
        shares = [share for share in halting.frame([self.run]).get("prior_mixed", []) if not math.isnan(share)]
        if not shares:
            return None
        low, high = stats.interval(round(shares[0] * self.count), self.count)
        return 100 * shares[0], 100 * low, 100 * high

    def _attacked(self, metric: str, norm: str, radius: float | None) -> Measured | None:
        engine, rows = self.run.header["engine"], [row for row in self.run.ordered() if row.evidence]
        name, kind = ATTACKED.get(metric, (None, None))
        asked = {"adversarial": [(engine["norm"], self._bound())], "clean": [("none", None), (engine["norm"], 0.0)]}
        if not any(norm == ours and _close(eps, radius) for ours, eps in asked.get(name, ())):
            return None
        if kind == "worst" and engine["worst_of"] != WORST_OF:
            return None
        answers, labels = [getattr(row.evidence, name) for row in rows], [row.label for row in rows]
        return tuple(100 * part for part in getattr(robustness(answers, labels, engine["worst_of"]), kind))

    def _bound(self) -> float:
        """The bound of an attack as papers print it: of displacements on a grid that is 2 wide, not in pixels."""
        engine, data = self.run.header["engine"], self.run.header["data"]
        return engine["eps"] * 2 / data["shape"][2] if engine["norm"] == FLOW and "shape" in data else engine["eps"]

    def _cost(self, metric: str) -> float | None:
        rows, nfe = self.run.ordered(), self.run.header["defense"]["nfe"]
        if self.images is None or not rows:  # what an attack costs says nothing of the defense
            return None
        if metric == "network_calls_per_noise_sample":
            return float(sum(nfe.values()))
        if metric == "nfe_per_image":
            return sum(sum(row.evaluations.values()) for row in rows) / len(rows)
        return sum(row.seconds for row in rows) / len(rows)


def known(run: Run) -> Known | None:
    """None for a run in which nothing was recorded."""
    if not run.rows or (run.task == "attack" and not any(row.evidence for row in run.rows.values())):
        return None
    return Known(run, None if run.task == "attack" else summary.certified(run, "l2"))


def _close(ours: float | None, theirs: float | None) -> bool:
    return ours == theirs if None in (ours, theirs) else abs(ours - theirs) < 1e-4  # papers print 0.0157 for 4/255
