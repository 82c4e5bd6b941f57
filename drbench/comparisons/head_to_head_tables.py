"""The head-to-head page: Markdown, CSV and LaTeX from the frame of `drbench.comparisons.head_to_head`. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pandas import DataFrame

from drbench.tables.frames import first_row, named_rows
from drbench.tables.saving import MD, TEX, save

NOTES = """\
- Same images in all rows of a table, and the same number of draws: of a run that made more, the mean over all subsets
  of so many votes (never scaled counts), so that numbers differ from tables of the runs as recorded. Noise comes from
  the same streams (key: seed, image, noise level, block); rows with another block or seed are named. Accuracies in %,
  95 % intervals over the images (Clopper–Pearson; Gaffke's bound where an image counts in part; bootstrap for ACR, and
  over images and training seeds for rows of several trainings: of three seeds, three numbers, which it takes for more).
- Robust accuracy: average over fresh evaluations, as deployed, after the strongest attack of the run; upper bounds,
  by attacks of unequal strength (in parentheses: images, and the preset unless it is “standard”).
- Calls: network evaluations of a noisy draw, counted by hooks. ms: wall time of a recorded run over all its draws,
  mean over noise levels and seeds; times of other machines are not comparable.
- Training: seconds that the manifest of weights has for the row's weights and all that their training files load,
  mean over seeds; backbones were not matched in parameters or steps: the training files say what each got.
- Factor: cost of a draw of the row over that of RCM (all training seeds), at the same noise levels; in parentheses
  the smallest and the largest of the runs. Quoted: of the paper's abstract (published), or seconds of an image over
  those of RCM as public reviews quote them (secondary). The factor is that of the baseline: how many steps and votes
  it takes.
