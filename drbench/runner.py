"""Runs the cells of benchmark files: observe, decide, write down; the same command again goes on where it stopped."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from drbench import attack_job, build, config, cost, header, record, registry, stats, weights
from drbench.api import Defense, DrbenchError
from drbench.certifiers import kinds
from drbench.certifiers.batching import find_batch_rows
from drbench.data import Images
from drbench.progress import Progress
from drbench.record import Row

THREADS = torch.get_num_threads()  # torch's default


def run(cells: Sequence[DictConfig], out: Path | None = None, limit: int | None = None) -> list[Path]:
    """Run resolved configs one after another and return their run folders.

    Parameters
    ----------
    out : path, optional
        Parent of `runs/`; by default results/<data set>.
    limit : int, optional
        Only the first images of each subset: the results are marked partial until a run without limit ends.
    """
    for cell in cells:  # mistakes in the last cell are found before the first one runs
        if cell.task == "attack":
            attack_job.check(cell)
        elif cell.task == "certify":
            if cell.certify.kind != "lipschitz":  # which needs no votes
                stats.check_budget(cell.certify.n, cell.certify.alpha / len(config.levels(cell)))
        else:
            raise DrbenchError(f"expected files of task certify or attack, got one of task {cell.task!r}: "
                               f"use `drbench {cell.task}`")  # fmt: skip
        registry.check_args(cell.defense.name, registry.find(cell.defense.name), cell.defense.args)
        for name in cell.defense.checkpoint:
            weights.resolve(name)
    built: dict[str, tuple[Defense, int]] = {}
    return [_run_cell(cell, built, out=out, limit=limit) for cell in cells]


def resume(folder: Path) -> Path:
    """Finish a run in its own folder, under the config that it recorded. An imported log is finished."""
    if record.read(folder).header["engine"].get("certifier") == "imported":
        return folder
    (cell,) = config.load(folder / "config.yaml")
    return _run_cell(cell, {}, folder=folder)


def folder_of(cell: DictConfig, out: Path | None, identity: str) -> Path:
    """<out>/runs/<defense>[-<variant>]/[<kind>-]sigma<sigma>[_<sigma>...]-<8 digits of the identity>.

    Of attacks <out>/attacks/<defense>[-<variant>]/<norm><eps>-sigma<sigma>-<8 digits of the identity>.
    """
    name = "-".join(part for part in (cell.defense.name, cell.defense.variant) if part)
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    parent, kind = "runs", "" if cell.certify.kind == "gaussian" else f"{cell.certify.kind}-"
    if cell.task == "attack":
        parent, kind = "attacks", f"{cell.attack.norm}-{cell.attack.eps}-".replace("/", "_")
    scales = "_".join(f"{sigma:g}" for sigma in config.levels(cell))
    return (out or Path("results") / cell.data.name) / parent / safe / f"{kind}sigma{scales}-{identity[:8]}"


def _run_cell(
    cell: DictConfig, built: dict, *, out: Path | None = None, limit: int | None = None, folder: Path | None = None
) -> Path:
    checkpoints = [weights.resolve(name) for name in cell.defense.checkpoint]
    identity = config.identity(cell, [found.sha256 for found in checkpoints])
    images = build.images(cell)
    if cell.task == "certify":
        stats.check_reach(header.engine(cell, images))
    folder = folder or folder_of(cell, out, identity)
    begun = record.read(folder) if os.path.exists(folder / "run.json") else None
    if begun and (begun.header["identity"], begun.header["data"]["sha256"]) != (identity, images.sha256):
        raise DrbenchError(f"{folder} holds another run (other settings, weights or images); choose another --out")
    done = begun.rows if begun else {}
    todo = [i for i in range(len(images))[:limit] if images.ids[i] not in done]
    if todo:
        defense, batch_rows = _prepare(cell, images, checkpoints, built, len(todo))
        about = begun.header if begun else header.new(cell, identity, images, defense, checkpoints)
        header.begin_session(about, cell, defense.device, batch_rows)
        _open(folder, cell, about)
        try:
            observe = attack_job.observe if cell.task == "attack" else _observe
            observe(cell, folder, images, todo, defense, batch_rows, done, about)
        finally:
            header.end_session(about, folder)
            record.write_header(folder, about)
        attack_job.finish(folder)
    elif begun and begun.header["status"] == "started":  # killed between its last row and its last header
        header.end_session(begun.header, folder)
        record.write_header(folder, begun.header)
        attack_job.finish(folder)
    elif begun and header.sources(cell.defense.name)["defense"] != begun.header["code"]["sources"]["defense"]:
        print(
            f"{folder}: recorded under another version of {cell.defense.name}; delete it to run it anew",
            file=sys.stderr,
        )
    print(folder, flush=True)
    return folder


def _prepare(cell: DictConfig, images: Images, checkpoints, built: dict, count: int) -> tuple[Defense, int]:
    """The defense on its device and its batch size, kept for the next cells if they are of the same defense."""
    key = json.dumps([OmegaConf.to_container(part) for part in (cell.defense, cell.run, cell.data)])
    if key not in built:
        built.clear()
        torch.set_num_threads(cell.run.threads or THREADS)
        defense = build.defense(cell.defense, images, checkpoints, cell.run.seed).to(build.device(cell.run.device))
        if cell.run.channels_last:
            defense = defense.to(memory_format=torch.channels_last)
        _require(defense, cell)
        built[key] = defense, _batch_rows(cell, defense, count)
    _require(built[key][0], cell)
    return built[key]


def _batch_rows(cell: DictConfig, defense: Defense, count: int) -> int:
    if cell.run.batch_rows != "auto":
        return cell.run.batch_rows
    if cell.task == "attack":
        return attack_job.ROWS
    return find_batch_rows(defense, cell.certify.sigma, count * (cell.certify.n0 + cell.certify.n))


def _require(defense: Defense, cell: DictConfig) -> None:
    for sigma in config.levels(cell):
        defense.require(sigma)


def _open(folder: Path, cell: DictConfig, about: dict) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.yaml").exists():
            (folder / "config.partial").write_text(OmegaConf.to_yaml(cell))
            os.replace(folder / "config.partial", folder / "config.yaml")
    except OSError as error:
        raise DrbenchError(f"cannot write to {folder}: {error.strerror}; choose a writable --out") from error
    record.write_header(folder, about)


def _observe(
    cell: DictConfig,
    folder: Path,
    images: Images,
    todo: list[int],
    defense: Defense,
    batch_rows: int,
    done: dict,
    about: dict,
) -> None:
    engine, writer, rows = about["engine"], record.Writer(folder), list(done.values())
    level = "sigma " + " > ".join(f"{sigma:g}" for sigma in stats.levels(engine))
    title = " ".join(part for part in (cell.defense.name, cell.defense.variant, level) if part)
    observations = kinds.observe(
        engine,
        defense,
        images.x[todo],
        [images.ids[i] for i in todo],
        batch_rows=batch_rows,
        backed_off=lambda rows: about["sessions"][-1]["environment"].update(batch_rows=rows),
    )
    with cost.Evaluations(defense) as evaluations, Progress(title, len(todo) + len(rows), "images", len(rows)) as bar:
        last, counted = time.perf_counter(), dict(evaluations.counts)
        try:
            for index, evidence, error in observations:
                now, counts = time.perf_counter(), dict(evaluations.counts)
                row = Row(
                    id=images.ids[todo[index]],
                    label=int(images.y[todo[index]]),
                    evidence=evidence,
                    certificate=evidence and stats.decide_as(engine, evidence),
                    seconds=now - last,
                    evaluations={name: counts[name] - counted[name] for name in counts},
                    error=error,
                )
                writer.write(row)
                rows.append(row)
                last, counted = now, counts
                bar.advance(lambda: _note(rows, stats.levels(engine)[-1]))
        finally:
            writer.close()


def _note(rows: list[Row], sigma: float) -> str:
    """Running certified accuracy, e.g. "certified 0.970 at r=0, 0.810 at r=0.25"."""
    curve = stats.certified_accuracy([row.correct for row in rows], [row.radius for row in rows], [0.0, sigma])
    return f"certified {curve.accuracy[0]:.3f} at r=0, {curve.accuracy[1]:.3f} at r={sigma:g}"
