"""A run as one Parquet file, for analysis elsewhere. The JSON lines stay: they are the record."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from drbench.errors import DrbenchError
from drbench.records.record import Run


def write(run: Run) -> Path:
    """Write `rows.parquet` into the run folder, atomically, and return its path.

    One row an image, in the order of the subset: id, label, prediction, radius, correct, error, seconds; evidence,
    detail and evaluations as JSON text. The metadata of the file holds the header, and name and SHA-256 of each file
    that it was made of.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if run.problems:
        raise DrbenchError(f"{run.folder}: not compacted, {run.problems[0]}; see `drbench verify {run.folder}`")
    rows = list(run.ordered())
    table = pa.table(
        {
            "id": pa.array([str(row.id) for row in rows], pa.string()),
            "label": pa.array([row.label for row in rows], pa.int64()),
            "prediction": pa.array([row.certificate and row.certificate.prediction for row in rows], pa.int64()),
            "radius": pa.array([row.radius for row in rows], pa.float64()),
            "correct": pa.array([row.correct for row in rows], pa.bool_()),
            "error": pa.array([row.error for row in rows], pa.string()),
            "seconds": pa.array([row.seconds for row in rows], pa.float64()),
            "evidence": pa.array([row.evidence and json.dumps(row.evidence.to_json()) for row in rows], pa.string()),
            "detail": pa.array(
                [row.certificate and json.dumps(dict(row.certificate.detail)) for row in rows], pa.string()
            ),
            "evaluations": pa.array([json.dumps(row.evaluations) for row in rows], pa.string()),
        }
    )
    sources = {path.name: _sha256(path) for path in sorted(run.folder.glob("rows-*.jsonl"))}
    table = table.replace_schema_metadata({"drbench": json.dumps({"header": run.header, "sources": sources})})
    target, partial = run.folder / "rows.parquet", run.folder / f"rows.{os.getpid()}.partial"
    try:
        parquet.write_table(table, partial)
        os.replace(partial, target)
    except OSError as error:
        raise DrbenchError(f"cannot write {target}: {error.strerror}") from error
    return target


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
