"""Folders that the environment names. Imports nothing of ours."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Folder that holds `benchmarks/`: DRBENCH_HOME, or the project that this package runs from."""
    return Path(os.environ.get("DRBENCH_HOME") or Path(__file__).resolve().parents[1])


def weights_folder() -> Path:
    """Where weights lie that do not ship with the project: DRBENCH_WEIGHTS, or ~/.cache/drbench/weights."""
    return Path(os.environ.get("DRBENCH_WEIGHTS") or Path.home() / ".cache" / "drbench" / "weights")
