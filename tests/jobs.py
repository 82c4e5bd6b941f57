"""Jobs that misbehave on chosen units, for tests of executors. No torch, so that workers start quickly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drbench.errors import DrbenchError
from drbench.executors import Answer


@dataclass(frozen=True)
class Squares:
    """Answers unit ** 2, except for units with a fate: raise, die, die once, hang or mistake.

    `folder` gets a line in the file `done` for each answer, and a file for each death.
    """

    folder: Path
    fates: Mapping[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    broken: bool = False

    def open(self, resident: dict, worker: int, workers: int):
        if self.broken:
            raise DrbenchError("the job cannot be opened")
        resident["opened"] = resident.get("opened", 0) + 1

        def work(units: Iterable[int]) -> Iterator[Answer]:
            for unit in units:
                self._meet(unit)
                time.sleep(self.seconds)
                with open(self.folder / "done", "a") as file:
                    file.write(f"{unit} {os.getpid()} {resident['opened']}\n")
                yield Answer(unit, unit**2)

        return work

    def _meet(self, unit: int) -> None:
        fate = self.fates.get(unit)
        if fate == "raise":
            raise ValueError(f"unit {unit} is bad\nreally")
        if fate == "mistake":
            raise DrbenchError(f"unit {unit}: say something else")
        if fate == "hang":
            time.sleep(3600)
        marker = self.folder / f"death-{unit}"
        if fate == "die" or (fate == "die once" and not marker.exists()):
            with open(marker, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
