"""Rows of a method's README, from results/digits/{full,more}/robust.csv: python -m benchmarks.robust_rows NAME."""

import sys

import pandas as pd

from drbench.tables.robust_tables import NORMS

JOBS = ("full", "more")
HEAD = "| variant | threat | images | clean | average | majority | worst of 10 | strongest | gradients per image |"


def rows(name: str, job: str = "full") -> list[str]:
    """Lines of a Markdown table; accuracies in %, of the average with its 95 % interval; none without runs."""
    table = pd.read_csv(f"results/digits/{job}/robust.csv", keep_default_na=False)
    own = table[table["defense"] == name]
    lines = [HEAD, "|---" * HEAD.count(" | ") + "|---|"] if len(own) else []
    for row in own.itertuples():
        sigma = f"σ = {row.sigma:g}" if row.sigma else ""
        average, low, high = (f"{100 * share:.1f}" for share in (row.average, row.average_low, row.average_high))
        variant = ", ".join(filter(None, (row.variant, sigma))) or "–"
        cells = [variant, f"{NORMS[row.norm]} ≤ {row.eps_text}", row.images]
        cells += [f"{100 * row.clean_average:.1f}", f"{average} [{low}, {high}]", f"{100 * row.majority:.1f}"]
        cells += [f"{100 * row.worst:.1f}", row.attack, f"{row.gradients:,.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    for each in JOBS:
        print("\n".join(rows(sys.argv[1], each)), end="\n\n")
