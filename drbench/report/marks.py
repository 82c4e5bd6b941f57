"""Badges: what a reader has to know of a run before its numbers, with the meaning in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from drbench.records.record import Run
from drbench.tables import certified_tables

UNVERIFIED = "fails verification"
# what makes a number other than it seems; the other marks of tables say which protocol made it
ALARMS = {"partial", "dirty", "imported", "damaged", "log", "mixed code", "estimate", "weights as constructed"}


class Badge(NamedTuple):
    """A mark of a run: its name, the sign beside each number of the run, its meaning, and whether it is a warning."""

    text: str
    sign: str
    meaning: str
    alarm: bool


def badges(run: Run, marks: str, problems: Sequence[str]) -> list[Badge]:
    """Of one run, from its `marks` in a frame, its flags, and what `drbench verify` finds wrong with it."""
    said: dict[str, list[str]] = {}
    for name, _, text in (flag.partition(":") for flag in run.header["flags"]):
        said.setdefault(name, []).append(text.strip())
    names = dict.fromkeys([*filter(None, marks.split(", ")), *run.marks, *said, *[UNVERIFIED] * bool(problems)])
    said |= {"partial": [f"{len(run.rows)} of {len(run.wanted)} images are recorded"], UNVERIFIED: problems[:3]}
    return [_badge(name, "; ".join(said.get(name, []))) for name in names]


def _badge(name: str, said: str) -> Badge:
    sign, _, meaning = certified_tables.SIGNS.get(name, ("¶", "", name))
    meaning = f"{meaning} ({said})" if said and said != meaning.partition(": ")[2] else meaning
    return Badge(name, sign.lstrip("\\"), meaning, name in ALARMS or name not in certified_tables.SIGNS)


def signs(found: Sequence[Badge]) -> str:
    """Signs of all badges of a run, to stand beside each of its numbers."""
    return "".join(dict.fromkeys(badge.sign for badge in found))


def legend(found: Iterable[Badge]) -> list[Badge]:
    """Each sign once, with its general meaning; those of flags are explained at the run."""
    known = {badge.text: badge for badge in found if badge.text in certified_tables.SIGNS}
    return [
        badge._replace(meaning=certified_tables.SIGNS[text][2].partition(": ")[2])
        for text, badge in sorted(known.items())
    ]
