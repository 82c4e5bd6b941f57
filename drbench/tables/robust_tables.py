"""Robust accuracy under attack: one row per run, as a frame, Markdown, CSV and LaTeX. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from pandas import DataFrame

from drbench.errors import DrbenchError
from drbench.records.record import Row, Run
from drbench.stats.robustness import Robustness, robustness
from drbench.tables import summary
from drbench.tables.frames import named_rows
from drbench.tables.saving import MD, TEX, save

THREAT = ["dataset", "subset", "norm", "eps"]
PANEL, LINE = ["dataset", "subset", "norm"], ["defense", "variant", "sigma", "preset"]  # of figures
KINDS = Robustness._fields  # average, majority, worst, one_shot
NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1", "stadv": "StAdv, displacement in pixels"}


def frame(runs: Sequence[Run]) -> DataFrame:
    """One row per attack run with a recorded image: data, threat, then floors first and by name.

    Columns: for each of `KINDS` the robust accuracy with its 95 % interval (`average`, `average_low`, `average_high`)
    and the same of the clean images (`clean_average`, ...), shares in [0, 1]; `attack`, the one that made most of the
    kept examples, and `attack_share` of the images; mean evaluations of the defense per image, by the attacks alone.
    """
    rows = [_row(run) for run in runs if any(row.evidence for row in run.ordered())]
    if not rows:
        raise DrbenchError("expected an attack run with a recorded image, got none; start or go on with `drbench run`")
    table = pd.DataFrame(rows)
    table["floor"] = table["defense"].map(lambda name: [*summary.FLOORS, name].index(name))
    table["size"] = -table["images"]
    order = ["dataset", "size", "subset", "norm", "eps", "floor", "defense", "variant", "sigma", "preset", "run"]
    return table.sort_values(order).drop(columns=["floor", "size"]).reset_index(drop=True)


def _row(run: Run) -> dict:
    data, engine, defense = (run.header[key] for key in ("data", "engine", "defense"))
    rows = [row for row in run.ordered() if row.evidence]
    labels, tried = [row.label for row in rows], [each for row in rows for each in row.evidence.tried]
    kept = Counter(row.evidence.kept for row in rows if row.evidence.kept and _harmed(row)).most_common(1)
    numbers = {}
    for prefix, name in (("", "adversarial"), ("clean_", "clean")):
        found = robustness([getattr(row.evidence, name) for row in rows], labels, engine["worst_of"])
        for kind, (value, low, high) in zip(KINDS, found, strict=True):
            numbers |= {f"{prefix}{kind}": value, f"{prefix}{kind}_low": low, f"{prefix}{kind}_high": high}
    damaged = any("torn last line" not in problem for problem in run.problems)
    return {
        "dataset": data["name"], "subset": data["subset"], "norm": engine["norm"], "eps": engine["eps"],
        "eps_text": engine["eps_text"], "defense": defense["name"], "variant": defense["variant"],
        "sigma": engine["sigma"], "decision": _decision(engine), "evaluations": engine["evaluations"],
        "worst_of": engine["worst_of"], "preset": engine["preset"], "images": len(rows), **numbers,
        "attack": kept[0][0] if kept else "", "attack_share": kept[0][1] / len(rows) if kept else 0.0,
        "gradients": sum(each.gradients for each in tried) / len(rows),
        "forwards": sum(each.forwards for each in tried) / len(rows),
        "gradient": defense["gradient"], "seconds_per_image": sum(row.seconds for row in run.rows.values()) / len(rows),
        "weights": " ".join(sorted(sha256[:8] for sha256 in defense.get("checkpoints", {}).values())),
        "audited": len(run.header.get("audit", {}).get("ids", [])), "flags": "; ".join(run.header["flags"]),
        "marks": ", ".join([*run.marks, *["damaged"] * damaged]),
        "run": summary.place(run),
    }  # fmt: skip


def _harmed(row: Row) -> bool:
    """Whether the example fools the defense more often than the clean image does; else some attack was merely last."""
    return row.evidence.adversarial.wrong(row.label) > row.evidence.clean.wrong(row.label)


def _decision(engine: dict) -> str:
    return engine["decision"] + (f"({engine['decision_draws']})" if engine["decision_draws"] > 1 else "")


NOTES = """\
- Accuracies in % of all recorded images, after the attack, with a pointwise 95 % interval over the images
  (Clopper–Pearson; where an image counts in part Gaffke's bound, which is the same for right and wrong); in parentheses
  the same number on the clean images, from as many evaluations on the same draws. An attack gives an upper bound of the
  true robust accuracy.
- average: one evaluation of the deployed defense, in expectation. majority: the most frequent answer of all N
  evaluations (ties are wrong). worst-of-M: right in each of M evaluations, unbiased estimate from N. one-shot: the
  first evaluation alone. A deterministic defense has one number.
- σ: noise that the deployed defense adds to its input. Evaluations use randomness that no attack saw, and that did not
  choose among their examples either.
- strongest: the attack whose examples were kept for most images, of those that fool the defense more often than the
  clean image does (an image of a deterministic defense is done with the first attack that breaks it). gradients,
  forwards: evaluations of the whole defense per image that the attacks and the choice among their examples took, with
  and without a gradient.
- audited: images on which attacks were compared, to check them (0: the defense was probed at most). flags: what these
  checks found, and other marks; "not finite": some answers were no finite scores, which counts as broken."""


def render_markdown(table: DataFrame) -> str:
    """The whole table as Markdown: a section per data set and threat, then notes."""
    text = ["# Robust accuracy under attack", ""]
    for (dataset, subset, norm, _), part in table.groupby(THREAT, sort=False):
        first = part.iloc[0]
        text += [f"## {dataset} {subset}, {NORMS.get(norm, norm)} ≤ {first.eps_text}".translate(MD), ""]
        tries = ", ".join(f"{m}" for m in sorted(part["worst_of"].unique()))
        head = ["defense", "σ", "decision", "N", "images", "average (clean)", "majority (clean)",
                f"worst-of-{tries} (clean)", "one-shot (clean)", "strongest", "gradients", "forwards", "preset",
                "audited", "flags"]  # fmt: skip
        text += [f"| {' | '.join(head)} |", "|---|---:|---" + "|---:" * 6 + "|---|---:|---:|---|---:|---|"]
        text += [f"| {' | '.join(_cells(row))} |" for row in named_rows(part)]
        text.append("")
    return "\n".join([*text, "## Notes", "", NOTES]) + "\n"


def _cells(row) -> Iterator[str]:
    yield summary.method_name(row).translate(MD)
    yield from (f"{row.sigma:g}", row.decision, str(row.evaluations), str(row.images))
    for kind in KINDS:
        low, high, clean = (getattr(row, name) for name in (f"{kind}_low", f"{kind}_high", f"clean_{kind}"))
        yield f"{_percent(getattr(row, kind))} [{_percent(low)}, {_percent(high)}] ({_percent(clean)})"
    yield f"{row.attack} ({100 * row.attack_share:.0f} %)".translate(MD) if row.attack else "–"
    yield from (f"{row.gradients:,.0f}", f"{row.forwards:,.0f}", row.preset, str(row.audited))
    yield _flags(row).translate(MD) or "–"


def _flags(row) -> str:
    return "; ".join(part for part in (row.marks, row.flags) if part)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def render_latex(table: DataFrame) -> str:
    r"""One booktabs tabular to `\input` into a table: a group per threat; clean accuracy beside the robust ones."""
    head = ["defense", r"$\sigma$", "clean", "average", "majority", "worst-of-$M$", "one-shot", "gradients"]
    text = ["% needs \\usepackage{booktabs}", r"\begin{tabular}{lrrrrrrr}", r"\toprule", rf"{' & '.join(head)} \\"]
    names = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$", "stadv": "StAdv, pixels,"}
    for (dataset, subset, norm, _), part in table.groupby(THREAT, sort=False):
        title = f"{f'{dataset} {subset}'.translate(TEX)}, {names.get(norm, norm)} $\\leq {part.iloc[0].eps_text}$"
        text += [r"\midrule", rf"\multicolumn{{8}}{{l}}{{{title}}} \\"]
        for row in named_rows(part):
            numbers = [_percent(getattr(row, name)) for name in ("clean_average", *KINDS)]
            flags = _flags(row)
            name = summary.method_name(row).translate(TEX) + (f" [{flags.translate(TEX)}]" if flags else "")
            text.append(rf"{' & '.join([name, f'{row.sigma:g}', *numbers, f'{row.gradients:,.0f}'])} \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}"]) + "\n"


def write(table: DataFrame, stem: str | Path) -> list[Path]:
    """Write `<stem>.md`, `<stem>.csv` (the frame) and `<stem>.tex`; the same records give the same bytes."""
    return save(stem, table, render_markdown(table), render_latex(table))
