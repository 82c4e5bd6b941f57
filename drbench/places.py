"""Folders that the environment names, and the manifests in them. Imports nothing of ours."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[1]


def home() -> Path:
    """Folder that holds `benchmarks/`: DRBENCH_HOME, or the project that this package runs from."""
    return Path(os.environ.get("DRBENCH_HOME") or PROJECT)


def weights_folder() -> Path:
    """Where weights lie that do not ship with the project: DRBENCH_WEIGHTS, or ~/.cache/drbench/weights."""
    return Path(os.environ.get("DRBENCH_WEIGHTS") or Path.home() / ".cache" / "drbench" / "weights")


def manifest(name: str, shared: bool = True) -> dict[str, dict]:
    """A file of `benchmarks/` that maps names to entries, not to be changed; empty if it is not there.

    A `shared` one is about things of others: a home that has none has that of the project.
    """
    for folder in (home(), PROJECT) if shared else (home(),):
        path = folder / "benchmarks" / name
        if path.is_file():
            return parsed(path.read_text(encoding="utf-8"))
    return {}


@lru_cache(maxsize=64)
def parsed(text: str) -> dict:
    """A mapping in YAML, not to be changed."""
    return yaml.safe_load(text) or {}  # slow, and asked for again and again
