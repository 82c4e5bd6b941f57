"""What run.json says about a run: identity, protocol, defense, data, sessions with code and environment, cost."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from drbench import config, cost, data, registry
from drbench.api import Defense
from drbench.certifiers import lipschitz
from drbench.certifiers.noise import sampling
from drbench.config import protocols
from drbench.data import Images
from drbench.files import places
from drbench.jobs import attack_job
from drbench.records import record, settings
from drbench.weights import Weights

PACKAGES = ("torch", "numpy", "scipy", "diffusers", "scikit-learn", "omegaconf")
CODE = ("drbench", "methods", "benchmarks", "pyproject.toml")  # what a commit must hold for a run to be repeatable


def engine(cell: DictConfig, images: Images, defense: Defense | None = None) -> dict:
    """The protocol of a certification: all that its certifier, and later its decision, depend on.

    Without a defense, less what a Lipschitz certificate takes from it.
    """
    spec, about = cell.certify, settings.certification(cell, images.num_classes)
    about |= {"options": lipschitz.options(defense)} if spec.kind == "lipschitz" and defense else {}
    return about | ({"sampling": sampling(spec.sampler, images, spec.noise)} if spec.sampler != "float" else {})


def new(cell: DictConfig, identity: str, images: Images, defense: Defense, checkpoints: Sequence[Weights]) -> dict:
    """Header of a run that has not begun: what does not depend on where and when it runs."""
    plain = OmegaConf.to_container(cell)
    parameters = sum(p.numel() for p in defense.parameters())
    about = attack_job.engine(cell, defense) if cell.task == "attack" else engine(cell, images, defense)
    flags = ["weights as constructed: no checkpoint given"] if parameters and not checkpoints else []
    coverage = data.coverage(images)
    flags += [f"few classes: {coverage}"] if coverage.few_classes else []
    flags += ["estimate: means of random logits"] if not about.get("options", {}).get("exact", True) else []
    nfe = {f"{sigma:g}": cost.measured_nfe(defense, sigma) for sigma in config.levels(cell)}
    return {
        "schema": record.SCHEMA,
        "task": cell.task,
        "status": "started",
        "identity": identity,
        "title": cell.title,
        "engine": about,
        **(
            {"protocol": {"name": cell.protocol, "differs": protocols.differences(cell.protocol, plain)}}
            if cell.protocol
            else {}
        ),
        "defense": {
            "name": cell.defense.name,
            "variant": cell.defense.variant,
            "args": OmegaConf.to_container(cell.defense.args),
            "citation": defense.citation,
            "parameters": parameters,
            "randomized": defense.randomized,
            "gradient": defense.gradient,
            "nfe": next(iter(nfe.values())),
            **({"nfe_at": nfe} if len(nfe) > 1 else {}),
            "checkpoints": {found.name: found.sha256 for found in checkpoints},
        },
        "data": {
            "name": images.dataset,
            "subset": images.subset,
            "images": len(images),
            "classes": [coverage.present, coverage.num_classes],
            "ids_sha256": coverage.ids_sha256,
            "sha256": images.sha256,
            "shape": list(images.shape),
            "ids": list(images.ids),
        },
        "flags": flags,
        "sessions": [],
    }


MIXED = "mixed code: resumed under other sources or package versions"


def begin_session(header: dict, cell: DictConfig, device: torch.device, batch_rows: int, workers: int) -> str:
    """Note who goes on with the run, and return the name of the session. Rows of different code are flagged."""
    code = _code() | {"sources": sources(cell.defense.name)}
    name = f"{time.time_ns()}-{os.getpid()}"
    environment = _environment(device, cell, batch_rows, workers)
    session = {"name": name, "started": _now(), "code": code, "environment": environment}
    # What the last session said of the whole run holds no longer, also if this one is killed.
    header["status"] = "started"
    header.pop("evidence_sha256", None)
    header.pop("cost", None)
    sessions = [*header["sessions"], session]
    header["sessions"] = sessions
    header["code"] = code | {"dirty": any(s["code"]["dirty"] for s in sessions)}
    made_with = [(s["code"]["sources"], s["environment"]["packages"]) for s in sessions]
    if any(made != made_with[0] for made in made_with) and MIXED not in header["flags"]:
        header["flags"].append(MIXED)
    return name


def note_flips(header: dict, found: Sequence[dict]) -> None:
    """Store, and flag, how many votes of a sample differ from those in float32 (`execution.vote_flips`)."""
    if not found:  # an attack, or float32
        return
    environment = header["sessions"][-1]["environment"]
    rows, flipped = (sum(each[key] for each in found) for key in ("rows", "flipped"))
    environment["vote_flips"] = {"rows": rows, "flipped": flipped, "rate": flipped / rows}
    if not any(flag.startswith("reduced precision") for flag in header["flags"]):
        text = f"{environment['precision']}, {flipped} of {rows} sampled votes differ from float32"
        header["flags"].append(f"reduced precision: {text}")


def sources(name: str) -> dict[str, str]:
    """Hashes of the sources that make the numbers: this package, and the file or package of the defense."""
    module = Path(sys.modules[registry.find(name).__module__].__file__)
    package = (module.parent / "__init__.py").exists()
    own = sorted(module.parent.rglob("*.py")) if package else [module]
    return {"drbench": _hash(sorted((places.PROJECT / "drbench").rglob("*.py"))), "defense": _hash(own)}


def _hash(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def end_session(header: dict, folder: Path, name: str | None = None, batch_rows: int | None = None) -> None:
    """Status, cost of all rows, and hash of the evidence, from what is on disk.

    `name` is the session that ends, by default the last one; `batch_rows` what it ended with, if memory ran out.
    """
    session = next((s for s in header["sessions"] if name and s.get("name") == name), header["sessions"][-1])
    run = record.read(folder)
    rows = list(run.rows.values())
    header["status"] = "complete" if run.complete else "partial"
    session["ended"] = _now()
    session["environment"] |= {"batch_rows": batch_rows} if batch_rows else {}
    header["evidence_sha256"] = record.evidence_sha256(run)
    header["cost"] = (attack_job.cost if run.task == "attack" else _cost)(header, rows)


def _cost(header: dict, rows: list[record.Row]) -> dict:
    seconds = sum(row.seconds for row in rows)
    draws = sum(stage.n0 + stage.n for row in rows if row.evidence for stage in row.evidence.stages)
    evaluations = dict(sum((Counter(row.evaluations) for row in rows), Counter()))
    per_scale = header["engine"]["n0"] + header["engine"]["n"]
    calls = list(header["defense"].get("nfe_at", {"": header["defense"]["nfe"]}).values())
    return {
        "images": len(rows),
        "draws": draws,
        "most_draws_per_image": len(calls) * per_scale,
        "seconds": seconds,
        "rows_per_second": draws / seconds if seconds else 0.0,
        "network_evaluations": evaluations,
        "evaluations_per_image": sum(evaluations.values()) / len(rows) if rows else 0.0,  # padding included
        "most_evaluations_per_image": sum(sum(each.values()) for each in calls) * per_scale,
    }


def _environment(device: torch.device, cell: DictConfig, batch_rows: int, workers: int) -> dict:
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "precision": cell.run.precision,
        "tf32": on_gpu and torch.backends.cuda.matmul.allow_tf32,
        "threads": torch.get_num_threads(),
        "batch_rows": batch_rows,
        "executor": cell.run.executor,
        "workers": workers,
        "channels_last": cell.run.channels_last,
        "compiled": cell.run.compile,
        "cuda_graphs": cell.run.cuda_graphs,
    }


def _code() -> dict:
    """Version; and if this runs from a checkout, its commit and whether the code differs from it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", places.PROJECT, *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    tracked = git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is not None
    commit = git("rev-parse", "HEAD") if tracked else None
    dirty = bool(commit and git("status", "--porcelain", "--", *CODE))
    return {"version": metadata.version("drbench"), "commit": commit, "dirty": dirty}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
