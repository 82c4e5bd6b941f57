"""The generated parts of the README, between markers: python -m benchmarks.readme (or make readme). No torch.

The table of the digits job comes from results/digits/certified.csv, that of the papers' claims from
results/digits/full/claims.csv: `make figures` first if runs were added.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
from pandas import DataFrame

from drbench.comparisons import claim_tables
from drbench.errors import DrbenchError
from drbench.tables.saving import MD

ROOT = Path(__file__).parents[1]
RADII = (0.0, 0.25, 0.5, 0.75)
SIGMAS = "0.5"


def digits() -> str:
    """Figure and table of `make digits`: all rows at one noise level, and cascades."""
    table = pd.read_csv(ROOT / "results/digits/certified.csv", keep_default_na=False, dtype={"sigmas": str})
    table = table[(table.sigmas == SIGMAS) | (table.certifier == "cascade")]
    table = table[table.images == table.images.max()]
    head = ["defense", "σ", "N", *(f"r = {r:g}" for r in RADII), "ACR", "network calls per draw"]
    lines = [_figure("Certified accuracy against radius on digits", "results/digits/certified.png"), ""]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(_row(rows) for _, rows in table.groupby("run", sort=False))])


def _row(rows: DataFrame) -> str:
    first = rows.iloc[0]
    name = first.defense + (f" ({first.variant})" if first.variant else "")
    cells = []
    for radius in RADII:
        (row,) = rows[rows.radius == radius].itertuples()
        beyond = radius > row.ceiling and row.certified_accuracy == 0
        points = [f"{100 * share:.0f}" for share in (row.certified_accuracy, row.ci_low, row.ci_high)]
        cells.append("–" if beyond else "{} [{}, {}]".format(*points))
    values = [name.translate(MD), first.sigmas, f"{first.n:,}", *cells, f"{first.acr:.2f}", f"{first.nfe:g}"]
    return f"| {' | '.join(values)} |"


def claims() -> str:
    """The main claims with their verdicts, the counts of all, and the cost figure."""
    table = claim_tables.read(ROOT / "results/digits/full/claims.csv")
    figure = _figure("Certified accuracy against network evaluations on digits", "results/digits/full/cost.png")
    return "\n".join(
        [claim_tables.render_short(table), "", f"All {len(table)}: {claim_tables.counts(table)}", "", figure]
    )


def _figure(text: str, path: str) -> str:
    if not (ROOT / path).exists():
        raise DrbenchError(f"expected the figure {path}; draw it with `make figures` (or `make digits`)")
    return f"![{text}]({path})"


PARTS = {"digits": digits, "claims": claims}


def updated(text: str) -> str:
    """A README with every part between its markers made anew."""
    for name, part in PARTS.items():
        begin, end = f"<!-- {name}: make readme -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise DrbenchError(f"README.md: expected the markers {begin} and {end} once, in this order")
        made = f"{begin}\n{part()}\n{end}"
        text = pattern.sub(lambda _, made=made: made, text)
    return text


def main() -> int:
    path = ROOT / "README.md"
    try:
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    except (OSError, DrbenchError) as error:
        print(f"readme: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
