"""Observation half of Cohen's CERTIFY: selection votes and estimation votes at one noise level.

Cohen, Rosenfeld, Kolter 2019, "Certified adversarial robustness via randomized smoothing", arXiv 1902.02918. The
decision half is `drbench.stats.decide_gaussian`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np
from torch import Tensor

from drbench.api import Defense, DrbenchError, Evidence
from drbench.certifiers.batching import Forward, largest_useful
from drbench.certifiers.engine import Request, count_votes
from drbench.certifiers.noise import PLAIN, Smoothing
from drbench.draws import INPUT_NOISE, Span, block_key, words
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
    smoothing: Smoothing = PLAIN,
    labels: Sequence[int] | None = None,
    randomize: bool = False,
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
    seed, block, smoothing
        See `engine.count_votes`.
    labels : sequence of int, optional
        M classes to be tested, named in advance; then no selection draws are made.
    randomize : bool
        Whether the evidence holds a uniform number of each image, for randomized bounds.
    batch_rows : int
        See `batching.Forward`. Does not change the counts.
    rows : iterable of int, optional
        Which of the images, read lazily; by default all.
    backed_off : callable
        Told the new number of rows whenever memory ran out.
    """
    if not sigma > 0:
        raise DrbenchError(f"certifier 'gaussian' needs sigma > 0, got {sigma:g}")
    defense.require(sigma)
    check_images(defense, x)
    check_draws(n0 if labels is None else 1, n, block, batch_rows)
    forward = Forward(defense, sigma, largest_useful(batch_rows, len(x) * (n0 + n), defense.device), backed_off)
    streams = {"seed": seed, "block": block, "smoothing": smoothing}
    rows = range(len(x)) if rows is None else rows
    for row, stage, error in observe_stage(forward, x, ids, rows, n0=n0, n=n, labels=labels, **streams):
        uniform = uniform_of(ids[row], sigma, seed) if randomize else None
        yield Observation(row, stage and Evidence((stage,), uniform=uniform), error)


def observe_stage(
    forward: Forward,
    x: Tensor,
    ids: Sequence[int | str],
    rows: Iterable[int],
    *,
    n0: int,
    n: int,
    labels: Sequence[int] | None = None,
    **streams,
) -> Iterator[tuple[int, Stage | None, str | None]]:
    """For each of `rows`, in order: its number, and its votes at the level of `forward` or why there are none.

    `streams` are the `seed`, `block` and `smoothing` of `engine.count_votes`; `labels` as in `observe`.
    """
    n0 = n0 if labels is None else 0
    wanted = [(stage, draws) for stage, draws in (("select", n0), ("estimate", n)) if draws]
    requests = (Request(row, ids[row], stage, draws) for row in rows for stage, draws in wanted)
    answers = count_votes(forward, x, requests, **streams)
    for *first, estimate in zip(*[answers] * len(wanted), strict=True):
        row = estimate.request.row
        bad = sum(found.nonfinite for found in (*first, estimate))
        if bad:
            yield row, None, f"{bad} of {n0 + n} draws gave non-finite logits"
        else:
            select = first[0].counts if first else {int(labels[row]): 0}
            yield row, Stage(forward.sigma, select, n0, estimate.counts, n), None


def uniform_of(image_id: int | str, sigma: float, seed: int) -> float:
    """The one number in (0, 1) of an image that randomized bounds use; from a stream of its own."""
    (word,) = words([Span(block_key(seed, image_id, sigma, "bound", 0), 0, 1)], INPUT_NOISE, 1)
    return (int(word >> np.uint64(12)) + 0.5) * 2.0**-52


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
