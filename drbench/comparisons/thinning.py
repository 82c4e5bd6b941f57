"""What a recorded run would have told with fewer draws, so that runs of different budgets are compared alike. No torch.

The draws of an image are exchangeable: any subset of them is what a shorter run might have seen. How many votes for the
selected class are among n of its N draws is hypergeometric, so the mean over all subsets is known: none is picked, and
counts are never scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from pandas import Series

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import Evidence, Stage
from drbench.records.record import Row, Run
from drbench.tables import summary


def can_thin(run: Run) -> bool:
    """Whether a certificate follows from the votes for one class, of a fixed number of draws at one noise level."""
    engine = run.header.get("engine", {})
    randomized = engine.get("options", {}).get("bound") == "randomized"  # each image has a bound of its own
    return engine.get("certifier") == "gaussian" and engine.get("mode", "fixed") == "fixed" and not randomized


def at(run: Run, n: int) -> Run:
    """A run of the same protocol with `n` draws an image, without images: for its reach, and its ladder."""
    if not can_thin(run) or not 0 < n <= run.header["engine"]["n"]:
        raise DrbenchError(f"{run.folder}: expected votes of at least {n} draws at one noise level")
    return replace(run, header=run.header | {"engine": run.header["engine"] | {"n": n}}, rows={})


def reach(run: Run, n: int | None) -> float:
    """The largest radius that `n` draws can certify; if None, or if it cannot be thinned, that of the run."""
    return summary.reach(run if n is None or not can_thin(run) else at(run, n))


def expected(run: Run, n: int, numbers: Callable[[Run], Series]) -> Series:
    """Mean over all subsets of `n` estimation draws of the number that an image has; by image id, in order.

    Parameters
    ----------
    numbers : callable
        The numbers of a run's images; an image that failed, abstains or is wrong must have 0. Selection draws stay as
        they are: an image whose selected class is wrong has 0.
    """
    ladder = _ladder(at(run, n))
    counts, each = np.array(ladder.wanted), numbers(ladder).to_numpy()
    rows = list(run.ordered())
    draws = run.header["engine"]["n"]
    # rounded, or a share may be 1 and a bit
    votes = {k: round(float(stats.hypergeometric(n, k, draws)[counts] @ each), 12) for k in set(map(_right, rows))}
    return Series([votes[_right(row)] for row in rows], index=[row.id for row in rows])


def _ladder(run: Run) -> Run:
    """The run of one image for each number of right votes that may certify: more than half of them."""
    engine = run.header["engine"]
    sigma, n0, n = engine["sigma"], engine["n0"], engine["n"]
    counts = range(n // 2 + 1, n + 1)
    stages = {k: Stage(sigma, {0: n0}, n0, {0: k, 1: n - k}, n) for k in counts}
    rows = {k: Row(k, 0, Evidence((stage,)), None, 0.0) for k, stage in stages.items()}
    return replace(run, header=run.header | {"data": run.header["data"] | {"ids": list(counts)}}, rows=rows)


def _right(row: Row) -> int:
    """Votes for the label, if it is what the selection draws say."""
    if row.evidence is None:
        return 0
    (stage,) = row.evidence.stages
    return stage.votes.get(row.label, 0) if stats.top_class(stage.select) == row.label else 0
