"""Tables as Markdown, LaTeX and CSV, from the frame of `drbench.tables.summary`. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from pandas import DataFrame

from drbench.tables import beside
from drbench.tables.frames import named_rows
from drbench.tables.saving import MD, TEX, save
from drbench.tables.summary import COLUMNS, DATA, METHOD, envelope, groups, method_name, split, where

# mark -> sign in Markdown, sign in LaTeX, meaning; any other flag of a run speaks for itself
SIGNS = {
    "partial": ("†", r"$^\dagger$", "partial: some images of the subset are missing"),
    "dirty": (r"\*", r"$^\ast$", "dirty: the code differed from its commit"),
    "weights as constructed": ("‡", r"$^\ddagger$", "weights as constructed: no checkpoint was given"),
    "mixed code": ("#", r"$^\#$", "mixed code: resumed under other sources or package versions"),
    "repeat": (
        "‖",
        r"$^\|$",
        "repeat: runs that differ only in seed, weights, arguments or targets; their folders are named",
    ),
    "curtailed": (
        "°",
        r"$^\circ$",
        "curtailed: draws stop when the rest of n cannot change a target radius; the same certificates there as with "
        "all n, but smaller radii in between and a smaller ACR",
    ),
    "sequential": (
        "⋄",
        r"$^\diamond$",
        "sequential: draws stop when an anytime-valid test has settled the target radii, at n at the latest; ACR "
        "counts only what was established until then",
    ),
    "hybrid": (
        "△",
        r"$^\triangle$",
        "hybrid: as sequential, with a tenth of alpha; where all n were drawn, Clopper–Pearson with the rest",
    ),
    "few targets": (
        "◦",
        r"$^\bullet$",
        "few targets: draws stopped when other radii than all of this table were settled; at the others accuracies are "
        "lower bounds, and abstention is an upper bound",
    ),
    "tolerance": (
        "∓",
        r"$^\mp$",
        "tolerance: draws of all images stopped when no column could move by more than the tolerance; undecided images "
        "count as not certified",
    ),
    "label": (
        "ℓ",
        r"$^\ell$",
        "label: the true class was tested, without selection draws; the same statement, but whatever it does not "
        "certify is an abstention",
    ),
    "randomized": (
        "≀",
        r"$^\wr$",
        "randomized: limits of exact level, with a random number per image; no ceiling for unanimous votes",
    ),
    "rounded": (
        "≐",
        r"$^\doteq$",
        "rounded: radii as the protocol's program prints them, to nearest; an image may count where it just fails",
    ),
    "reduced precision": (
        "≈",
        r"$^\approx$",
        "reduced precision: the networks ran in bfloat16 or float16, a classifier of its own; run.json says how often "
        "it votes otherwise than in float32",
    ),
    "estimate": (
        "≙",
        r"$^\triangleq$",
        "estimate: a Lipschitz radius, margin / 2L, of logits that are means over random draws: no certificate",
    ),
    "imported": (
        "⇩",
        r"$^\downarrow$",
        "imported: from the log of another program; its certificates cannot be recomputed",
    ),
    "log": ("!", r"$^!$", "log: the imported log is odd in some respect; `drbench verify` says how"),
    "damaged": ("§", r"$^\S$", "damaged: the run folder holds unreadable or contradicting lines"),
}


class Group(NamedTuple):
    """Lines to be compared: the runs of one sigma, the cascades over the same scales, or the envelopes over sigma."""

    title: str
    oracle: bool
    lines: list[list]


def sections(table: DataFrame) -> Iterator[Group]:
    single, cascade = split(table)
    for (dataset, subset, sigma), part in groups(single, [*DATA, "sigma"]):
        yield Group(f"{dataset} {subset}, σ = {sigma:g}", False, _lines(part))
    for (dataset, subset, sigmas), part in groups(cascade, [*DATA, "sigmas"]):
        yield Group(f"{dataset} {subset}, cascade over σ = {sigmas}: one classifier", False, _lines(part))
    for (dataset, subset), part in groups(single, DATA):
        methods = (method for _, method in part.groupby([*METHOD, "noise"], sort=False))
        title = f"{dataset} {subset}, upper envelope over σ: an oracle, not one classifier"
        yield Group(title, True, [_line(envelope(method), method) for method in methods])


def _lines(part: DataFrame) -> list[list]:
    return [_line(run, run) for _, run in part.groupby("run", sort=False)]


def _line(shown: DataFrame, made_of: DataFrame) -> list:
    """Rows ascending in radius with the accuracy as `text`: "–" for a 0 beyond the ceiling, that no votes can lift."""
    reach, share = made_of["ceiling"].max(), shown["certified_accuracy"]
    text = share.map(_percent).where((share > 0) | (shown["radius"] <= reach), "–")
    return list(named_rows(shown.assign(text=text)))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def radius_text(radius: float) -> str:
    """A number, or the fraction that it is if that is shorter: 0.25, 8/255."""
    fraction = Fraction(radius).limit_denominator(255)
    text = f"{radius:.10g}"
    return str(fraction) if len(text) > 6 and abs(float(fraction) - radius) < 1e-12 else text


def _signs(marks: str, form: int) -> str:
    """Signs of a `marks` text: `form` 0 for Markdown, 1 for LaTeX."""
    return "".join(dict.fromkeys(SIGNS.get(mark, ("¶", r"$^\P$"))[form] for mark in marks.split(", ") if mark))


def _legend(table: DataFrame, form: int) -> list[str]:
    used = sorted({mark for marks in table["marks"] for mark in marks.split(", ") if mark})
    return [f"{_signs(m, form)} {SIGNS.get(m, (m, m, m))[2].translate((MD, TEX)[form])}" for m in used]


def _protocol(table: DataFrame) -> str:
    """What the rows share; values that differ are all listed here, and row by row in the notes."""
    values = {column: ", ".join(map(str, table[column].unique())) for column in COLUMNS}
    return ("data {dataset}; subset {subset}; n0 = {n0} selection draws; alpha = {alpha}; certifier {certifier} "
            "({mode}); {norm} radii in pixel units").format(**values)  # fmt: skip


NOTES = """\
- Accuracies: % of all recorded images whose class is right and whose certified radius is at least r. An abstention, a
  wrong class or an error is not certified, at r = 0 neither. “–”: beyond the ceiling radius, 0 by construction.
