"""Robust accuracy under attack as tables, one a threat, with what the audit of each job found."""

from __future__ import annotations

from drbench.records.record import Run
from drbench.report.book import Book
from drbench.report.grid import Cell, Column, Line, Table, number, percent
from drbench.tables import robust_tables
from drbench.tables.frames import first_row, named_rows
from drbench.tables.summary import method_name

KINDS = {"average": "in expectation over one evaluation", "majority": "the most frequent answer of all evaluations",
         "worst": "right in each of M evaluations", "one_shot": "the first evaluation alone"}  # fmt: skip
COLUMNS = [
    Column("σ", help="noise that the deployed defense adds to its input"),
    Column("images", help="recorded images"),
    Column("evaluations", help="answers to each image, on randomness that no attack saw"),
    Column("clean", help="the average on the clean images, with as many evaluations on the same draws"),
    *(Column(kind.replace("_", "-"), help=f"% right under attack: {text}") for kind, text in KINDS.items()),
    Column("strongest attack", False, "whose examples were kept for most images"),
    Column("gradients", help="gradients of the whole defense per image that the attacks took"),
    Column("forwards", help="evaluations without a gradient per image that the attacks took"),
    Column("preset", False, "the list of attacks; their settings open with the defense"),
    Column("audit", False, "checks of the attack itself, on a few images"),
]


def boards(book: Book) -> list[Table]:
    """One table for each data set, norm and bound."""
    if not len(book.attacked):
        return []
    groups = book.attacked.groupby(robust_tables.THREAT, sort=False)
    return [_board(f"attack-{i}", part, book) for i, (_, part) in enumerate(groups)]


def _board(key: str, part, book: Book) -> Table:
    first = first_row(part)
    norm = robust_tables.NORMS.get(first.norm, first.norm)
    images = f"{first.dataset} {first.subset}"
    note = f"decision {', '.join(sorted(set(part['decision'])))}; worst of M = {_values(part['worst_of'])} evaluations"
    lines = [_line(row, book) for row in named_rows(part)]
    return Table(key, f"{images}, {norm} ≤ {first.eps_text}", COLUMNS, lines, note, images, norm)


def _values(column) -> str:
    return ", ".join(map(str, sorted(set(column))))


def _line(row, book: Book) -> Line:
    run = book.number("attack", row.run)
    signs = book.signs(run)
    cells = [
        number(row.sigma, "g"), Cell(str(row.images), row.images), Cell(str(row.evaluations), row.evaluations),
        percent(row.clean_average, signs), *(_robust(row, kind, signs) for kind in KINDS),
        Cell(row.attack, row.attack, f"{100 * row.attack_share:.0f} % of images") if row.attack else Cell("–"),
        number(row.gradients, ",.0f", below="" if row.gradient == "exact" else row.gradient),
        number(row.forwards, ",.0f"), Cell(row.preset, row.preset), audit(book.runs[run]),
    ]  # fmt: skip
    return Line(run, method_name(row), book.badges[run], cells)


def _robust(row, kind: str, signs: str) -> Cell:
    low, high = (100 * getattr(row, f"{kind}_{end}") for end in ("low", "high"))
    return percent(getattr(row, kind), signs, below=f"{low:.1f}–{high:.1f}")


def audit(run: Run) -> Cell:
    """How many checks were made, and which raised a flag."""
    findings = run.header.get("audit", {}).get("findings")
    if findings is None:
        return Cell("none", "", "no check was made")
    raised = [name for name, flagged, _ in findings if flagged]
    return Cell(f"flags: {', '.join(raised)}" if raised else "no flag", len(raised), f"{len(findings)} checks")
