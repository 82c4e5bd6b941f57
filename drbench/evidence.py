"""What a certification run observes (`Evidence`) and what follows from it (`Certificate`). Standard library only.

Evidence is stored on disk; a certificate is recomputed from it whenever it is needed, by `drbench.stats.decide`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
            if any(count < 0 for count in counts.values()) or sum(counts.values()) != drawn:
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
