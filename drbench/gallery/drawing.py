"""Draws a gallery: every tile has a place of its own, and every text is wrapped to it. No torch, no display."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from drbench.gallery.contents import ABSTAINS, MARKS, RIGHT, WRONG, Gallery, Grid, Tile, write_sidecar
from drbench.plots.saving import save

# inches: a tile and the lines below it, the gap to the next tile and the next group, the names left of the rows
TILE, GAP, GROUP, HEAD, EDGE = 1.0, 0.16, 0.16, 1.3, 0.12
LINE, SIZE = 0.128, 7.5  # height of a line, inches, of letters of so many points
LETTERS, BOLD = 20, 17  # that fit below a tile, and above it
SMALL = 64  # pixels a side up to which each pixel is drawn as a square
FRAMES = {RIGHT: ("#0072B2", "-"), WRONG: ("#D55E00", (0, (1.2, 1.2))), ABSTAINS: ("#555555", (0, (4, 2)))}


def draw(gallery: Gallery, stem: str | Path) -> list[Path]:
    """Write `<stem>.png`, `<stem>.svg` and `<stem>.json`; the same gallery gives the same bytes."""
    return [*save(lambda: _figure(gallery), stem), write_sidecar(gallery, stem)]


def _figure(gallery: Gallery) -> Figure:
    width = 2 * EDGE + max(_width(grid) for grid in gallery.grids)
    note = textwrap.wrap(gallery.note, int(17.5 * (width - 2 * EDGE)))
    below = EDGE + LINE * len(note) + 0.06
    height = below + EDGE + sum(map(_height, gallery.grids)) + GROUP * (len(gallery.grids) - 1)
    figure = Figure(figsize=(width, height), dpi=200)
    top = height - EDGE
    for grid in gallery.grids:
        _grid(figure, grid, top)
        top -= _height(grid) + GROUP
    _text(figure, EDGE, below - 0.06, note, ha="left", color="#333333")
    return figure


def _width(grid: Grid) -> float:
    columns = len(grid.rows[0])
    return _head(grid) + columns * (TILE + GAP) - GAP + (columns - 1) // grid.column_group * GROUP


def _head(grid: Grid) -> float:
    return HEAD if any(grid.heads) else 0.0


def _title_lines(grid: Grid) -> list[list[str]]:
    return [_wrapped(title, BOLD) for title in grid.titles]


def _titles(grid: Grid) -> float:
    return LINE * max(map(len, _title_lines(grid)), default=0) + (0.05 if any(grid.titles) else 0.0)


def _row(tiles: Sequence[Tile | None]) -> float:
    """Height of a row: its tallest picture and its longest text."""
    tall = max((TILE * _shape(tile) for tile in tiles if tile), default=TILE)
    return tall + LINE * max((len(_lines(tile)) for tile in tiles if tile), default=0) + 0.04 + GAP / 2


def _height(grid: Grid) -> float:
    groups = (len(grid.rows) - 1) // grid.row_group
    return _titles(grid) + sum(map(_row, grid.rows)) + groups * GROUP


def _shape(tile: Tile) -> float:
    """Height of a picture in units of its width."""
    return 1.0 if tile.pixels is None else tile.pixels.shape[1] / tile.pixels.shape[2]


def _grid(figure: Figure, grid: Grid, top: float) -> None:
    lefts = [EDGE + _head(grid) + i * (TILE + GAP) + i // grid.column_group * GROUP for i in range(len(grid.rows[0]))]
    bottom = top - _titles(grid)
    for left, lines in zip(lefts, _title_lines(grid), strict=False):
        _text(figure, left + TILE / 2, bottom + 0.03 + LINE * len(lines), lines, weight="bold")
    for number, tiles in enumerate(grid.rows):
        bottom -= GROUP if number and number % grid.row_group == 0 else 0.0
        if any(grid.heads):
            _text(figure, EDGE, bottom - 0.02, _wrapped(grid.heads[number]), ha="left")
        for left, tile in zip(lefts, tiles, strict=True):
            if tile:
                _tile(figure, tile, left, bottom)
        bottom -= _row(tiles)


def _tile(figure: Figure, tile: Tile, left: float, top: float) -> None:
    tall = TILE * _shape(tile)
    if tile.pixels is None:
        lines = _lines(tile)
        _text(figure, left + TILE / 2, top - tall / 2 + LINE * len(lines) / 2, lines, color="#555555", style="italic")
        return
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, (top - tall) / height, TILE / width, tall / height))
    small = max(tile.pixels.shape[1:]) <= SMALL
    axes.imshow(
        _shown(tile.pixels), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest" if small else "auto"
    )
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    colour, dash = FRAMES.get(tile.verdict, ("#BBBBBB", "-"))
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linestyle=dash, linewidth=1.6 if tile.verdict else 0.5)
    _text(figure, left + TILE / 2, top - tall - 0.04, _lines(tile)[:1], weight="bold" if tile.verdict else "normal")
    _text(figure, left + TILE / 2, top - tall - 0.04 - LINE, _lines(tile)[1:])


def _shown(pixels: np.ndarray) -> np.ndarray:
    """(C, H, W) as (H, W) or (H, W, 3), clipped to [0, 1]."""
    image = np.clip(np.moveaxis(pixels, 0, -1), 0, 1)
    return image[..., 0] if image.shape[-1] == 1 else image


def _lines(tile: Tile) -> list[str]:
    """Its text as it is written, mark first."""
    mark = MARKS[tile.verdict]
    first, *rest = tile.lines or ("",)
    return _wrapped("\n".join([f"{mark} {first}" if mark else first, *rest]))


def _wrapped(text: str, letters: int = LETTERS) -> list[str]:
    """Lines of at most so many letters; names too long for one are broken after an underscore."""
    words = [word.replace("_", "_ ") if len(word) > letters else word for word in text.replace("\n", " \n ").split(" ")]
    return [part for line in " ".join(words).split("\n") for part in textwrap.wrap(line.strip(), letters)]


def _text(figure: Figure, x: float, y: float, lines: Sequence[str], ha: str = "center", **style) -> None:
    """Lines from (x, y) inches downwards."""
    width, height = figure.get_size_inches()
    for number, line in enumerate(lines):
        figure.text(x / width, (y - LINE * number) / height, line, ha=ha, va="top", fontsize=SIZE, **style)
