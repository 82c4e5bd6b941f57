"""Runs the cells of benchmark files: observe, decide, write down; the same command again goes on where it stopped."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from drbench import config, executors, norms, progress, registry, stats, weights
from drbench.api import DrbenchError
from drbench.executors.units import Units
from drbench.jobs import attack_job, audit_job, build, certify_job, header, needs
from drbench.jobs.worker import THREADS, Certification, prepare
from drbench.records import examples, leases, record


@dataclass(frozen=True)
class Options:
    """How much of a run this process does.

    Parameters
    ----------
    limit : int, optional
        Only the first images of each subset: the results are marked partial until a run without limit ends.
    shard : (int, int)
        (i, n): of every n images the i-th, counted from 1. All shards write to one folder.
    max_errors : int
        Images that may fail (an exception, a worker that dies or hangs) before the run stops.
    retry_errors : bool
        Do images again that were recorded as errors.
    """

    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    max_errors: int = 10
    retry_errors: bool = False


@dataclass
class _Crew:
    """What lives from cell to cell: the network of this process, its batch sizes, the executors that were started."""

    resident: dict = field(default_factory=dict)
    batch_rows: dict = field(default_factory=dict)
    started: dict = field(default_factory=dict)
    closing: ExitStack = field(default_factory=ExitStack)

    def executor(self, kind: str, workers: int, timeout: float | None) -> executors.Executor:
        asked = (kind, workers, timeout)
        if asked not in self.started:
            self.started[asked] = executors.make(*asked, self.resident)
            self.closing.callback(self.started[asked].close)
        return self.started[asked]


def run(
    cells: Sequence[DictConfig],
    out: str | Path | None = None,
    limit: int | None = None,
    options: Options | None = None,
) -> list[Path]:
    """Run resolved configs one after another and return their run folders.

    Parameters
    ----------
    out : path, optional
        Parent of `runs/`; by default results/<data set>.
    limit : int, optional
        As in `options`, which by default asks for all.
    """
    options, out = options or Options(limit), Path(out) if out else None
    for cell in cells:  # mistakes in the last cell are found before the first one runs
        if cell.task == "attack":
            attack_job.check(cell)
            if options.shard != (1, 1):
                raise DrbenchError("attack runs are not sharded: give each process a subset (data.subset) of its own")
        elif cell.task == "certify":
            certify_job.check(cell)
        else:
            raise DrbenchError(f"expected files of task certify or attack, got one of task {cell.task!r}: "
                               f"use `drbench {cell.task}`")  # fmt: skip
        registry.check_args(cell.defense.name, registry.find(cell.defense.name), cell.defense.args)
    needs.require(cells)
    for name in dict.fromkeys(name for cell in cells for name in cell.defense.checkpoint):
        weights.resolve(name)
    if any(cell.run.executor == "slurm" for cell in cells):
        _run_jobs(cells, out, options)
    crew, found = _Crew(), []
    with crew.closing:
        for workers, some in groupby(cells, _at_once):
            if workers == 1:
                found += [_run_cell(cell, crew, options, out=out) for cell in some]
            else:
                found += _side_by_side([OmegaConf.to_container(cell) for cell in some], crew, out, options, workers)
    return found


def _at_once(cell: DictConfig) -> int:
    """How many cells run at the same time: attacks in worker processes, each with a cell of its own."""
    return _workers(cell) if cell.task == "attack" and cell.run.executor == "processes" else 1


def _side_by_side(cells: list[dict], crew: _Crew, out: Path | None, options: Options, workers: int) -> list[Path]:
    """Run attacks in worker processes; their folders in the order of the cells."""
    folders: dict[int, Path] = {}
    executor = crew.executor("processes", min(workers, len(cells)), None)
    for answer in executor.run(_Attacks(cells, out, options), Units(range(len(cells)), 1)):
        if answer.error:
            raise DrbenchError(f"{cells[answer.unit]['title']}: {answer.error}; the same command goes on")
        folders[answer.unit] = answer.row
    return [folders[unit] for unit in range(len(cells))]


@dataclass(frozen=True)
class _Attacks:
    """A `drbench.executors.Job` whose units are whole cells: its worker writes their run folders itself."""

    cells: list[dict]
    out: Path | None
    options: Options

    def open(self, resident: dict, worker: int, workers: int) -> executors.Work:
        progress.line = worker
        crew = _Crew(resident)

        def work(units: Iterable[int]) -> Iterator[executors.Answer]:
            for unit in units:
                cell = OmegaConf.create(self.cells[unit])
                yield executors.Answer(unit, _run_cell(cell, crew, self.options, (worker, workers), out=self.out))

        return work


def _run_jobs(cells: Sequence[DictConfig], out: Path | None, options: Options) -> None:
    """The same in an array of jobs; what they leave undone is done here afterwards."""
    from drbench.executors import slurm

    for cell in cells:
        if cell.run.workers == "auto":
            raise DrbenchError("run.executor=slurm: expected run.workers, the number of jobs")
        cell.run.executor = "inline"
    slurm.array(
        partial(_one_job, cells, out, options), cells[0].run.workers, OmegaConf.to_container(cells[0].run.slurm)
    )


def _one_job(cells: Sequence[DictConfig], out: Path | None, options: Options, number: int) -> None:
    run(cells, out, options=options)


def resume(folder: Path, options: Options | None = None) -> Path:
    """Finish a run in its own folder, under the config that it recorded. An imported log is finished."""
    if record.read(folder).header["engine"].get("certifier") == "imported":
        return folder
    (cell,) = config.load(folder / "config.yaml")
    crew = _Crew()
    with crew.closing:
        return _run_cell(cell, crew, options or Options(), folder=folder)


def rerun(folder: Path) -> list[str]:
    """Ask the defense of an attack run again; what differs from the record. Certifications are recomputed without."""
    run = record.read(folder)
    if run.task != "attack":
        return []
    (cell,) = config.load(folder / "config.yaml")
    checkpoints = [weights.resolve(name) for name in cell.defense.checkpoint]
    images = build.images(cell)
    if identity_of(cell, checkpoints) != run.header["identity"]:
        return ["the weights are not those of the run"]
    return attack_job.rerun(run, cell, prepare(cell, images, {}))


def identity_of(cell: DictConfig, checkpoints: Sequence[weights.Weights]) -> str:
    """Of the run of a config with these weights, and with those of the defenses that its attacks transfer from."""
    others = attack_job.source_weights(cell).values() if cell.task == "attack" else []
    return config.identity(cell, [found.sha256 for part in (checkpoints, *others) for found in part])


def folder_of(cell: DictConfig, out: Path | None, identity: str) -> Path:
    """<out>/runs/<defense>[-<variant>]/[<kind>-]sigma<sigma>[_<sigma>...]-<8 digits of the identity>.

    Of attacks <out>/attacks/<defense>[-<variant>]/<norm>-<eps>-sigma<sigma>-<8 digits of the identity>.
    """
    name = "-".join(part for part in (cell.defense.name, cell.defense.variant) if part)
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    parent, kind = "runs", "" if cell.certify.kind == "gaussian" else f"{cell.certify.kind}-"
    if cell.task == "attack":
        parent, kind = "attacks", f"{cell.attack.norm}-{norms.number(cell.attack.eps):.4g}-"
    scales = "_".join(f"{sigma:g}" for sigma in config.levels(cell))
    return (out or Path("results") / cell.data.name) / parent / safe / f"{kind}sigma{scales}-{identity[:8]}"


def _run_cell(
    cell: DictConfig,
    crew: _Crew,
    options: Options,
    place: tuple[int, int] = (0, 1),
    *,
    out: Path | None = None,
    folder: Path | None = None,
) -> Path:
    """Run a cell in this process, the first of `place` of the second that share the machine."""
    checkpoints = [weights.resolve(name) for name in cell.defense.checkpoint]
    identity = identity_of(cell, checkpoints)
    images = build.images(cell)
    if cell.task == "certify":
        stats.check_reach(header.engine(cell, images))
    folder = folder or folder_of(cell, out, identity)
    begun = record.read(folder) if os.path.exists(folder / "run.json") else None
    if begun and (begun.header["identity"], begun.header["data"]["sha256"]) != (identity, images.sha256):
        raise DrbenchError(f"{folder} holds another run (other settings, weights or images); choose another --out")
    done = begun.rows if begun else {}
    if options.retry_errors:
        done = {image_id: row for image_id, row in done.items() if not row.error}
    shard, shards = options.shard
    certify_job.check_parts(cell, whole=not options.limit and shards == 1)
    todo = [i for i in range(len(images))[: options.limit] if images.ids[i] not in done and i % shards == shard - 1]
    if todo or audit_job.due(cell, begun):
        with _noted(f"in the run {folder}: {cell.title}"):
            defense = prepare(cell, images, crew.resident, *place)
            blank = partial(header.new, cell, identity, images, defense, checkpoints)
            if cell.task == "attack":
                _attack(cell, folder, images, todo, defense, blank, done, place[1])
            else:
                _certify(cell, folder, images, todo, defense, blank, crew, begun, options, done)
    elif begun and (begun.header["status"] == "started" or examples.parts(folder)) and not leases.living(folder):
        if begun.header["status"] == "started":
            _close(folder)  # killed between its last row and its last header; else before its examples were joined
        attack_job.finish(folder)
    elif begun and header.sources(cell.defense.name)["defense"] != begun.header["code"]["sources"]["defense"]:
        print(
            f"{folder}: recorded under another version of {cell.defense.name}; delete it to run it anew",
            file=sys.stderr,
        )
    print(folder, flush=True)
    return folder


@contextmanager
def _noted(text: str) -> Iterator[None]:
    """Tell of which run a traceback is, if there is one: the code of a defense may raise anything."""
    try:
        yield
    except Exception as error:
        error.add_note(text)
        raise


def _attack(cell, folder, images, todo, defense, blank, done, workers: int) -> None:
    session, about = _begin(cell, folder, defense, blank, attack_job.batch_rows(cell), workers)
    try:
        attack_job.observe(cell, folder, images, todo, defense, done, about)
    finally:
        _close(folder, session, **{key: about[key] for key in ("notes", "audit", "flags") if key in about})
    attack_job.finish(folder)


def _certify(cell, folder, images, todo, defense, blank, crew, begun, options, done) -> None:
    executor = crew.executor(cell.run.executor, _workers(cell), cell.run.timeout)
    (key,) = crew.resident
    rows = crew.batch_rows.get(key) or certify_job.batch_rows(cell, defense, len(todo), executor.workers)
    flips = certify_job.vote_flips(cell, defense, images, rows)
    session, _ = _begin(cell, folder, defense, blank, rows, executor.workers, flips)
    try:
        whole = cell.certify.tolerance is not None  # only then a worker has to know about other images
        others = tuple(row.evidence for row in done.values()) if whole else ()
        job = Certification(OmegaConf.to_container(cell), rows, len(todo), others)
        known = begun.rows if begun else {}
        rows = certify_job.observe(cell, folder, images, todo, job, executor, known, options.max_errors)
    finally:
        crew.batch_rows = {key: rows}  # memory may have run out: the next cells begin with what was left
        _close(folder, session, rows)


def _begin(cell, folder, defense, blank, rows: int, workers: int, flips=()) -> tuple[str, dict]:
    """Name of a new session of the run, and its header, written: the one that is there, or `blank()`."""
    _open(folder, cell)
    with record.locked(folder):
        about = record.read_header(folder) if os.path.exists(folder / "run.json") else blank()
        session = header.begin_session(about, cell, defense.device, rows, workers)
        header.note_flips(about, flips)
        record.write_header(folder, about)
    return session, about


def _workers(cell: DictConfig) -> int:
    if cell.run.workers != "auto":
        return cell.run.workers
    if cell.run.executor == "ray":
        return 0  # as many as the cluster has room for
    if build.device(cell.run.device).type == "cuda":
        return torch.cuda.device_count() if cell.run.device == "auto" else 1
    return cell.run.threads or THREADS


def _open(folder: Path, cell: DictConfig) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.yaml").exists():
            partial = folder / f"config.{os.getpid()}.partial"
            partial.write_text(OmegaConf.to_yaml(cell))
            os.replace(partial, folder / "config.yaml")
    except OSError as error:
        raise DrbenchError(f"cannot write to {folder}: {error.strerror}; choose a writable --out") from error


def _close(folder: Path, session: str | None = None, batch_rows: int | None = None, **news) -> None:
    """End a session; `news` are entries of the header that it made."""
    with record.locked(folder):
        about = record.read_header(folder) | news
        header.end_session(about, folder, session, batch_rows)
        record.write_header(folder, about)
