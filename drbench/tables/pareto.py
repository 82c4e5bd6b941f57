"""Certified accuracy against what it costs, and which rows are worth their cost. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
from pandas import DataFrame

from drbench.errors import DrbenchError
from drbench.records.record import Run
from drbench.tables import summary
from drbench.tables.frames import first_row, named_rows
from drbench.tables.saving import save
from drbench.tables.summary import METHOD, method_name

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
DRAWN = (0.0, 0.25, 0.5)  # in figures, a panel each
GROUP = [*summary.DATA, "certifier", "sigmas"]  # rows that are compared with each other

NOTES = """\
- Evaluations: of all networks per image, counted by hooks in one call and multiplied by the draws that were made,
  selection included. s/image: wall time on the machine of that run; not comparable between machines.
- **Bold**: on the front, no other row of the section has at least this accuracy for at most as many evaluations, and
  one of the two strictly. A row with fewer draws is cheaper, and its ceiling radius is lower: n is part of the bargain.
- Rows whose intervals over the images overlap may change places on other images: see `drbench table --compare`. Of
  several trainings (“seed N”) the front has the best, chosen on these images.
- “–”: beyond the ceiling radius of its draws, 0 by construction."""


def frame(runs: Sequence[Run], radii: Sequence[float] = RADII) -> DataFrame:
    """One row per run and radius; imported logs, whose cost is unknown, are left out.

    Columns of `summary.frame`, and all_draws (mean per image, selection included), evaluations (of all networks in
    them), front (no run of the same images and noise levels has at least its accuracy for at most its evaluations, and
    one of them strictly).
    """
    runs = [run for run in runs if run.header["engine"]["certifier"] != "imported" and any(run.ordered())]
    if not runs:
        raise DrbenchError("expected runs with measured costs, got none; start some with `drbench run`")
    return priced(summary.frame(runs, radii), runs)


def priced(table: DataFrame, runs: Sequence[Run]) -> DataFrame:
    """Rows of `summary.frame` of these runs with the columns that `frame` adds."""
    draws, calls = ({summary.place(run): cost(run) for run in runs} for cost in (_all_draws, evaluations))
    table = table.assign(all_draws=table["run"].map(draws), evaluations=table["run"].map(calls))
    fronts = [_front(part) for _, part in table.groupby([*GROUP, "radius"], sort=False)]
    return table.assign(front=pd.concat(fronts).reindex(table.index))


def evaluations(run: Run) -> float:
    """Network evaluations per image: counted calls of one draw times the draws, mean over images with evidence."""
    defense = run.header["defense"]

    @cache
    def calls(sigma: float) -> float:
        return sum(defense.get("nfe_at", {}).get(f"{sigma:g}", defense["nfe"]).values())

    return _mean_of_stages(run, lambda stage: calls(stage.sigma) * (stage.n0 + stage.n))


def _all_draws(run: Run) -> float:
    return _mean_of_stages(run, lambda stage: stage.n0 + stage.n)


def _mean_of_stages(run: Run, cost: Callable) -> float:
    """Mean over the images with evidence of the sum of `cost(stage)` over their noise levels."""
    stages = [row.evidence.stages for row in run.ordered() if row.evidence]
    return sum(cost(stage) for image in stages for stage in image) / len(stages) if stages else math.nan


def _front(part: DataFrame) -> pd.Series:
    """Whether each row is on the front: nothing is certified for nothing, so an accuracy of 0 never is."""
    share, cost = part["certified_accuracy"], part["evaluations"]

    def beaten(row) -> bool:
        better = (share >= row.certified_accuracy) & (cost <= row.evaluations)
        return bool((better & ((share > row.certified_accuracy) | (cost < row.evaluations))).any())

    kept = [row.certified_accuracy > 0 and not beaten(row) for row in named_rows(part)]
    return pd.Series(kept, index=part.index)


def render(table: DataFrame) -> str:
    """Markdown: one section per images and noise levels, rows by cost."""
    text = ["# Certified accuracy against cost", ""]
    for _, part in table.groupby(GROUP, sort=False):
        first = first_row(part)
        text += [f"## {first.dataset} {first.subset}, {summary.where(first)}", "", *_section(part), ""]
    marked = sorted({mark for marks in table["marks"] for mark in marks.split(", ") if mark})
    text += ["## Notes", "", NOTES, *([f"- Rows are marked in brackets: {', '.join(marked)}."] if marked else [])]
    return "\n".join(text) + "\n"


def _section(part: DataFrame) -> Iterator[str]:
    shown = part[part["radius"] <= part["ceiling"].max()]
    radii = sorted(shown["radius"].unique())
    head = ["evaluations", "NFE per draw", "draws", "s/image", *(f"r = {r:g}" for r in radii)]
    yield f"| defense | {' | '.join(head)} |"
    yield "|---" + "|---:" * len(head) + "|"
    for _, run in shown.sort_values(["evaluations", *METHOD], kind="stable").groupby("run", sort=False):
        first = first_row(run)
        name = method_name(first) + (f" [{first.marks}]" if first.marks else "")
        facts = f"{first.evaluations:,.0f}", f"{first.nfe:g}", f"{first.all_draws:,.0f}"
        cells = [_cell(row) for row in named_rows(run.sort_values("radius"))]
        yield f"| {' | '.join([name, *facts, f'{first.seconds_per_image:.3g}', *cells])} |"


def _cell(row) -> str:
    if row.radius > row.ceiling and row.certified_accuracy == 0:
        return "–"
    text = f"{100 * row.certified_accuracy:.1f}"
    return f"**{text}**" if row.front else text


def write(table: DataFrame, stem: str | Path) -> list[Path]:
    """Write `<stem>.md` and `<stem>.csv`; the same records give the same bytes."""
    return save(stem, table, render(table))
