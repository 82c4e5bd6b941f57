"""Which attacks, in which order, and which of their examples is kept: for each image the one that fails most.

Everything that an attack returns is repaired, verified, and judged on draws of a selection stage that the attack never
saw; the example that is kept is evaluated on draws of yet another stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from drbench import norms
from drbench.api import Defense, DrbenchError
from drbench.attacks import apgd, evaluate, fab, pgd, square, views
from drbench.attacks.oracle import ROWS, Keys
from drbench.attacks.presets import Member
from drbench.attacks.problem import Cost, Problem
from drbench.attacks.threat import Threat
from drbench.errors import did_you_mean
from drbench.evidence import Answers, Attacked, Tried

# name in configs -> update rule, see `drbench.attacks.problem`
ATTACKS = {
    "apgd": apgd.apgd,
    "apgd_t": apgd.apgd_t,
    "fab_t": fab.fab_t,
    "noise": pgd.noise,
    "pgd": pgd.pgd,
    "square": square.square,
}
SURELY_BROKEN = 0.95  # share of failures above which a randomised defense's image is left alone


def check(member: Member) -> Member:
    """Raise `DrbenchError` unless attack, view and settings exist."""
    for word, known in ((member.attack, ATTACKS), (member.view, views.VIEWS)):
        if word not in known:
            raise DrbenchError(f"unknown attack or view {word!r}{did_you_mean(word, known)}")
    known = ATTACKS[member.attack].__kwdefaults__ or {}
    for key in member.settings:
        if key not in known:
            raise DrbenchError(f"attack {member.attack!r} has no setting {key!r}{did_you_mean(key, known)}")
    return member


class Found(NamedTuple):
    """Evidence about one image, and its kept example (C, H, W)."""

    evidence: Attacked
    example: Tensor


@dataclass(frozen=True)
class Suite:
    """An attack job: what is attacked, under which threat, with what, and how the outcome is judged.

    Parameters
    ----------
    defense : Defense
        In eval mode.
    threat : Threat
    members : sequence of Member
        Those whose view the defense cannot give (view "clean" without level 0) are left out.
    sigma : float
        Noise level at which the defense is deployed, pixel units; 0 for clean images.
    decision : Decision
        How it turns draws into an answer.
    evaluations, select : int
        Independent answers in the final evaluation; single draws that choose among candidates. Both are 1 for a
        deterministic defense.
    seed, rows : int
        Key of all streams; rows of one call.
    """

    defense: Defense
    threat: Threat
    members: Sequence[Member]
    sigma: float = 0.0
    decision: evaluate.Decision = field(default_factory=evaluate.Decision)
    evaluations: int = 100
    select: int = 50
    seed: int = 0
    rows: int = ROWS
    notes: Counter = field(default_factory=Counter)  # odd things that happened, see `Cost.notes`

    @property
    def deterministic(self) -> bool:
        return self.sigma == 0 and not self.defense.randomized

    def run(self, x: Tensor, y: Tensor, ids: Sequence[int | str]) -> list[Found]:
        """Attack images (B, C, H, W) with labels (B,), all at once; no outcome depends on the other images."""
        deployed = views.Direct(self.defense, self.sigma, surrogate=False)
        x, y = x.to(deployed.device), y.to(deployed.device)
        state = _State(self, deployed, x, y, tuple(ids))
        for each in self.members:
            if each.view != "clean" or self.defense.accepts(0.0):
                state.attack(each)
        return state.conclude()


class _State:
    """The best example of each image so far."""

    def __init__(self, suite: Suite, deployed: views.View, x: Tensor, y: Tensor, ids: tuple):
        self.suite, self.deployed, self.x, self.y, self.ids = suite, deployed, x, y, ids
        self.draws = 1 if suite.deterministic else suite.select
        self.best, self.kept, self.tried = x.clone(), [""] * len(x), [[] for _ in range(len(x))]
        self.failures, self.margin = self._judge(x, torch.arange(len(x)))

    def attack(self, member: Member) -> None:
        open_ = (self.failures < SURELY_BROKEN * self.draws).nonzero().flatten()
        if not len(open_):
            return
        suite = self.suite
        view = views.build(member.view, suite.defense, suite.sigma)
        cost = Cost(np.zeros(len(self.x), np.int64), np.zeros(len(self.x), np.int64), suite.notes)
        whole = Problem(view, suite.threat, self.x, self.y, Keys(suite.seed, self.ids, member.label), cost,
                        np.arange(len(self.x)), suite.rows)  # fmt: skip
        problem = whole.at(open_)
        candidates = ATTACKS[member.attack](problem, **member.settings)
        most = torch.zeros_like(self.failures)
        for images in candidates.unbind(1):
            mended, refused = suite.threat.repair(images, problem.x)
            if refused.any():
                suite.notes["outside the threat: clean image instead"] += int(refused.sum())
            failures, margin = self._judge(mended, open_)
            cost.forwards[open_.tolist()] += self.draws
            most[open_] = torch.maximum(most[open_], failures)
            self._keep(open_, mended, failures, margin, member.label)
        for place in open_.tolist():
            counts = int(most[place]), int(cost.gradients[place]), int(cost.forwards[place])
            self.tried[place].append(Tried(member.label, *counts))

    def _judge(self, images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        ids = tuple(self.ids[i] for i in places.tolist())
        keys = Keys(self.suite.seed, ids, "select")
        return evaluate.judge(self.deployed, images, self.y[places], keys, self.draws, self.suite.rows)

    def _keep(self, places: Tensor, images: Tensor, failures: Tensor, margin: Tensor, label: str) -> None:
        more = failures > self.failures[places]
        wins = more | ((failures == self.failures[places]) & (margin > self.margin[places]))
        won = places[wins]
        self.best[won], self.failures[won], self.margin[won] = images[wins], failures[wins], margin[wins]
        for place in won.tolist():
            self.kept[place] = label

    def conclude(self) -> list[Found]:
        """The final evaluation, of kept examples and of clean images on the same draws."""
        suite = self.suite
        count = 1 if suite.deterministic else suite.evaluations
        decision = replace(suite.decision, draws=1, rule="single") if suite.deterministic else suite.decision
        keys, norm = Keys(suite.seed, self.ids, "evaluate"), suite.threat.norm
        clean, answers = (
            evaluate.evaluate(self.deployed, decision, images, keys, count, suite.rows).tolist()
            for images in (self.x, self.best)
        )
        best = self.best.cpu().numpy()
        far = norms.distance(norm, best, self.x.cpu().numpy())
        found = []
        for i, example in enumerate(best):
            answered = Answers.of(clean[i]), Answers.of(answers[i])
            seen = Attacked(*answered, tuple(self.tried[i]), self.kept[i], float(far[i]), norms.digest(example))
            found.append(Found(seen, self.best[i].cpu()))
        return found