- Brackets: pointwise 95 % intervals over the images, Clopper–Pearson for accuracies, bootstrap for ACR. They do not
  cover training; besides, each certificate may fail with probability alpha over its draws.
- ACR: average certified radius = area under the curve. It depends on n and alpha through the ceiling radius and is
  dominated by easy images: compare it only between rows of one protocol, and see “What the averages hide”.
- Envelope: at each radius the best of all runs of a method, its σ in parentheses (ties: the smaller). An oracle that
  chooses on the test set, not one classifier; the interval of the winning row is pointwise and ignores the selection.
- s/image: wall time on the machine of that run; not comparable between machines."""


def render_markdown(table: DataFrame, cascades: DataFrame | None = None) -> str:
    """The whole table as Markdown: protocol, one section per data set and sigma or cascade, envelopes, notes.

    `cascades`, from `halting.frame`, adds a section on how they stop and what they answer without a certificate.
    """
    text = ["# Certified accuracy", "", _protocol(table).translate(MD) + ".", ""]
    for group in sections(table):
        oracle, columns = group.oracle, zip(*group.lines, strict=True)
        head = [
            f"r = {radius_text(column[0].radius)}" for column in columns if any(cell.text != "–" for cell in column)
        ]
        body = [_md_line(line[: len(head)], oracle) for line in group.lines]
        if not oracle:
            head = ["N draws", "images", *head, "ACR", "abstained %", "NFE per draw", "s/image"]
        text += [f"## {group.title.translate(MD)}", "", f"| defense | {' | '.join(head)} |"]
        text += ["|---" + "|---:" * len(head) + "|", *(f"| {' | '.join(cells)} |" for cells in body), ""]
    text += [*beside.section(table, _label), ""]
    if cascades is not None and len(cascades):
        text += [*_diagnostics(cascades), ""]
    text += ["## Notes", "", NOTES, *(f"- {note}" for note in _notes(table))]
    return "\n".join(text) + "\n"


DIAGNOSTICS = """\
Shares in % of all images. Halted, undecided: at each scale in turn, from the largest down; an undecided image abstains.
Limited earlier: an earlier scale, at which another class comes too near to p0, sets the radius or takes it away (no
radius). Evaluations: of all networks, per image, mean and worst case. The last columns are accuracies. Only the first
belongs to the certificates; “cascade + fallback” gives every abstention to the clean classifier, “prior-mixed” (the
official code's empirical rule) adds the votes as a prior to the clean logits: neither is certified at any radius."""
HEAD = ("defense", "halted", "undecided", "none halted", "limited earlier", "no radius", "draws", "evaluations",
        "certified cascade, r = 0", "cascade + fallback", "prior-mixed", "clean classifier")  # fmt: skip


def _diagnostics(cascades: DataFrame) -> Iterator[str]:
    yield from ("## Cascades: where they stop, what they answer", "", DIAGNOSTICS, "")
    yield from (f"| {' | '.join(HEAD)} |", "|---" + "|---:" * (len(HEAD) - 1) + "|")
    for row in named_rows(cascades):
        per_scale = (" / ".join(map(_percent, shares)) for shares in (row.halted, row.undecided))
        cost = ((row.draws, row.most_draws), (row.evaluations, row.most_evaluations))
        answers = (row.certified_cascade, row.cascade_fallback, row.prior_mixed, row.clean)
        cells = [
            _label(row), *per_scale,
            *map(_percent, (row.none_halted, row.earlier, row.no_radius)),
            *(f"{mean:,.0f}, at most {most:,.0f}" for mean, most in cost),
            *(_percent(share) if share == share else "–" for share in answers),
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _md_line(line: list, oracle: bool) -> list[str]:
    first, name = line[0], _name(line[0]).translate(MD)
    if oracle:
        return [name, *(cell.text + _winner(cell, 0) for cell in line)]
    cells = [c.text if c.text == "–" else f"{c.text} [{_percent(c.ci_low)}, {_percent(c.ci_high)}]" for c in line]
    name += f" {first.run.rpartition('/')[2]}".translate(MD) if "repeat" in first.marks else ""
    return [
        name + _signs(first.marks, 0), _drawn(first), str(first.images), *cells,
        f"{first.acr:.3f} [{first.acr_low:.3f}, {first.acr_high:.3f}]", _percent(first.abstention),
        *(["–", "–"] if first.certifier == "imported" else [f"{first.nfe:g}", f"{first.seconds_per_image:.3g}"]),
    ]  # fmt: skip


def _label(row) -> str:
    """A run in a table that holds all of them."""
    return f"{method_name(row)} {where(row)} ({row.subset})".translate(MD) + _signs(row.marks, 0)


def _name(row) -> str:
    return method_name(row) + ("" if row.noise == "gaussian" else f", {row.noise} noise")


def _at_most(row) -> str:
    return "" if row.mode == "fixed" else r"$\leq$ "


def _drawn(row) -> str:
    return f"{row.n:,}" if row.mode == "fixed" else f"≤ {row.n:,}, mean {row.draws:,.0f}"


def _winner(cell, form: int) -> str:
    """Sigma of the winning run of an envelope cell and the signs of that run."""
    won = f" ({cell.sigma:g})" if cell.certified_accuracy > 0 else ""
    return "" if cell.text == "–" else won + _signs(cell.marks, form)


def _notes(table: DataFrame) -> Iterator[str]:
    """Notes that depend on the runs: ceilings, evaluations, marks, errors, rows that differ from the others."""
    runs = list(named_rows(table.drop_duplicates("run")))
    names = {row.run: f"{method_name(row)} {where(row)} ({row.subset})".translate(MD) for row in runs}
    voted = [row for row in runs if row.certifier != "lipschitz"]
    limits = sorted(
        {(row.certifier == "cascade", row.sigma, row.n, row.alpha, where(row), row.ceiling) for row in voted}
    )
    if limits:
        listed = "; ".join(f"{r:.4f} {at}, n = {n:,}, alpha = {a:g}" for *_, n, a, at, r in limits)
        yield f"Ceiling radius, the largest that n unanimous votes certify: {listed}."
    for row in runs:
        if row.certifier == "lipschitz":
            yield f"Ceiling radius, by the Lipschitz constant of the logits: {row.ceiling:.4f}, {names[row.run]}."
    calls = sorted({f"{method_name(row)}: {row.nfe_detail}".translate(MD) for row in runs if row.nfe_detail})
    yield f"NFE per draw: network evaluations per noisy draw, counted. {'; '.join(calls) or 'None'}."
    yield from _legend(table, 0)
    for row in runs:
        if row.errors:
            yield f"Errors, counted as not certified: {row.errors} of {row.images} images, {names[row.run]}."
    table = table.drop_duplicates("run")
    table = table.assign(cascade=table["certifier"] == "cascade")
    for row in runs:
        if row.preset:
            yield f"Protocol {row.preset.translate(MD)}: {names[row.run]}."
    # A log names no subset, so its protocol is compared with all rows of its data set.
    for columns, alike in ((("n", "n0", "alpha"), ["dataset", "cascade"]),
                            (("images", "mode", "protocol", "noise"), [*DATA, "certifier"])):  # fmt: skip
        for _, part in table.groupby(alike):
            for column in columns:
                most = part[column].max()
                others = [f"{getattr(row, column)}, {names[row.run]}" for row in named_rows(part[part[column] != most])]
                if others:
                    yield f"Not the same {column} in all rows, compare with care: {most}, but {'; '.join(others)}."


def render_latex(table: DataFrame) -> str:
    r"""One booktabs tabular to `\input` into a table: groups per sigma and the envelopes, accuracies in percent.

    Bold is the best of each column of a group as printed, ties all bold, if above 0; a partial row is never bold.
    """
    radii = [f"$r = {radius_text(r)}$" for r in sorted(table["radius"].unique())]
    wide = rf"\multicolumn{{{len(radii) + 4}}}{{l}}"
    text = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * (len(radii) + 3)}}}", r"\toprule",
            rf"{' & '.join(['defense', '$n$', 'images', *radii, 'ACR'])} \\"]  # fmt: skip
    for group in sections(table):
        title = re.sub(r"σ( = [\d.e+, -]*\d)?", lambda found: rf"$\sigma{found[1] or ''}$", group.title.translate(TEX))
        text += [r"\midrule", rf"{wide}{{{title}}} \\", *_tex_lines(group)]
    footer = (rf"{wide}{{\footnotesize {note}}} \\" for note in (_protocol(table).translate(TEX), *_legend(table, 1)))
    return "\n".join([*text, r"\bottomrule", *footer, r"\end{tabular}"]) + "\n"


def _tex_lines(group: Group) -> Iterator[str]:
    oracle = group.oracle
    best = [max((cell.certified_accuracy for cell in column if not cell.partial), default=0.0)
            for column in zip(*group.lines, strict=True)]  # fmt: skip
    for line in group.lines:
        first, cells = line[0], []
        for cell, top in zip(line, best, strict=True):
            bold = cell.text == _percent(top) != "0.0" and not cell.partial
            text = rf"\textbf{{{cell.text}}}" if bold else cell.text.replace("–", "--")
            cells.append(text + (_winner(cell, 1) if oracle else ""))
        name, facts = _name(first).translate(TEX), ["", "", *cells, ""]
        if not oracle:
            name, facts = (
                name + _signs(first.marks, 1),
                [_at_most(first) + str(first.n), str(first.images), *cells, f"{first.acr:.3f}"],
            )
        yield rf"{' & '.join([name, *facts])} \\"


def write(table: DataFrame, stem: str | Path, cascades: DataFrame | None = None) -> list[Path]:
    """Write `<stem>.md`, `<stem>.csv` (the frame) and `<stem>.tex`; the same records give the same bytes."""
    return save(stem, table, render_markdown(table, cascades), render_latex(table))
