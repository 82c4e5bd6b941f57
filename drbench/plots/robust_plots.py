"""Robust accuracy against eps: a panel per data set and norm. No torch, no display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from drbench.plots.curves import COLOURS, DASHES, MARKERS
from drbench.plots.saving import save
from drbench.records.record import Run
from drbench.tables import robust_tables
from drbench.tables.robust_tables import LINE, PANEL

WIDTHS = {"average": 1.8, "worst": 1.2}


def robust_curves(runs: Sequence[Run], stem: str | Path) -> list[Path]:
    """`<stem>.png` and `<stem>.svg`: average robust accuracy with its interval, and worst-of-M dotted, from eps = 0."""
    table = robust_tables.frame(runs)
    return save(lambda: _draw(table), stem)


def _draw(table: DataFrame) -> Figure:
    panels = list(table.groupby(PANEL, sort=False))
    keys = list(dict.fromkeys(table[LINE].itertuples(index=False, name=None)))
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(8, 6 * columns), 4.6 * rows + 0.9), dpi=100, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    drawn: dict = {}
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, ((dataset, subset, norm), part) in zip(grid.flat, panels, strict=False):
        here = dict(list(part.groupby(LINE, sort=False)))
        for key in filter(here.__contains__, keys):
            # bars must not hide each other
            beside = 0.005 * part["eps"].max() * (list(here).index(key) - (len(here) - 1) / 2)
            number, again = keys.index(key) % len(COLOURS), keys.index(key) // len(COLOURS)
            style = {"color": COLOURS[number], "marker": MARKERS[again % len(MARKERS)]}
            dashes = {"average": DASHES[again % len(DASHES)], "worst": ":"}
            drawn.setdefault(key, _curves(axes, here[key].sort_values("eps"), beside, style, dashes))
        unit = robust_tables.NORMS.get(norm, norm)
        label = "eps (pixels)" if norm == "stadv" else f"{unit} radius eps (pixel units)"
        axes.set(title=f"{dataset} {subset}, {unit}", xlabel=label, ylim=(0, 101))
    for axes in grid[:, 0]:
        axes.set_ylabel("robust accuracy (%)")
    figure.legend(drawn.values(), map(_label, drawn), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Robust accuracy under the strongest attack found: average, with 95 % intervals over the images; "
                    f"dotted: worst of {', '.join(map(str, sorted(table['worst_of'].unique())))} evaluations",
                    fontsize=10)  # fmt: skip
    return figure


def _curves(axes: Axes, line: DataFrame, beside: float, style: dict, dashes: dict):
    """Curves of one defense; their clean accuracy stands at eps = 0. Returns the bars of the average."""
    several = line["evaluations"].max() > 1
    for kind in ("worst", "average") if several else ("average",):
        value, low, high = (
            100 * np.array([line[f"clean_{kind}{end}"].iat[0], *line[f"{kind}{end}"]]) for end in ("", "_low", "_high")
        )
        bars = axes.errorbar(
            np.array([0.0, *line["eps"]]) + beside, value, yerr=[value - low, high - value],
            linestyle=dashes[kind], linewidth=WIDTHS[kind], markersize=4, elinewidth=0.8, capsize=2, **style,
        )  # fmt: skip
    return bars


def _label(key: tuple) -> str:
    defense, variant, sigma, preset = key
    name = f"{defense} ({variant})" if variant else defense
    return f"{name}{f' at σ = {sigma:g}' if sigma else ''}, {preset}"
