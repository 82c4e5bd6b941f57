"""Certified accuracy against cost as a figure: a column per noise level, a row per radius. No torch, no display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from pandas import DataFrame

from drbench.errors import DrbenchError
from drbench.plots import looks, saving
from drbench.records.record import Run
from drbench.tables import pareto, summary
from drbench.tables.frames import first_row, named_rows
from drbench.tables.summary import METHOD

COSTS = {"": ("evaluations", "network evaluations per image"), "-seconds": ("seconds_per_image", "seconds per image")}


def cost_curves(runs: Sequence[Run], stem: str | Path, among: Sequence[Run] | None = None) -> list[Path]:
    """Write `<stem>` and `<stem>-seconds` as PNG and SVG; the same records give the same bytes.

    x: network evaluations per image, or seconds, both logarithmic. y: certified accuracy in % with 95 % Clopper-Pearson
    intervals over the images. The step line is the front: the best accuracy for at most that cost. A defense and
    variant has one colour and symbol in both, and in all figures with the same `among`, by default `runs`. Left out:
    rows without cost, and those whose draws cannot reach a radius.
    """
    stem, table, paths = Path(stem), pareto.frame(runs, pareto.DRAWN), []
    styles = looks.of([*runs, *(among or ())])
    for suffix, (column, label) in COSTS.items():
        some = table[table[column] > 0]
        if some.empty:
            raise DrbenchError(f"no plot {stem}: none of these runs has a cost in {label}; add one with a network")
        paths += saving.save(partial(_draw, some, column, label, styles), stem.with_name(stem.name + suffix))
    return paths


def _draw(table: DataFrame, column: str, label: str, styles: dict) -> Figure:
    groups = list(table.groupby(pareto.GROUP, sort=False))
    methods = {key: summary.method_name(first_row(part)) for key, part in table.groupby(METHOD, sort=False)}
    legend_rows = -(-len(methods) // 4)
    height = 3.1 * len(pareto.DRAWN) + 0.25 * legend_rows + 0.4
    figure = Figure(figsize=(max(8, 4.6 * len(groups)), height), dpi=100, layout="constrained")
    grid = figure.subplots(len(pareto.DRAWN), len(groups), sharex="col", sharey=True, squeeze=False)
    for across, (_, part) in enumerate(groups):
        first = first_row(part)
        for down, radius in enumerate(pareto.DRAWN):
            axes = grid[down, across]
            _panel(axes, part[part["radius"] == radius], column, styles)
            axes.set_title(f"{first.dataset} {first.subset}, {summary.where(first)}, r ≥ {radius:g}", fontsize=10)
        grid[-1, across].set_xlabel(label)
    for axes in grid[:, 0]:
        axes.set_ylabel("certified accuracy (%)")
    handles = [Line2D([], [], linestyle="", label=name, **styles[key].point) for key, name in methods.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panel(axes: Axes, part: DataFrame, column: str, styles: dict) -> None:
    part = part[(part["radius"] <= part["ceiling"]) | (part["certified_accuracy"] > 0)]  # 0 by construction
    if part.empty:
        return
    ordered = part.sort_values(column)
    best = ordered["certified_accuracy"].cummax()
    axes.plot(ordered[column], 100 * best, drawstyle="steps-post", color="#999999", linewidth=1, zorder=1)
    rows = list(named_rows(ordered))
    bars = zip(*((getattr(row, column), 100 * row.ci_low, 100 * row.ci_high) for row in rows), strict=True)
    axes.vlines(*bars, colors=[styles[row.defense, row.variant].colour for row in rows], linewidth=1)
    for row in rows:
        style = styles[row.defense, row.variant].point
        axes.plot(getattr(row, column), 100 * row.certified_accuracy, markersize=7, clip_on=False, zorder=3, **style)
    axes.set(xscale="log", xlim=_wide(ordered[column].min() / 1.6, ordered[column].max() * 1.6), ylim=(0, 100))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _wide(low: float, high: float) -> tuple[float, float]:
    """Limits of a decade at least: of less, ticks at 1, 2 and 5 are too few."""
    more = math.sqrt(max(1.0, 10 * low / high))
    return low / more, high * more
