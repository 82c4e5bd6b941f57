"""Named lists of attacks. No torch, so that plans and tables can name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from drbench.errors import DrbenchError, did_you_mean

PRESETS = ("smoke", "fast", "standard", "thorough", "autoattack")
BUDGET = ("restarts", "targets", "steps", "queries", "tries", "draws")  # settings that multiply to the cost


@dataclass(frozen=True)
class Member:
    """One attack of a suite.

    Parameters
    ----------
    attack, view : str
        Keys of `suite.ATTACKS` and of `views.VIEWS`.
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


def _randomised(preset: str) -> list[Member]:
    """Steps x draws of EOT; more steps are worth more than more draws. The last view leaves the noise away."""
    steps, draws = {"smoke": (10, 4), "fast": (40, 8), "standard": (100, 16), "thorough": (200, 20)}[preset]
    size = {"steps": steps, "draws": draws}
    suite = [member("pgd", loss="margin", **size)]
    if preset in ("standard", "thorough"):
        suite = [member("noise", tries=10), *suite, member("pgd", loss="ce", pool="probability", **size)]
    if preset == "thorough":
        suite += [member("apgd", loss="dlr", **size), member("square", queries=1000, draws=20)]
        suite += [member("pgd", view="clean", loss="margin", steps=steps)]
    return suite


def preset(name: str, norm: str, deterministic: bool) -> list[Member]:
    """The attacks of a preset; "autoattack" is the standard suite, for deterministic defenses alone."""
    if name not in PRESETS:
        raise DrbenchError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    if name == "autoattack" and not deterministic:
        raise DrbenchError(
            "preset autoattack is for deterministic defenses: on a randomised one, or under noise, it keeps examples "
            "for a single misclassification; use preset standard"
        )
    return _deterministic(name, norm) if deterministic else _randomised(name)
