"""Empirical distribution of the votes: how probable the right class is under noise, over the images. No torch.

Unlike certified accuracy and ACR it depends on neither n nor alpha (Sun et al. 2024, arXiv 2410.06895).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from drbench.errors import DrbenchError
from drbench.plots import looks, saving
from drbench.records.record import Run
from drbench.tables import quantities, summary
from drbench.tables.frames import first_row
from drbench.tables.summary import METHOD


def share_curves(runs: Sequence[Run], stem: str | Path) -> list[Path]:
    """Write `<stem>.png`, `<stem>.svg` and `<stem>.csv`: a panel per noise level, a step curve per run.

    x: p, the label's share of the estimation votes. y: % of the images with at most p. Cascades and logs have no such
    share; runs without any are left out.
    """
    curves = [(first_row(summary.frame([run], [0.0], summary.common_norm([run]))), summary.label_shares(run))
              for run in runs if any(run.ordered())]  # fmt: skip
    curves = [(row, shares) for row, shares in curves if shares and row.certifier == "gaussian"]
    if not curves:
        raise DrbenchError(
            "expected a run with votes at one noise level, got none: cascades and logs have no such share"
        )
    tidy = pd.concat([_tidy(row, shares) for row, shares in curves], ignore_index=True)
    table = Path(stem).with_name(Path(stem).name + ".csv")
    written = saving.save(lambda: _draw(tidy, looks.of(runs)), stem)
    table.write_text(tidy.to_csv(index=False, lineterminator="\n"), encoding="utf-8", newline="\n")
    return [*written, table]


def _tidy(row, shares: Sequence[float]) -> DataFrame:
    """Corners of the step function of one run: columns of the method, sigma, run, p, share_of_images."""
    at = np.unique(shares)
    facts = {key: getattr(row, key) for key in ("dataset", "subset", *METHOD, "noise", "sigma", "run")}
    return DataFrame({**facts, "p": at, "share_of_images": quantities.ecdf(shares, at)})


def _draw(tidy: DataFrame, styles: dict) -> Figure:
    levels = sorted(tidy["sigma"].unique())
    lines: dict[str, Line2D] = {}
    figure = Figure(figsize=(5 * max(2, len(levels)), 5), dpi=100, layout="constrained")
    for axes, sigma in zip(figure.subplots(1, len(levels), sharey=True, squeeze=False)[0], levels, strict=True):
        for _, line in tidy[tidy["sigma"] == sigma].groupby("run", sort=False):
            first = first_row(line)
            x, y = [0, *line["p"], 1], [0, *(100 * line["share_of_images"]), 100]
            lines[summary.method_name(first)] = axes.step(
                x, y, where="post", linewidth=1.8, **styles[first.defense, first.variant].line
            )[0]
        axes.set(title=f"σ = {sigma:g}", xlabel="p: the label's share of the votes", xlim=(0, 1), ylim=(0, 100))
    figure.axes[0].set_ylabel("images with at most p (%)")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False, handlelength=3.5)
    return figure
