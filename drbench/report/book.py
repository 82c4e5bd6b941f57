"""The runs of a page: each has a number, its badges, and what verification finds. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pandas import DataFrame

from drbench import stats
from drbench.comparisons import claims, head_to_head
from drbench.errors import DrbenchError
from drbench.records import verify
from drbench.records.record import Run
from drbench.report.marks import Badge, badges, signs
from drbench.tables import robust_tables, summary
from drbench.tables.frames import named_rows


@dataclass(frozen=True)
class Book:
    """Runs in the order of their numbers.

    Parameters
    ----------
    runs : list of Run
    certified : list of DataFrame
        `summary.frame` of the certification runs with a recorded image, one for each norm of radii.
    attacked : DataFrame
        `robust_tables.frame`, empty without attack runs.
    badges, problems : list of list
        Of each run.
    numbers : dict
        (task, folder) -> number of the run.
    """

    runs: list[Run]
    certified: list[DataFrame]
    attacked: DataFrame
    badges: list[list[Badge]]
    problems: list[list[str]]
    numbers: dict[tuple[str, str], int]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Book:
        """Read runs of any task; each run may come once."""
        runs = sorted(runs, key=_order)
        names = [_name(run) for run in runs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise DrbenchError(f"expected each run once, {max(twice)[1]} came twice; leave one out")
        attacks = [run for run in runs if run.task == "attack" and any(row.evidence for row in run.ordered())]
        attacked = robust_tables.frame(attacks) if attacks else DataFrame(columns=["run", "marks"])
        frames = [summary.frame(part) for part in by_norm(runs)]
        said = {("certify", row.run): row.marks for frame in frames for row in named_rows(frame.drop_duplicates("run"))}
        said |= {("attack", row.run): row.marks for row in named_rows(attacked)}
        problems = [verify.problems(run) for run in runs]
        marked = [badges(*each) for each in zip(runs, (said.get(name, "") for name in names), problems, strict=True)]
        return cls(runs, frames, attacked, marked, problems, {name: i for i, name in enumerate(names)})

    @cached_property
    def verdicts(self) -> DataFrame:
        """`claims.judge` of the runs."""
        return claims.judge(self.runs)

    @cached_property
    def equal(self) -> DataFrame:
        """`head_to_head.frame` of the runs."""
        return head_to_head.frame(self.runs)

    def number(self, task: str, place: str) -> int:
        """Of the run that a frame names."""
        return self.numbers[task, place]

    def signs(self, number: int) -> str:
        return signs(self.badges[number])


def by_norm(runs: Sequence[Run]) -> list[list[Run]]:
    """Certification runs with a recorded image, those whose radii are of one norm together; l2 first."""
    ours = [run for run in runs if run.task == "certify" and any(run.ordered())]
    norms = sorted({stats.norm(run.header["engine"]) for run in ours}, key=lambda norm: (norm != "l2", norm))
    return [[run for run in ours if stats.norm(run.header["engine"]) == norm] for norm in norms]


def _name(run: Run) -> tuple[str, str]:
    return run.task, summary.place(run)


def _order(run: Run) -> tuple:
    return run.task == "attack", summary.position(run) if run.task == "certify" else _name(run)
