"""Worker processes on this machine, one resident network each. A dead or hung one is replaced and its units go on.

Workers are spawned, never forked: threads and accelerators do not survive a fork. They share no interpreter, so small
networks gain most. Each talks to this process over its own pipe, and ends when this process does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait

from drbench.errors import DrbenchError
from drbench.executors import Answer, Job
from drbench.executors.inline import POLL, describe
from drbench.executors.units import Units


class Processes:
    """`workers` long-lived processes.

    Parameters
    ----------
    timeout : float or None
        Seconds without any message after which a busy worker is killed; its units are tried again.
    """

    def __init__(self, workers: int, timeout: float | None = None):
        self.workers, self.timeout = workers, timeout
        self._crew = [_Worker(number, workers) for number in range(workers)]

    def run(self, job: Job, units: Units) -> Iterator[Answer]:
        for worker in self._crew:
            worker.begin(job)
        problems = [problem for worker in self._crew if (problem := worker.ready())]
        if problems:
            raise DrbenchError(problems[0])
        return self._answers(job, units)

    def _answers(self, job: Job, units: Units) -> Iterator[Answer]:
        try:
            while True:
                busy = [worker for worker in self._crew if worker.busy or worker.start(units)]
                if not busy and units.finished:
                    return
                heard = wait([worker.pipe for worker in busy], POLL) if busy else time.sleep(POLL) or []
                for worker in busy:
                    if worker.pipe in heard:
                        yield from self._hear(worker, units, job)
                    elif self.timeout and time.monotonic() - worker.heard > self.timeout:
                        yield from self._replace(worker, units, job, f"no answer in {self.timeout:g} s")
        finally:
            for worker in self._crew:
                if worker.busy:  # we are being interrupted: its answers must not reach the next job
                    worker.stop()

    def close(self) -> None:
        for worker in self._crew:
            worker.stop()

    def _hear(self, worker: _Worker, units: Units, job: Job) -> Iterator[Answer]:
        worker.heard = time.monotonic()
        try:
            kind, value = worker.pipe.recv()
            if kind == "more":
                worker.more(units)
        except (EOFError, OSError):
            yield from self._replace(worker, units, job, None)
            return
        if kind == "answer":
            del worker.pending[value.unit]
            yield value
        elif kind == "end":
            worker.busy = False
        elif kind == "raised":
            worker.busy = False
            lost, worker.pending = units.raised(list(worker.pending)), {}
            yield from (Answer(unit, error=value) for unit in lost)
        elif kind == "mistake":
            raise DrbenchError(value)
        # "ready" comes from a worker that replaces another

    def _replace(self, worker: _Worker, units: Units, job: Job, reason: str | None) -> Iterator[Answer]:
        ending = _ending(worker.stop())
        reason = reason or ending
        lost, worker.pending = units.died(list(worker.pending)), {}
        worker.begin(job)
        yield from (Answer(unit, error=reason) for unit in lost)


class _Worker:
    """Our side of one worker."""

    def __init__(self, number: int, workers: int):
        self.number, self.workers = number, workers
        self.process, self.pipe = None, None
        self.busy, self.alone, self.heard = False, False, 0.0
        self.pending: dict[int, None] = {}  # handed out, not answered; in order

    def begin(self, job: Job) -> None:
        """Tell the process of a new job; start it first if there is none."""
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.number, self.workers), daemon=True)
            self.process.start()
            theirs.close()  # so that its end is noticed here
        self.busy, self.pending = False, {}
        with contextlib.suppress(OSError):  # it is dead: noticed when it is heard
            self.pipe.send(job)

    def ready(self) -> str | None:
        """Wait until the job is open; why it is not, if so."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            return f"a worker process could not start: {_ending(self.stop())}"
        return None if kind == "ready" else value

    def start(self, units: Units) -> bool:
        """Hand out the first units of a stream; whether there are any."""
        alone = units.suspect()
        self.alone, chunk = alone is not None, units.take() if alone is None else [alone]
        if chunk:
            self.busy, self.heard = True, time.monotonic()
            self._send(chunk)
        return self.busy

    def more(self, units: Units) -> None:
        self._send([] if self.alone else units.take())

    def _send(self, chunk: list[int]) -> None:
        self.pending |= dict.fromkeys(chunk)
        with contextlib.suppress(OSError):  # it is dead: noticed when it is heard
            self.pipe.send(chunk)

    def stop(self) -> int | None:
        """Kill the process; its exit code."""
        self.busy = False
        if self.process is None:
            return None
        self.process.kill()
        self.process.join()
        self.pipe.close()
        code, self.process = self.process.exitcode, None
        return code


def _ending(code: int | None) -> str:
    return f"worker died of signal {-code}" if code and code < 0 else f"worker ended with code {code}"


def _serve(pipe: Connection, number: int, workers: int) -> None:
    """The worker: takes jobs and first chunks of streams, for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    resident: dict = {}
    work = None
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        try:
            if not isinstance(message, list):
                work = message.open(resident, number, workers)
                pipe.send(("ready", None))
                continue
            for answer in work(_stream(pipe, message)):
                pipe.send(("answer", answer))
            pipe.send(("end", None))
        except DrbenchError as error:
            pipe.send(("mistake", str(error)))
        except BrokenPipeError:
            return
        except Exception as error:
            pipe.send(("raised", describe(error)))


def _stream(pipe: Connection, chunk: list[int]) -> Iterator[int]:
    while chunk:
        yield from chunk
        pipe.send(("more", None))
        chunk = pipe.recv()


def _die_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
