"""`make figures`: all tables and figures of the full job, the claims and the report, from its records. No torch.

The runs are read once. What is drawn side by side is drawn in forks of this process, which have them already.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from drbench import (
    claim_tables,
    halting,
    head_to_head_tables,
    pareto,
    pareto_plot,
    plots,
    record,
    robust_plots,
    robust_tables,
    summary,
    tables,
)
from drbench.record import Run
from drbench.report import render
from drbench.report.book import Book

FULL, REPORT = Path("results/digits/full"), Path("results/report.html")
FEW = "diffusion_classifier"  # affords few images: a figure of its own
WORK: list[Callable[[], Sequence[Path]]] = []  # of this process, and so of its forks


def pages(runs: Sequence[Run]) -> list[Path]:
    """What needs most of the runs: the claims, all rows at equal draws, and the report that shows both."""
    book = Book.of(runs)
    return [
        *claim_tables.write(book.verdicts, FULL / "claims"),
        *head_to_head_tables.write(book.equal, FULL / "head-to-head"),
        render.write(book, REPORT, [FULL]),
    ]


def all_tables(certified: Sequence[Run], most: Sequence[Run], attacked: Sequence[Run]) -> list[Path]:
    frame = summary.frame(certified)
    return [
        *tables.write(frame, FULL / "certified", halting.frame(certified)),
        *pareto.write(pareto.frame(most, pareto.RADII), FULL / "cost"),
        *robust_tables.write(robust_tables.frame(attacked), FULL / "robust"),
    ]


def plan(runs: Sequence[Run]) -> list[Callable[[], Sequence[Path]]]:
    """What is to be written, the longest work first."""
    certified, attacked = ([run for run in runs if run.task == task] for task in ("certify", "attack"))
    most, few = ([run for run in certified if (run.header["defense"]["name"] == FEW) is small]
                 for small in (False, True))  # fmt: skip
    return [
        lambda: pages(runs),
        lambda: pareto_plot.cost_curves(most, FULL / "cost"),
        lambda: plots.radius_curves(most, FULL / "certified"),
        lambda: robust_plots.robust_curves(attacked, FULL / "robust"),
        lambda: all_tables(certified, most, attacked),
        lambda: plots.radius_curves(few, FULL / "certified-few"),
    ]


def do(number: int) -> list[Path]:
    return list(WORK[number]())


def main() -> None:
    gc.disable()  # hardly anything made here can be freed before the end: a tenth of the time
    runs = [record.read(folder) for folder in record.find([FULL])]
    for run in runs:
        if run.task == "certify":
            summary.certified(run)  # all of the work asks for it
    WORK[:] = plan(runs)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        for written in pool.map(do, range(len(WORK))):
            print(*written)


if __name__ == "__main__":
    main()
