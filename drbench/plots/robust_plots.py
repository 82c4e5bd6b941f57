"""Robust accuracy against eps: a panel per data set and norm. No torch, no display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from drbench.plots import looks
from drbench.plots.headline import headline
from drbench.plots.looks import Look
from drbench.plots.saving import save
from drbench.records.record import Run
from drbench.tables import robust_tables
from drbench.tables.robust_tables import LINE, PANEL

# average: filled; worst-of-M: thin and hollow
KINDS = {"average": {"linewidth": 1.8}, "worst": {"linewidth": 0.9, "markerfacecolor": "white"}}


def robust_curves(runs: Sequence[Run], stem: str | Path, among: Sequence[Run] | None = None) -> list[Path]:
    """Write `<stem>.png` and `<stem>.svg`: average robust accuracy and worst-of-M with their intervals, from eps = 0.

    Bands where a defense was attacked at several eps, else bars. It looks the same in all figures with the same
    `among`, by default `runs`.
    """
    table = robust_tables.frame(runs)
    return save(lambda: _draw(table, [*runs, *(among or ())]), stem)


def _draw(table: DataFrame, among: Sequence[Run]) -> Figure:
    panels = list(table.groupby(PANEL, sort=False))
    keys = list(dict.fromkeys(table[LINE].itertuples(index=False, name=None)))
    styles = looks.of_lines(keys, among)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(8, 6 * columns), 4.6 * rows + 0.9), dpi=100, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, ((dataset, subset, norm), part) in zip(grid.flat, panels, strict=False):
        here = dict(list(part.groupby(LINE, sort=False)))
        for key in filter(here.__contains__, keys):
            beside = _apart(part, here) * (list(here).index(key) - (len(here) - 1) / 2)
            _curves(axes, here[key].sort_values("eps"), beside, styles[key])
        unit = robust_tables.NORMS.get(norm, norm)
        label = "eps (pixels)" if norm == "stadv" else f"{unit} radius eps (pixel units)"
        axes.set(title=f"{dataset} {subset}, {unit}", xlabel=label, ylim=(0, 101))
        if part["eps"].nunique() == 1:
            axes.set_xticks([0, part["eps"].iat[0]])  # other places would be taken for values of eps
    for axes in grid[:, 0]:
        axes.set_ylabel("robust accuracy (%)")
    handles = [Line2D([], [], label=_label(key), markersize=5, **KINDS["average"], **_style(styles[key]))
               for key in keys]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, handlelength=3.5)
    headline(figure, "Robust accuracy under the strongest attack found: average, with 95 % intervals over the images; "
             f"hollow: worst of {', '.join(map(str, sorted(table['worst_of'].unique())))} evaluations")  # fmt: skip
    return figure


def _style(look: Look) -> dict:
    return {**look.line, **look.point}


def _apart(part: DataFrame, here: dict) -> float:
    """Distance of lines at the same eps, whose symbols must not hide each other; more where there are no curves."""
    share = min(0.04, 0.4 / len(here)) if part["eps"].nunique() == 1 else 0.005
    return share * part["eps"].max()


def _curves(axes: Axes, line: DataFrame, beside: float, look: Look) -> None:
    """Curves of one defense; its clean accuracy stands at eps = 0."""
    several = line["evaluations"].max() > 1
    x = np.array([0.0, *line["eps"]]) + beside
    for kind in ("worst", "average") if several else ("average",):
        value, low, high = (
            100 * np.array([line[f"clean_{kind}{end}"].iat[0], *line[f"{kind}{end}"]]) for end in ("", "_low", "_high")
        )
        style = {**_style(look), **KINDS[kind], "markersize": 5, "clip_on": False}
        if len(line) > 1:
            axes.fill_between(x, low, high, color=look.colour, alpha=0.08, linewidth=0)
            axes.plot(x, value, **style)
        else:  # one eps is no curve
            errors = [value - low, high - value]
            axes.errorbar(x, value, yerr=errors, elinewidth=1.0, capsize=2, **{**style, "linestyle": "none"})


def _label(key: tuple) -> str:
    defense, variant, sigma, preset = key
    name = f"{defense} ({variant})" if variant else defense
    return f"{name}{f' at σ = {sigma:g}' if sigma else ''}, {preset}"
