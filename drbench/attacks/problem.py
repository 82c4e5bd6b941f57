"""Images under attack: everything an update rule needs, with the cost of each image counted.

An attack is a function `attack(problem, **settings) -> (B, c, C, H, W)`: some candidates for each image, of which the
suite keeps the one that fails most on fresh randomness. Candidates need not be repaired nor judged by the attack.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from threading import Event

import numpy as np
import torch
from torch import Tensor

from drbench.attacks.losses import Loss
from drbench.attacks.oracle import ROWS, Keys, mean_logits, oracle
from drbench.attacks.threat import Threat
from drbench.attacks.views import Answer, View
from drbench.draws import Draws

KEPT = 3  # candidates by loss that a randomised attack hands on, besides its last iterate


@dataclass
class Cost:
    """Evaluations of the whole view, for each image of the suite; a draw counts as one. Forwards: without gradient."""

    gradients: np.ndarray
    forwards: np.ndarray
    notes: Counter = field(default_factory=Counter)  # what was odd: zero gradients, not finite, other loss
    stop: Event = field(default_factory=Event)  # set from another thread: the next query raises


@dataclass(frozen=True)
class Problem:
    """B images to be attacked.

    Parameters
    ----------
    view : View
        What is differentiated.
    threat : Threat
    x, y : Tensor
        (B, C, H, W) clean images in [0, 1], (B,) labels, on the view's device.
    keys : Keys
        Streams of this attack.
    cost : Cost
        Shared with all parts of the batch.
    places : np.ndarray
        (B,) positions of the images in `cost`.
    rows : int
        At most so many rows in one call.
    """

    view: View
    threat: Threat
    x: Tensor
    y: Tensor
    keys: Keys
    cost: Cost
    places: np.ndarray
    rows: int = ROWS

    @classmethod
    def of(cls, view: View, threat: Threat, x: Tensor, y: Tensor, ids, stage: str, seed: int = 0, **rest) -> Problem:
        """A problem with a count of its own."""
        cost = Cost(np.zeros(len(x), np.int64), np.zeros(len(x), np.int64))
        return cls(view, threat, x, y, Keys(seed, tuple(ids), stage), cost, np.arange(len(x)), **rest)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def certain(self) -> bool:
        """Whether one failure of the view is a failure of the defense for good: then an image is done."""
        return self.view.faithful and not self.view.randomized

    def at(self, kept: Tensor) -> Problem:
        """The part of the images with these positions."""
        order = kept.tolist()
        keys = self.keys._replace(ids=tuple(self.keys.ids[i] for i in order))
        return replace(self, x=self.x[kept], y=self.y[kept], keys=keys, places=self.places[order])

    def named(self, stage: str) -> Problem:
        """The same images with other streams."""
        return replace(self, keys=self.keys._replace(stage=f"{self.keys.stage}/{stage}"))

    def query(
        self,
        x_adv: Tensor,
        loss: Loss,
        step: int = 0,
        *,
        draws: int = 1,
        target: Tensor | None = None,
        gradient: bool = True,
    ) -> Answer:
        """The oracle at `x_adv`; counted. A gradient that is zero or not finite is replaced by a random direction."""
        if self.cost.stop.is_set():
            raise InterruptedError("the attack was stopped")
        fitted = loss.fitted(self.view.classes, target is not None)
        if fitted != loss:
            self.cost.notes[f"{loss.name} needs more classes: margin instead"] += 1
        answer = oracle(
            self.view, x_adv, self.y, fitted, self.keys, step, draws=draws, target=target, gradient=gradient,
            rows=self.rows,
        )  # fmt: skip
        if not (fine := answer.loss.isfinite()).all():
            self.cost.notes["loss not finite"] += int((~fine).sum())
            answer = answer._replace(loss=answer.loss.where(fine, -torch.inf))
        counted = self.cost.gradients if gradient else self.cost.forwards
        counted[self.places] += draws
        return answer._replace(gradient=self._usable(answer.gradient, step)) if gradient else answer

    def ranked(self, draws: int = 1) -> Tensor:
        """(B, K - 1) wrong classes of the clean image by falling mean logit."""
        logits = mean_logits(self.view, self.x, self.named("rank").keys, draws, self.rows)
        self.cost.forwards[self.places] += draws
        first = torch.full_like(self.y[:, None], torch.inf, dtype=logits.dtype)
        return logits.scatter(1, self.y[:, None], first).argsort(dim=1, descending=True, stable=True)[:, 1:]

    def random(self, step: int = 0, rows: int = 1) -> Draws:
        """Some rows of random numbers for each image, apart from those of queries at the same step."""
        return Draws(self.named("moves").keys.spans(step, rows), self.x.device)

    def start(self, step: int = 0) -> Tensor:
        """A random allowed image for each."""
        draws = self.random(step)
        return self.threat.start(self.x, draws.rand(*self.x.shape), draws.randn(*self.x.shape))

    def _usable(self, gradient: Tensor, step: int) -> Tensor:
        finite = gradient.isfinite()
        if not finite.all():
            self.cost.notes["gradient not finite"] += int((~finite).flatten(1).any(1).sum())
            gradient = torch.where(finite, gradient, 0.0)
        zero = (gradient == 0).flatten(1).all(1)
        if zero.any():
            self.cost.notes["gradient zero"] += int(zero.sum())
            lost = self.at(zero.nonzero().flatten()).named("zero")
            gradient = gradient.clone()
            gradient[zero] = lost.random(step).randn(*lost.x.shape)
        return gradient


class Candidates:
    """Of a noisy search: the iterates with the largest mean loss, and the last one."""

    def __init__(self, problem: Problem, kept: int = KEPT):
        self.kept, self.last = kept, problem.threat.none(problem.x)
        self.losses = torch.full((len(problem), 0), -torch.inf, device=problem.x.device)
        self.images = self.last[:, None][:, :0]

    def add(self, x_adv: Tensor, loss: Tensor, rank: bool = True) -> None:
        """Note an iterate; it may be chosen by its loss only with `rank`."""
        self.last = x_adv
        if rank:
            losses = torch.cat([self.losses, loss[:, None]], 1)
            images = torch.cat([self.images, x_adv[:, None]], 1)
            best = losses.topk(min(self.kept, losses.shape[1]), 1).indices
            self.losses = losses.gather(1, best)
            self.images = images[torch.arange(len(best), device=best.device)[:, None], best]

    def all(self) -> Tensor:
        """(B, c, C, H, W)."""
        return torch.cat([self.images, self.last[:, None]], 1)
