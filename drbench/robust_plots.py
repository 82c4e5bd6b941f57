"""Robust accuracy against eps: a panel per data set and norm. No torch, no display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from pandas import DataFrame

from drbench import robust_tables
from drbench.plots import COLOURS, STYLE, save
from drbench.record import Run

PANEL, LINE = ["dataset", "subset", "norm"], ["defense", "variant", "sigma", "preset"]
KINDS = (("average", "-", 1.8), ("worst", ":", 1.2))  # kind, marker line, width


def robust_curves(runs: Sequence[Run], stem: str | Path) -> list[Path]:
    """`<stem>.png` and `<stem>.svg`: average robust accuracy with its interval, and worst-of-M dotted, from eps = 0."""
    table = robust_tables.frame(runs)
    with matplotlib.rc_context(STYLE):
        return save(_draw(table), stem)


def _draw(table: DataFrame) -> Figure:
    panels = list(table.groupby(PANEL, sort=False))
    keys = list(dict.fromkeys(table[LINE].itertuples(index=False, name=None)))
    styles = {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(keys)}
    figure = Figure(figsize=(max(7, 6 * len(panels)), 5.2), dpi=100, layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    drawn = {}
    for axes, ((dataset, subset, norm), part) in zip(grid, panels, strict=True):
        for key, line in part.groupby(LINE, sort=False):
            line = line.sort_values("eps")
            for kind, dash, width in KINDS if line["evaluations"].max() > 1 else KINDS[:1]:
                # clean accuracy is that at eps = 0
                x, y, low, high = ([0.0, *line["eps"]],
                                   *([line[f"clean_{kind}{end}"].iat[0], *line[f"{kind}{end}"]]
                                     for end in ("", "_low", "_high")))  # fmt: skip
                shown = axes.errorbar(
                    x, [100 * value for value in y],
                    yerr=[[100 * max(0.0, v - a) for v, a in zip(y, low, strict=True)],
                          [100 * max(0.0, b - v) for v, b in zip(y, high, strict=True)]],
                    color=styles[key], linestyle=dash, linewidth=width, marker="o", markersize=4, capsize=2,
                )  # fmt: skip
                if kind == "average":
                    drawn.setdefault(key, shown)
        unit = robust_tables.NORMS.get(norm, norm)
        axes.set(title=f"{dataset} {subset}, {unit}", xlabel=f"{unit} radius eps (pixel units)", ylim=(0, 101))
        axes.set_xlim(left=0)
    grid[0].set_ylabel("robust accuracy (%)")
    figure.legend(drawn.values(), map(_label, drawn), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Robust accuracy under the strongest attack found: average, with 95 % intervals over the images;\n"
                    f"dotted: worst of {', '.join(map(str, sorted(table['worst_of'].unique())))} evaluations",
                    fontsize=10)  # fmt: skip
    return figure


def _label(key: tuple) -> str:
    defense, variant, sigma, preset = key
    name = f"{defense} ({variant})" if variant else defense
    return f"{name}{f' at σ = {sigma:g}' if sigma else ''}, {preset}"
