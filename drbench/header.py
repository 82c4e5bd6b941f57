"""What run.json says about a run: identity, protocol, defense, data, sessions with code and environment, cost."""

from __future__ import annotations

import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from drbench import cost, record, stats
from drbench.api import Defense
from drbench.data import Images
from drbench.weights import Weights

PACKAGES = ("torch", "numpy", "scipy", "diffusers", "scikit-learn", "omegaconf")
CODE = ("drbench", "methods", "benchmarks", "pyproject.toml")  # what a commit must hold for a run to be repeatable


def new(cell: DictConfig, identity: str, images: Images, defense: Defense, checkpoints: Sequence[Weights]) -> dict:
    """Header of a run that has not begun: what does not depend on where and when it runs."""
    spec, parameters = cell.certify, sum(p.numel() for p in defense.parameters())
    return {
        "schema": record.SCHEMA,
        "status": "started",
        "identity": identity,
        "title": cell.title,
        "engine": {
            "certifier": spec.kind,
            "version": stats.VERSIONS.get(spec.kind),
            **{key: spec[key] for key in ("mode", "sigma", "n0", "n", "alpha", "block")},
            "seed": cell.run.seed,
        },
        "defense": {
            "name": cell.defense.name,
            "variant": cell.defense.variant,
            "args": OmegaConf.to_container(cell.defense.args),
            "citation": defense.citation,
            "parameters": parameters,
            "randomized": defense.randomized,
            "gradient": defense.gradient,
            "nfe": cost.measured_nfe(defense, spec.sigma),
            "checkpoints": {found.name: found.sha256 for found in checkpoints},
        },
        "data": {
            "name": images.dataset,
            "subset": images.subset,
            "images": len(images),
            "sha256": images.sha256,
            "ids": list(images.ids),
        },
        "flags": ["weights as constructed: no checkpoint given"] if parameters and not checkpoints else [],
        "sessions": [],
    }


def begin_session(header: dict, cell: DictConfig, device: torch.device, batch_rows: int) -> None:
    """Note who goes on with the run. Rows of different code in one run are flagged."""
    session = {"started": _now(), "code": _code(), "environment": _environment(device, cell, batch_rows)}
    header["sessions"].append(session)
    codes = [session["code"] for session in header["sessions"]]
    header["code"] = codes[-1] | {"dirty": any(code["dirty"] for code in codes)}
    mixed = "mixed code: resumed under another commit or version"
    if any(code != codes[0] for code in codes) and mixed not in header["flags"]:
        header["flags"].append(mixed)


def end_session(header: dict, folder: Path) -> None:
    """Status, cost of all rows, and hash of the evidence, from what is on disk."""
    run = record.read(folder)
    rows = list(run.rows.values())
    seconds = sum(row.seconds for row in rows)
    draws = sum(stage.n0 + stage.n for row in rows if row.evidence for stage in row.evidence.stages)
    header["status"] = "complete" if run.complete else "partial"
    header["sessions"][-1]["ended"] = _now()
    header["evidence_sha256"] = record.evidence_sha256(run)
    header["cost"] = {
        "images": len(rows),
        "draws": draws,
        "seconds": seconds,
        "rows_per_second": draws / seconds if seconds else 0.0,
        "network_evaluations": dict(sum((Counter(row.evaluations) for row in rows), Counter())),
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
    """Version; and if this runs from a checkout, its commit and whether the code differs from it."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    tracked = git("ls-files", "--error-unmatch", "drbench/header.py") is not None
    commit = git("rev-parse", "HEAD") if tracked else None
    dirty = bool(commit and git("status", "--porcelain", "--", *CODE))
    return {"version": metadata.version("drbench"), "commit": commit, "dirty": dirty}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
