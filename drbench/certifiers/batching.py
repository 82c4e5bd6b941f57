"""How many rows go through a network at once, and back-off when memory runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from drbench.api import Defense, Draws
from drbench.asking import ask
from drbench.memory import keep_freed_memory


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
            return ask(self.defense, "logits", z, self.sigma, draws)
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
