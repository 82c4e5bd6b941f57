"""Workers of a Ray cluster, or of this machine if there is none (`pip install drbench[ray]`).

One actor for each accelerator, or for each share of the CPU. The cluster is the one that RAY_ADDRESS names; nodes may
join and leave. Whoever reaches the ports of a cluster can run code there: turn token authentication on
(RAY_AUTH_MODE=token) before it listens to a network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from drbench.errors import DrbenchError
from drbench.executors import Answer, Job
from drbench.executors.inline import POLL, describe
from drbench.executors.units import TRIES, Units


class Ray:
    """`workers` actors, each with a resident network; a dead or hung one is replaced and its units go on.

    0 workers stand for as many as the cluster has accelerators, or else cores.

    Parameters
    ----------
    timeout : float or None
        Seconds without an answer after which an actor is killed.
    """

    def __init__(self, workers: int, timeout: float | None = None):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise DrbenchError("run.executor=ray needs Ray 2.52 or later: pip install 'drbench[ray]'") from error
        self.timeout, self._ray = timeout, ray
        self._ours = not ray.is_initialized()
        if self._ours:
            address = os.environ.get("RAY_ADDRESS")
            ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
        there = ray.cluster_resources()
        share = {"num_gpus": 1} if there.get("GPU") else {"num_cpus": 1}
        self.workers = workers or max(1, int(there.get("GPU") or there.get("CPU", 1)))
        self._remote = ray.remote(**share, max_restarts=0)(_Actor)
        self._crew = {number: self._start(number) for number in range(self.workers)}
        self._failed_starts = 0

    def run(self, job: Job, units: Units) -> Iterator[Answer]:
        opening = {number: actor.open.remote(job) for number, actor in self._crew.items()}
        self._ray.wait(list(opening.values()))  # one is enough to begin: nodes may join later
        return self._answers(job, units, opening)

    def close(self) -> None:
        for actor in self._crew.values():
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()

    def _start(self, number: int):
        return self._remote.remote(number, self.workers, os.getcwd())

    def _answers(self, job: Job, units: Units, opening: dict) -> Iterator[Answer]:
        busy: dict[int, _Stream] = {}
        try:
            while True:
                self._admit(job, opening)
                for number in self._crew.keys() - busy.keys() - opening.keys():
                    alone = units.suspect()
                    if chunk := units.take() if alone is None else [alone]:
                        busy[number] = _Stream(self._crew[number], chunk)
                if not busy and units.finished:
                    return
                awaited = [stream.answers for stream in busy.values()] + list(opening.values())
                ready = self._ray.wait(awaited, timeout=POLL)[0] if awaited else time.sleep(POLL) or []
                for number in [number for number, stream in busy.items() if stream.answers in ready]:
                    yield from self._hear(busy, opening, number, job, units)
                for number, stream in list(busy.items()):
                    if self.timeout and time.monotonic() - stream.heard > self.timeout:
                        reason = f"no answer in {self.timeout:g} s"
                        yield from self._replace(opening, number, job, units, busy.pop(number), reason)
        finally:
            for number in busy:  # we are being interrupted: its answers must not reach the next job
                self._ray.kill(self._crew[number])

    def _admit(self, job: Job, opening: dict) -> None:
        """Take those out of `opening` that are ready to work; start one anew that died meanwhile."""
        for number in [number for number, opened in opening.items() if self._ray.wait([opened], timeout=0)[0]]:
            try:
                self._ray.get(opening.pop(number))
            except self._ray.exceptions.RayTaskError as error:
                raise DrbenchError(f"a Ray worker could not open the job: {describe(error.cause)}") from error
            except self._ray.exceptions.RayActorError as error:
                self._failed_starts += 1
                if self._failed_starts > TRIES * self.workers:
                    raise DrbenchError(f"Ray workers die before they begin: {describe(error)}") from error
                self._crew[number] = self._start(number)
                opening[number] = self._crew[number].open.remote(job)

    def _hear(self, busy: dict[int, _Stream], opening: dict, number: int, job: Job, units: Units) -> Iterator[Answer]:
        stream = busy[number]
        try:
            answer = self._ray.get(next(stream.answers))
            del stream.pending[answer.unit]
            stream.heard = time.monotonic()
            yield answer
        except StopIteration:
            del busy[number]
        except self._ray.exceptions.RayTaskError as error:
            del busy[number]
            if isinstance(error.cause, DrbenchError):
                raise error.cause from None
            for unit in units.raised(list(stream.pending)):
                yield Answer(unit, error=describe(error.cause))
        except self._ray.exceptions.RayActorError:
            yield from self._replace(opening, number, job, units, busy.pop(number), "worker died")

    def _replace(
        self, opening: dict, number: int, job: Job, units: Units, stream: _Stream, reason: str
    ) -> Iterator[Answer]:
        self._ray.kill(self._crew[number])
        self._crew[number] = self._start(number)
        opening[number] = self._crew[number].open.remote(job)
        for unit in units.died(list(stream.pending)):
            yield Answer(unit, error=reason)


class _Stream:
    """The answers of one actor to one chunk, as they come."""

    def __init__(self, actor, chunk: list[int]):
        self.pending = dict.fromkeys(chunk)
        self.answers = actor.work.options(num_returns="streaming").remote(chunk)
        self.heard = time.monotonic()


class _Actor:
    """The worker's side."""

    def __init__(self, number: int, workers: int, folder: str):
        os.chdir(folder)  # configs name files relative to it; a cluster shares it
        self._place, self._resident, self._work = (number, workers), {}, None

    def open(self, job: Job) -> None:
        self._work = job.open(self._resident, *self._place)

    def work(self, units: list[int]) -> Iterator[Answer]:
        yield from self._work(units)
