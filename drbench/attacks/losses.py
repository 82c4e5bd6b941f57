"""What attacks maximise: functions of the logits of several draws.

Each loss takes logits (..., K) and labels that broadcast to the rest, and gives one number per row of logits. Sources:
CE; margin (Carlini and Wagner 2017, arXiv 1608.04644); DLR (Croce and Hein 2020, arXiv 2003.01690, eq. 6 and 7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from drbench.errors import DrbenchError, did_you_mean

TINY = 1e-12


def ce(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Cross-entropy; towards `target` if there is one."""
    logs = functional.log_softmax(logits, -1)
    return -_at(logs, y) if target is None else _at(logs, target)


def margin(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Best other class minus label: positive iff misclassified. With a target, its logit minus the label's."""
    return (_best_other(logits, y) if target is None else _at(logits, target)) - _at(logits, y)


def dlr(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Difference of logits ratio: the margin in units of the gap between the first and the third logit.

    With a target, of the gap between the first and the mean of the third and the fourth.
    """
    ranked = logits.sort(-1, descending=True).values
    third = ranked[..., 2] if target is None else (ranked[..., 2] + ranked[..., 3]) / 2
    return margin(logits, y, target) / (ranked[..., 0] - third + TINY)


LOSSES = {"ce": ce, "dlr": dlr, "margin": margin}
POOLS = ("loss", "logits", "probability")


@dataclass(frozen=True)
class Loss:
    """A loss over the draws of an image.

    Parameters
    ----------
    name : {"ce", "dlr", "margin"}
    pool : {"loss", "logits", "probability"}
        Mean over draws of the loss; loss of the mean logits; or loss of the log of the mean softmax, which is the
        smoothed classifier itself (Salman et al. 2019, arXiv 1906.04584).
    """

    name: str = "ce"
    pool: str = "loss"

    def __post_init__(self) -> None:
        for word, known in ((self.name, LOSSES), (self.pool, POOLS)):
            if word not in known:
                raise DrbenchError(f"unknown loss or pool {word!r}{did_you_mean(word, known)}")

    def fitted(self, classes: int, targeted: bool = False) -> Loss:
        """This loss, or the margin where there are too few classes for DLR: 3, or 4 with a target."""
        return Loss("margin", self.pool) if self.name == "dlr" and classes < 3 + targeted else self

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        """(B, m, K) logits of m draws, (B,) labels and targets -> (B,)."""
        if self.pool == "logits":
            logits = logits.mean(1, keepdim=True)
        elif self.pool == "probability":
            logits = (functional.log_softmax(logits, -1).logsumexp(1, keepdim=True)) - math.log(logits.shape[1])
        return LOSSES[self.name](logits, y[:, None], None if target is None else target[:, None]).mean(1)


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index.expand(values.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def _best_other(logits: Tensor, y: Tensor) -> Tensor:
    index = y.expand(logits.shape[:-1]).unsqueeze(-1)
    return logits.scatter(-1, index, -torch.inf).amax(-1)
