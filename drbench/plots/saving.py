"""Writes a figure to files of one stem, in the one style of all. No display."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from drbench.errors import DrbenchError

STYLE = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.titlesize": 12, "axes.titley": 1.0,  # no place for a title is looked for: nothing stands above the axes
    "svg.hashsalt": "drbench", "svg.fonttype": "none", "text.parse_math": False,
}  # fmt: skip


def save(draw: Callable[[], Figure], stem: str | Path) -> list[Path]:
    """Write what `draw` returns, drawn in our style, as `<stem>.png` and `<stem>.svg`; always the same bytes.

    By the canvases themselves: `Figure.savefig` gives the same bytes, but draws everything twice.
    """
    stem = Path(stem)
    png, svg = (stem.with_name(stem.name + suffix) for suffix in (".png", ".svg"))
    with matplotlib.rc_context(STYLE):
        figure = draw()
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            if not axis.get_label_text():
                axis.set_label_coords(0, 0)  # a place for no label is looked for as long as for one
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
            figure.set_layout_engine("none")  # what was found for the one serves the other
            FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
        except OSError as error:
            raise DrbenchError(f"cannot write plot {stem}: {error.strerror}; choose another --out") from error
    return [png, svg]
