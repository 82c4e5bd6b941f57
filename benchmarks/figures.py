"""`make figures`: all tables and figures of the full job, the claims and the report, from its records. No torch.

Those of `make digits-more` have tables of their own; claims and report take them too, as their attacks saw more images.
The runs are read once. What is drawn side by side is drawn in forks of this process, which have them already.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas

from drbench.comparisons import claim_tables, head_to_head_tables
from drbench.errors import DrbenchError
from drbench.records import record
from drbench.records.record import Run
from drbench.report import render
from drbench.report.book import Book
from drbench.tables import certified_tables, halting, pareto, robust_tables, summary

FULL, MORE, REPORT = Path("results/digits/full"), Path("results/digits/more"), Path("results/report.html")
FEW = "diffusion_classifier"  # affords few images: a figure of its own
WORK: list[Callable[[], Sequence[Path]]] = []  # of this process, and so of its forks


def pages(runs: Sequence[Run]) -> list[Path]:
    """What needs most of the runs: the claims, all rows at equal draws, and the report that shows both."""
    book = Book.of(runs)
    return [
        *claim_tables.write(book.verdicts, FULL / "claims"),
        *head_to_head_tables.write(book.equal, FULL / "head-to-head"),
        render.write(book, REPORT, [FULL, MORE]),
    ]


def draw(kind: str, runs: Sequence[Run], stem: Path, among: Sequence[Run]) -> list[Path]:
    """A figure; each method looks as in all that are drawn with the same `among`.

    Only what draws waits for matplotlib, half a second: reading, claims and report need none.
    """
    from drbench.plots import certified_plots, pareto_plot, robust_plots

    how = {
        "cost": pareto_plot.cost_curves,
        "radius": certified_plots.radius_curves,
        "robust": robust_plots.robust_curves,
    }
    return how[kind](runs, stem, among=among)


def plan(runs: Sequence[Run], more: Sequence[Run]) -> list[Callable[[], Sequence[Path]]]:
    """What is to be written of the runs of the full job, and of `make digits-more`; the longest work first."""
    every = [*runs, *more]
    certified, attacked = ([run for run in runs if run.task == task] for task in ("certify", "attack"))
    most, few = (
        [run for run in certified if (run.header["defense"]["name"] == FEW) is small] for small in (False, True)
    )
    work = [
        (runs, lambda: pages(every)),
        (most, lambda: draw("cost", most, FULL / "cost", every)),
        (most, lambda: draw("radius", most, FULL / "certified", every)),
        (attacked, lambda: draw("robust", attacked, FULL / "robust", every)),
        (more, lambda: draw("robust", more, MORE / "robust", every)),
        (few, lambda: draw("radius", few, FULL / "certified-few", every)),
        (
            certified,
            lambda: certified_tables.write(summary.frame(certified), FULL / "certified", halting.frame(certified)),
        ),
        (most, lambda: pareto.write(pareto.frame(most, pareto.RADII), FULL / "cost")),
        (attacked, lambda: robust_tables.write(robust_tables.frame(attacked), FULL / "robust")),
        (more, lambda: robust_tables.write(robust_tables.frame(more), MORE / "robust")),
    ]
    return [do for some, do in work if some]


def do(number: int) -> list[Path]:
    return list(WORK[number]())


def main() -> int:
    gc.disable()  # hardly anything made here can be freed before the end: a tenth of the time
    pandas.set_option("mode.string_storage", "python")  # the frames are small: Arrow takes longer
    failed = 0
    try:
        runs = [record.read(folder) for folder in record.find([FULL])]
        more = [record.read(folder) for folder in record.find([MORE])] if MORE.exists() else []
    except DrbenchError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    for run in runs:
        if run.task == "certify":
            summary.certified(run)  # all of the work asks for it
    WORK[:] = plan(runs, more)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        for future in [pool.submit(do, number) for number in range(len(WORK))]:
            try:
                print(*future.result())
            except DrbenchError as error:  # of one file: the others are written all the same
                print(f"figures: {error}", file=sys.stderr)
                failed = 2
    return failed


if __name__ == "__main__":
    sys.exit(main())
