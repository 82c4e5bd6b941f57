"""Certified accuracy against radius, as lines and panels that a figure can draw. No torch, no matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame

from drbench.records.record import Run
from drbench.tables import summary
from drbench.tables.summary import DATA, METHOD

NORMS = {"l1": "ℓ₁", "l2": "ℓ₂", "linf": "ℓ∞"}
COLUMNS = [*DATA, *METHOD, "certifier", "noise", "norm", "sigma", "sigmas", "n0", "n", "alpha", "ceiling", "images",
           "radius", "certified_accuracy", "ci_low", "ci_high", "weights", "partial", "marks", "run"]  # fmt: skip
PAIRED = ["weights", "n0", "n", "alpha"]  # equal in runs whose curves may stand beside each other


def curve_frame(runs: Sequence[Run], norm: str | None = None) -> DataFrame:
    """`COLUMNS` of `summary.frame` at every radius where a curve of the same method steps, and at the quarters."""
    methods: dict[tuple, list[Run]] = {}
    norm = summary.common_norm(runs, norm) if runs else "l2"
    for run in sorted(runs, key=summary.position):
        if any(run.ordered()):
            data, defense = run.header["data"], run.header["defense"]
            methods.setdefault((data["name"], data["subset"], defense["name"], defense["variant"]), []).append(run)
    if not methods:
        summary.frame(runs)  # says what is missing
    frames = [summary.frame(ours, _steps(ours, norm), norm)[COLUMNS] for ours in methods.values()]
    return pd.concat(frames, ignore_index=True)


def _steps(runs: Sequence[Run], norm: str) -> np.ndarray:
    ceilings = [summary.reach(run, norm) for run in runs]
    quarters = np.arange(math.floor(4 * max(ceilings)) + 1) / 4
    certified = (summary.certified(run, norm) for run in runs)
    return np.unique(np.concatenate([quarters, ceilings, *(found.radius[found.correct] for found in certified)]))


class Panel(NamedTuple):
    """One pair of axes: curves of a sigma, the envelopes, or cascades over the same scales."""

    title: str
    curves: list[DataFrame]
    ceilings: dict[float, str]  # radius -> label
    norm: str = "l2"
    oracle: bool = False
    cascade: bool = False
    beside: tuple[DataFrame, ...] = ()  # thin curves, each with its sigma written to it


def panels_of(curves: DataFrame) -> list[Panel]:
    panels, several, norm = [], len(curves.groupby(DATA)) > 1, curves["norm"].iat[0]
    for (dataset, subset), part in summary.groups(curves, DATA):
        prefix, limits = f"{dataset} {subset}, " if several else "", {}
        single, cascade = summary.split(part)
        for sigma, level in single.groupby("sigma"):
            panels.append(Panel(f"{prefix}σ = {sigma:g}", _reached(level), _limits(level), norm))
            limits[level["ceiling"].max()] = f"ceiling at σ = {sigma:g}"
        if len(limits) > 1:
            methods = (summary.envelope(line) for _, line in single.groupby(METHOD, sort=False))
            lines = [line[line["radius"] <= max(limits)] for line in methods]
            panels.append(Panel(f"{prefix}envelope over σ (an oracle)", lines, limits, norm, oracle=True))
        for sigmas, level in cascade.groupby("sigmas"):
            pairs = level[PAIRED].drop_duplicates()
            beside = single[single["sigma"].isin([float(sigma) for sigma in sigmas.split(", ")])]
            lines, singles = _reached(level), tuple(_reached(beside.merge(pairs)))
            title = f"{prefix}cascade over σ = {sigmas}"
            panels.append(Panel(title, lines, _limits(level), norm, cascade=True, beside=singles))
    return panels


def _reached(level: DataFrame) -> list[DataFrame]:
    """The curve of each run, up to its ceiling."""
    return [line[line["radius"] <= line["ceiling"].iat[0]] for _, line in level.groupby("run", sort=False)]


def _limits(level: DataFrame) -> dict[float, str]:
    rows = level[["ceiling", "n", "certifier"]].drop_duplicates().itertuples()
    return {row.ceiling: "ceiling of the Lipschitz constant" if row.certifier == "lipschitz"
            else f"ceiling for n = {row.n:,}" for row in rows}  # fmt: skip


def thinned(line: DataFrame) -> DataFrame:
    """Only the right end of each step: that is all a left-continuous step curve needs."""
    values = line[["certified_accuracy", "ci_low", "ci_high"]].to_numpy()
    ends = np.any(values[1:] != values[:-1], axis=1)
    return line[np.append(ends, True) | (line["radius"] == 0)]
