"""Observation half of the Lipschitz certificate: logits of the clean image, averaged over a defense's own randomness.

The decision half is `drbench.stats.decide_lipschitz`: margin / (2 L).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from drbench.api import Defense, Draws, DrbenchError, Evidence
from drbench.certifiers.batching import Forward
from drbench.certifiers.gaussian import Observation, check_draws, check_images
from drbench.draws import Span, block_key
from drbench.evidence import Stage


def options(defense: Defense) -> dict:
    """What the decision needs to know of a defense, as keyword arguments of `stats.decide_lipschitz`.

    The logits are exact if the defense is deterministic; a mean over its draws is an estimate of what the constant is
    about. `ceiling` is the radius of the largest possible margin, or the diameter of the box of images.
    """
    if not defense.lipschitz:
        raise DrbenchError(
            f"certifier 'lipschitz' needs defense.lipschitz > 0; {type(defense).__name__} declares {defense.lipschitz} "
            "with these arguments"
        )
    across = torch.Size(defense.input_shape).numel() ** 0.5
    ceiling = across if defense.logit_span is None else min(across, defense.logit_span / (2 * defense.lipschitz))
    return {"lipschitz": float(defense.lipschitz), "exact": not defense.randomized, "ceiling": float(ceiling)}


@torch.inference_mode()
def observe(
    defense: Defense,
    x: Tensor,
    ids: Sequence[int | str],
    *,
    n0: int = 0,
    n: int = 1,
    seed: int = 0,
    block: int = 100,
    batch_rows: int = 1000,
    rows: Iterable[int] | None = None,
    backed_off: Callable[[int], None] = lambda rows: None,
) -> Iterator[Observation]:
    """Mean logits of `n` calls on each clean image, and the votes of these calls, in order.

    Parameters
    ----------
    n0 : int
        Not used: no class is selected.
    n : int
        Calls of a randomised defense. A deterministic one gives the same answer each time: use 1.
    defense, x, ids, seed, block, batch_rows, rows, backed_off
        As in `gaussian.observe`; the defense declares sigma = 0 and a Lipschitz constant.
    """
    options(defense)
    defense.require(0.0)
    check_images(defense, x)
    check_draws(n, block, batch_rows)
    forward = Forward(defense, 0.0, batch_rows, backed_off)
    for index in range(len(x)) if rows is None else rows:
        spans = [
            Span(block_key(seed, ids[index], 0.0, "logits", number), 0, min(block, n - first))
            for number, first in enumerate(range(0, n, block))
        ]
        copies = x[index : index + 1].to(defense.device).expand(n, *x.shape[1:])
        logits = forward(copies, Draws(spans, defense.device)).double().cpu()
        bad = int((~logits.isfinite()).any(1).sum())
        if bad:
            yield Observation(index, None, f"{bad} of {n} calls gave non-finite logits")
            continue
        classes, counts = logits.argmax(1).unique(return_counts=True)
        votes = dict(zip(classes.tolist(), counts.tolist(), strict=True))
        yield Observation(index, Evidence((Stage(0.0, {}, 0, votes, n),), tuple(logits.mean(0).tolist())), None)
