"""How the networks of a defense are executed: precision, compilation, CUDA graphs. A certificate is about what was run.

Reduced precision makes another classifier, whose certificates are as valid as those of the first; how often the two
vote differently is measured and stored. Compilation changes rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from drbench.api import Defense, Draws, DrbenchError
from drbench.certifiers.noise import PLAIN, Smoothing
from drbench.draws import Span, block_key

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SAMPLE = 2000  # draws on which two precisions are compared


def reduce_precision(defense: Defense, precision: str) -> None:
    """From now on `defense.logits` runs its networks under autocast; its answer is float32 as before."""
    if precision == "float32":
        return
    plain, device = defense.logits, defense.device.type

    def logits(z: Tensor, sigma: float, draws: Draws) -> Tensor:
        with torch.autocast(device, DTYPES[precision]):
            return plain(z, sigma, draws).float()

    defense.logits = logits


def compile_networks(defense: Defense, cuda_graphs: bool = False) -> None:
    """Compile each of `defense.networks()` in place, unless it is compiled; with `cuda_graphs`, replay them as graphs.

    Graphs belong to the thread that recorded them and own the memory of their answers. So one thread makes all calls,
    and answers are copied.
    """
    if cuda_graphs:
        require_cuda(defense)
    networks = [network for network in defense.networks().values() if "forward" not in vars(network)]
    for network in networks:
        # Only the forward pass: hooks on the network, which count its calls, stay outside.
        network.forward = torch.compile(network.forward, mode="reduce-overhead" if cuda_graphs else "default")
    if cuda_graphs and networks:
        defense.logits = _in_one_thread(defense.logits)


def require_cuda(defense: Defense) -> None:
    """Raise `DrbenchError` unless the defense is on a device that can replay graphs."""
    if defense.device.type != "cuda":
        raise DrbenchError(f"run.cuda_graphs needs a CUDA device, this run is on {defense.device.type}: leave it out")


def _in_one_thread(logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    thread = ThreadPoolExecutor(1)

    @torch.inference_mode()
    def copied(*args) -> Tensor:
        return logits(*args).clone()

    return lambda *args: thread.submit(copied, *args).result()


@torch.inference_mode()
def vote_flips(
    defense: Defense, x: Tensor, sigma: float, batch_rows: int, *, seed: int = 0, smoothing: Smoothing = PLAIN
) -> dict[str, int]:
    """How many votes of a sample change if the networks run in float32: {"rows": ..., "flipped": ...}.

    `x`: (M, C, H, W) images, over which the sample is spread evenly. The draws are the same for both precisions, and of
    a stage of their own.
    """
    rows, flipped = min(SAMPLE, 10 * batch_rows), 0
    owners = np.arange(rows) * len(x) // rows
    flat = x.flatten(1).numpy()
    for first in range(0, rows, batch_rows):
        images = owners[first : first + batch_rows]
        spans = [Span(block_key(seed, first, sigma, "precision", 0), 0, len(images))]
        noisy, _ = smoothing.copies(spans, flat[images], sigma)
        z = torch.from_numpy(noisy).reshape(-1, *x.shape[1:]).to(defense.device)
        reduced = defense.logits(z, sigma, Draws(spans, defense.device))
        exact = type(defense).logits(defense, z, sigma, Draws(spans, defense.device))
        flipped += int((reduced.argmax(1) != exact.argmax(1)).sum())
    return {"rows": rows, "flipped": flipped}
