"""All work in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator

from drbench.errors import DrbenchError
from drbench.executors import Answer, Job, Work
from drbench.executors.units import Units

POLL = 0.5  # seconds between looks at what other processes have claimed


class Inline:
    """The executor without workers."""

    workers = 1

    def __init__(self, resident: dict):
        self._resident = resident

    def run(self, job: Job, units: Units) -> Iterator[Answer]:
        return self._answers(job.open(self._resident, 0, 1), units)

    def _answers(self, work: Work, units: Units) -> Iterator[Answer]:
        while not units.finished:
            pending: dict[int, None] = {}
            try:
                for answer in work(_stream(units, pending)):
                    del pending[answer.unit]
                    yield answer
            except DrbenchError:
                raise
            except Exception as error:
                if not pending:  # no unit is to blame
                    raise
                for unit in units.raised(list(pending)):
                    yield Answer(unit, error=describe(error))
            else:
                if not units.finished:
                    time.sleep(POLL)

    def close(self) -> None:
        """Nothing to let go."""


def _stream(units: Units, pending: dict[int, None]) -> Iterator[int]:
    for chunk in units.chunks():
        pending |= dict.fromkeys(chunk)
        yield from chunk


def describe(error: BaseException) -> str:
    """One line about an error that is nobody's mistake in a config."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")
