"""The gradient oracle: mean loss, its gradient and failure counts over draws, in batched calls of bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from drbench.attacks.losses import Loss
from drbench.attacks.views import Answer, View, joined
from drbench.draws import Span, block_key

ROWS = 256  # rows of one call. Fixed rather than found by measuring: an attack must not depend on the clock


class Keys(NamedTuple):
    """Names of the random streams of some images in one stage, e.g. an attack, the selection, the evaluation."""

    seed: int
    ids: tuple[int | str, ...]
    stage: str

    def spans(self, step: int, draws: int) -> list[Span]:
        """For each image the `draws` rows of its stream at this step: row j of image i depends on nothing else."""
        return [Span(block_key(self.seed, name, 0.0, f"attack/{self.stage}", step), 0, draws) for name in self.ids]


def oracle(
    view: View,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    keys: Keys,
    step: int = 0,
    *,
    draws: int = 1,
    target: Tensor | None = None,
    gradient: bool = True,
    rows: int = ROWS,
) -> Answer:
    """Loss of B images over `draws` draws of `view` each, with its gradient.

    Parameters
    ----------
    x, y, target : Tensor
        (B, C, H, W) images in [0, 1], (B,) labels, (B,) target classes if any; on the view's device.
    keys, step
        Of the draws; `keys.ids` names the B images.
    rows : int
        At most so many rows go through the view at once, but never less than one image with all its draws.

    Returns
    -------
    Answer
    """
    spans, size = _spans(view, keys, step, draws), max(1, rows // draws)
    parts = []
    for first in range(0, len(x), size):
        take = slice(first, first + size)
        aim = None if target is None else target[take]
        parts.append(view.answer(x[take], y[take], spans[take], draws, loss, aim, gradient))
    return joined(parts)


@torch.no_grad()
def mean_logits(view: View, x: Tensor, keys: Keys, draws: int = 1, rows: int = ROWS) -> Tensor:
    """(B, K) logits of B images, mean over draws."""
    spans, size = _spans(view, keys, 0, draws), max(1, rows // draws)
    parts = [
        view.rows(x[at : at + size].repeat_interleave(draws, 0), spans[at : at + size]) for at in range(0, len(x), size)
    ]
    return torch.cat(parts).view(len(x), draws, -1).mean(1)


def _spans(view: View, keys: Keys, step: int, draws: int) -> list[Span]:
    """The streams of a query; hashing their keys is left out where nothing is drawn."""
    return keys.spans(step, draws) if view.randomized else [Span(0, 0, draws)] * len(keys.ids)
