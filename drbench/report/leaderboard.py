"""Certified accuracy as tables that are comparable within: a noise level, cascades over the same scales, envelopes."""

from __future__ import annotations

from drbench.report.book import Book
from drbench.report.grid import Cell, Column, Line, Table, number, percent
from drbench.tables import certified_tables, pareto
from drbench.tables.summary import method_name, where

FLOOR = "constant"  # certifies a tenth of the images at any radius: its columns alone are not worth reading
AFTER = [
    Column("ACR", help="average certified radius, with a bootstrap interval; compare only within one protocol"),
    Column("abstain %", help="images without an answer; they count as not certified"),
    Column("N draws", help="estimation draws per image; below it the mean, where they stop early"),
    Column("images", help="recorded images"),
    Column("NFE/draw", help="network evaluations for one noisy draw, counted"),
    Column("NFE/image", help="network evaluations for one image, over all draws"),
    Column("s/image", help="wall time on the machine of that run; not comparable between machines"),
]


def boards(book: Book) -> list[Table]:
    """A table a group of `tables.sections`, estimates last; columns end where only the constant answer is certified."""
    groups = [group for frame in book.certified for group in certified_tables.sections(frame)]
    found = [_board(f"board-{i}", group, book) for i, group in enumerate(groups)]
    return sorted(found, key=lambda board: all(any(b.text == "estimate" for b in line.badges) for line in board.lines))


def _board(key: str, group: certified_tables.Group, book: Book) -> Table:
    shown = _shown(group)
    radii = [
        Column(f"r = {certified_tables.radius_text(cell.radius)}", help="% certified at this radius")
        for cell in group.lines[0][:shown]
    ]
    first = group.lines[0][0]
    images = f"{first.dataset} {first.subset}"
    noise = "envelope over σ" if group.oracle else where(first).split(", protocol")[0].partition(" ")[2]
    if group.oracle:
        return Table(
            key, group.title, radii, [_envelope(line[:shown], book) for line in group.lines], "", images, noise
        )
    lines = [_line(line, shown, book) for line in group.lines]
    return Table(key, group.title, [*radii, *AFTER], lines, _protocol(group), images, noise)


def _shown(group: certified_tables.Group) -> int:
    """How many radii: up to the last at which a line that is not the floor certifies an image; at least one."""
    reached = [
        i for line in group.lines for i, cell in enumerate(line, 1)
        if cell.certified_accuracy > 0 and (cell.defense != FLOOR or len(group.lines) == 1)
    ]  # fmt: skip
    return max(reached, default=1)


def _protocol(group: certified_tables.Group) -> str:
    named = {"certifier": "certifier", "N =": "n", "n0 =": "n0", "alpha =": "alpha", "radii in": "norm"}
    found = {name: sorted({getattr(line[0], key) for line in group.lines}) for name, key in named.items()}
    return "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in found.items()) + ", pixel units"


def _line(line: list, shown: int, book: Book) -> Line:
    head = line[0]
    run = book.number("certify", head.run)
    signs = book.signs(run)
    drawn = Cell(f"{head.n:,}", head.n) if head.mode == "fixed" else Cell(f"≤ {head.n:,}", head.n, f"{head.draws:,.0f}")
    cells = [
        *(_accuracy(cell, signs, below=f"{_points(cell.ci_low)}–{_points(cell.ci_high)}") for cell in line[:shown]),
        number(head.acr, ".3f", below=f"{head.acr_low:.3f}–{head.acr_high:.3f}", signs=signs),
        percent(head.abstention, signs), drawn, Cell(str(head.images), head.images), number(head.nfe, "g"),
        number(pareto.evaluations(book.runs[run]) if head.nfe == head.nfe else head.nfe, ",.0f"),
        number(head.seconds_per_image, ".3g"),
    ]  # fmt: skip
    return Line(run, _name(head), book.badges[run], cells)


def _envelope(line: list, book: Book) -> Line:
    cells = []
    for cell in line:
        run = book.number("certify", cell.run)
        below = f"σ = {cell.sigma:g}" if cell.certified_accuracy > 0 else ""
        cells.append(_accuracy(cell, book.signs(run), below=below, run=run))
    behind = dict.fromkeys(badge for cell in cells if cell.text != "–" for badge in book.badges[cell.run])
    return Line(None, _name(line[0]), list(behind), cells)


def _accuracy(cell, signs: str, **rest) -> Cell:
    if cell.text == "–":
        return Cell("–", **({"run": rest["run"]} if "run" in rest else {}))
    return Cell(cell.text, cell.certified_accuracy, signs=signs, radius=cell.radius, **rest)


def _name(row) -> str:
    return method_name(row) + ("" if row.noise == "gaussian" else f", {row.noise} noise")


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
