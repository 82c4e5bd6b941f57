"""What the averages of a table hide: a section that stands beside the ACR. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pandas import DataFrame

from drbench.tables.frames import named_rows
from drbench.tables.summary import SHARES

TEXT = """\
ACR beside what it is worth (Sun et al. 2024): the ACR that a constant answer gets at this ceiling, which grows with σ
without limit; the share of the ACR that the easiest tenth of the images makes up; and the median radius of all images,
an image that is not certified having 0. p: quantiles over the images of the label's share of the votes, whose
distribution depends on neither n nor alpha. Sure: certified accuracy at r = 0 less the false certificates that there
may be among the images, with probability 0.999 over the draws (exact quantile of Bin(images, alpha)); the same number
comes off at every radius."""
HEAD = ("defense", "ACR", "of a constant", "easiest tenth %", "median radius",
        *(f"p at {share.removeprefix('p_')} %" for share in SHARES), "sure, r = 0")  # fmt: skip


def section(table: DataFrame, label: Callable[..., str]) -> Iterator[str]:
    """Lines of Markdown: one row per run of the frame, named by `label`."""
    yield from ("## What the averages hide", "", TEXT, "", f"| {' | '.join(HEAD)} |")
    yield "|---" + "|---:" * (len(HEAD) - 1) + "|"
    for row in named_rows(table.drop_duplicates("run")):
        shares = (getattr(row, share) for share in SHARES)
        numbers = [(row.acr, ".3f"), (row.acr_constant, ".3f"), (100 * row.acr_easiest, ".0f"),
                   (row.radius_median, ".3f"), *((share, ".3f") for share in shares),
                   (100 * row.certified_accuracy_high_probability, ".1f")]  # fmt: skip
        cells = (format(number, form) if number == number else "–" for number, form in numbers)
        yield f"| {label(row)} | {' | '.join(cells)} |"
