"""Attacks side by side: on the CPU one a core, which keeps the cores busier than one batch on all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Event

import torch
from torch import Tensor

from drbench.attacks.suite import Found, Suite

LARGEST = 64  # images of a part: what is lost at most when a run is killed


@contextmanager
def one_core_each(device: torch.device) -> Iterator[tuple[ThreadPoolExecutor, int, Event]]:
    """Threads for independent attacks, and their number: one for each core of the host, one on another device.

    The event is for `Suite.stop`, set in the end: after an error or Ctrl-C an attack may have hours to go.
    """
    on_host, threads = device.type == "cpu", torch.get_num_threads()
    workers = threads if on_host else 1
    one_core = {"initializer": torch.set_num_threads, "initargs": (1,)} if on_host else {}
    pool, stop = ThreadPoolExecutor(workers, **one_core), Event()
    try:
        yield pool, workers, stop
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads that start later take the number that was set last


def in_parts(
    suite: Suite, x: Tensor, y: Tensor, ids: Sequence[int | str], todo: Sequence[int], largest: int = LARGEST
) -> Iterator[tuple[list[int], list[Found]]]:
    """Attack the images with numbers `todo`; yields the numbers of a part with its outcomes, in order.

    No outcome depends on how the images are parted.
    """
    if not todo:
        return
    with one_core_each(suite.defense.device) as (pool, workers, stop):
        count = max(-(-len(todo) // largest), min(workers, len(todo)))
        parts = [list(todo[i * len(todo) // count : (i + 1) * len(todo) // count]) for i in range(count)]
        copies = [replace(suite, notes=Counter(), stop=stop) for _ in parts]
        jobs = [
            pool.submit(own.run, x[part], y[part], [ids[i] for i in part])
            for own, part in zip(copies, parts, strict=True)
        ]
        for part, own, running in zip(parts, copies, jobs, strict=True):
            found = running.result()
            suite.notes.update(own.notes)
            yield part, found
