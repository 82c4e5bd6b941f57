"""Fewer draws of a recorded run, so that runs of different budgets can be compared at the same one. No torch.

The draws of an image are exchangeable: a subset chosen at random without replacement is what a run of that many draws
would have seen. Counts are never scaled.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from drbench.errors import DrbenchError
from drbench.evidence import Evidence, Stage
from drbench.record import Row, Run

_PHILOX = np.random.Philox(key=0)  # one for all images, re-keyed: a new one takes twice the time of what it draws
_FRESH, _GENERATOR = _PHILOX.state, np.random.Generator(_PHILOX)


def can_thin(run: Run) -> bool:
    """Whether the run holds votes of a fixed number of draws at one noise level."""
    engine = run.header.get("engine", {})
    return engine.get("certifier") == "gaussian" and engine.get("mode", "fixed") == "fixed"


def thinned(run: Run, n: int) -> Run:
    """The run as if it had made `n` of its estimation draws; selection draws stay as they are.

    Which draws stay depends on the image alone: the same call gives the same votes for ever.
    """
    engine = run.header["engine"]
    if not can_thin(run) or n > engine["n"]:
        raise DrbenchError(f"{run.folder}: expected votes of at least {n} draws at one noise level")
    if n == engine["n"]:
        return run
    if ("thinned", n) not in run.memory:  # tables and claims ask for the same again and again
        rows = {image_id: _thinned(row, n) for image_id, row in run.rows.items()}
        run.memory["thinned", n] = replace(run, header=run.header | {"engine": engine | {"n": n}}, rows=rows)
    return run.memory["thinned", n]


def _thinned(row: Row, n: int) -> Row:
    if row.evidence is None:
        return row
    (stage,) = row.evidence.stages
    stage = Stage(stage.sigma, stage.select, stage.n0, _subset(stage.votes, n, row.id), n)
    return replace(row, evidence=Evidence((stage,), row.evidence.clean, row.evidence.uniform))


def _subset(votes: Mapping[int, int], n: int, image_id: int | str) -> dict[int, int]:
    if len(votes) == 1:
        return dict.fromkeys(votes, n)
    classes = sorted(votes)
    _FRESH["state"]["key"][0] = zlib.crc32(str(image_id).encode())
    _PHILOX.state = _FRESH
    kept = _GENERATOR.multivariate_hypergeometric([votes[c] for c in classes], n)
    return {c: int(k) for c, k in zip(classes, kept, strict=True) if k}
