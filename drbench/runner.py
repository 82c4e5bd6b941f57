"""Runs the cells of benchmark files: observe, decide, write down; the same command again goes on where it stopped."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from drbench import build, config, cost, record, stats, weights
from drbench.api import Defense, DrbenchError
from drbench.certifiers import gaussian
from drbench.certifiers.batching import find_batch_rows
from drbench.data import Images
from drbench.progress import Progress
from drbench.record import Row

PACKAGES = ("torch", "numpy", "scipy", "diffusers", "scikit-learn", "omegaconf")


def run(cells: Sequence[DictConfig], out: Path | None = None, limit: int | None = None) -> list[Path]:
    """Run resolved configs one after another and return their run folders.

    Parameters
    ----------
    out : path, optional
        Parent of `runs/`; by default results/<data set>.
    limit : int, optional
        Only the first images of each subset: the results are marked partial until a run without limit ends.
    """
    built: dict[str, tuple[Defense, int]] = {}
    return [_run_cell(cell, out, limit, built) for cell in cells]


def resume(folder: Path) -> Path:
    """Finish a run from its own folder, under the config that it recorded."""
    try:
        cell = OmegaConf.merge(OmegaConf.structured(config.Config), OmegaConf.load(folder / "config.yaml"))
    except OSError as error:
        raise DrbenchError(f"{folder}: expected the config.yaml of a run: {error.strerror}") from error
    return _run_cell(cell, None, None, {}, folder)


def folder_of(cell: DictConfig, out: Path, identity: str) -> Path:
    """<out>/runs/<defense>[-<variant>]/sigma<sigma>-<8 digits of the identity>."""
    name = "-".join(part for part in (cell.defense.name, cell.defense.variant) if part)
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return out / "runs" / safe / f"sigma{cell.certify.sigma:g}-{identity[:8]}"


def _run_cell(cell: DictConfig, out: Path | None, limit: int | None, built: dict, folder: Path | None = None) -> Path:
    spec = cell.certify
    stats.check_budget(spec.n, spec.alpha)
    checkpoints = [weights.resolve(name) for name in cell.defense.checkpoint]
    identity = config.identity(cell, [found.sha256 for found in checkpoints])
    images = build.images(cell)
    folder = folder or folder_of(cell, out or Path("results") / cell.data.name, identity)
    header = _open(folder, cell, identity, images)
    done = record.read(folder).rows
    wanted = list(range(len(images) if limit is None else min(limit, len(images))))
    todo = [i for i in wanted if images.ids[i] not in done]
    if todo:
        defense, batch_rows = _prepare(cell, images, checkpoints, built)
        defense.require(spec.sigma)
        header |= _facts(cell, defense, checkpoints, batch_rows)
        record.write_header(folder, header)
        try:
            _observe(cell, folder, images, todo, defense, batch_rows, done)
        finally:
            _close(folder, header)
    print(folder)
    return folder


def _prepare(cell: DictConfig, images: Images, checkpoints, built: dict) -> tuple[Defense, int]:
    """The defense on its device and its batch size, kept for the other cells of the same defense."""
    key = OmegaConf.to_yaml(cell.defense) + OmegaConf.to_yaml(cell.run)
    if key not in built:
        if cell.run.threads:
            torch.set_num_threads(cell.run.threads)
        defense = build.defense(cell.defense, images, checkpoints, cell.run.seed).to(build.device(cell.run.device))
        if cell.run.channels_last:
            defense = defense.to(memory_format=torch.channels_last)
        defense.require(cell.certify.sigma)
        rows = cell.run.batch_rows
        built[key] = defense, find_batch_rows(defense, cell.certify.sigma) if rows == "auto" else rows
    return built[key]


def _observe(
    cell: DictConfig, folder: Path, images: Images, todo: list[int], defense: Defense, batch_rows: int, done: dict
) -> None:
    spec, writer = cell.certify, record.Writer(folder)
    title = f"{cell.defense.name} {cell.defense.variant} sigma {spec.sigma:g}".replace("  ", " ")
    observations = gaussian.observe(
        defense,
        images.x[todo],
        [images.ids[i] for i in todo],
        sigma=spec.sigma,
        n0=spec.n0,
        n=spec.n,
        seed=cell.run.seed,
        block=spec.block,
        batch_rows=batch_rows,
    )
    rows = list(done.values())
    with cost.Evaluations(defense) as evaluations, Progress(title, len(todo) + len(rows), "images", len(rows)) as bar:
        last, counted = time.perf_counter(), dict(evaluations.counts)
        try:
            for index, evidence, error in observations:
                now, counts = time.perf_counter(), dict(evaluations.counts)
                row = Row(
                    id=images.ids[todo[index]],
                    label=int(images.y[todo[index]]),
                    evidence=evidence,
                    certificate=evidence and stats.decide(spec.kind, evidence, spec.alpha),
                    seconds=now - last,
                    evaluations={name: counts[name] - counted[name] for name in counts},
                    error=error,
                )
                writer.write(row)
                rows.append(row)
                last, counted = now, counts
                bar.advance(lambda: _note(rows, spec.sigma))
        finally:
            writer.close()


def _note(rows: list[Row], sigma: float) -> str:
    """Running certified accuracy, e.g. "certified 0.97 at r=0, 0.81 at r=0.25"."""
    correct, radius = [row.correct for row in rows], [row.radius for row in rows]
    curve = stats.certified_accuracy(correct, radius, [0.0, sigma])
    return f"certified {curve.accuracy[0]:.3f} at r=0, {curve.accuracy[1]:.3f} at r={sigma:g}"


# ---- header -------------------------------------------------------------------------------------------------------


def _open(folder: Path, cell: DictConfig, identity: str, images: Images) -> dict:
    """Create the folder, or check that it holds the same run; returns the header."""
    facts = {"name": images.dataset, "subset": images.subset, "images": len(images), "sha256": images.sha256}
    if (folder / "run.json").exists():
        header = record.read(folder).header
        if (header["identity"], header["data"]["sha256"]) != (identity, images.sha256):
            raise DrbenchError(f"{folder} holds another run (other settings, weights or images); choose another --out")
        return header
    header = {
        "schema": record.SCHEMA,
        "status": "started",
        "identity": identity,
        "title": cell.title,
        "data": {**facts, "ids": list(images.ids)},
        "started": _now(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cell))
    except OSError as error:
        raise DrbenchError(
            f"cannot write to {folder}: {error.strerror}; choose a writable folder with --out"
        ) from error
    record.write_header(folder, header | _code() | {"engine": _engine(cell)})
    return record.read(folder).header


def _engine(cell: DictConfig) -> dict:
    spec = cell.certify
    return {
        "certifier": spec.kind,
        "version": stats.VERSIONS.get(spec.kind),
        "mode": spec.mode,
        "sigma": spec.sigma,
        "n0": spec.n0,
        "n": spec.n,
        "alpha": spec.alpha,
        "block": spec.block,
        "seed": cell.run.seed,
    }


def _facts(cell: DictConfig, defense: Defense, checkpoints, batch_rows: int) -> dict:
    parameters = sum(p.numel() for p in defense.parameters())
    flags = ["weights as constructed: no checkpoint given"] if parameters and not checkpoints else []
    return {
        "defense": {
            "name": cell.defense.name,
            "variant": cell.defense.variant,
            "args": OmegaConf.to_container(cell.defense.args),
            "citation": defense.citation,
            "parameters": parameters,
            "randomized": defense.randomized,
            "gradient": defense.gradient,
            "nfe": cost.measured_nfe(defense, cell.certify.sigma),
            "checkpoints": {found.name: found.sha256 for found in checkpoints},
        },
        "environment": _environment(defense.device, cell, batch_rows),
        "flags": flags,
    }


def _environment(device: torch.device, cell: DictConfig, batch_rows: int) -> dict:
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "precision": "float32",
        "tf32": on_gpu and torch.backends.cuda.matmul.allow_tf32,
        "threads": torch.get_num_threads(),
        "batch_rows": batch_rows,
        "channels_last": cell.run.channels_last,
    }


def _code() -> dict:
    """Commit of the code that runs, if it runs from a checkout, and whether the code differs from it."""
    root = Path(__file__).resolve().parents[1]
    code = ("drbench", "methods", "benchmarks", "pyproject.toml")

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    tracked = git("ls-files", "--error-unmatch", "drbench/runner.py") is not None
    commit = git("rev-parse", "HEAD") if tracked else None
    dirty = bool(git("status", "--porcelain", "--", *code)) if commit else False
    return {"code": {"version": metadata.version("drbench"), "commit": commit, "dirty": dirty}}


def _close(folder: Path, header: dict) -> None:
    """Final header of this session: status, total cost, hash of the evidence."""
    done = record.read(folder)
    rows = list(done.rows.values())
    evaluations: dict[str, int] = {}
    for row in rows:
        for name, count in row.evaluations.items():
            evaluations[name] = evaluations.get(name, 0) + count
    seconds = sum(row.seconds for row in rows)
    draws = sum(stage.n0 + stage.n for row in rows if row.evidence for stage in row.evidence.stages)
    total = {
        "images": len(rows),
        "draws": draws,
        "seconds": seconds,
        "network_evaluations": evaluations,
        "rows_per_second": draws / seconds if seconds else 0.0,
    }
    header |= {
        "status": "complete" if done.complete else "partial",
        "cost": total,
        "finished": _now(),
        "evidence_sha256": record.evidence_sha256(done),
    }
    record.write_header(folder, header)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
