"""`make bench`: the certification engine against bare forward passes and against a plain per-image loop.

All process the same number of rows of the same defense, in turns, several rounds; each ratio is the median over the
rounds of a quotient of two neighbouring measurements, so that slow drifts of the machine cancel.

    bare       `logits` on one ready-made noisy batch, one call after another on all cores: no noise, no counting
    processes  noise, votes, evidence, certificates, at the batch size that is found, in one worker process a core:
               `run.executor=processes`, as `make digits` has it; the start of the workers apart
    inline     the same in threads of one process: `run.executor=inline`, and `drbench.certify` in a notebook
    plain      one image at a time: repeat, randn_like, argmax, count on the host (Cohen et al. 2019 as usually written)

Bare and plain are measured at several batch sizes; their best one counts. Then the modes that stop early, per draw that
they make: `processes` in each mode against bare forward passes of as many rows.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from omegaconf import OmegaConf

from drbench import build, config, executors, weights
from drbench.api import Defense, Draws
from drbench.certifiers.batching import find_batch_rows
from drbench.data import Images
from drbench.executors.units import Units
from drbench.jobs import Certification, prepare

SIGMA, N0, ROUNDS = 0.5, 100, 5
BATCHES = (100, 400, 1000, 4000)
MODES = ("curtailed", "sequential", "hybrid")
CASES = (
    # title, benchmark file, images, n, limit of processes / bare
    ("tiny CNN", "undefended", 8, 25_000, 1.25),
    ("UNet + tiny CNN", "denoised-one_shot", 8, 5_000, 1.05),
)


@torch.inference_mode()
def bare(defense: Defense, rows: int, batch: int) -> None:
    draws = Draws.seeded(0, batch, defense.device)
    z = draws.randn(batch, *defense.input_shape)
    for _ in range(rows // batch):
        defense.logits(z, SIGMA, draws)


def engine(executor: executors.Executor, job: Certification) -> int:
    """Certify the images of a job; number of draws."""
    stages = (answer.row.evidence.stages[0] for answer in executor.run(job, Units(range(job.images), 1)))
    return sum(stage.n0 + stage.n for stage in stages)


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


def prepared(name: str, count: int, n: int, *overrides: str):
    """Defense, images and job of a benchmark file, with the batch size that is found."""
    words = [f"certify.sigma={SIGMA}", f"certify.n={n}", f"certify.n0={N0}", f"data.subset=first{count}", *overrides]
    (cell,) = config.load(weights.home() / "benchmarks" / "digits" / f"{name}.yaml", words)
    images = build.images(cell)
    defense = prepare(cell, images, {})
    batch = find_batch_rows(defense, SIGMA)
    return defense, images, Certification(OmegaConf.to_container(cell), batch, count)


def measure(title: str, name: str, count: int, n: int, limit: float) -> None:
    defense, images, job = prepared(name, count, n)
    batch, rows = job.batch_rows, count * (N0 + n)
    ours = {kind: executors.make(kind, torch.get_num_threads(), None, {}) for kind in ("processes", "inline")}
    for executor in ours.values():
        engine(executor, job)  # workers start, networks warm up
    spent: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for kind, executor in ours.items():
            spent.setdefault(kind, []).append(seconds(engine, executor, job))
        for size in sorted({*BATCHES, batch}):
            spent.setdefault(f"bare {size}", []).append(
                seconds(bare, defense, rows, size) * rows / (rows // size * size)
            )
            spent.setdefault(f"plain {size}", []).append(seconds(plain, defense, images, n, size))
    ours["processes"].close()
    medians = {key: statistics.median(values) for key, values in spent.items()}
    best = {kind: min((key for key in medians if key.startswith(kind)), key=medians.get) for kind in ("bare", "plain")}

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(spent[above], spent[below], strict=True))

    print(f"{title}: {rows:,} rows, batch found {batch}, {torch.get_num_threads()} threads")
    for key, value in sorted(medians.items(), key=lambda item: item[1]):
        print(f"  {key:12} {value:7.2f} s  {rows / value:10,.0f} rows/s")
    for kind, bar in (("processes", f"  (limit {limit})"), ("inline", "")):
        print(f"  {kind} / {best['bare']} (its best)   {ratio(kind, best['bare']):.3f}{bar}")
    bar = "  (limit 1.0: never slower)"
    print(f"  {best['plain']} (its best) / processes  {ratio(best['plain'], 'processes'):.3f}{bar}")
    print(f"  plain 1000 / processes  {ratio('plain 1000', 'processes'):.3f}")
    measure_modes(name, 8 * count, n, int(best["bare"].split()[1]), limit)


def measure_modes(name: str, count: int, n: int, batch: int, limit: float) -> None:
    """Seconds per draw of the modes that stop early, against bare forward passes at their best batch size."""
    executor = executors.make("processes", torch.get_num_threads(), None, {})
    for mode in MODES:
        defense, _, job = prepared(name, count, n, f"certify.mode={mode}")
        engine(executor, job)
        ratios = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            rows = engine(executor, job)
            spent = time.perf_counter() - start
            ratios.append(spent / (seconds(bare, defense, rows, batch) * rows / (rows // batch * batch)))
        share = rows / (count * (N0 + n))
        print(f"  {mode} / bare, per draw  {statistics.median(ratios):.3f}  (limit {limit}; draws {share:.0%} of n)")
    executor.close()


if __name__ == "__main__":
    for case in CASES:
        measure(*case)
