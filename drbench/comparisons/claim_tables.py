"""Verdicts on claims as Markdown, CSV and LaTeX, from the frame of `drbench.comparisons.claims`. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from pandas import DataFrame

from drbench.comparisons.claims import RULE, VERDICTS
from drbench.tables.frames import named_rows
from drbench.tables.saving import MD, TEX, save

HEAD = ("claim", "published", "verdict", "here", "p, Holm", "up, down", "images", "seeds", "calls and time of a draw",
        "how")  # fmt: skip
DIGITS = {"points": "+.1f", "radius": "+.3f", "levels": ".2f", "times": ".2g"}


def effect(row) -> str:
    """Effect with its interval and unit: "-5.7 [-6.8, -4.6] points"; empty if nothing was tested."""
    if row.verdict == "not tested":
        return ""
    number, low, high = (format(value, DIGITS[row.unit]) for value in (row.effect, row.low, row.high))
    spread = f"({low} to {high})" if row.unit == "times" else f"[{low}, {high}]"
    return f"{number} {spread} {row.unit}"


def verdict(row) -> str:
    """The verdict, with what a reader has to know of its runs."""
    return row.verdict + (f" [{row.marks}]" if isinstance(row.marks, str) and row.marks else "")


def read(path: Path) -> DataFrame:
    """The frame that `write` wrote."""
    table = pd.read_csv(path)
    words = table.select_dtypes(exclude=["number", "bool"]).columns
    return table.assign(**{name: table[name].fillna("") for name in words})


def render_markdown(table: DataFrame) -> str:
    """One section per paper: a line for each claim that was tested, then those that were not, and why."""
    text = ["# What the papers claim, and what recorded runs say", "", counts(table), ""]
    for paper, part in table.groupby("paper", sort=False):
        text += [f"## {paper}".translate(MD), ""]
        tested, rest = part[part.verdict != "not tested"], part[part.verdict == "not tested"]
        for dataset, rows in tested.groupby("dataset", sort=False):
            text += [f"On {dataset}:".translate(MD), "", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
            text += [f"| {' | '.join(cell.translate(MD) for cell in _cells(row))} |" for row in named_rows(rows)]
            text.append("")
        if len(rest):
            text += [*(_untested(row).translate(MD) for row in named_rows(rest)), ""]
    return "\n".join([*text, "## Rules", "", RULE]) + "\n"


def counts(table: DataFrame) -> str:
    """How many hold, fail and are undecided on each data set."""
    parts = []
    for dataset, rows in table[table.verdict != "not tested"].groupby("dataset"):
        counts = rows.verdict.value_counts()
        parts.append(f"{dataset}: " + ", ".join(f"{counts.get(each, 0)} {each}" for each in VERDICTS[:3]))
    untested = sum(table.verdict == "not tested")
    return "; ".join([*parts, f"{untested} not tested"]).translate(MD) + "."


def _cells(row) -> Iterator[str]:
    yield f"{row.statement} ({row.source}; {row.key})"
    yield row.published or "–"
    yield verdict(row)
    yield effect(row)
    yield "–" if math.isnan(row.p_holm) else f"{row.p_holm:.2g}"
    yield "–" if math.isnan(row.p) else f"{row.up:.0f}, {row.down:.0f}"
    yield from (f"{row.images:.0f}", row.seeds or "–", row.cost, row.note)


def _untested(row) -> str:
    where = f" on {row.dataset}" if row.dataset else ""
    return f"- not tested{where}: {row.statement} ({row.source}; {row.key}). {row.note}."


def render_short(table: DataFrame) -> str:
    """The few claims that stand in the README, as one Markdown table."""
    lines = ["| paper | claim | published | here | images, seeds |", "|---|---|---|---|---|"]
    for row in named_rows(table[table.main]):
        found = row.note if row.verdict == "not tested" else f"{effect(row)}, {row.images:.0f}"
        value, _, size = found.rpartition(", ") if row.verdict != "not tested" else (found, "", "–")
        cells = [row.paper.partition(" (")[0], row.statement, row.published or "–"]
        cells = [cell.translate(MD) for cell in cells]
        cells += [f"**{verdict(row).translate(MD)}** {value.translate(MD)}", f"{size}, {row.seeds or '–'}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_latex(table: DataFrame) -> str:
    r"""One booktabs tabular to `\input` into a table: claims that were tested, by paper and data set."""
    text = ["% needs \\usepackage{booktabs}", r"\begin{tabular}{p{0.5\linewidth}llrr}", r"\toprule",
            r"claim & verdict & effect & $p$, Holm & images \\"]  # fmt: skip
    for (paper, dataset), rows in table[table.verdict != "not tested"].groupby(["paper", "dataset"], sort=False):
        text += [r"\midrule", rf"\multicolumn{{5}}{{l}}{{{_tex(f'{paper}, {dataset}')}}} \\"]
        for row in named_rows(rows):
            p = "--" if math.isnan(row.p_holm) else f"{row.p_holm:.2g}"
            cells = [_tex(row.statement), _tex(verdict(row)), _tex(effect(row)), p, f"{row.images:.0f}"]
            text.append(rf"{' & '.join(cells)} \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    return text.translate(TEX).replace("σ", r"$\sigma$").replace("–", "--")


def write(table: DataFrame, stem: str | Path) -> list[Path]:
    """Write `<stem>.md`, `<stem>.csv` (the frame) and `<stem>.tex`; the same records give the same bytes."""
    return save(stem, table, render_markdown(table), render_latex(table))
