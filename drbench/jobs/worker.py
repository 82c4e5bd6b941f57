"""The work of a certification run, as a worker does it: build the defense, observe images, decide."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from omegaconf import DictConfig, OmegaConf

from drbench import config, cost, stats, weights
from drbench.api import Defense, Evidence
from drbench.certifiers import kinds
from drbench.certifiers.batching import largest_useful
from drbench.data import Images
from drbench.executors import Answer, Work
from drbench.jobs import build, execution, header
from drbench.records.record import Row

ROUNDS = 8  # of images that a worker takes at least: what it holds when nothing waits any more, others cannot do
THREADS = torch.get_num_threads()  # torch's default


@dataclass(frozen=True)
class Certification:
    """A run as its workers need it.

    Parameters
    ----------
    cell : dict
        The resolved config.
    batch_rows, images : int
        Rows of a batch at most, and images that are to be done, by which a short run is shared out.
    done : tuple of Evidence or None
        Of the other images of the subset (None: failed).
    """

    cell: dict
    batch_rows: int
    images: int
    done: tuple[Evidence | None, ...] = ()

    def open(self, resident: dict, worker: int, workers: int) -> Work:
        cell = OmegaConf.create(self.cell)
        images = build.images(cell)
        defense = prepare(cell, images, resident, worker, workers)
        if cell.run.compile:
            execution.compile_networks(defense, cell.run.cuda_graphs)
        engine = header.engine(cell, images, defense)
        share = -(-self.images // workers) * config.draws(cell)
        rows = largest_useful(self.batch_rows, share, defense.device)
        at_once = max(1, self.images // (ROUNDS * workers)) if workers > 1 else None

        def work(units: Iterable[int]) -> Iterator[Answer]:
            now = {"rows": rows}
            with cost.Evaluations(defense) as evaluations:
                counted = dict(evaluations.counts)
                for unit, evidence, error in kinds.observe(
                    engine,
                    defense,
                    images.x,
                    images.ids,
                    images.y.tolist(),
                    self.done,
                    at_once,
                    rows=units,
                    batch_rows=rows,
                    backed_off=lambda rows: now.update(rows=rows),
                ):
                    counts = dict(evaluations.counts)
                    row = Row(
                        id=images.ids[unit],
                        label=int(images.y[unit]),
                        evidence=evidence,
                        certificate=evidence and stats.decide_as(engine, evidence),
                        seconds=0.0,  # known to the process that writes it
                        evaluations={name: counts[name] - counted[name] for name in counts},
                        error=error,
                    )
                    counted = counts
                    yield Answer(unit, row, batch_rows=now["rows"] if now["rows"] < rows else None)

        return work


def prepare(cell: DictConfig, images: Images, resident: dict, worker: int = 0, workers: int = 1) -> Defense:
    """The defense of a cell on its device, kept in `resident` for the next cells if they are of the same defense."""
    key = json.dumps([OmegaConf.to_container(part) for part in (cell.defense, cell.run, cell.data)])
    if key not in resident:
        resident.clear()
        torch.set_num_threads(max(1, (cell.run.threads or THREADS) // workers))
        checkpoints = [weights.resolve(name) for name in cell.defense.checkpoint]
        device = build.device(cell.run.device, worker)
        defense = build.defense(cell.defense, images, checkpoints, cell.run.seed).to(device)
        if cell.run.channels_last:
            defense = defense.to(memory_format=torch.channels_last)
        if cell.run.cuda_graphs:
            execution.require_cuda(defense)
        execution.reduce_precision(defense, cell.run.precision)
        resident[key] = defense
    for sigma in config.levels(cell):
        resident[key].require(sigma)
    return resident[key]
