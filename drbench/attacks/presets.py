"""Named lists of attacks. No torch, so that plans and tables can name them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from drbench.errors import DrbenchError, did_you_mean
from drbench.norms import FLOW

SIZES = {"smoke": (10, 4), "fast": (40, 8), "standard": (100, 16), "thorough": (200, 20)}  # steps x draws of EOT
QUERIES = {"smoke": 100, "fast": 1000, "standard": 5000, "thorough": 10000}  # where there are no gradients
PRESETS = ("smoke", "fast", "standard", "thorough", "autoattack")
AUDITED = {"smoke": 0, "fast": 4, "standard": 16, "thorough": 32, "autoattack": 16}  # images, see `attacks.audit`
FLAG = "audit"  # begins what the audit of a run says against it
BEHIND = ("identity", "bare")  # views whose gradient is that of what stands behind a purifier
FROM = "from "  # begins the name of a view of another defense
BUDGET = ("restarts", "targets", "steps", "queries", "tries", "draws")  # settings that multiply to the cost


def budget(settings: Mapping) -> int:
    """What an attack with these settings may ask of the defense for an image, draws counted."""
    return math.prod(settings.get(name, 1) for name in BUDGET)


@dataclass(frozen=True)
class Member:
    """One attack of a suite.

    Parameters
    ----------
    attack, view : str
        Keys of `names.ATTACKS` and of `names.VIEWS`; or "from NAME", a view of another defense.
    settings : mapping
        Keyword arguments of the attack.
    """

    attack: str
    view: str = "exact"
    settings: Mapping = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name in records, and of its random streams: "apgd ce 1x100", "pgd margin 100x16 (clean)"."""
        s = self.settings
        words = [self.attack, *(str(s[key]) for key in s if key not in BUDGET)]
        size = "x".join(str(s[key]) for key in BUDGET if key in s)
        return " ".join([*words, *([size] if size else []), *([f"({self.view})"] if self.view != "exact" else [])])

    @property
    def aimed(self) -> bool:
        """Whether it follows gradients of the defense under attack."""
        return self.attack not in ("noise", "square") and not self.view.startswith(FROM)


def member(attack: str, view: str = "exact", **settings) -> Member:
    """A member in the form in which configs write it: its settings beside its name."""
    return Member(attack, view, settings)


def autoattack(norm: str) -> list[Member]:
    """The standard suite of Croce and Hein 2020 (arXiv 2003.01690; l1: 2103.01208), for deterministic defenses."""
    l1 = norm == "l1"
    return [
        member("apgd", loss="ce", restarts=5 if l1 else 1, steps=100),
        member("apgd_t", loss="dlr", targets=5 if l1 else 9, steps=100),
        member("fab_t", targets=9, steps=100),
        member("square", queries=5000),
    ]


def _deterministic(preset: str, norm: str) -> list[Member]:
    if preset == "smoke":
        return [member("apgd", loss="ce", steps=10)]
    if preset == "fast":
        return [member("apgd", loss="ce", steps=40), member("apgd_t", loss="dlr", targets=3, steps=40)]
    more = [member("apgd", loss=loss, restarts=5, steps=200) for loss in ("margin", "dlr")]
    return autoattack(norm) + (more if preset == "thorough" else [])


def _climber(norm: str) -> str:
    """In l1 a step of fixed sparsity finds little: the one that adapts keeps half as many right."""
    return "apgd" if norm == "l1" else "pgd"


def _randomised(preset: str, norm: str) -> list[Member]:
    """Steps x draws of EOT; more steps are worth more than more draws. The last view leaves the noise away."""
    steps, draws = SIZES[preset]
    size, climb = {"steps": steps, "draws": draws}, _climber(norm)
    suite = [member(climb, loss="margin", **size)]
    if preset in ("standard", "thorough"):
        suite = [member("noise", tries=10), *suite, member(climb, loss="ce", pool="probability", **size)]
    if preset == "thorough":
        suite += [member("apgd", loss="dlr", **size), member("square", queries=1000, draws=20)]
        suite += [member(climb, view="clean", loss="margin", steps=steps)]
    return suite


def transfer(preset: str, norm: str, names: Iterable[str]) -> list[Member]:
    """(A)PGD on each other defense: what is found there is tried on the one under attack. Not for flows."""
    if norm == FLOW:
        return []
    steps = SIZES.get(preset, SIZES["standard"])[0]
    return [member(_climber(norm), view=f"{FROM}{name}", loss="margin", steps=steps) for name in names]


def _spatial(preset: str, deterministic: bool) -> list[Member]:
    """Flows move pixels over kinks of the interpolation, where slopes mislead: some images fall to Square alone."""
    steps, draws = SIZES[preset]
    suite = [member("stadv", steps=steps, draws=1 if deterministic else draws)]
    return suite + ([member("square", queries=5000)] if deterministic and preset in ("standard", "thorough") else [])


def _cascade(preset: str, levels: int) -> list[Member]:
    """A wrong class at one of the first three levels, or none at any level and a wrong one without noise."""
    steps, draws = SIZES[preset]
    routes = [*(f"halt{number + 1}" for number in range(min(levels, 3))), "pass"]
    attacks = [member("pgd", view=route, loss="margin", steps=steps, draws=draws) for route in routes]
    return attacks + ([member("noise", tries=10)] if preset in ("standard", "thorough") else [])


def _blind(preset: str, norm: str, deterministic: bool, parts: bool) -> list[Member]:
    """By scores alone, and behind a purifier by gradients."""
    queries, (steps, draws) = QUERIES[preset], SIZES[preset]
    square = {"queries": queries} if deterministic else {"queries": queries // 5, "draws": draws}
    suite = [*([member("noise", tries=10)] if norm != FLOW else []), member("square", **square)]
    if parts:
        climb = {"attack": "stadv"} if norm == FLOW else {"attack": _climber(norm), "loss": "margin"}
        suite += [member(**climb, view=BEHIND[0], steps=steps, draws=1 if deterministic else draws)]
    return suite


def preset(
    name: str, norm: str, deterministic: bool, cascade: int = 0, gradient: bool = True, parts: bool = False
) -> list[Member]:
    """The attacks of a preset; "autoattack" is the standard suite, for deterministic defenses alone.

    `cascade` is the number of levels of a deployed cascade, `gradient` whether the defense has gradients, `parts`
    whether one can look behind its purifier.
    """
    if name not in PRESETS:
        raise DrbenchError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    if not gradient:
        if name not in QUERIES:
            raise DrbenchError(f"preset {name} follows gradients, which this defense does not have; use standard")
        return _blind(name, norm, deterministic, parts)
    if name == "autoattack" and (not deterministic or norm == FLOW):
        raise DrbenchError(
            "preset autoattack is for deterministic defenses and l_p norms: on a randomised one, or under noise, it "
            "keeps examples for a single misclassification; use preset standard"
        )
    if norm == FLOW:
        return _spatial(name, deterministic)
    if cascade:
        return _cascade(name, cascade)
    return _deterministic(name, norm) if deterministic else _randomised(name, norm)
