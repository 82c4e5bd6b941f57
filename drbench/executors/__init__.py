"""Who does the work of a run: this process, worker processes, or machines elsewhere.

A *unit* is the number of an image in the subset of the run. A *job* knows how to do units; it is small and can be
pickled, and is opened once in each worker, which keeps the network. An executor takes units from a queue, has them
done at least once, and hands back one answer for each. It may do so in any order and on any number of workers: the
noise is keyed by image and block, so the answers are the same.

units        the queue: what waits, what broke a worker, what is given up
inline       all work in this process
processes    worker processes on this machine
ray          workers of a Ray cluster
slurm        the same command as an array of SLURM jobs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from drbench.executors.units import Units


@dataclass(frozen=True)
class Answer:
    """What came of one unit.

    Parameters
    ----------
    unit : int
    row : object or None
        The record, or None if `error` says why the unit was given up.
    error : str or None
    batch_rows : int or None
        Rows of a batch in the worker by now: memory may have run out.
    """

    unit: int
    row: Any = None
    error: str | None = None
    batch_rows: int | None = None


Work = Callable[[Iterable[int]], Iterator[Answer]]


class Job(Protocol):
    """The work of one run, as a worker sees it."""

    def open(self, resident: dict, worker: int, workers: int) -> Work:
        """Make ready to work.

        Parameters
        ----------
        resident : dict
            What this worker keeps from one job to the next.
        worker, workers : int
            Which of how many, to share the cores and accelerators of a machine.

        Returns
        -------
        callable
            Reads units lazily and yields an answer for each, in any order.
        """


class Executor(Protocol):
    """Where jobs are done. Its workers live from one job to the next."""

    workers: int

    def run(self, job: Job, units: Units) -> Iterator[Answer]:
        """Open the job in all workers; then answers for all units that the queue hands out.

        Mistakes of the user come as `DrbenchError`.
        """

    def close(self) -> None:
        """Let the workers go."""


def make(name: str, workers: int, timeout: float | None, resident: dict) -> Executor:
    """An executor: "inline", "processes" or "ray".

    Parameters
    ----------
    workers : int
        How many; `inline` has one.
    timeout : float or None
        Seconds without an answer after which a worker is taken for hung, and replaced.
    resident : dict
        What this process keeps; used by `inline` alone.
    """
    if name == "processes":
        from drbench.executors.processes import Processes

        return Processes(workers, timeout)
    if name == "ray":
        from drbench.executors.ray import Ray

        return Ray(workers, timeout)
    from drbench.executors.inline import Inline

    return Inline(resident)
