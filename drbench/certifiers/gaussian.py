"""Observation half of Cohen's CERTIFY: selection votes and estimation votes at one noise level.

Cohen, Rosenfeld, Kolter 2019, "Certified adversarial robustness via randomized smoothing", arXiv 1902.02918. The
decision half is `drbench.stats.decide_gaussian`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import NamedTuple

from torch import Tensor

from drbench.api import Defense, DrbenchError, Evidence
from drbench.certifiers.batching import Forward, largest_useful
from drbench.certifiers.engine import Request, count_votes
from drbench.evidence import Stage


class Observation(NamedTuple):
    """Evidence about image number `index`, or the reason why there is none."""

    index: int
    evidence: Evidence | None
    error: str | None


def observe(
    defense: Defense,
    x: Tensor,
    ids: Sequence[int | str],
    *,
    sigma: float,
    n0: int = 100,
    n: int = 100_000,
    seed: int = 0,
    block: int = 100,
    batch_rows: int = 1000,
    rows: Iterable[int] | None = None,
    backed_off: Callable[[int], None] = lambda rows: None,
) -> Iterator[Observation]:
    """Draw the votes of Cohen's CERTIFY for each image, in order.

    Parameters
    ----------
    defense : Defense
        In eval mode, on its device.
    x : Tensor
        (M, C, H, W) float32, clean pixels in [0, 1], on the host.
    ids : sequence
        M image ids, which key the random streams.
    sigma : float
        Noise level, pixel units, > 0 and declared by the defense.
    n0, n : int
        Selection and estimation draws per image (disjoint streams).
    seed, block, batch_rows : int
        See `engine.count_votes` and `batching.Forward`; only the first two can change the counts.
    rows : iterable of int, optional
        Which of the images, read lazily; by default all.
    backed_off : callable
        Told the new number of rows whenever memory ran out.
    """
    if not sigma > 0:
        raise DrbenchError(f"certifier 'gaussian' needs sigma > 0, got {sigma:g}")
    defense.require(sigma)
    check_images(defense, x)
    check_draws(n0, n, block, batch_rows)
    forward = Forward(defense, sigma, largest_useful(batch_rows, len(x) * (n0 + n), defense.device), backed_off)
    rows = range(len(x)) if rows is None else rows
    for row, stage, error in observe_stage(forward, x, ids, rows, n0=n0, n=n, seed=seed, block=block):
        yield Observation(row, stage and Evidence((stage,)), error)


def observe_stage(
    forward: Forward, x: Tensor, ids: Sequence[int | str], rows: Iterable[int], *, n0: int, n: int, **streams: int
) -> Iterator[tuple[int, Stage | None, str | None]]:
    """For each of `rows`, in order: its number, and its votes at the level of `forward` or why there are none.

    `streams` are the `seed` and `block` of `engine.count_votes`.
    """
    requests = (
        Request(row, ids[row], stage, draws) for row in rows for stage, draws in (("select", n0), ("estimate", n))
    )
    answers = count_votes(forward, x, requests, **streams)
    for select, estimate in zip(answers, answers, strict=True):
        bad = select.nonfinite + estimate.nonfinite
        if bad:
            yield select.request.row, None, f"{bad} of {n0 + n} draws gave non-finite logits"
        else:
            yield select.request.row, Stage(forward.sigma, select.counts, n0, estimate.counts, n), None


def check_draws(*numbers: int) -> None:
    """Raise `DrbenchError` unless all numbers of draws and rows are positive integers."""
    if not all(isinstance(number, Integral) and number > 0 for number in numbers):
        raise DrbenchError(f"expected positive integers for n0, n, block and batch_rows, got {numbers}")


def check_images(defense: Defense, x: Tensor) -> None:
    """Raise `DrbenchError` unless `x` is a batch of images that the defense takes, with pixels in [0, 1]."""
    if x.ndim != 4 or tuple(x.shape[1:]) != tuple(defense.input_shape):
        raise DrbenchError(
            f"{type(defense).__name__} expects images of shape (M, {', '.join(map(str, defense.input_shape))}), "
            f"got {tuple(x.shape)}"
        )
    if len(x) and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise DrbenchError(
            f"expected pixels in [0, 1], got [{float(x.min()):.3g}, {float(x.max()):.3g}]; "
            "rescale the images: noise levels and radii are in units of that range"
        )
