"""What an audit compares: shares of right answers after attacks on a few images, and what chance may do to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from drbench import norms
from drbench.attacks import evaluate
from drbench.attacks.oracle import Keys
from drbench.attacks.presets import Member
from drbench.attacks.suite import Found, Suite

DRAWS = 20  # answers at least, where they are random: of six, none and all right may be chance at 3.5 standard errors
SIGMAS = 3.5  # standard errors that separate a finding from chance: 20 checks on 32 images stay quiet
POINT = 0.01


class Attack(NamedTuple):
    """Members of a suite, one after the other, at a radius."""

    members: tuple[Member, ...]
    eps: float


@dataclass(frozen=True)
class Case:
    """The images of an audit, on the device, and attacks on them.

    An outcome is (B,) the share of right ones among `draws` single answers.
    """

    suite: Suite
    x: Tensor
    y: Tensor
    ids: tuple
    found: Sequence[Found]

    @property
    def main(self) -> Member | None:
        """The attack that is varied."""
        return self.suite.main

    @property
    def spatial(self) -> bool:
        """Whether examples are flows, for which there are no gradient-free attacks."""
        return self.suite.threat.norm == norms.FLOW

    @property
    def draws(self) -> int:
        """Answers of a verdict."""
        return self.suite.draws if self.suite.deterministic else max(DRAWS, self.suite.draws)

    @cached_property
    def clean(self) -> Tensor:
        """The example of each image that leaves it as it is."""
        return self.suite.threat.none(self.x)

    def attack(self, *members: Member, scale: float = 1.0, eps: float | None = None) -> Attack:
        """At a radius in units of eps, or at `eps`."""
        eps = self.suite.threat.eps * scale if eps is None else eps
        return Attack(members, min(eps, 1.0) if self.suite.threat.norm == "linf" else eps)  # the box ends there

    def outcome(self, attack: Attack) -> Tensor:
        """What an attack leaves."""
        threat = replace(self.suite.threat, eps=attack.eps)
        job = replace(self.suite, threat=threat, members=attack.members, evaluations=1)  # only for its examples
        return self.right(torch.stack([each.example for each in job.run(self.x, self.y, self.ids)]))

    def right(self, examples: Tensor, seed: int | None = None, ids: tuple | None = None) -> Tensor:
        """Outcome of given examples."""
        images = self.suite.threat.image(examples.to(self.x), self.x)
        keys = Keys(self.suite.seed if seed is None else seed, ids or self.ids, "audit/verdict")
        failures, _ = evaluate.judge(self.suite.deployed, images, self.y, keys, self.draws, self.suite.rows)
        return 1 - failures.double().cpu() / self.draws

    @cached_property
    def examples(self) -> Tensor:
        """What the whole job found."""
        return torch.stack([each.example for each in self.found]).to(self.x)

    @cached_property
    def job(self) -> Tensor:
        """What the whole job leaves."""
        return self.right(self.examples)

    @cached_property
    def recorded(self) -> Tensor:
        """What the job's own final evaluation says; of other answers than single ones as `job`."""
        if self.suite.decision.rule != "single":
            return self.job
        answers = [each.evidence.adversarial for each in self.found]
        wrong = [each.wrong(label) / each.count for each, label in zip(answers, self.y.tolist(), strict=True)]
        return 1 - torch.tensor(wrong).double()

    @cached_property
    def aimed(self) -> Tensor:
        """What the job leaves without attacks that use no gradient of this defense: the reference for such attacks.

        Of flows the whole job: they run over kinks, where such attacks find more on honest defenses too. And of a
        defense without gradients.
        """
        blind = [each.label for each in self.suite.members if not each.aimed]
        if self.spatial or len(blind) in (0, len(self.suite.members)):
            return self.job
        left = self.job.clone()
        for place, found in enumerate(self.found):
            failures = [each.failures for each in found.evidence.tried if each.attack not in blind]
            if failures:  # else it was broken before any of them: nothing was left for them to miss
                left[place] = max(left[place], 1 - max(failures) / self.suite.draws)
        return left

    def beaten(self, other: Tensor, reference: Tensor) -> int:
        """Images on which `other` leaves less than `reference`, beyond chance."""
        mean, draws = (other + reference) / 2, self.draws
        chance = SIGMAS * (2 * mean * (1 - mean) / draws).sqrt() if draws > 1 else 0.0
        return int((reference - other > chance).sum())

    def gain(self, before: Tensor, after: Tensor, draws: int | None = None) -> tuple[float, float]:
        """Mean loss of right answers, and what may be chance: a point, more than one image, and the answers' noise."""
        mean, size, draws = (before + after) / 2, len(before), draws or self.draws
        noise = math.sqrt(float((2 * mean * (1 - mean)).sum()) / draws) / size if draws > 1 else 0.0
        return float((before - after).mean()), max(POINT, 1.0 / size, SIGMAS * noise)
