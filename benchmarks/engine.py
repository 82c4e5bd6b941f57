"""`make bench`: the certification engine against bare forward passes and against a plain per-image loop.

All three process the same number of rows of the same defense, in turns, several rounds; each ratio is the median over
the rounds of a quotient of two neighbouring measurements, so that slow drifts of the machine cancel.

    bare     `logits` on one ready-made noisy batch, one call after another on all cores: no noise, no counting
    engine   `gaussian.observe`: noise, votes, evidence, at the batch size that it finds
    plain    one image at a time: repeat, randn_like, argmax, count on the host (Cohen et al. 2019 as usually written)

Bare and plain are measured at several batch sizes; their best one counts.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from drbench import load_data, load_defense
from drbench.api import Defense, Draws
from drbench.certifiers import gaussian
from drbench.certifiers.batching import find_batch_rows
from drbench.data import Images

SIGMA, N0, ROUNDS = 0.5, 100, 5
BATCHES = (100, 400, 1000, 4000)
CASES = (
    # title, defense, checkpoints, images, n, limit of engine / bare
    ("tiny CNN", "undefended", ["digits/classifier"], 4, 50_000, 1.25),
    ("UNet + tiny CNN", "denoised", ["digits/classifier", "digits/denoiser"], 4, 10_000, 1.05),
)


@torch.inference_mode()
def bare(defense: Defense, rows: int, batch: int) -> None:
    draws = Draws.seeded(0, batch, defense.device)
    z = draws.randn(batch, *defense.input_shape)
    for _ in range(rows // batch):
        defense.logits(z, SIGMA, draws)


def engine(defense: Defense, images: Images, n: int, batch: int) -> None:
    for _ in gaussian.observe(defense, images.x, images.ids, sigma=SIGMA, n0=N0, n=n, batch_rows=batch):
        pass


@torch.inference_mode()
def plain(defense: Defense, images: Images, n: int, batch: int) -> None:
    for x in images.x:
        for draws in (N0, n):
            counts = np.zeros(defense.num_classes, dtype=int)
            while draws > 0:
                size = min(batch, draws)
                draws -= size
                copies = x.repeat(size, 1, 1, 1)
                noisy = copies + torch.randn_like(copies) * SIGMA
                for vote in defense.logits(noisy, SIGMA, None).argmax(1).cpu().numpy():
                    counts[vote] += 1


def seconds(work, *args) -> float:
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def measure(title: str, name: str, checkpoints: list[str], count: int, n: int, limit: float) -> None:
    images = load_data("digits", subset=f"first{count}")
    defense = load_defense(name, images, checkpoints)
    batch = find_batch_rows(defense, SIGMA)
    rows = count * (N0 + n)
    spent: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        spent.setdefault("engine", []).append(seconds(engine, defense, images, n, batch))
        for size in sorted({*BATCHES, batch}):
            spent.setdefault(f"bare {size}", []).append(
                seconds(bare, defense, rows, size) * rows / (rows // size * size)
            )
            spent.setdefault(f"plain {size}", []).append(seconds(plain, defense, images, n, size))
    medians = {key: statistics.median(values) for key, values in spent.items()}
    best = {kind: min((key for key in medians if key.startswith(kind)), key=medians.get) for kind in ("bare", "plain")}

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(spent[above], spent[below], strict=True))

    print(f"{title}: {rows:,} rows, batch found {batch}, {torch.get_num_threads()} threads")
    for key, value in sorted(medians.items(), key=lambda item: item[1]):
        print(f"  {key:12} {value:7.2f} s  {rows / value:10,.0f} rows/s")
    print(f"  engine / {best['bare']} (its best)   {ratio('engine', best['bare']):.3f}  (limit {limit})")
    print(f"  {best['plain']} (its best) / engine  {ratio(best['plain'], 'engine'):.3f}  (limit 1.0: never slower)")
    print(f"  plain 1000 / engine  {ratio('plain 1000', 'engine'):.3f}")


if __name__ == "__main__":
    for case in CASES:
        measure(*case)
