"""Which attacks, in which order, and which of their examples is kept: for each image the one that fails most.

Everything that an attack returns is repaired, verified, and judged on draws of a selection stage that the attack never
saw; the example that is kept is evaluated on draws of yet another stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from threading import Event
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from drbench import norms
from drbench.api import Defense, DrbenchError
from drbench.attacks import evaluate, views
from drbench.attacks.lockstep import Lockstep
from drbench.attacks.names import ATTACKS, VIEWS
from drbench.attacks.oracle import ROWS, Keys
from drbench.attacks.presets import BEHIND, FROM, Member
from drbench.attacks.problem import Cost, Problem
from drbench.attacks.threat import Threat
from drbench.errors import did_you_mean
from drbench.evidence import Answers, Attacked, Tried

GRADIENT_FREE = ("noise", "square")
FLOWS = ("square", "stadv")  # attacks that make flows; all but the last make images, too
KINDS = {int: "a whole number", float: "a number", str: "text"}  # of settings, by the type of their default
MAY_BE_ZERO = ("redraw",)  # settings; all other numbers are positive
SURELY_BROKEN = 0.95  # share of failures from which on a randomised defense's image is left alone,
CONFIRMED = 20  # on so many draws that did not choose the example


def check(member: Member, norm: str, sources: Iterable[str] = ()) -> Member:
    """Raise `DrbenchError` unless attack, view and settings exist and fit; `sources` are names of other defenses."""
    for word, known in ((member.attack, ATTACKS), (member.view, [*VIEWS, *(f"{FROM}{name}" for name in sources)])):
        if word not in known:
            raise DrbenchError(f"unknown attack or view {word!r}{did_you_mean(word, known)}")
    if member.attack not in (fitting := FLOWS if norm == norms.FLOW else ATTACKS.keys() - {"stadv"}):
        raise DrbenchError(f"attack {member.attack!r} is not for norm {norm}; for it are: {', '.join(sorted(fitting))}")
    known = ATTACKS[member.attack].__kwdefaults__ or {}
    for key, value in member.settings.items():
        if key not in known:
            raise DrbenchError(f"attack {member.attack!r} has no setting {key!r}{did_you_mean(key, known)}")
        _check_value(f"attack {member.attack!r}: {key}", key, value, type(known[key]))
    return member


def _check_value(place: str, key: str, value: object, kind: type) -> None:
    """Raise `DrbenchError` unless a setting is of the type of its default and, a number, positive."""
    fits = isinstance(value, {int: Integral, float: Real}.get(kind, kind)) and not isinstance(value, bool)
    if not fits or (kind is not str and not (value > 0 or (value == 0 and key in MAY_BE_ZERO))):
        above = "" if kind is str else " >= 0" if key in MAY_BE_ZERO else " > 0"
        raise DrbenchError(f"{place}: expected {KINDS[kind]}{above}, got {value!r}")


def traits(defense: Defense, sigma: float) -> dict[str, bool]:
    """What of a defense at a noise level decides which attacks a preset holds."""
    return {
        "deterministic": sigma == 0 and not defense.randomized,
        "gradient": defense.gradient != "none",
        "parts": views.has_parts(defense, sigma),
    }


class Found(NamedTuple):
    """Evidence about one image, and its kept example: an image (C, H, W), or a flow (H, W, 2)."""

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
    sources : mapping
        Other defenses by name, whose gradients views "from NAME" use: at `sigma` if they accept it, else at 0.
    lockstep : Lockstep, optional
        With other jobs, whose queries share calls with those of this one.
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
    sources: Mapping[str, Defense] = field(default_factory=dict)
    notes: Counter = field(default_factory=Counter)  # odd things that happened, see `Cost.notes`
    stop: Event = field(default_factory=Event)  # set from another thread: the attack ends with an error
    lockstep: Lockstep | None = None

    def __post_init__(self) -> None:
        if self.members and not self.usable:  # clean accuracy would be called robust
            raise DrbenchError(
                f"{type(self.defense).__name__} can give no view that {', '.join(each.label for each in self.members)} "
                "asks for: 'clean' needs noise level 0; attack view 'exact'"
            )
        aimed = [each.label for each in self.members if each.aimed and each.view not in BEHIND]
        if self.defense.gradient == "none" and aimed:
            raise DrbenchError(
                f"{type(self.defense).__name__} has no gradients (gradient = 'none'), which {', '.join(aimed)} follow; "
                "use attacks square and noise, a view 'from NAME' of another defense, or a preset"
            )
        if blind := [name for name, source in self.sources.items() if source.gradient == "none"]:
            raise DrbenchError(f"cannot transfer from {', '.join(blind)}: gradient = 'none', there is none to follow")

    @property
    def deterministic(self) -> bool:
        return self.sigma == 0 and not self.defense.randomized

    @property
    def deployed(self) -> views.View:
        """One draw of the defense as it is deployed: what selects and evaluates."""
        return self.view("logits")

    @property
    def usable(self) -> list[Member]:
        """The attacks whose view the defense can give."""
        return [each for each in self.members if each.view != "clean" or self.defense.accepts(0.0)]

    @property
    def main(self) -> Member | None:
        """The first attack with gradients."""
        if self.defense.gradient == "none":  # none of its own
            return next((each for each in self.usable if each.view in BEHIND), None)
        return next((each for each in self.usable if each.attack not in GRADIENT_FREE), None)

    @property
    def draws(self) -> int:
        """Single answers that choose among candidates."""
        return 1 if self.deterministic else self.select

    def view(self, name: str) -> views.View:
        """The view of that name, of this defense or of another one."""
        if not name.startswith(FROM):
            return self._shared(name, VIEWS[name](self.defense, self.sigma))
        source = self.sources[name.removeprefix(FROM)]
        return self._shared(name, views.Direct(source, self.sigma if source.accepts(self.sigma) else 0.0, own=False))

    def _shared(self, name: str, view: views.View) -> views.View:
        return view if self.lockstep is None else self.lockstep.shared(name, view)

    def answers(self, x: Tensor, ids: Sequence[int | str]) -> list[Answers]:
        """The final evaluation of images (B, C, H, W): on draws of a stage that nothing else uses."""
        count = 1 if self.deterministic else self.evaluations
        decision = evaluate.Decision() if self.deterministic else self.decision
        keys = Keys(self.seed, tuple(ids), "evaluate")
        found = evaluate.evaluate(self.deployed, decision, x.to(self.defense.device), keys, count, self.rows)
        return [Answers.of(each) for each in found.tolist()]

    def run(self, x: Tensor, y: Tensor, ids: Sequence[int | str]) -> list[Found]:
        """Attack images (B, C, H, W) with labels (B,), all at once; no outcome depends on the other images."""
        deployed = self.deployed
        x, y = x.to(deployed.device), y.to(deployed.device)
        state = _State(self, deployed, x, y, tuple(ids))
        for each in self.usable:
            state.attack(each)
        return state.conclude()


class _State:
    """The best example of each image so far."""

    def __init__(self, suite: Suite, deployed: views.View, x: Tensor, y: Tensor, ids: tuple):
        self.suite, self.deployed, self.x, self.y, self.ids = suite, deployed, x, y, ids
        self.best, self.kept, self.tried = suite.threat.none(x).clone(), [""] * len(x), [[] for _ in range(len(x))]
        everyone = torch.arange(len(x))
        self.failures, self.margin = self._judge(self.best, everyone)
        self.done = self._surely_broken(everyone)

    def attack(self, member: Member) -> None:
        open_ = (~self.done).nonzero().flatten()
        if not len(open_):
            return
        suite = self.suite
        view = suite.view(member.view)
        cost = Cost(np.zeros(len(self.x), np.int64), np.zeros(len(self.x), np.int64), suite.notes, suite.stop)
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
            cost.forwards[open_.tolist()] += suite.draws
            most[open_] = torch.maximum(most[open_], failures)
            self._keep(open_, mended, failures, margin, member.label)
        self.done[open_] = self._surely_broken(open_, cost)
        for place in open_.tolist():
            counts = int(most[place]), int(cost.gradients[place]), int(cost.forwards[place])
            self.tried[place].append(Tried(member.label, *counts))

    def _surely_broken(self, places: Tensor, cost: Cost | None = None) -> Tensor:
        """Which images are left alone. Draws that chose an example flatter it: a randomised defense is asked again."""
        sure = self.failures[places] >= SURELY_BROKEN * self.suite.draws
        asked = places[sure]
        if not self.suite.deterministic and len(asked):
            failures, _ = self._judge(self.best[asked], asked, "confirm", CONFIRMED)
            sure[sure.clone()] = failures >= SURELY_BROKEN * CONFIRMED
            if cost:
                cost.forwards[asked.tolist()] += CONFIRMED
        return sure

    def _judge(
        self, examples: Tensor, places: Tensor, stage: str = "select", draws: int | None = None
    ) -> tuple[Tensor, Tensor]:
        images = self.suite.threat.image(examples, self.x[places])
        keys = Keys(self.suite.seed, tuple(self.ids[i] for i in places.tolist()), stage)
        return evaluate.judge(self.deployed, images, self.y[places], keys, draws or self.suite.draws, self.suite.rows)

    def _keep(self, places: Tensor, images: Tensor, failures: Tensor, margin: Tensor, label: str) -> None:
        more = failures > self.failures[places]
        wins = more | ((failures == self.failures[places]) & (margin > self.margin[places]))
        won = places[wins]
        self.best[won], self.failures[won], self.margin[won] = images[wins], failures[wins], margin[wins]
        for place in won.tolist():
            self.kept[place] = label

    def conclude(self) -> list[Found]:
        """The final evaluation, of kept examples and of clean images on the same draws."""
        images = self.suite.threat.image(self.best, self.x)
        clean, answers = (self.suite.answers(each, self.ids) for each in (self.x, images))
        best = self.best.cpu()
        far = norms.distance(self.suite.threat.norm, best.numpy(), self.x.cpu().numpy())
        return [
            Found(Attacked(c, a, tuple(tried), kept, float(d), norms.digest(example.numpy())), example)
            for c, a, tried, kept, d, example in zip(clean, answers, self.tried, self.kept, far, best, strict=True)
        ]
