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
from drbench.records.record import Row, Run


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
        streams = _Streams()
        rows = {image_id: _thinned(row, n, streams) for image_id, row in run.rows.items()}
        run.memory["thinned", n] = replace(run, header=run.header | {"engine": engine | {"n": n}}, rows=rows)
    return run.memory["thinned", n]


class _Streams:
    """The random stream of each image, by one generator that is re-keyed: a new one takes twice the time of a draw."""

    def __init__(self):
        self._philox = np.random.Philox(key=0)
        self._fresh, self._generator = self._philox.state, np.random.Generator(self._philox)

    def of(self, image_id: int | str) -> np.random.Generator:
        self._fresh["state"]["key"][0] = zlib.crc32(str(image_id).encode())
        self._philox.state = self._fresh
        return self._generator


def _thinned(row: Row, n: int, streams: _Streams) -> Row:
    if row.evidence is None:
        return row
    (stage,) = row.evidence.stages
    stage = Stage(stage.sigma, stage.select, stage.n0, _subset(stage.votes, n, streams.of(row.id)), n)
    return replace(row, evidence=Evidence((stage,), row.evidence.clean, row.evidence.uniform))


def _subset(votes: Mapping[int, int], n: int, rng: np.random.Generator) -> dict[int, int]:
    if len(votes) == 1:
        return dict.fromkeys(votes, n)
    classes = sorted(votes)
    kept = rng.multivariate_hypergeometric([votes[c] for c in classes], n)
    return {c: k for c, k in zip(classes, kept.tolist(), strict=True) if k}
