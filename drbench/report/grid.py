"""Tables of the page, before they are text: columns, lines and cells, whatever they hold."""

from __future__ import annotations

from typing import NamedTuple

from drbench.report.marks import Badge


class Column(NamedTuple):
    """A column: its head, whether it is sorted as numbers, and an explanation."""

    text: str
    numeric: bool = True
    help: str = ""


class Cell(NamedTuple):
    """A cell: what it shows, below it in small letters, and what it is sorted by (None: always last).

    `signs` are those of the run behind it; `run` is its number if that is not the run of the line, `radius` the radius
    at which its evidence opens; `links` are numbers and names of several runs.
    """

    text: str
    value: float | str | None = None
    below: str = ""
    signs: str = ""
    run: int | None = None
    radius: float | None = None
    links: tuple[tuple[int, str], ...] = ()


class Line(NamedTuple):
    """A line: the number of its run (None: it stands for several), its name, badges, and the cells beside them."""

    run: int | None
    name: str
    badges: list[Badge]
    cells: list[Cell]


class Table(NamedTuple):
    """A table; the first column names the lines. `images` and `noise` are what its filters offer."""

    key: str
    title: str
    columns: list[Column]
    lines: list[Line]
    note: str = ""
    images: str = ""
    noise: str = ""


def percent(share: float, signs: str = "", **rest) -> Cell:
    """A share in [0, 1] as a percentage; "–" for NaN."""
    return number(100 * share, ".1f", signs=signs, **rest)


def number(value: float, form: str, **rest) -> Cell:
    """A number; "–" for NaN."""
    return Cell(format(value, form), float(value), **rest) if value == value else Cell("–")
