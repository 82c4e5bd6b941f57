"""Observation half of multi-scale smoothing: votes from the largest noise level down, each image as far as it must.

Jeong and Shin 2023, "Multi-scale diffusion denoised smoothing", arXiv 2310.16779. The decision half is
`drbench.stats.decide_cascade`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from drbench import stats
from drbench.api import Defense, Draws, Evidence
from drbench.certifiers.batching import Forward, largest_useful
from drbench.certifiers.gaussian import Observation, check_draws, check_images, observe_stage
from drbench.evidence import Stage

FULL_BATCHES = 16  # at the first scale, in one pool of images: few enough that a kill loses seconds


def observe(
    defense: Defense,
    x: Tensor,
    ids: Sequence[int | str],
    *,
    sigmas: Sequence[float],
    alpha: float,
    split: str = "bonferroni",
    p0: float = 0.5,
    n0: int = 100,
    n: int = 100_000,
    seed: int = 0,
    block: int = 100,
    batch_rows: int = 1000,
    rows: Iterable[int] | None = None,
    backed_off: Callable[[int], None] = lambda rows: None,
) -> Iterator[Observation]:
    """Draw the votes of a cascade for each image, in order.

    Images are worked on in pools, scale by scale, so that batches stay full although most images need only some of
    the scales. The draws of an image at a scale are those of the Gaussian certifier at that noise level.

    Parameters
    ----------
    sigmas : sequence of float
        Scales, pixel units, > 0 and declared by the defense. If it also declares 0, the evidence holds the logits of
        the clean image.
    alpha, split, p0
        Decide which images go on to the next scale: see `stats.decide_cascade`.
    defense, x, ids, n0, n, seed, block, batch_rows, rows, backed_off
        As in `gaussian.observe`; `n0` and `n` are draws per image and scale.
    """
    stats.check_cascade(sigmas, p0, split)
    for sigma in sigmas:
        defense.require(sigma)
    check_images(defense, x)
    check_draws(n0, n, block, batch_rows)
    scales = sorted(sigmas, reverse=True)
    size = max(1, FULL_BATCHES * batch_rows // (n0 + n))
    waiting = iter(range(len(x)) if rows is None else rows)
    while pool := list(islice(waiting, size)):
        stages: dict[int, list[Stage]] = {row: [] for row in pool}
        errors: dict[int, str] = {}
        active = list(pool)
        for place, sigma in enumerate(scales):
            level = stats.cascade_level(alpha, place, len(scales), split)
            total = len(active) * (n0 + n)
            even = _even(total, largest_useful(batch_rows, total, defense.device))
            forward = Forward(defense, sigma, even, backed_off)
            seen = list(observe_stage(forward, x, ids, active, n0=n0, n=n, seed=seed, block=block))
            batch_rows = forward.rows if forward.rows < even else batch_rows  # memory ran out
            errors |= {row: f"{error} at sigma {sigma:g}" for row, _, error in seen if error}
            for row, stage, _ in seen:
                stages[row] += [stage] if stage else []
            active = [row for row, stage, _ in seen if stage and stats.passes(stage, level, p0)]
            if not active:
                break
        for row in pool:
            evidence = None if row in errors else Evidence(tuple(stages[row]), clean_logits(defense, x[row : row + 1]))
            yield Observation(row, evidence, errors.get(row))


def _even(total: int, rows: int) -> int:
    """Batches of at most `rows` that divide `total` evenly, so that hardly any row is padding."""
    return -(-total // -(-total // rows))


@torch.inference_mode()
def clean_logits(defense: Defense, image: Tensor) -> tuple[float, ...] | None:
    """Scores of one image without noise, if the defense declares sigma = 0.

    Alone in its batch and rounded to 1e-4, so that they do not depend on batch sizes. None too if one is not finite.
    """
    if not defense.accepts(0.0):
        return None
    (logits,) = defense.logits(image.to(defense.device), 0.0, Draws.seeded(0, 1, defense.device))
    return tuple(round(value, 4) for value in logits.tolist()) if logits.isfinite().all() else None
