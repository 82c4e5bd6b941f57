"""Everything that the page shows, as plain data from run folders. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from drbench.records.record import Run
from drbench.report import attacked, claimed, detail, figures, leaderboard, marks
from drbench.report.book import Book
from drbench.report.grid import Table
from drbench.report.marks import Badge


class Page(NamedTuple):
    """What the page shows, section by section.

    Parameters
    ----------
    facts : dict
        Counts of the runs: runs, certified, attacked, images, clean, marked, verified, imported.
    boards, attacks, claims, equal : list of Table
        Certified accuracy, robust accuracy, verdicts on claims, all rows at equal draws.
    provenance : Table
    figures : list of dict
        `drbench.report.figures`.
    runs : list of dict
        `detail.of` each run, by its number.
    legend : list of Badge
        The signs that are used.
    sources : dict
        title -> list of (name, value, how many runs): checkpoints, images, code, environments.
    """

    facts: dict
    boards: list[Table]
    attacks: list[Table]
    claims: list[Table]
    equal: list[Table]
    provenance: Table
    figures: list[dict]
    runs: list[dict]
    legend: list[Badge]
    sources: dict[str, list]


def gather(runs: Sequence[Run] | Book) -> Page:
    """The page of these runs, certifications and attacks together."""
    book = runs if isinstance(runs, Book) else Book.of(runs)
    return Page(
        facts=_facts(book),
        boards=leaderboard.boards(book),
        attacks=attacked.boards(book),
        claims=claimed.boards(book),
        equal=claimed.equal(book),
        provenance=detail.provenance(book),
        figures=figures.all_figures(book),
        runs=[detail.of(book, number) for number in range(len(book.runs))],
        legend=marks.legend(badge for each in book.badges for badge in each),
        sources=_sources(book),
    )


def _facts(book: Book) -> dict:
    tasks = [run.task for run in book.runs]
    return {
        "runs": len(book.runs),
        "certify": tasks.count("certify"),
        "attack": tasks.count("attack"),
        "images": sum(len(run.rows) for run in book.runs),
        "complete": sum(run.complete for run in book.runs),
        "dirty": sum("dirty" in run.marks for run in book.runs),
        "imported": sum(run.header["engine"].get("certifier") == "imported" for run in book.runs),
        "alarms": sum(any(badge.alarm for badge in each) for each in book.badges),
        "alarm_names": ", ".join(sorted({badge.text for each in book.badges for badge in each if badge.alarm})),
        "failed": sum(map(bool, book.problems)),
        "defenses": len({run.header["defense"]["name"] for run in book.runs}),
    }


def _sources(book: Book) -> dict[str, list]:
    """What the runs are made of, whole hashes, with the number of runs that use each."""
    found: dict[str, dict] = {"Checkpoints": {}, "Images": {}, "Code": {}, "Environments": {}}

    def note(kind: str, name: str, value: str) -> None:
        found[kind][name, value] = found[kind].get((name, value), 0) + 1

    for run in book.runs:
        header, data, code = run.header, run.header["data"], run.header["code"]
        for name, sha256 in header["defense"].get("checkpoints", {}).items():
            note("Checkpoints", name, sha256)
        note("Images", f"{data['name']} {data['subset']}, {data['images']} images", data["sha256"] or "imported")
        dirty = ", dirty" if code["dirty"] else ""
        note("Code", f"drbench {code['version'] or 'unknown'}{dirty}", code["commit"] or "unknown")
        for name, value in dict.fromkeys(map(_environment, header.get("sessions", []))):
            note("Environments", name, value)
    return {kind: [(*key, count) for key, count in sorted(each.items())] for kind, each in found.items() if each}


def _environment(session: dict) -> tuple[str, str]:
    about = session["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return f"{about['device']}, {about['precision']}, python {about['python']}", packages
