"""The number of rows of a batch: a short measured search."""

from __future__ import annotations

import statistics
import time

import torch

from drbench.api import Defense
from drbench.certifiers.batching import Forward, is_out_of_memory
from drbench.certifiers.engine import Request, count_votes

SMALLEST, LARGEST = 32, 8192
BUSY = 9  # seconds in rows for each second of launching: the guess is nine tenths of the way to the top speed
SECONDS_PER_SIZE = 0.02  # least time spent on a measurement
QUICK = 0.25  # seconds of one call: slower ones are not repeated at once
TURNS = 5  # measurements of the best size and its neighbours
LONGEST = 2.0  # seconds of one call: larger batches would only make the run less responsive
ENOUGH = 0.97  # of the best speed: measurements waver by as much, and a smaller batch leaves the cache to the others
SHARE, AT_LEAST = 0.03, 0.5  # of the work, and seconds, that the whole search may take


def find_batch_rows(defense: Defense, sigma: float, most: int = LARGEST) -> int:
    """The smallest batch whose measured rows per second, in one worker, are within 3 % of the best found.

    A batch of one row shows what it costs to launch all operations, one of `SMALLEST` what a row adds. The size at
    which the rows take `BUSY` times as long as the launch is the first guess. Caches are not in that model: it is
    doubled as long as that pays, then half and twice as many rows are timed against it, in turns, all as long as the
    search is short beside the work on `most` rows, the part of one worker. No call takes more than `LONGEST` seconds,
    and memory is not exceeded.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if defense.device.type == "cpu" else threads)
    try:
        return _search(defense, sigma, most)
    finally:
        torch.set_num_threads(threads)


def _search(defense: Defense, sigma: float, most: int) -> int:
    start, largest, rates = time.perf_counter(), max(min(most, LARGEST), SMALLEST), {}

    def measure(rows: int) -> float:
        """Rows per second; 0 where memory runs out."""
        rates.setdefault(rows, []).append(_rows_per_second(defense, sigma, rows))
        return rates[rows][-1]

    def in_time(rows: int) -> bool:
        planned = min(launch + rows * row, rows / max(map(max, rates.values())))
        left = max(AT_LEAST, SHARE * most * row) - (time.perf_counter() - start)
        return planned < LONGEST and (2 if planned < QUICK else 1) * planned < left

    single = measure(1)
    if single * LONGEST < 1 or not measure(SMALLEST):
        return 1
    launch, few = 1 / single, SMALLEST / rates[SMALLEST][0]
    row = max(few - launch, few / 100) / (SMALLEST - 1)
    guess = SMALLEST
    while 2 * guess <= largest and guess * row < BUSY * launch and launch + 2 * guess * row < LONGEST / 2:
        guess *= 2
    while guess > SMALLEST and in_time(guess) and not measure(guess):
        guess //= 2
    if guess not in rates:
        return guess
    top = guess
    while 2 * top <= largest and in_time(2 * top) and ENOUGH * measure(2 * top) > rates[top][0]:
        top *= 2
    for rows in TURNS * [top // 2, top, 2 * top]:
        if SMALLEST <= rows <= largest and in_time(rows) and rates.get(rows) != [0]:
            measure(rows)
    speeds = {rows: statistics.median(found) for rows, found in rates.items() if rows >= SMALLEST}
    return min(rows for rows, speed in speeds.items() if speed >= ENOUGH * max(speeds.values()))


def _rows_per_second(defense: Defense, sigma: float, rows: int) -> float:
    """0 where memory runs out."""
    try:
        # The first call warms up (allocations, kernel selection), which is little beside the work of a slow one.
        best, spent = rows / (first := _seconds(defense, sigma, rows)), 0.0
        while spent < SECONDS_PER_SIZE and (first < QUICK or rows == 1):
            seconds = _seconds(defense, sigma, rows)
            best, spent = max(best, rows / seconds), spent + seconds
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0.0
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
