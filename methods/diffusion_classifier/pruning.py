"""Class pruning by sift and refine: a few cheap terms first, the full sum only for the classes that are still likely.

Chen et al. 2024, arXiv 2402.02316, Algorithm 5, as its code has it: losses accumulate over the sift levels, from small
to large. The threshold depends on weights, levels and data: `calibrate` takes it from validation images.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from methods.diffusion_classifier.errors import Pairs, denoising_errors
from methods.diffusion_classifier.terms import Terms


class Sift(NamedTuple):
    """How classes are pruned.

    Parameters
    ----------
    nodes : int
        Sift levels, over the same interval as the full sum.
    threshold : float
        A class is dropped when its weighted loss exceeds the lowest by more than this (before `logit_scale`).
    keep : int
        Sifting stops at this many classes, and no more are refined.
    """

    nodes: int
    threshold: float
    keep: int


class Survivors(NamedTuple):
    """`alive` (B, K) bool; `excess` (B, K): loss above the lowest when the class was last looked at, >= 0."""

    alive: Tensor
    excess: Tensor


def sift(predict, base: Tensor, anchor: Tensor, noise: Tensor, terms: Terms, plan: Sift, classes: int, chunk: int):
    """Which classes of each image are refined: at least one, at most `plan.keep`. Arguments as `denoising_errors`."""
    alive = torch.ones(len(base), classes, dtype=torch.bool, device=base.device)
    loss, excess = torch.zeros(2, *alive.shape, device=base.device)
    for number, weight in enumerate(terms.weight.tolist()):
        busy = alive & (alive.sum(1, keepdim=True) > plan.keep)
        pairs = Pairs(*busy.nonzero(as_tuple=True))
        if not len(pairs.image):
            break
        term = Terms(*(field[number : number + 1] for field in terms))
        found = denoising_errors(predict, base, anchor, noise[:, number : number + 1], term, pairs, chunk)
        loss[pairs] += weight * found[:, 0, 0]
        above = loss - loss.where(alive, math.inf).amin(1, keepdim=True)
        excess = torch.where(busy, above, excess)
        alive &= ~(busy & (above > plan.threshold))
    rank = loss.where(alive, math.inf).argsort(1).argsort(1)
    return Survivors(alive & (rank < plan.keep), excess)


def refine(predict, base: Tensor, anchor: Tensor, noise: Tensor, terms: Terms, found: Survivors, chunk: int) -> Tensor:
    """(B, K) losses: the full sums of the survivors; above them, by their excess in sifting, the other classes."""
    pairs = Pairs(*found.alive.nonzero(as_tuple=True))
    errors = denoising_errors(predict, base, anchor, noise, terms, pairs, chunk)[..., 0]
    losses = torch.zeros_like(found.excess)
    losses[pairs] = (errors * terms.weight.to(errors)).sum(1)
    highest = losses.where(found.alive, -math.inf).amax(1, keepdim=True)
    return losses.where(found.alive, highest + found.excess)


def calibrate(losses: Tensor, labels: Tensor, miss: float = 0.005) -> float:
    """The smallest threshold at which sifting drops the true class of at most a share `miss` of these images.

    Parameters
    ----------
    losses : Tensor (N, S, K)
        Weighted loss of each sift level and class, of validation images.
    labels : Tensor (N,)
    miss : float
        In [0, 1). Without any other class being dropped earlier, so in truth it is missed no more often.
    """
    total = losses.cumsum(1)
    true = total.gather(2, labels[:, None, None].expand(-1, total.shape[1], 1))
    worst = (true - total.amin(2, keepdim=True)).amax((1, 2)).sort().values
    return float(worst[math.ceil((1 - miss) * len(worst)) - 1])
