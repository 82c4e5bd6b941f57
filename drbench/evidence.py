"""What a run observes (`Evidence`, `Attacked`) and what follows from it (`Certificate`). Standard library only.

Evidence is stored on disk; a certificate is recomputed from it whenever it is needed, by `drbench.stats.decide`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from drbench.errors import DrbenchError

ABSTAIN = -1


@dataclass(frozen=True)
class Stage:
    """Votes of one noise level.

    Parameters
    ----------
    sigma : float
        Noise standard deviation, pixel units.
    select, votes : dict
        class -> count of the selection and of the (disjoint) estimation draws; absent classes got none. `ABSTAIN`
        counts draws whose noise was not certain to the last bit (`drbench.certifiers.noise`): votes against every
        class. Without selection draws `select` names a class, with count 0.
    n0, n : int
        Number of draws that were made. Votes that do not sum to them are refused.
    """

    sigma: float
    select: Mapping[int, int]
    n0: int
    votes: Mapping[int, int]
    n: int

    def __post_init__(self) -> None:
        for name, counts, drawn in (("select", self.select, self.n0), ("votes", self.votes, self.n)):
            if min(counts.values(), default=0) < 0 or sum(counts.values()) != drawn:
                raise DrbenchError(
                    f"evidence: '{name}' must hold non-negative counts that sum to the {drawn} draws that were made, "
                    f"got a sum of {sum(counts.values())}; counts are never scaled to another number of draws"
                )

    def to_json(self) -> dict:
        return {
            "sigma": self.sigma,
            "select": {str(c): k for c, k in sorted(self.select.items())},
            "n0": self.n0,
            "votes": {str(c): k for c, k in sorted(self.votes.items())},
            "n": self.n,
        }

    @classmethod
    def from_json(cls, raw: Mapping) -> Stage:
        counts = {name: {int(c): int(k) for c, k in raw[name].items()} for name in ("select", "votes")}
        return cls(float(raw["sigma"]), counts["select"], int(raw["n0"]), counts["votes"], int(raw["n"]))


@dataclass(frozen=True)
class Evidence:
    """Everything that a certifier observed about one image.

    Parameters
    ----------
    stages : tuple of Stage
        In the order in which they were tried.
    clean : tuple of float, optional
        Logits of the clean image, for answers that carry no certificate. Only cascades ask for them.
    uniform : float, optional
        Number in (0, 1) that belongs to the image, for randomized bounds: drawn once, never again.
    """

    stages: tuple[Stage, ...]
    clean: tuple[float, ...] | None = None
    uniform: float | None = None

    def to_json(self) -> dict:
        extra = {"clean": self.clean and list(self.clean), "uniform": self.uniform}
        given = {key: value for key, value in extra.items() if value is not None}
        return {"stages": [stage.to_json() for stage in self.stages], **given}

    @classmethod
    def from_json(cls, raw: Mapping) -> Evidence:
        clean = raw.get("clean")
        stages = tuple(Stage.from_json(stage) for stage in raw["stages"])
        return cls(stages, clean and tuple(map(float, clean)), raw.get("uniform"))


@dataclass(frozen=True)
class Tried:
    """What one attack did to one image.

    Parameters
    ----------
    attack : str
    failures : int
        Of its best example, among the selection draws of the run.
    gradients, forwards : int
        Evaluations of the whole defense, with and without a gradient; a draw counts as one.
    """

    attack: str
    failures: int
    gradients: int
    forwards: int


@dataclass(frozen=True)
class Answers:
    """Answers of the deployed decision rule to one image, in N independent evaluations.

    Parameters
    ----------
    first : int
        The first answer, a class or `ABSTAIN` (the defense gave no finite logits).
    votes : dict
        Answer -> count, over all N.
    """

    first: int
    votes: Mapping[int, int]

    @classmethod
    def of(cls, answers: Sequence[int]) -> Answers:
        """From all answers, in order."""
        return cls(answers[0], dict(Counter(answers)))

    @property
    def count(self) -> int:
        return sum(self.votes.values())

    def wrong(self, label: int) -> int:
        """How many were not the label."""
        return self.count - self.votes.get(label, 0)

    def to_json(self) -> list:
        return [self.first, {str(c): k for c, k in sorted(self.votes.items())}]

    @classmethod
    def from_json(cls, raw: Sequence) -> Answers:
        return cls(int(raw[0]), {int(c): int(k) for c, k in raw[1].items()})


@dataclass(frozen=True)
class Attacked:
    """Everything that an attack job observed about one image.

    Parameters
    ----------
    clean, adversarial : Answers
        To the clean image, and to the example that was kept, on the same draws.
    tried : tuple of Tried
        Attacks that were run on this image, in order; a deterministic defense that is broken is left alone.
    kept : str
        Attack that made the kept example; empty if none beat the clean image.
    distance : float
        Of the kept example, in the norm of the run, float64.
    example : str
        sha256 of the kept example's float32 pixels, which are stored beside the rows.
    """

    clean: Answers
    adversarial: Answers
    tried: tuple[Tried, ...]
    kept: str
    distance: float
    example: str

    def to_json(self) -> dict:
        return {
            "clean": self.clean.to_json(),
            "adversarial": self.adversarial.to_json(),
            "tried": [[t.attack, t.failures, t.gradients, t.forwards] for t in self.tried],
            "kept": self.kept,
            "distance": self.distance,
            "example": self.example,
        }

    @classmethod
    def from_json(cls, raw: Mapping) -> Attacked:
        answers = (Answers.from_json(raw[name]) for name in ("clean", "adversarial"))
        tried = tuple(Tried(str(name), *map(int, counts)) for name, *counts in raw["tried"])
        return cls(*answers, tried, raw["kept"], float(raw["distance"]), raw["example"])


@dataclass(frozen=True)
class Certificate:
    """The conclusion for one image.

    Parameters
    ----------
    prediction : int
        Class, or `ABSTAIN` (-1).
    radius : float
        Certified l2 radius, pixel units, float64; 0.0 when abstaining. Never rounded.
    detail : dict
        Intermediate values for human readers, e.g. `p_lower`.
    """

    prediction: int
    radius: float
    detail: Mapping = field(default_factory=dict)

    def to_json(self) -> dict:
        return {"prediction": self.prediction, "radius": self.radius, "detail": dict(self.detail)}
