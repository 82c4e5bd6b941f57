"""The queue of a run: which units wait, which are suspected of breaking their worker, which are given up."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

TRIES = 3  # workers that may die over a unit before it is given up


class Units:
    """Hands out units in chunks, and those of a failed worker one by one, so that the culprit is found.

    Parameters
    ----------
    wanted : sequence of int
        Units to do.
    chunk : int
        How many are handed out at once.
    claim : callable
        Is told the units that could be handed out, in order, and a number; returns at most that many which this
        process may have, and those which are done by now. By default all are ours.
    """

    def __init__(
        self,
        wanted: Sequence[int],
        chunk: int,
        claim: Callable[[Sequence[int], int], tuple[list[int], set[int]]] = lambda units, count: (
            list(units[:count]),
            set(),
        ),
    ):
        self.chunk, self._claim = chunk, claim
        self._waiting, self._suspects, self._died = list(wanted), deque[int](), Counter[int]()

    @property
    def finished(self) -> bool:
        """Nothing waits. What other processes have claimed does wait: they may die."""
        return not self._waiting and not self._suspects

    def take(self) -> list[int]:
        """The next chunk; empty if nothing waits or others have claimed all of it."""
        if not self._waiting:
            return []
        taken, done = self._claim(self._waiting, self.chunk)
        gone = done.union(taken)
        self._waiting = [unit for unit in self._waiting if unit not in gone]
        return taken

    def suspect(self) -> int | None:
        """A unit that must be done by itself, if there is one."""
        return self._suspects.popleft() if self._suspects else None

    def raised(self, units: Sequence[int]) -> list[int]:
        """An error came while these were worked on. Those that are given up; the others are tried one by one."""
        if len(units) == 1:
            return list(units)
        self._suspects.extend(units)
        return []

    def died(self, units: Sequence[int]) -> list[int]:
        """Their worker died or hung. Those that are given up, after `TRIES` deaths; the others are tried again."""
        self._died.update(units)
        lost = [unit for unit in units if self._died[unit] >= TRIES]
        self._suspects.extend(unit for unit in units if self._died[unit] < TRIES)
        return lost

    def chunks(self) -> Iterator[list[int]]:
        """A suspect alone, or else chunk after chunk until none is to be had: for a worker in this process."""
        alone = self.suspect()
        if alone is not None:
            yield [alone]
            return
        while chunk := self.take():
            yield chunk
