"""Certification jobs of benchmark files: batch size, and a row for each image. Used by `drbench.jobs.runner`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from drbench import config, executors, stats
from drbench.api import Defense, DrbenchError
from drbench.certifiers import batching, kinds
from drbench.certifiers.batch_size import find_batch_rows
from drbench.data import Images
from drbench.executors.units import Units
from drbench.jobs import execution, header
from drbench.jobs.listeners import Audience
from drbench.jobs.worker import Certification
from drbench.progress import Progress
from drbench.records import leases, record
from drbench.records.record import Row

BATCHES_A_CHUNK = 16  # handed to a worker at once: little is lost when it dies, and the hand-over costs nothing


def check(cell: DictConfig) -> None:
    """Mistakes in a config that can be found before anything is built."""
    if cell.certify.kind != "lipschitz":  # which needs no votes
        stats.check_budget(cell.certify.n, cell.certify.alpha / len(config.levels(cell)))


def check_parts(cell: DictConfig, whole: bool) -> None:
    """Raise `DrbenchError` if a config that needs all its images in one place does not get them."""
    if cell.certify.tolerance is not None and not (whole and cell.run.executor == "inline"):
        raise DrbenchError(
            "certify.tolerance is about all images of a table at once: expected no --limit (but a smaller subset), no "
            "--shard, and run.executor=inline"
        )


def vote_flips(cell: DictConfig, defense: Defense, images: Images, rows: int) -> list[dict]:
    """How reduced precision changes votes, at each noise level; nothing in full precision."""
    if cell.run.precision == "float32":
        return []
    smoothing = kinds.smoothing(header.engine(cell, images))
    return [
        execution.vote_flips(defense, images.x, sigma, rows, seed=cell.run.seed, smoothing=smoothing)
        for sigma in config.levels(cell)
    ]


def batch_rows(cell: DictConfig, defense: Defense, images: int, workers: int) -> int:
    """Rows of a batch: those that the config asks for, or searched for."""
    if cell.run.batch_rows != "auto":
        return cell.run.batch_rows
    most = images * config.draws(cell) // max(workers, batching.workers(defense.device))  # inline: threads
    return find_batch_rows(defense, cell.certify.sigma, most)


def observe(
    cell: DictConfig,
    folder: Path,
    images: Images,
    todo: list[int],
    job: Certification,
    executor: executors.Executor,
    known: dict,
    max_errors: int,
) -> int:
    """Write a row for each image of `todo` that no other process does; returns the rows of a batch at the end."""
    level = "sigma " + " > ".join(f"{sigma:g}" for sigma in config.levels(cell))
    title = " ".join(part for part in (cell.defense.name, cell.defense.variant, level) if part)
    again = {images.ids[unit] for unit in todo}
    rows = [row for image_id, row in known.items() if image_id not in again]
    failed, batch_rows = [], job.batch_rows
    chunk = max(1, BATCHES_A_CHUNK * job.batch_rows // config.draws(cell))
    writer = record.Writer(folder, cell.run.fsync)
    audience = Audience(cell.run.listeners, title, job.cell)
    leases.sweep(folder)
    with leases.Claims(folder) as claims, Progress(title, len(todo) + len(rows), "images", len(rows)) as bar:
        units = Units(todo, chunk, _claim(claims, record.Tail(folder), images, set(known)))
        answers = executor.run(job, units)
        last = time.perf_counter()
        try:
            for answer in answers:
                now = time.perf_counter()
                row = replace(answer.row or _failure(images, answer), seconds=now - last)
                writer.write(row)
                rows.append(row)
                batch_rows, last = min(batch_rows, answer.batch_rows or batch_rows), now
                bar.advance(lambda: _note(rows, cell.certify.sigma))
                accuracy = sum(row.correct for row in rows) / len(rows)
                audience.log(len(rows), certified_accuracy=accuracy, radius=row.radius, seconds=row.seconds)
                failed += [row] if row.error else []
                if len(failed) > max_errors:
                    raise DrbenchError(
                        f"{len(failed)} images failed, the last, {row.id}, with: {row.error}; more than --max-errors "
                        f"{max_errors}. Mend the cause and run the same command with --retry-errors"
                    )
        finally:
            writer.close()
            audience.close("complete" if len(rows) == len(images) else "partial")
    return batch_rows


def _claim(claims: leases.Claims, tail: record.Tail, images: Images, known: set):
    """What `Units` asks: which of the units that wait are ours, and which others have done since we looked."""

    def claim(waiting: Sequence[int], count: int) -> tuple[list[int], set[int]]:
        units = {images.ids[unit]: unit for unit in waiting}
        done = tail.ids() - known
        taken = claims.take([image_id for image_id in units if image_id not in done], count)
        done = tail.ids() - known  # again: who has just finished has withdrawn its claims
        finished = {unit for image_id, unit in units.items() if image_id in done}
        return [units[image_id] for image_id in taken if image_id not in done], finished

    return claim


def _failure(images: Images, answer: executors.Answer) -> Row:
    return Row(images.ids[answer.unit], int(images.y[answer.unit]), None, None, 0.0, error=answer.error)


def _note(rows: list[Row], sigma: float) -> str:
    """Running certified accuracy, e.g. "certified 0.970 at r=0, 0.810 at r=0.25"."""
    curve = stats.certified_accuracy([row.correct for row in rows], [row.radius for row in rows], [0.0, sigma])
    return f"certified {curve.accuracy[0]:.3f} at r=0, {curve.accuracy[1]:.3f} at r={sigma:g}"
