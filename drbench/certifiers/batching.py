"""How many rows go through a network at once: a short measured search, and back-off when memory runs out."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from drbench.api import Defense, Draws

SMALLEST, LARGEST = 32, 8192
SECONDS_PER_SIZE = 0.1  # time spent on each candidate: a second or two for the whole search


class Forward:
    """`defense.logits` in chunks of at most `rows`, halved for good whenever the device runs out of memory.

    Results do not depend on it: row i of the logits depends on row i of the input and of the draws alone.
    """

    def __init__(self, defense: Defense, sigma: float, rows: int):
        self.defense, self.sigma, self.rows = defense, sigma, rows

    def __call__(self, z: Tensor, draws: Draws) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        parts, at = [], 0
        while at < len(z):
            take = slice(at, min(at + self.rows, len(z)))
            part = self._attempt(z[take], draws if len(z) <= self.rows else draws[take])
            if part is None:
                self.rows = max(1, self.rows // 2)
            else:
                parts.append(part)
                at = take.stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

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
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


@torch.inference_mode()
def find_batch_rows(defense: Defense, sigma: float, most: int = LARGEST) -> int:
    """The smallest batch whose measured rows per second are within 3 % of the best found.

    Doubles the batch until two sizes in a row bring no gain, memory runs out, or `most` rows are reached.
    """
    rates: dict[int, float] = {}
    rows = SMALLEST
    while rows <= max(most, SMALLEST):
        try:
            rates[rows] = _rows_per_second(defense, sigma, rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        best = max(rates.values())
        if len(rates) > 2 and all(rate < 0.97 * best for rate in list(rates.values())[-2:]):
            break
        rows *= 2
    best = max(rates.values(), default=0.0)
    return min((rows for rows, rate in rates.items() if rate >= 0.97 * best), default=1)


def _rows_per_second(defense: Defense, sigma: float, rows: int) -> float:
    draws = Draws.seeded(0, rows, defense.device)
    z = draws.randn(rows, *defense.input_shape)
    defense.logits(z, sigma, draws)  # warm-up: allocations, kernel selection
    best, spent = 0.0, 0.0
    while spent < SECONDS_PER_SIZE:
        _synchronize(z)
        start = time.perf_counter()
        defense.logits(z, sigma, Draws.seeded(0, rows, defense.device))
        _synchronize(z)
        seconds = time.perf_counter() - start
        best, spent = max(best, rows / seconds), spent + seconds
    return best


def _synchronize(z: Tensor) -> None:
    if z.is_cuda:
        torch.cuda.synchronize(z.device)
