"""Threads that have one core each, for work that is independent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_core_each(device: torch.device, workers: int) -> Iterator[ThreadPoolExecutor]:
    """`workers` threads; where the work is done on the host, torch gives each of them one core."""
    threads = torch.get_num_threads()
    one_core = {"initializer": torch.set_num_threads, "initargs": (1,)} if device.type == "cpu" else {}
    pool = ThreadPoolExecutor(workers, **one_core)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads that start later take the number that was set last
