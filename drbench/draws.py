"""Counter-based random streams, keyed per fixed block of draws.

The unit of randomness is a *block*: B0 consecutive draws of one stage of one image. Its key is a hash of
(seed, image id, sigma, stage, block index), and each key opens independent Philox streams (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"). The numbers are made on the host, so they are the same on every
device, and they do not depend on how blocks are packed into batches, on the order of images, or on a restart.
Normals come from the Philox bits by the Box-Muller transform, which numpy evaluates for whole arrays: a third of the
cost of numpy's own normals.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IN_CACHE = 2**15  # words transformed at once: larger pieces fall out of the cache
INPUT_NOISE = 0  # stream 0 of a block is the smoothing noise; a defense's own draws use streams 1, 2, ...


def block_key(seed: int, image_id: int | str, sigma: float, stage: str, block: int) -> int:
    """128-bit key of one block of draws.

    `sigma` is part of the key, so different noise levels never share noise.
    """
    text = "\x1f".join((str(seed), str(image_id), float(sigma).hex(), stage, str(block)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def stream(key: int, index: int) -> np.random.Generator:
    """Generator number `index` of a block."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))


class Span(NamedTuple):
    """Rows `start:stop` of the block with this key."""

    key: int
    start: int
    stop: int


def normals(spans: Sequence[Span], index: int, size: int) -> np.ndarray:
    """Standard normals of stream `index`, (rows of all spans, size) float32.

    Row i depends on its block and its place in it alone.
    Each 64-bit word gives two numbers (Box and Muller 1958): 32 bits for the radius, so the largest magnitude is 6.76,
    which a true normal exceeds once in 7e10 draws; and 32 bits for the angle. A row starts at a word of its own.
    """
    half = (size + 1) // 2
    bits = words(spans, index, half)
    numbers = np.empty((len(bits), 2), np.float32)
    for first in range(0, len(bits), IN_CACHE):
        _box_muller(bits[first : first + IN_CACHE], numbers[first : first + IN_CACHE])
    return numbers.reshape(-1, 2 * half)[:, :size]


def words(spans: Sequence[Span], index: int, per_row: int) -> np.ndarray:
    """64 fair random bits, `per_row` times for each row of all spans, from stream `index`: a flat uint64 array."""
    found = np.empty(per_row * sum(stop - start for _, start, stop in spans), np.uint64)
    at = 0
    for key, start, stop in spans:
        count = per_row * (stop - start)
        found[at : at + count] = _words(key, index, per_row * start, count)
        at += count
    return found


def _box_muller(words: np.ndarray, out: np.ndarray) -> None:
    radius = (words >> np.uint64(32)).astype(np.uint32).astype(np.float32)  # numpy converts 32 bits far faster than 64
    radius += np.float32(0.5)  # never 0
    radius *= np.float32(2**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = words.astype(np.uint32).astype(np.float32)
    angle *= np.float32(2 * np.pi * 2**-32)
    np.multiply(radius, np.cos(angle), out=out[:, 0])
    np.multiply(radius, np.sin(angle, out=angle), out=out[:, 1])


_local = threading.local()


def _words(key: int, index: int, first: int, count: int) -> np.ndarray:
    """Words `first`, ... of a stream. One generator a thread, re-keyed: a new one asks the system for entropy."""
    philox = getattr(_local, "philox", None)
    if philox is None:
        philox = _local.philox = np.random.Philox(0)
        _local.fresh = philox.state
    state = _local.fresh["state"]
    state["key"][:] = key & (2**64 - 1), key >> 64
    state["counter"][:] = first // 4, 0, 0, index  # each count of the counter gives four words
    philox.state = _local.fresh
    return philox.random_raw(first % 4 + count)[first % 4 :]


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
        index = self._next_stream(shape)
        return self._on_device(normals(self.spans, index, math.prod(shape[1:])).reshape(shape))

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
        index = self._next_stream(shape)
        # A block is read from its first row, so that a block cut by a batch boundary keeps its numbers.
        parts = [read(stream(key, index), (stop, *shape[1:]))[start:] for key, start, stop in self.spans]
        return self._on_device(np.concatenate(parts) if parts else np.empty(shape, np.float32))

    def _next_stream(self, shape: Sequence[int]) -> int:
        if not shape or shape[0] != self.rows:
            raise ValueError(
                f"Draws: the first dimension must be the {self.rows} rows of the batch, got shape {tuple(shape)}; "
                "ask for (rows, ...) so that each row has its own numbers"
            )
        self._requests += 1
        return self._requests

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
