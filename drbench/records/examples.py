"""Adversarial examples on disk: `examples.npz` with a JSON sidecar, and parts of it while a run goes on. No torch.

Parts are written before the rows that name them; at the end they are joined. A reader takes both, so a run may be
killed at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drbench import norms
from drbench.errors import DrbenchError
from drbench.records.record import Row, Run

WHOLE = "examples.npz"
SIDECAR = "examples.json"


def write_part(folder: Path, ids: Sequence[int | str], y: Sequence[int], x: np.ndarray, x_adv: np.ndarray) -> None:
    """Examples of some images, in a file of their own, atomically."""
    _write(folder / f"examples-{time.time_ns()}-{os.getpid()}.npz", ids=ids, y=y, x=x, x_adv=x_adv)


def read(folder: Path) -> dict[int | str, tuple[int, np.ndarray, np.ndarray]]:
    """id -> (label, clean image, adversarial example), float32 (C, H, W)."""
    found: dict = {}
    for path in sorted(folder.glob("examples*.npz")):
        ids, y, x, x_adv = arrays(path, ("ids", "y", "x", "x_adv")).values()
        for name, label, clean, example in zip(ids.tolist(), y.tolist(), x, x_adv, strict=True):
            found.setdefault(name, (label, clean, example))
    return found


def arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some arrays of a file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DrbenchError(f"{path}: expected arrays {', '.join(names)}: {error!r}") from error


def join(run: Run) -> None:
    """Write all examples that have a row into one file, with a sidecar that says what they are; drop the parts."""
    found = read(run.folder)
    rows = [row for row in run.ordered() if row.evidence and row.id in found]
    if not rows:
        return
    left = parts(run.folder)
    x, x_adv = (np.stack([found[row.id][i] for row in rows]) for i in (1, 2))
    _write(
        run.folder / WHOLE,
        ids=[row.id for row in rows],
        y=[row.label for row in rows],
        x=x,
        x_adv=x_adv,
        **columns(rows),
    )
    partial = run.folder / "examples.json.partial"
    partial.write_text(json.dumps(sidecar(run, x, x_adv), indent=1) + "\n")
    os.replace(partial, run.folder / SIDECAR)
    for part in left:
        part.unlink(missing_ok=True)  # another process may have joined them as well


def parts(folder: Path) -> list[Path]:
    """Files that are not joined yet, or that a join which was killed has left."""
    return sorted(folder.glob("examples-*.npz"))


def columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """What the joined file says of these rows beside their images."""
    return {
        "failures": np.array([row.evidence.adversarial.wrong(row.label) for row in rows], np.int32),
        "clean_failures": np.array([row.evidence.clean.wrong(row.label) for row in rows], np.int32),
        "draws": np.array([row.evidence.adversarial.count for row in rows], np.int32),
        "distance": np.array([row.evidence.distance for row in rows]),
    }


def sidecar(run: Run, x: np.ndarray, x_adv: np.ndarray) -> dict:
    """What is said of the joined file, which is there, and holds these images and examples."""
    header, engine = run.header, run.header["engine"]
    return {
        "schema": header["schema"],
        "defense": header["defense"],
        "identity": header["identity"],
        "data": {key: header["data"][key] for key in ("name", "subset", "images", "sha256")},
        "engine": engine,
        "packages": header["sessions"][-1]["environment"]["packages"],
        "sha256": hashlib.sha256((run.folder / WHOLE).read_bytes()).hexdigest(),
        "feasible": bool(norms.feasible(engine["norm"], engine["eps"], x_adv, x).all()),
    }


def _write(path: Path, *, ids: Sequence, y: Sequence[int], **arrays) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez_compressed(file, ids=np.array(ids), y=np.array(y, np.int64), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise DrbenchError(f"cannot write {path}: {error.strerror}; free the disk or choose another --out") from error
