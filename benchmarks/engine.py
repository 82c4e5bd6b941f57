"""`make bench`: the certification engine against bare forward passes and against a plain per-image loop.

All process the same number of rows of the same defense, in turns, several rounds; each ratio is the median over the
rounds of a quotient of two neighbouring measurements, so that slow drifts of the machine cancel.

    bare       `logits` on one ready-made noisy batch, one call after another on all cores: no noise, no counting
    processes  noise, votes, evidence, certificates, at the batch size that is found, in one worker process a core:
               `run.executor=processes`, as `make digits` has it; the start of the workers apart
    inline     the same in threads of one process: `run.executor=inline`, and `drbench.certify` in a notebook
    plain      one image at a time: repeat, randn_like, argmax, count on the host (Cohen et al. 2019 as usually written)

Bare and plain are measured at several batch sizes; their best one counts. Then the modes that stop early, per draw that
they make: `processes` in each mode against bare forward passes of as many rows. The ResNet needs the CIFAR-10 images of
the folder that `DRBENCH_SHARED` names; its weights are random, which costs the same.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.resnets import SHARED
from drbench import config, executors, weights
from drbench.api import Defense, Draws
from drbench.certifiers.batch_size import find_batch_rows
from drbench.data import Images
from drbench.executors.units import Units
from drbench.jobs import build
from drbench.jobs.worker import Certification, prepare

SIGMA, N0, ROUNDS = 0.5, 100, 5
BATCHES = (100, 400, 1000, 4000)
CIFAR = (SHARED / "cifar10-jpeg").resolve()


class Case(NamedTuple):
    """A defense of `benchmarks/digits/`, how much it does, and the limits of two ratios."""

    title: str
    file: str
    images: int
    n: int
    modes: tuple[tuple[str, int], ...] = ()  # those that stop early, and images
    above_bare: float | None = None  # most that processes / bare may be
    above_default: float = 1.0  # least that plain 1000 / processes may be
    overrides: tuple[str, ...] = ()


RESNET = (
    "defense.args.classifier={kind: resnet_cifar, depth: 20}",
    "defense.checkpoint=[]",
    "data.name=cifar10-jpeg",
    f"data.root={CIFAR}",
)
CASES = (
    Case("tiny CNN", "undefended", 16, 25_000, (("curtailed", 64), ("sequential", 500), ("hybrid", 500)), 1.25),
    Case(
        "UNet + tiny CNN",
        "denoised-one_shot",
        8,
        5_000,
        (("curtailed", 32), ("sequential", 128), ("hybrid", 128)),
        1.05,
    ),
    Case("CIFAR ResNet-20", "undefended", 4, 2_500, above_default=2.5, overrides=RESNET),
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
    batch = find_batch_rows(defense, SIGMA, count * (N0 + n) // torch.get_num_threads())  # as a run of that size does
    return defense, images, Certification(OmegaConf.to_container(cell), batch, count)


def measure(case: Case) -> None:
    defense, images, job = prepared(case.file, case.images, case.n, *case.overrides)
    batch, rows = job.batch_rows, case.images * (N0 + case.n)
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
            spent.setdefault(f"plain {size}", []).append(seconds(plain, defense, images, case.n, size))
    ours["processes"].close()
    medians = {key: statistics.median(values) for key, values in spent.items()}
    best = {kind: min((key for key in medians if key.startswith(kind)), key=medians.get) for kind in ("bare", "plain")}

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(spent[above], spent[below], strict=True))

    print(f"{case.title}: {rows:,} rows, batch found {batch}, {torch.get_num_threads()} threads")
    for key, value in sorted(medians.items(), key=lambda item: item[1]):
        print(f"  {key:12} {value:7.2f} s  {rows / value:10,.0f} rows/s")
    limit = f"  (limit {case.above_bare})" if case.above_bare else ""
    print(f"  processes / {best['bare']} (its best)   {ratio('processes', best['bare']):.3f}{limit}")
    print(f"  inline / {best['bare']} (its best)   {ratio('inline', best['bare']):.3f}")
    print(f"  {best['plain']} (its best) / processes  {ratio(best['plain'], 'processes'):.3f}  (at least 1)")
    print(f"  plain 1000 / processes  {ratio('plain 1000', 'processes'):.3f}  (at least {case.above_default:g})")
    measure_modes(case, int(best["bare"].split()[1]), limit)


def measure_modes(case: Case, batch: int, limit: str) -> None:
    """Seconds per draw of the modes that stop early, against bare forward passes at their best batch size."""
    executor = executors.make("processes", torch.get_num_threads(), None, {})
    for mode, count in case.modes:
        defense, _, job = prepared(case.file, count, case.n, f"certify.mode={mode}", *case.overrides)
        engine(executor, job)
        ratios = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            rows = engine(executor, job)
            spent = time.perf_counter() - start
            ratios.append(spent / (seconds(bare, defense, rows, batch) * rows / (rows // batch * batch)))
        share = rows / (count * (N0 + case.n))
        print(f"  {mode} / bare, per draw  {statistics.median(ratios):.3f}{limit}; draws {share:.0%} of n")
    executor.close()


if __name__ == "__main__":
    for case in CASES:
        if CIFAR.is_dir() or "CIFAR" not in case.title:
            measure(case)
        else:
            print(f"{case.title}: not measured, no images in {CIFAR}; set DRBENCH_SHARED")
