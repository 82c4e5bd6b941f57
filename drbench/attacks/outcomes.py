"""What an audit compares: shares of right answers after attacks on a few images, and what chance may do to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from drbench import norms
from drbench.attacks import evaluate, views
from drbench.attacks.oracle import Keys
from drbench.attacks.presets import Member
from drbench.attacks.suite import Found, Suite

GRADIENT_FREE = ("noise", "square")
SIGMAS = 3.5  # standard errors that separate a finding from chance: 20 checks on 32 images stay quiet
POINT = 0.01


@dataclass(frozen=True)
class Case:
    """The images of an audit, and attacks on them; an outcome is (B,) the share of right single answers."""

    suite: Suite
    x_: Tensor
    y_: Tensor
    ids: tuple
    found: Sequence[Found]

    @cached_property
    def deployed(self) -> views.View:
        return views.Direct(self.suite.defense, self.suite.sigma, surrogate=False)

    @cached_property
    def x(self) -> Tensor:
        return self.x_.to(self.deployed.device)

    @cached_property
    def y(self) -> Tensor:
        return self.y_.to(self.deployed.device)

    @property
    def main(self) -> Member | None:
        """The attack that is varied."""
        return next((each for each in self.suite.members if each.attack not in GRADIENT_FREE), None)

    @property
    def spatial(self) -> bool:
        """Whether examples are flows, for which there are no gradient-free attacks."""
        return self.suite.threat.norm == norms.FLOW

    @cached_property
    def clean(self) -> Tensor:
        """The example of each image that leaves it as it is."""
        return self.suite.threat.none(self.x)

    @property
    def answers(self) -> int:
        """Single answers behind each share."""
        return 1 if self.suite.deterministic else self.suite.select

    def attacked(self, *attacks: Member, scale: float = 1.0, eps: float | None = None) -> Tensor:
        """Outcome of attacks at a radius in units of eps, or at `eps`."""
        threat = replace(self.suite.threat, eps=self.suite.threat.eps * scale if eps is None else eps)
        job = replace(self.suite, threat=threat, members=attacks, evaluations=1)  # only the examples are asked for
        return self.right(torch.stack([each.example for each in job.run(self.x, self.y, self.ids)]))

    def right(self, examples: Tensor, seed: int | None = None, ids: tuple | None = None) -> Tensor:
        """Outcome of given examples."""
        images = self.suite.threat.image(examples.to(self.x), self.x)
        keys = Keys(self.suite.seed if seed is None else seed, ids or self.ids, "audit/verdict")
        failures, _ = evaluate.judge(self.deployed, images, self.y, keys, self.answers, self.suite.rows)
        return 1 - failures.double().cpu() / self.answers

    @cached_property
    def examples(self) -> Tensor:
        """What the whole job found."""
        return torch.stack([each.example for each in self.found]).to(self.x)

    @cached_property
    def job(self) -> Tensor:
        return self.right(self.examples)

    @cached_property
    def reference(self) -> Tensor:
        """Outcome of the attack that is varied, as it is."""
        return self.attacked(self.main)

    def beaten(self, other: Tensor, reference: Tensor) -> int:
        """Images on which `other` leaves less than `reference`, beyond chance."""
        mean = (other + reference) / 2
        chance = SIGMAS * (2 * mean * (1 - mean) / self.answers).sqrt() if self.answers > 1 else 0.0
        return int((reference - other > chance).sum())

    def gain(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Mean loss of right answers, and what may be chance: a point, more than one image, and the answers' noise."""
        mean, size = (before + after) / 2, len(before)
        noise = math.sqrt(float((2 * mean * (1 - mean)).sum()) / self.answers) / size if self.answers > 1 else 0.0
        return float((before - after).mean()), max(POINT, 1.0 / size, SIGMAS * noise)
