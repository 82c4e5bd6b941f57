"""The vote engine: noisy copies of many images through one network, in full batches, votes counted on the device.

The unit of work is a block of draws of one stage of one image (see `drbench.draws`). Batches are filled with blocks of
many images, so counts do not depend on batch size, image order, or where a run was interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from drbench.api import Draws
from drbench.certifiers.batching import Forward, workers
from drbench.certifiers.noise import PLAIN, Smoothing
from drbench.cores import one_core_each
from drbench.draws import Span, block_key
from drbench.evidence import ABSTAIN


class Request(NamedTuple):
    """`draws` noisy copies of image number `row`, from the streams of one stage, after its first `start` draws."""

    row: int
    image_id: int | str
    stage: str
    draws: int
    start: int = 0  # a multiple of the block size


class Votes(NamedTuple):
    """The answer to a request: class -> count, and how many draws gave non-finite logits (they are no votes).

    `ABSTAIN` counts draws whose noise was not certain (`noise.Smoothing.copies`).
    """

    request: Request
    counts: dict[int, int]
    nonfinite: int


@dataclass
class _Batch:
    """Which draws make up a batch, and of which images. A request may begin in one batch and end in a later one."""

    requests: list[Request] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)  # for each span, the position of its request in `requests`,
    images: list[int] = field(default_factory=list)  # and the number of the image that is copied
    filled: int = 0
    last_is_complete: bool = False

    def add(self, span: Span, owner: int, image: int) -> None:
        self.spans.append(span)
        self.owners.append(owner)
        self.images.append(image)
        self.filled += span.stop - span.start

    def pad(self, rows: int) -> None:
        """Fill up to the constant batch shape; owner `len(requests)` stands for votes that are dropped."""
        if self.filled < rows:
            span = Span(block_key(0, "padding", 0.0, "padding", 0), 0, rows - self.filled)
            self.add(span, len(self.requests), self.images[-1])


def count_votes(
    forward: Forward,
    x: Tensor,
    requests: Iterable[Request],
    *,
    seed: int = 0,
    block: int = 100,
    smoothing: Smoothing = PLAIN,
) -> Iterator[Votes]:
    """Votes of `forward.defense` on images under noise of level `forward.sigma`.

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
    smoothing : Smoothing
        Distribution of the noise, and how it is sampled.
    """
    carried = np.zeros(forward.defense.num_classes + 2, np.int64)
    flat = x.flatten(1).numpy()
    work = partial(_count, forward, flat=flat, smoothing=smoothing)
    for batch, counts in _side_by_side(
        work, _batches(requests, forward.sigma, seed, block, forward.rows), forward.device
    ):
        yield from _settle(batch, counts, carried)


def _side_by_side(
    work: Callable[[_Batch], np.ndarray], batches: Iterable[_Batch], device: torch.device
) -> Iterator[tuple[_Batch, np.ndarray]]:
    """Each batch and its counts, in order."""
    if workers(device) == 1:  # no thread: two that pass the interpreter to and fro cost a small network a fifth more
        yield from ((batch, work(batch)) for batch in batches)
        return
    with one_core_each(device, workers(device)) as pool:
        pending: deque[tuple[_Batch, Future]] = deque()
        for batch in batches:
            pending.append((batch, pool.submit(work, batch)))
            if len(pending) > workers(device):  # one batch waits, so that no worker does
                first, counts = pending.popleft()
                yield first, counts.result()
        yield from ((batch, counts.result()) for batch, counts in pending)


def _batches(requests: Iterable[Request], sigma: float, seed: int, block: int, rows: int) -> Iterator[_Batch]:
    batch = _Batch()
    for request in requests:
        batch.requests.append(request)
        for index, first in enumerate(range(0, request.draws, block), request.start // block):
            key = block_key(seed, request.image_id, sigma, request.stage, index)
            size, done = min(block, request.draws - first), 0
            while done < size:
                take = min(size - done, rows - batch.filled)
                batch.add(Span(key, done, done + take), len(batch.requests) - 1, request.row)
                done += take
                batch.last_is_complete = first + done == request.draws
                if batch.filled == rows:
                    yield batch
                    batch = _Batch()
                    if first + done < request.draws:
                        batch.requests.append(request)
    if batch.filled:
        batch.pad(rows)
        yield batch


@torch.inference_mode()
def _count(forward: Forward, batch: _Batch, flat: np.ndarray, smoothing: Smoothing) -> np.ndarray:
    """(requests of the batch, classes + 2) counts; the last columns count non-finite and uncertain rows.

    `flat`: (M, C * H * W) clean images.
    """
    device, classes = forward.device, forward.defense.num_classes
    lengths = [span.stop - span.start for span in batch.spans]
    noisy, uncertain = smoothing.copies(batch.spans, flat[np.repeat(batch.images, lengths)], forward.sigma)
    logits = forward(_on_device(forward, noisy), Draws(batch.spans, device))
    vote = logits.argmax(dim=1).where((logits * 0).sum(dim=1) == 0, classes)  # 0, unless a logit is not finite
    if uncertain is not None and uncertain.any():
        vote[torch.from_numpy(uncertain).to(device)] = classes + 1
    owners = torch.from_numpy(np.repeat(batch.owners, lengths)).to(device, non_blocking=True)
    counts = torch.zeros(len(batch.requests) + 1, classes + 2, dtype=torch.int64, device=device)  # last row: padding
    return counts.index_put_((owners, vote), torch.ones_like(vote), accumulate=True)[:-1].cpu().numpy()


def _on_device(forward: Forward, rows: np.ndarray) -> Tensor:
    noisy = torch.from_numpy(rows.reshape(-1, *forward.defense.input_shape))
    return noisy.pin_memory().to(forward.device, non_blocking=True) if forward.device.type == "cuda" else noisy


def _settle(batch: _Batch, counts: np.ndarray, carried: np.ndarray) -> Iterator[Votes]:
    """Yield the requests that this batch completes; `carried` keeps the counts of one that goes on."""
    for position, (request, row) in enumerate(zip(batch.requests, counts, strict=True)):
        carried += row
        if position < len(batch.requests) - 1 or batch.last_is_complete:
            *votes, nonfinite, uncertain = carried.tolist()
            counted = {c: count for c, count in enumerate(votes) if count} | ({ABSTAIN: uncertain} if uncertain else {})
            yield Votes(request, counted, nonfinite)
            carried[:] = 0
