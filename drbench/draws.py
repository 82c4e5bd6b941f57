"""Counter-based random streams, keyed per fixed block of draws.

The unit of randomness is a *block*: B0 consecutive draws of one stage of one image. Its key is a hash of
(seed, image id, sigma, stage, block index), and each key opens independent Philox streams (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"). The numbers are made on the host, so they are the same on every
device, and they do not depend on how blocks are packed into batches, on the order of images, or on a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

INPUT_NOISE = 0  # stream 0 of a block is the smoothing noise; a defense's own draws use streams 1, 2, ...


def block_key(seed: int, image_id: int | str, sigma: float, stage: str, block: int) -> int:
    """128-bit key of one block of draws.

    `sigma` is part of the key, so different noise levels never share noise.
    """
    text = "\x1f".join((str(seed), str(image_id), float(sigma).hex(), stage, str(block)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def stream(key: int, index: int = INPUT_NOISE) -> np.random.Generator:
    """Generator number `index` of a block. Reading it in pieces or at once gives the same numbers."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))


class Span(NamedTuple):
    """Rows `start:stop` of the block with this key."""

    key: int
    start: int
    stop: int


class Draws:
    """All randomness that a defense may use in one call, row by row.

    Row i of every result depends on row i's block and position alone, not on its neighbours in the batch. The n-th
    request of a call reads the n-th stream of each block, so requests must come in the same order in every call.

    Parameters
    ----------
    spans : sequence of Span
        Which rows of which blocks make up the batch, in order.
    device : torch.device or str
        Where the results are needed.
    """

    def __init__(self, spans: Sequence[Span], device: torch.device | str = "cpu"):
        self.spans = tuple(spans)
        self.device = torch.device(device)
        self.rows = sum(stop - start for _, start, stop in self.spans)
        self._requests = INPUT_NOISE

    @classmethod
    def seeded(cls, seed: int, rows: int, device: torch.device | str = "cpu") -> Draws:
        """`rows` independent rows from one seed: for notebooks, training and tests."""
        return cls([Span(block_key(seed, "", 0.0, "seeded", 0), 0, rows)], device)

    def randn(self, *shape: int) -> Tensor:
        """Standard normals, float32; `shape[0]` must be the number of rows."""
        return self._read(shape, lambda generator, size: generator.standard_normal(size, dtype=np.float32))

    def rand(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32; `shape[0]` must be the number of rows."""
        return self._read(shape, lambda generator, size: generator.random(size, dtype=np.float32))

    def randint(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """Uniform integers in [low, high), int64; `shape[0]` must be the number of rows."""
        return self._read(shape, lambda generator, size: generator.integers(low, high, size))

    def __getitem__(self, rows: slice) -> Draws:
        """The same draws, from the start, for a contiguous part of the rows."""
        start, stop, step = rows.indices(self.rows)
        if step != 1:
            raise ValueError(f"Draws can be cut into contiguous rows only, got {rows}")
        parts, at = [], 0
        for key, first, last in self.spans:
            low, high = max(start - at, 0), min(stop - at, last - first)
            if low < high:
                parts.append(Span(key, first + low, first + high))
            at += last - first
        return Draws(parts, self.device)

    def _read(self, shape: Sequence[int], read) -> Tensor:
        if not shape or shape[0] != self.rows:
            raise ValueError(
                f"Draws: the first dimension must be the {self.rows} rows of the batch, got shape {tuple(shape)}; "
                "ask for (rows, ...) so that each row has its own numbers"
            )
        self._requests += 1
        parts = [
            # A block is read from its first row, so that a block cut by a batch boundary keeps its numbers.
            read(stream(key, self._requests), (stop, *shape[1:]))[start:]
            for key, start, stop in self.spans
        ]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(shape, np.float32)
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
