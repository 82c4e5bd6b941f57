"""The number of rows of a batch: a short measured search."""

from __future__ import annotations

import statistics
import time

import torch

from drbench.api import Defense
from drbench.certifiers.batching import Forward, is_out_of_memory, workers
from drbench.certifiers.engine import Request, count_votes

SMALLEST, LARGEST = 32, 8192
SECONDS_PER_SIZE = 0.1  # time spent on each candidate: a second or two for the whole search of a fast network
TURNS = 5  # repetitions for the sizes that come near the best
LONGEST = 2.0  # seconds of one call: larger batches would only make the run less responsive
SHARE, AT_LEAST = 0.04, 0.4  # of the work, and seconds, that the whole search may take


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
        shares = [[rate / max(turn) for rate in turn] for turn in turns]  # a slow turn says as much as a fast one
        rates = {rows: statistics.median(found) for rows, found in zip(near, zip(*shares, strict=True), strict=True)}
    return min((rows for rows, rate in rates.items() if rate >= 0.99 * max(rates.values())), default=1)


def _rows_per_second(defense: Defense, sigma: float, rows: int) -> float:
    # The first call warms up (allocations, kernel selection) and counts only if it was too slow to be repeated.
    best, spent = rows / (first := _seconds(defense, sigma, rows)), 0.0
    while spent < SECONDS_PER_SIZE and first < LONGEST:
        seconds = _seconds(defense, sigma, rows)
        best, spent = max(best, rows / seconds), spent + seconds
    return best


def _seconds(defense: Defense, sigma: float, rows: int) -> float:
    """Of one batch: noise, network and counts."""
    forward, x = Forward(defense, sigma, rows), torch.zeros(1, *defense.input_shape)
    start = time.perf_counter()
    list(count_votes(forward, x, [Request(0, "", "search", rows)]))
    seconds = time.perf_counter() - start
    if forward.rows < rows:
        raise torch.OutOfMemoryError(f"out of memory with {rows} rows")
    return seconds
