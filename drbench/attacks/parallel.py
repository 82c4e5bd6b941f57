"""Attacks side by side: on the CPU one a core, which keeps the cores busier than one batch on all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from drbench.attacks.suite import Found, Suite
from drbench.cores import one_core_each

LARGEST = 64  # images of a part: what is lost at most when a run is killed


class Threads(NamedTuple):
    """Threads, their number, and the job for them: its notes go nowhere, and it stops when the threads are left."""

    pool: ThreadPoolExecutor
    workers: int
    suite: Suite


@contextmanager
def side_by_side(suite: Suite) -> Iterator[Threads]:
    """One thread for each core of the host, one on another device."""
    device, own = suite.defense.device, replace(suite, notes=Counter(), stop=Event())
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    with one_core_each(device, workers) as pool:
        try:
            yield Threads(pool, workers, own)
        finally:
            own.stop.set()  # after an error or Ctrl-C: an attack may have hours to go


def in_parts(
    suite: Suite, x: Tensor, y: Tensor, ids: Sequence[int | str], todo: Sequence[int], largest: int = LARGEST
) -> Iterator[tuple[list[int], list[Found]]]:
    """Attack the images with numbers `todo`; yields the numbers of a part with its outcomes, in order.

    No outcome depends on how the images are parted.
    """
    if not todo:
        return
    with side_by_side(suite) as threads:
        count = max(-(-len(todo) // largest), min(threads.workers, len(todo)))
        parts = [list(todo[i * len(todo) // count : (i + 1) * len(todo) // count]) for i in range(count)]
        copies = [replace(threads.suite, notes=Counter()) for _ in parts]
        jobs = [
            threads.pool.submit(own.run, x[part], y[part], [ids[i] for i in part])
            for own, part in zip(copies, parts, strict=True)
        ]
        for part, own, running in zip(parts, copies, jobs, strict=True):
            found = running.result()
            suite.notes.update(own.notes)
            yield part, found
