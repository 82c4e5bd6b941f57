"""Two defenses on the same images: paired differences of certified accuracy, with intervals and exact tests. No torch.

Pairing takes out what the two have in common, above all how hard each image is: the intervals are far narrower than
those of two separate rows suggest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from pandas import DataFrame

from drbench import stats
from drbench.errors import DrbenchError
from drbench.records.record import Run
from drbench.tables.frames import first_row, named_rows
from drbench.tables.saving import save
from drbench.tables.summary import certified, common_norm, frame, method_name, where

PROTOCOL = ("certifier", "mode", "n0", "n", "alpha")

NOTES = """\
- Difference: certified accuracy of A minus that of B, in points. Brackets: 95 % score interval for paired proportions
  (Tango 1998); for ACR a paired bootstrap over images. The CSV has the bootstrap beside the score interval.
- A only, B only: images that one of them certifies correctly at r and the other does not.
- p: exact two-sided sign test on those images. One test per line, not corrected for their number.
- “–”: beyond the ceiling radius of its draws, 0 by construction; such a line compares budgets, not defenses.
- The images are the sample: another training, or other noise, is not covered."""


def compare(
    ours: Sequence[Run], theirs: Sequence[Run], radii: Sequence[float] | None = None, norm: str | None = None
) -> DataFrame:
    """One row per pair of runs and radius: A - B on the images that both have recorded.

    Parameters
    ----------
    ours, theirs : sequence of Run
        One run on each side, or runs that are paired by sigma.
    radii : sequence of float, optional
    norm : {"l1", "l2", "linf"}, optional
        As in `drbench.tables.summary.frame`.

    Returns
    -------
    DataFrame
        Columns noise (in words), dataset, subset, sigma, a, b, images, radius, accuracy_a, accuracy_b, difference,
        low, high (Tango's score interval), boot_low, boot_high (paired bootstrap; all shares in [-1, 1]), only_a,
        only_b (images), p, acr_a, acr_b, acr_difference, acr_low, acr_high (pixel units), ceiling_a, ceiling_b,
        same_noise, differs (what else is not the same), norm, marks, run_a, run_b.
    """
    return pd.concat(
        [_compare_runs(a, b, radii, common_norm((a, b), norm)) for a, b in _pairs(ours, theirs)], ignore_index=True
    )


def _pairs(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]]:
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    by_sigma: list[dict[float, Run]] = []
    for runs in (ours, theirs):
        levels = [run.header["engine"]["sigma"] for run in runs]
        twice = {level for level in levels if levels.count(level) > 1}
        if twice:
            raise DrbenchError(f"expected one run per sigma on each side, got several at {sorted(twice)}; name them")
        by_sigma.append(dict(zip(levels, runs, strict=True)))
    common = sorted(by_sigma[0].keys() & by_sigma[1].keys())
    if not common:
        raise DrbenchError(f"no sigma in common: A has {sorted(by_sigma[0])}, B has {sorted(by_sigma[1])}")
    return [(by_sigma[0][sigma], by_sigma[1][sigma]) for sigma in common]


def _compare_runs(a: Run, b: Run, radii: Sequence[float] | None, norm: str) -> DataFrame:
    if a.folder.resolve() == b.folder.resolve():
        raise DrbenchError(f"expected two different runs, got {a.folder} twice")
    name = [run.header["data"]["name"] for run in (a, b)]
    if name[0] != name[1]:
        raise DrbenchError(f"expected runs on the same images, got {name[0]} and {name[1]}")
    each = [certified(run, norm).assign(label=[row.label for row in run.ordered()]) for run in (a, b)]
    for found, run in zip(each, (a, b), strict=True):
        found.index = pd.Index([row.id for row in run.ordered()])
    shared = [i for i in each[0].index if i in each[1].index]
    if not shared:
        raise DrbenchError(f"{a.folder} and {b.folder} have no recorded image in common")
    first, second = (found.loc[shared] for found in each)
    if not first.label.equals(second.label):
        raise DrbenchError(f"{a.folder} and {b.folder} disagree on labels: they are not of the same images")
    rows = [frame([run], radii, norm) for run in (a, b)]
    heads = [first_row(table) for table in rows]
    reach = [found.radius.where(found.correct, 0.0) for found in (first, second)]
    acr_low, acr_high = stats.bootstrap_mean(reach[0] - reach[1])
    lines = []
    for radius in max((table["radius"] for table in rows), key=len):  # default grids are prefixes of one another
        hits = [(found.correct & (found.radius >= radius)).to_numpy() for found in (first, second)]
        only_a, only_b = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
        low, high = stats.paired_interval(only_a, only_b, len(shared))
        boot_low, boot_high = stats.bootstrap_mean(hits[0].astype(float) - hits[1])
        lines.append({"radius": radius, "accuracy_a": hits[0].mean(), "accuracy_b": hits[1].mean(),
                      "difference": (only_a - only_b) / len(shared), "low": low, "high": high,
                      "boot_low": boot_low, "boot_high": boot_high, "only_a": only_a,
                      "only_b": only_b, "p": stats.sign_test(only_a, only_a + only_b)})  # fmt: skip
    engines = [run.header["engine"] for run in (a, b)]
    facts = [{key: getattr(head, key) for key in PROTOCOL} | {"noise": where(head)} for head in heads]
    differs = [f"{key} {facts[0][key]} against {facts[1][key]}" for key in facts[0] if facts[0][key] != facts[1][key]]
    drawn = heads[0].noise == heads[1].noise and all(engine["certifier"] != "imported" for engine in engines)
    return DataFrame(lines).assign(
        noise=where(heads[0]), dataset=name[0], subset=a.header["data"]["subset"], sigma=engines[0]["sigma"],
        a=method_name(heads[0]), b=method_name(heads[1]), images=len(shared),
        acr_a=reach[0].mean(), acr_b=reach[1].mean(),
        acr_difference=(reach[0] - reach[1]).mean(), acr_low=acr_low, acr_high=acr_high,
        ceiling_a=heads[0].ceiling, ceiling_b=heads[1].ceiling,
        same_noise=drawn and all(engines[0][key] == engines[1][key] for key in ("sigma", "seed", "block")),
        differs="; ".join(differs),
        norm=norm,
        marks="; ".join(f"{side}: {head.marks}" for side, head in zip("AB", heads, strict=True) if head.marks),
        run_a=heads[0].run, run_b=heads[1].run,
    )  # fmt: skip


def render(table: DataFrame) -> str:
    """The comparison as Markdown: one section per pair of runs."""
    text = ["# Paired comparison", ""]
    for _, part in table.groupby(["run_a", "run_b"], sort=False):
        text += [*_section(part), ""]
    return "\n".join([*text, "## Notes", "", NOTES]) + "\n"


def _section(part: DataFrame) -> Iterator[str]:
    head = first_row(part)
    yield f"## A = {head.a}, B = {head.b}, {head.noise}, {head.dataset} {head.subset}"
    yield ""
    noise = "same noise" if head.same_noise else "different noise"
    extra = "".join(f"; {text}" for text in (head.differs, head.marks) if text)
    yield f"{head.images} images, {head.norm} radii, {noise}{extra}. Runs {head.run_a} and {head.run_b}."
    yield ""
    yield "| r | A | B | A − B | A only | B only | p |"
    yield "|---" + "|---:" * 6 + "|"
    for row in named_rows(part):
        beyond = row.radius > row.ceiling_a, row.radius > row.ceiling_b
        if all(beyond):
            break
        shares = [f"{100 * share:.1f}" for share in (row.accuracy_a, row.accuracy_b)]
        cells = ["–" if out and share == "0.0" else share for out, share in zip(beyond, shares, strict=True)]
        points = [f"{100 * value:+.1f}" for value in (row.difference, row.low, row.high)]
        test = [f"{points[0]} [{points[1]}, {points[2]}]", f"{row.only_a}", f"{row.only_b}", f"{row.p:.2g}"]
        yield f"| {row.radius:g} | {' | '.join(cells + (['–'] * 4 if '–' in cells else test))} |"
    yield (f"| ACR | {head.acr_a:.3f} | {head.acr_b:.3f} | {head.acr_difference:+.3f} "
           f"[{head.acr_low:+.3f}, {head.acr_high:+.3f}] | | | |")  # fmt: skip


def write(table: DataFrame, stem: str | Path) -> list[Path]:
    """Write `<stem>.md` and `<stem>.csv`."""
    return save(stem, table, render(table))
