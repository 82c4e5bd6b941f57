"""Attacks that run at the same time and share calls of the network: few rows cost almost as much as many."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from drbench.attacks.losses import Loss
from drbench.attacks.views import SMALLEST, Answer, View, joined
from drbench.cores import one_core_each
from drbench.draws import Span

Result = TypeVar("Result")


class Query(NamedTuple):
    """What `View.answer` is asked; `spans` has one for each image."""

    view: View
    x: Tensor
    y: Tensor
    spans: Sequence[Span]
    draws: int
    loss: Loss
    target: Tensor | None
    gradient: bool

    @property
    def kind(self) -> tuple:
        """Queries of one kind can be asked as one."""
        return self.view, self.draws, self.loss, self.target is None, self.gradient


class Lockstep:
    """Rounds: when every attack that still runs has asked, all are answered, in as few calls as possible.

    So what shares a call follows from the attacks and the number of workers, never from the clock.

    Parameters
    ----------
    pool : Executor
        Answers, in `workers` threads.
    rows : int
        Of a call, at most.
    """

    def __init__(self, pool: Executor, workers: int, rows: int):
        self.pool, self.workers, self.rows = pool, workers, rows
        self._views: dict[str, View] = {}
        self._lock, self._thread = threading.Lock(), threading.local()
        self._playing: set[int] = set()
        self._asked: dict[int, tuple[Query, Future[Answer]]] = {}
        self._failed: BaseException | None = None

    def play(self, jobs: Sequence[Callable[[], Result]], device: torch.device) -> list[Result]:
        """The results of `jobs`, which run at the same time; the first that fails ends all of them."""
        self._playing = set(range(len(jobs)))
        with one_core_each(device, max(1, len(jobs))) as threads:
            try:
                running = [threads.submit(self._take_part, number, job) for number, job in enumerate(jobs)]
                return [each.result() for each in running]
            except BaseException as error:
                self._fail(error)  # for those who wait for a job that never began
                raise

    def shared(self, name: str, view: View) -> View:
        """The view of that name whose queries wait for a round; the first `view` of a name answers for all."""
        with self._lock:
            return _Shared(self._views.setdefault(name, view), self)

    def ask(self, query: Query) -> Answer:
        """The answer: in the next round for a job that is played, at once for others."""
        if not hasattr(self._thread, "number"):
            return query.view.answer(*query[1:])
        future: Future[Answer] = Future()
        with self._lock:
            if self._failed:
                raise self._failed
            self._asked[self._thread.number] = query, future
            self._answer_if_due()
        return future.result()

    def _take_part(self, number: int, job: Callable[[], Result]) -> Result:
        self._thread.number = number
        try:
            result = job()
            with self._lock:
                self._playing.remove(number)
                self._answer_if_due()
            return result
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        """Whoever has asked, or asks from now on, gets the error."""
        with self._lock:
            self._failed = self._failed or error
            for _, future in self._asked.values():
                future.set_exception(self._failed)
            self._asked = {}

    def _answer_if_due(self) -> None:
        if not self._asked or len(self._asked) < len(self._playing):
            return
        kinds: dict[tuple, list[tuple[Query, Future]]] = {}
        for _, (query, future) in sorted(self._asked.items()):
            kinds.setdefault(query.kind, []).append((query, future))
        begun = [self._begin([query for query, _ in several]) for several in kinds.values()]
        answers = [joined([part.result() for part in parts]) for parts in begun]
        self._asked = {}
        for answer, several in zip(answers, kinds.values(), strict=True):
            owns = _cut(answer, [len(query.x) for query, _ in several])
            for (_, future), own in zip(several, owns, strict=True):
                future.set_result(own)

    def _begin(self, queries: list[Query]) -> list[Future[Answer]]:
        """Queries of one kind as one, in parts that keep the workers busy."""
        view, *_, draws, loss, target, gradient = queries[0]
        x, y = (torch.cat([getattr(query, name) for query in queries]) for name in ("x", "y"))
        aims = None if target is None else torch.cat([query.target for query in queries])
        spans = [span for query in queries for span in query.spans]
        even = max(-(-len(x) // self.workers), -(-SMALLEST // draws))
        size = max(1, min(even, self.rows // draws))
        return [
            self.pool.submit(
                view.answer, x[at : at + size], y[at : at + size], spans[at : at + size], draws, loss,
                None if aims is None else aims[at : at + size], gradient,
            )
            for at in range(0, len(x), size)
        ]  # fmt: skip


class _Shared(View):
    """A view whose queries are answered together with those of other attacks."""

    def __init__(self, view: View, lockstep: Lockstep):
        self.view, self.lockstep = view, lockstep
        self.classes, self.device, self.randomized, self.faithful = (
            view.classes, view.device, view.randomized, view.faithful
        )  # fmt: skip

    def logits(self, x, spans):
        return self.view.logits(x, spans)

    def answer(self, x, y, spans, draws, loss, target=None, gradient=True):
        return self.lockstep.ask(Query(self.view, x, y, spans, draws, loss, target, gradient))


def _cut(answer: Answer, sizes: list[int]) -> list[Answer]:
    slopes = [None] * len(sizes) if answer.gradient is None else answer.gradient.split(sizes)
    return [Answer(*own) for own in zip(answer.loss.split(sizes), slopes, answer.failures.split(sizes), strict=True)]
