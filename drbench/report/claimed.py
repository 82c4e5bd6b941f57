"""Claims of the papers with their verdicts, and all rows at equal draws, as tables of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pandas import DataFrame

from drbench import stats, weights
from drbench.comparisons import claim_tables, claims, head_to_head
from drbench.records.record import Run
from drbench.report.book import Book
from drbench.report.grid import Cell, Column, Line, Table, number, percent
from drbench.report.marks import Badge, signs
from drbench.tables import summary
from drbench.tables.frames import named_rows

COLUMNS = [
    Column("verdict", False), Column("here", False, "A minus B, or the cost of B over that of A, with a 95 % interval"),
    Column("p, Holm", help="of the claims that are tested, after Holm's correction over those of a data set"),
    Column("images"), Column("seeds", False, "trainings of A / of B"), Column("data", False),
    Column("published", False), Column("how", False), Column("runs", False),
]  # fmt: skip
SIGNS = dict(zip(claims.VERDICTS, "✓✗?–", strict=True))  # beside the words, not instead of them
BUDGET = {"parameters": 1.0, "training seconds": 1.0, "calls": 1.0, "seconds": 1000.0}  # quantity -> scale
SPENT = [
    Column("parameters"),
    Column("training, s", help="of all weights of the row, from their manifest"),
    Column("calls of a draw"),
    Column("ms of a draw", help="on the machine of each run"),
    Column("weights", False),
]


def boards(book: Book) -> list[Table]:
    """One table a paper; none if no claim can be tested, or if this installation has no file of claims."""
    if not (weights.home() / "benchmarks" / "claims.yaml").exists():
        return []
    found = book.verdicts
    if (found["verdict"] == "not tested").all():
        return []
    papers = found.groupby("paper", sort=False)
    return [Table(f"claims-{i}", paper, COLUMNS, [_claim(row, book) for row in named_rows(part)])
            for i, (paper, part) in enumerate(papers)]  # fmt: skip


def _claim(row, book: Book) -> Line:
    tested, badges, names = row.verdict != "not tested", _marked(row.marks), set(str(row.runs).split())
    verdict = Cell(f"{SIGNS[row.verdict]} {row.verdict}", claims.VERDICTS.index(row.verdict), signs=signs(badges))
    about = [Cell(row.dataset or "–"), Cell(row.published or "–"), Cell(row.note, below=row.cost if tested else "")]
    if not tested:
        return Line(None, f"{row.statement} ({row.source})", badges, [verdict, *[Cell("–")] * 4, *about, Cell("–")])
    measured = [
        Cell(claim_tables.effect(row), row.effect, signs=signs(badges)),
        Cell("–") if math.isnan(row.p_holm) else Cell(f"{row.p_holm:.2g}", row.p_holm),
        Cell(f"{row.images:.0f}", row.images),
        Cell(row.seeds or "–"),
    ]
    links = _links(book, (run for run in book.runs if summary.place(run) in names))
    return Line(None, f"{row.statement} ({row.source})", badges, [verdict, *measured, *about, links])


def _marked(marks) -> list[Badge]:
    """What a frame says of the runs behind a line."""
    return [Badge(marks, "¶", f"of its runs, {marks}", True)] if isinstance(marks, str) and marks else []


def _links(book: Book, runs: Iterable[Run]) -> Cell:
    found = [(book.number(run.task, summary.place(run)), summary.place(run)) for run in runs]
    return Cell(f"{len(found)} run{'s' if len(found) > 1 else ''}", len(found), links=tuple(found))


# ---- head to head -------------------------------------------------------------------------------------------------


def equal(book: Book) -> list[Table]:
    """All rows on the same images at the same draws, and what each costs to train and to draw; none for one row."""
    runs = [run for run in book.runs if any(run.ordered()) and run.header["engine"].get("certifier") != "imported"]
    if len({head_to_head.row_name(run) for run in runs if run.task == "certify"}) < 2:
        return []
    frame = book.equal
    certified = frame[frame["section"] == "certified"].groupby(["dataset", "condition", "images", "draws"], sort=False)
    tables = [_equal(f"equal-{i}", names, part, book) for i, (names, part) in enumerate(certified)]
    return tables + [_budget(dataset, part) for dataset, part in frame.groupby("dataset", sort=False)]


def _equal(key: str, names: tuple, part: DataFrame, book: Book) -> Table:
    dataset, condition, images, draws = names
    heads = sorted(dict.fromkeys(part["quantity"]), key=lambda head: (head == "ACR", float(head[4:] or "nan")))
    lines = []
    for row, found in _rows(part):
        badges = _marked(found[heads[0]].marks)
        cells = [_number(found[head], signs(badges)) if head in found else Cell("–") for head in heads]
        runs = (run for run in book.runs if run.task == "certify" and head_to_head.row_name(run) == row
                and run.header["data"]["name"] == dataset and _condition(run) == condition)  # fmt: skip
        seeds = Cell(f"{found[heads[0]].seeds:.0f}", found[heads[0]].seeds)
        lines.append(Line(None, row, badges, [*cells, seeds, _links(book, runs)]))
    title = f"{dataset}, {condition}: {images:.0f} images, {draws:,.0f} draws each"
    columns = [*map(Column, heads), Column("seeds", help="trainings that are averaged"), Column("runs", False)]
    return Table(key, title, columns, lines)


def _rows(part: DataFrame) -> list[tuple[str, dict]]:
    """Row -> its lines by quantity, in the order of the frame."""
    found: dict[str, dict] = {}
    for line in named_rows(part):
        found.setdefault(line.row, {})[line.quantity] = line
    return list(found.items())


def _number(line, marks: str) -> Cell:
    if line.quantity == "ACR":
        return number(line.value, ".3f", below=f"{line.low:.3f}–{line.high:.3f}", signs=marks)
    return percent(line.value, marks, below=f"{100 * line.low:.1f}–{100 * line.high:.1f}")


def _condition(run: Run) -> str:
    several = len(stats.levels(run.header["engine"])) > 1
    return f"{'cascade over ' if several else ''}σ = {summary.scales(run.header['engine'])}"


def _budget(dataset: str, part: DataFrame) -> Table:
    lines = []
    for row, found in _rows(part[part["section"] == "budget"]):
        forms = dict.fromkeys(BUDGET, ",.0f") | {"calls": "g", "seconds": ".2g"}
        cells = [number(scale * found[name].value, forms[name]) if name in found else Cell("–")
                 for name, scale in BUDGET.items()]  # fmt: skip
        first = next(iter(found.values()))
        lines.append(Line(None, row, _marked(first.marks), [*cells, Cell(first.note or "–")]))
    return Table(f"budget-{dataset}", f"{dataset}: what each row takes", SPENT, lines)