- Accuracy against cost, as recorded: cost.md beside this file. Which differences are more than chance: claims.md."""


def render_markdown(table: DataFrame) -> str:
    """Budget, cost factors, certified accuracy by noise level, robust accuracy by threat, for each data set."""
    text = ["# Head to head", ""]
    for dataset, part in table.groupby("dataset", sort=False):
        text += [f"## {dataset}: what each row costs".translate(MD), "", *_budget(part), ""]
        text += [*_factor(part), ""]
        for title, rows in _tables(part):
            text += [f"## {dataset}, {title}".translate(MD), "", *_grid(rows, "quantity"), *_streams(rows), ""]
        robust = part[(part.section == "robust")]
        if len(robust):
            text += [f"## {dataset}, robust accuracy under attack".translate(MD), ""]
            text += [*_grid(robust[robust.quantity == "robust"], "condition"), ""]
    return "\n".join([*text, "## Notes", "", NOTES]) + "\n"


def _tables(part: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    certified = part[part.section == "certified"]
    for (condition, images, draws), rows in certified.groupby(["condition", "images", "draws"], sort=False):
        yield f"{condition}: {images:.0f} images, {draws:,.0f} draws each", rows


def _grid(rows: DataFrame, columns: str) -> Iterator[str]:
    """Rows against radii or threats."""
    heads = list(dict.fromkeys(rows[columns]))
    yield "| defense | " + " | ".join(head.translate(MD) for head in heads) + " |"
    yield "|---" + "|---:" * len(heads) + "|"
    for _, part in rows.groupby("row", sort=False):
        found = {getattr(row, columns): row for row in named_rows(part)}
        cells = [_cell(found[head]) if head in found else "–" for head in heads]
        yield f"| {_name(first_row(part)).translate(MD)} | {' | '.join(cells)} |"


def _cell(row) -> str:
    if not row.images:
        return "no image in common"
    scale, form = (1, ".3f") if row.quantity == "ACR" else (100, ".1f")
    text = f"{scale * row.value:{form}} [{scale * row.low:{form}}, {scale * row.high:{form}}]"
    if row.section != "robust":
        return text
    preset = "" if row.note == "standard" else f", {row.note}"
    return f"{text} ({row.images:.0f}{preset})".translate(MD)


def _name(row) -> str:
    seeds = f" ({row.seeds:.0f} seeds)" if row.seeds > 1 else ""
    return row.row + seeds + (f" [{row.marks}]" if isinstance(row.marks, str) and row.marks else "")


def _streams(rows: DataFrame) -> Iterator[str]:
    """Rows whose noise comes from other streams than that of most."""
    usual = rows.note.mode()[0]
    odd = rows[rows.note != usual].drop_duplicates("row")
    yield ""
    others = "; ".join(f"{row.row} {row.note}" for row in named_rows(odd))
    yield f"Noise: {usual}{f'; but {others}' if others else ''}.".translate(MD)


def _budget(part: DataFrame) -> Iterator[str]:
    yield "| defense | parameters | calls of a draw | ms of a draw | training, s | of the weights |"
    yield "|---|---:|---:|---:|---:|---|"
    for _, rows in part[part.section == "budget"].groupby("row", sort=False):
        found = {row.quantity: row for row in named_rows(rows)}
        first = found["parameters"]
        cells = [_number(found, "parameters", ",.0f"), _range(found.get("calls"), 1, "g"),
                 _range(found.get("seconds"), 1000, ".2g", mean=True), _number(found, "training seconds", ",.0f"),
                 first.note or "–"]  # fmt: skip
        yield f"| {' | '.join(cell.translate(MD) for cell in (_name(first), *cells))} |"


def _number(found: dict, quantity: str, form: str) -> str:
    value = found[quantity].value
    return format(value, form) if value == value else "–"


def _range(row, scale: float, form: str, mean: bool = False) -> str:
    if row is None:
        return "–"
    if mean or row.low == row.high:
        return format(scale * row.value, form)
    return f"{scale * row.low:{form}} to {scale * row.high:{form}}"


def _factor(part: DataFrame) -> Iterator[str]:
    rows = part[part.section == "factor"]
    if not len(rows):
        return
    yield "Cost of a draw over that of RCM:"
    yield ""
    yield "| baseline | noise levels | network calls | wall time | quoted, ImageNet |"
    yield "|---|---|---:|---:|---:|"
    for _, group in rows.groupby("row", sort=False):
        found, first = {row.quantity: row for row in named_rows(group)}, first_row(group)
        calls, seconds = (_times(found[measure]) if measure in found else "–" for measure in ("calls", "seconds"))
        cells = (_name(first), first.condition or "–", calls, seconds, first.note or "–")
        yield f"| {' | '.join(cell.translate(MD) for cell in cells)} |"


def _times(row) -> str:
    return f"{row.value:.2g}" + ("" if row.low == row.high else f" ({row.low:.2g} to {row.high:.2g})")


def render_latex(table: DataFrame) -> str:
    r"""One booktabs tabular to `\input` into a table: certified accuracy of all rows on most images, by noise level."""
    text = ["% needs \\usepackage{booktabs}"]
    certified = table[table.section == "certified"]
    heads = list(dict.fromkeys(certified.quantity))
    text += [rf"\begin{{tabular}}{{l{'r' * len(heads)}}}", r"\toprule",
             " & ".join(["defense", *(f"${h}$" if h != "ACR" else h for h in heads)]) + r" \\"]  # fmt: skip
    for dataset, part in table.groupby("dataset", sort=False):
        for title, rows in _tables(part):
            wide = f"{dataset}, {title}".translate(TEX).replace("σ", r"$\sigma$")
            text += [r"\midrule", rf"\multicolumn{{{len(heads) + 1}}}{{l}}{{{wide}}} \\"]
            for _, group in rows.groupby("row", sort=False):
                found = {row.quantity: row.value for row in named_rows(group)}
                cells = [f"{found[h] * (1 if h == 'ACR' else 100):{'.3f' if h == 'ACR' else '.1f'}}" if h in found
                         else "--" for h in heads]  # fmt: skip
                text.append(" & ".join([_name(first_row(group)).translate(TEX), *cells]) + r" \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}"]) + "\n"


def write(table: DataFrame, stem: str | Path) -> list[Path]:
    """Write `<stem>.md`, `<stem>.csv` (the frame) and `<stem>.tex`; the same records give the same bytes."""
    return save(stem, table, render_markdown(table), render_latex(table))
