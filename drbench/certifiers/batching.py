"""How many rows go through a network at once: a short measured search, and back-off when memory runs out."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from drbench.api import Defense, Draws
from drbench.memory import keep_freed_memory

SMALLEST, LARGEST = 32, 8192
SECONDS_PER_SIZE = 0.1  # time spent on each candidate: a second or two for the whole search of a fast network
TURNS = 5  # repetitions for the sizes that come near the best
LONGEST = 2.0  # seconds of one call: larger batches would only make the run less responsive
SHARE, AT_LEAST = 0.1, 1.0  # of the work, and seconds, that the whole search may take


def workers(device: torch.device) -> int:
    """How many batches are worked on side by side.

    On the CPU as many as there are cores, each of which runs the network by itself: that keeps the cores busier than
    all of them on one batch, noise is drawn in parallel, and the answers do not depend on the number of cores. On an
    accelerator two, so that one draws noise while the other waits for the device.
    """
    return torch.get_num_threads() if device.type == "cpu" else 2


def largest_useful(rows: int, total: int, device: torch.device) -> int:
    """At most `rows` rows a batch, and no more than give every worker a part of `total`."""
    return max(1, min(rows, -(-total // workers(device))))


def even(total: int, rows: int) -> int:
    """Batches of at most `rows` that divide `total` evenly, so that hardly any row is padding."""
    return -(-total // -(-total // rows))


class Forward:
    """`defense.logits` in chunks of at most `rows`, halved for good whenever the device runs out of memory.

    `backed_off` is told the new number of rows. Results do not depend on it: row i of the logits depends on row i of
    the input and of the draws alone.
    """

    def __init__(
        self, defense: Defense, sigma: float, rows: int, backed_off: Callable[[int], None] = lambda rows: None
    ):
        self.defense, self.sigma, self.rows, self.backed_off = defense, sigma, rows, backed_off
        self.device = defense.device  # kept: looking it up walks all modules
        self._lock = threading.Lock()
        keep_freed_memory()

    def __call__(self, z: Tensor, draws: Draws) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        parts, at = [], 0
        while at < len(z):
            take = slice(at, min(at + self.rows, len(z)))
            part = self._attempt(z[take], draws if len(z) <= self.rows else draws[take])
            if part is None:
                self._halve(take.stop - take.start)
            else:
                parts.append(part)
                at = take.stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _halve(self, failed: int) -> None:
        with self._lock:  # several workers may fail at the same size: it is halved once
            if self.rows > max(1, failed // 2):
                self.rows = max(1, failed // 2)
                self.backed_off(self.rows)

    def _attempt(self, z: Tensor, draws: Draws) -> Tensor | None:
        try:
            return self.defense.logits(z, self.sigma, draws)
        except RuntimeError as error:
            if len(z) == 1 or not is_out_of_memory(error):
                raise
        # Outside the handler, so that the failed call's tensors are no longer referenced by its traceback.
        if z.is_cuda:
            torch.cuda.empty_cache()
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that memory ran out, on an accelerator or on the host."""
    texts = ("not enough memory", "can't allocate memory")  # of the host, on different systems
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


@torch.inference_mode()
def find_batch_rows(defense: Defense, sigma: float, most: int = LARGEST) -> int:
    """The smallest batch whose measured rows per second, in one worker, are within 1 % of the best found.

    Doubles the batch until three sizes in a row bring no gain of 3 %, one call takes more than `LONGEST` seconds,
    memory runs out, or a worker's part of `most` rows is reached. Then the sizes that came near the best are timed
    again, in turns. All this ends early if it takes long beside the work on `most` rows.
    """
    threads, part = torch.get_num_threads(), -(-most // workers(defense.device))
    torch.set_num_threads(1 if defense.device.type == "cpu" else threads)
    try:
        return _search(defense, sigma, part)
    finally:
        torch.set_num_threads(threads)


def _search(defense: Defense, sigma: float, most: int) -> int:
    keep_freed_memory()
    start, rates = time.perf_counter(), {}
    rows, best, without_gain = SMALLEST, 0.0, 0

    def in_time(planned: float = 0.0) -> bool:
        return time.perf_counter() - start + planned < max(AT_LEAST, SHARE * most / best)

    while rows <= max(min(most, LARGEST), SMALLEST) and without_gain < 3:
        try:
            rates[rows] = _rows_per_second(defense, sigma, rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        without_gain = 0 if rates[rows] > 1.03 * best else without_gain + 1
        best = max(best, rates[rows])
        rows *= 2
        if rows / 2 / rates[rows // 2] > LONGEST or not in_time(2 * rows / best):
            break
    near = [rows for rows, rate in rates.items() if rate >= 0.8 * best and rows / rate < LONGEST / 10]
    if len(near) > 1:
        turns = [[rates[rows] for rows in near]]
        while len(turns) <= TURNS and in_time(sum(2 * rows / rates[rows] for rows in near)):
            turns.append([_rows_per_second(defense, sigma, rows) for rows in near])
        turns = turns[1:] or turns  # the first look was at sizes one after the other
        rates = {rows: statistics.median(found) for rows, found in zip(near, zip(*turns, strict=True), strict=True)}
    return min((rows for rows, rate in rates.items() if rate >= 0.99 * max(rates.values())), default=1)


def _rows_per_second(defense: Defense, sigma: float, rows: int) -> float:
    z = Draws.seeded(0, rows, defense.device).randn(rows, *defense.input_shape)
    # The first call warms up (allocations, kernel selection) and counts only if it was too slow to be repeated.
    best, spent = rows / (first := _seconds(defense, z, sigma)), 0.0
    while spent < SECONDS_PER_SIZE and first < LONGEST:
        seconds = _seconds(defense, z, sigma)
        best, spent = max(best, rows / seconds), spent + seconds
    return best


def _seconds(defense: Defense, z: Tensor, sigma: float) -> float:
    draws = Draws.seeded(0, len(z), defense.device)
    _synchronize(z)
    start = time.perf_counter()
    defense.logits(z, sigma, draws)
    _synchronize(z)
    return time.perf_counter() - start


def _synchronize(z: Tensor) -> None:
    if z.is_cuda:
        torch.cuda.synchronize(z.device)
