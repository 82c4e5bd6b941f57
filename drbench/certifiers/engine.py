"""The vote engine: noisy copies of many images through one network, in full batches, votes counted on the device.

The unit of work is a block of draws of one stage of one image (see `drbench.draws`). Batches are filled with blocks of
many images, so counts do not depend on batch size, image order, or where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from drbench.api import Draws, DrbenchError
from drbench.certifiers.batching import Forward
from drbench.draws import Span, block_key, stream


class Request(NamedTuple):
    """`draws` noisy copies of image number `row`, from the streams of one stage."""

    row: int
    image_id: int | str
    stage: str
    draws: int


class Votes(NamedTuple):
    """The answer to a request: class -> count, and how many draws gave non-finite logits (they are no votes)."""

    request: Request
    counts: dict[int, int]
    nonfinite: int


@dataclass
class _Batch:
    """Rows under construction. `owners[i]` is the position in `requests` of the request that row i belongs to."""

    noisy: Tensor
    owners: np.ndarray
    filled: int = 0
    spans: list[Span] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    last_is_complete: bool = False

    def pad(self) -> None:
        """Repeat the last row up to the constant batch shape; the votes of padding are dropped."""
        if self.filled < len(self.owners):
            self.noisy[self.filled :] = self.noisy[self.filled - 1]
            self.owners[self.filled :] = len(self.requests)
            self.spans.append(Span(block_key(0, "padding", 0.0, "padding", 0), 0, len(self.owners) - self.filled))


def count_votes(
    forward: Forward, x: Tensor, requests: Iterable[Request], *, seed: int = 0, block: int = 100
) -> Iterator[Votes]:
    """Votes of `forward.defense` on images under Gaussian noise of level `forward.sigma`.

    Parameters
    ----------
    forward : Forward
        The defense (in eval mode), its noise level, pixel units, and the number of rows of a batch.
    x : Tensor
        (M, C, H, W) float32 clean images in [0, 1], on the host.
    requests : iterable of Request
        Read lazily, in order; one `Votes` comes back for each, in the same order.
    seed, block : int
        Key of the random streams; part of the identity of a run.
    """
    make = _batches(x.numpy(), requests, forward.sigma, seed, block, forward.rows, forward.device)
    classes = forward.defense.num_classes
    carried = np.zeros(classes + 1, np.int64)
    before: tuple[_Batch, Tensor] | None = None
    # One thread draws the noise of the next batch while the network works on this one, and the counts of a batch are
    # fetched only after the next was launched: neither the host nor the device waits for the other.
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(next, make, None)
        while (batch := upcoming.result()) is not None:
            upcoming = ahead.submit(next, make, None)
            counts = _count(forward, batch, classes)
            if before is not None:
                yield from _settle(*before, carried)
            before = batch, counts
        if before is not None:
            yield from _settle(*before, carried)


def _batches(
    x: np.ndarray, requests: Iterable[Request], sigma: float, seed: int, block: int, rows: int, device: torch.device
) -> Iterator[_Batch]:
    def new() -> _Batch:
        noisy = torch.empty(rows, *x.shape[1:], pin_memory=device.type == "cuda")
        return _Batch(noisy, np.zeros(rows, np.int64))

    batch = new()
    for request in requests:
        batch.requests.append(request)
        for index, first in enumerate(range(0, request.draws, block)):
            key = block_key(seed, request.image_id, sigma, request.stage, index)
            noise, size, done = stream(key), min(block, request.draws - first), 0
            while done < size:
                take = min(size - done, rows - batch.filled)
                _fill(batch, x[request.row], noise, sigma, take)
                batch.spans.append(Span(key, done, done + take))
                done += take
                batch.last_is_complete = first + done == request.draws
                if batch.filled == rows:
                    yield batch
                    batch = new()
                    if first + done < request.draws:
                        batch.requests.append(request)
    if batch.filled:
        batch.pad()
        yield batch


def _fill(batch: _Batch, image: np.ndarray, noise: np.random.Generator, sigma: float, rows: int) -> None:
    """Append `rows` copies of the image plus sigma times the next numbers of its noise stream."""
    target = batch.noisy.numpy()[batch.filled : batch.filled + rows]
    noise.standard_normal(out=target, dtype=np.float32)
    target *= np.float32(sigma)
    target += image
    batch.owners[batch.filled : batch.filled + rows] = len(batch.requests) - 1
    batch.filled += rows


@torch.inference_mode()
def _count(forward: Forward, batch: _Batch, classes: int) -> Tensor:
    """(requests of the batch, classes + 1) counts on the device; the last column counts non-finite rows."""
    device = forward.device
    logits = forward(batch.noisy.to(device, non_blocking=True), Draws(batch.spans, device))
    if logits.shape != (len(batch.owners), classes):
        raise DrbenchError(
            f"{type(forward.defense).__name__}.logits: expected shape {(len(batch.owners), classes)} "
            f"(rows, num_classes), got {tuple(logits.shape)}"
        )
    vote = logits.argmax(dim=1).where(logits.isfinite().all(dim=1), classes)
    owners = torch.from_numpy(batch.owners).to(device, non_blocking=True)
    counts = torch.zeros(len(batch.requests) + 1, classes + 1, dtype=torch.int64, device=device)  # last row: padding
    # Not bincount, which waits for the device to size its result.
    return counts.index_put_((owners, vote), torch.ones_like(vote), accumulate=True)[:-1]


def _settle(batch: _Batch, counts: Tensor, carried: np.ndarray) -> Iterator[Votes]:
    """Yield the requests that this batch completes; `carried` keeps the counts of one that goes on."""
    for position, (request, row) in enumerate(zip(batch.requests, counts.cpu().numpy(), strict=True)):
        carried += row
        if position < len(batch.requests) - 1 or batch.last_is_complete:
            counted = {int(c): int(carried[c]) for c in np.flatnonzero(carried[:-1])}
            yield Votes(request, counted, int(carried[-1]))
            carried[:] = 0
