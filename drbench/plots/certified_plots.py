"""Certified accuracy against radius: panels per sigma, of the envelope, per cascade. No torch, no display."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from drbench.plots import looks, saving
from drbench.plots.curves import NORMS, Panel, curve_frame, panels_of, thinned
from drbench.plots.headline import headline
from drbench.records.record import Run
from drbench.tables import summary
from drbench.tables.frames import first_row, named_rows
from drbench.tables.summary import METHOD

LEVELS = (0.25, 0.5, 1.0)  # the usual ones, whose symbols are the same in all figures


def radius_curves(
    runs: Sequence[Run], stem: str | Path, norm: str | None = None, among: Sequence[Run] | None = None
) -> list[Path]:
    """Write `<stem>.png` and `<stem>.svg`; the same records give the same bytes.

    x: radius in pixel units. y: certified accuracy in % of all recorded images, exact steps at the certified radii,
    with pointwise 95 % Clopper-Pearson bands. Dotted: ceiling radii, beyond which nothing can be certified. The
    envelope is an oracle over the test set; its symbols, every 0.25, say which sigma wins. Thin, beside a cascade: the
    runs at single sigmas that share its weights and draws.

    Parameters
    ----------
    runs : sequence of Run
        Panels are per data set, subset and sigma (or scales of a cascade); a defense and variant has one colour and
        dash in all of them, and in all figures with the same `among`.
    norm : {"l1", "l2", "linf"}, optional
        Of the radii; by default that in which the runs certify.
    among : sequence of Run, optional
        All that are to look different, in this and other figures; by default `runs`.
    """
    curves = curve_frame(runs, norm)
    return saving.save(lambda: _draw(curves, looks.of([*runs, *(among or ())])), stem)


def _draw(curves: DataFrame, styles: dict) -> Figure:
    panels = panels_of(curves)
    single, _ = summary.split(curves)
    markers = _level_markers(single["sigma"])
    handles = [Line2D([], [], label=_label(part, curves), linewidth=2, **styles[key].line)
               for key, part in curves.groupby(METHOD, sort=False)]  # fmt: skip
    won = _winners(panels)
    handles += [Line2D([], [], label=f"best at σ = {sigma:g}", color="grey", linestyle="", marker=marker)
                for sigma, marker in sorted(markers.items()) if sigma in won]  # fmt: skip
    longest = max(len(handle.get_label()) for handle in handles)
    legend_columns = max(1, min(4, 200 // (longest + 12)))  # about 200 letters fit side by side, a dash takes 12
    columns = len(panels) if len(panels) <= 4 else 3
    rows = math.ceil(len(panels) / columns)
    height = 4.4 * rows + 0.25 * math.ceil(len(handles) / legend_columns) + 0.7
    figure = Figure(figsize=(16, height), dpi=100, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, styles, markers)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("certified accuracy (%)")
    figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, handlelength=3.5)
    headline(figure, _headline(curves))
    return figure


def _level_markers(sigmas: Iterable[float]) -> dict[float, str]:
    """Symbols of noise levels: fixed ones of the usual levels, the next ones of others."""
    levels = [*LEVELS, *sorted({*sigmas} - {*LEVELS})]
    return {sigma: looks.MARKERS[i % len(looks.MARKERS)] for i, sigma in enumerate(levels)}


def _winners(panels: Sequence[Panel]) -> set[float]:
    """Noise levels whose symbols stand in an envelope."""
    return {row.sigma for panel in panels if panel.oracle for line in panel.curves for row in _symbols(line)}


def _symbols(line: DataFrame) -> list:
    return list(named_rows(line[(line["radius"] % 0.25 == 0) & line["sigma"].notna()]))


def _draw_panel(axes: Axes, panel: Panel, styles: dict, markers: dict) -> None:
    for line in panel.beside:
        style = styles[line["defense"].iat[0], line["variant"].iat[0]]
        axes.plot(*_steps_down(thinned(line)), drawstyle="steps-pre", linewidth=1.0, **style.line)
        start = 0, 100 * line["certified_accuracy"].iat[0]  # apart from each other, unlike the rest of the curves
        axes.annotate(f"σ = {line['sigma'].iat[0]:g}", start, (4, 2), textcoords="offset points", fontsize=8.5,
                      color=style.colour)  # fmt: skip
    for line in panel.curves:
        style = styles[line["defense"].iat[0], line["variant"].iat[0]]
        steps = thinned(line)
        low, high = 100 * steps["ci_low"], 100 * steps["ci_high"]
        axes.fill_between(steps["radius"], low, high, step="pre", color=style.colour, alpha=0.1, linewidth=0)
        axes.plot(*_steps_down(steps), drawstyle="steps-pre", linewidth=1.8, **style.line)
        if panel.oracle:
            for row in _symbols(line):
                axes.plot(row.radius, 100 * row.certified_accuracy, markers[row.sigma], color=style.colour,
                          markersize=8, markeredgecolor="white", zorder=3, clip_on=False)  # fmt: skip
    right = _shown(panel) if panel.cascade else 1.08 * max(panel.ceilings)
    for radius, label in panel.ceilings.items():
        if radius <= right:
            axes.axvline(radius, color="#555555", linestyle=":", linewidth=1.2)
            text = label.removeprefix("ceiling")  # the headline says what is dotted
            axes.text(radius, 99, text, rotation=90, va="top", ha="left", fontsize=8.5, color="#555555",
                      bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}, zorder=4)  # fmt: skip
    beyond = ", ".join(f"{radius:.2f}" for radius in sorted(panel.ceilings) if radius > right)
    if beyond:
        axes.text(right, 99, f"ceiling: {beyond}  ", va="top", ha="right", fontsize=8.5, color="#555555")
    axes.set(title=panel.title, xlabel=f"{NORMS[panel.norm]} radius (pixel units)", xlim=(0, right), ylim=(0, 100))


def _shown(panel: Panel) -> float:
    """Right end of the axes of a cascade: its ceiling is that of the largest scale, often far beyond all curves."""
    drawn = [line["radius"][line["certified_accuracy"] > 0].max() for line in (*panel.curves, *panel.beside)]
    return 1.15 * max([0.25, *(radius for radius in drawn if radius == radius)])


def _steps_down(steps: DataFrame) -> tuple[list, list]:
    """x and y (%) of a curve; it ends with the fall to 0 that every curve has at its ceiling."""
    return [*steps["radius"], steps["radius"].iat[-1]], [*(100 * steps["certified_accuracy"]), 0.0]


def _label(part: DataFrame, curves: DataFrame) -> str:
    """Name of a method, in brackets what is not the same in all runs of the figure, and its marks."""
    facts = [f"{column} = {_values(part, column)}" for column in ("n", "images") if curves[column].nunique() > 1]
    facts += sorted({mark for marks in part["marks"] for mark in marks.split(", ") if mark})
    name = summary.method_name(first_row(part))
    return f"{name} [{'; '.join(facts)}]" if facts else name


def _headline(curves: DataFrame) -> str:
    facts = [f"{column} = {_values(curves, column)}" for column in ("n", "n0", "alpha", "images")]
    data = f"{_values(curves, 'dataset')} {_values(curves, 'subset')}"
    return f"{data}: {'; '.join(facts)}; bands: pointwise 95 % intervals over the images; dotted: ceiling radii"


def _values(part: DataFrame, column: str) -> str:
    values = part[column].unique().tolist()
    return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values)
