"""Folders that the environment names, and the manifests in them. Imports nothing of ours."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[2]


def path(given: str | Path) -> Path:
    """A path as people write it: `~` is their home, also in configs and in variables, where no shell looks for it."""
    return Path(os.path.expanduser(given))


def named(variable: str) -> Path | None:
    """The folder that an environment variable names; None if it is empty or not set."""
    given = os.environ.get(variable)
    return path(given) if given else None


def home() -> Path:
    """Folder that holds `benchmarks/`: DRBENCH_HOME, or the project that this package runs from."""
    return named("DRBENCH_HOME") or PROJECT


def weights_folder() -> Path:
    """Where weights lie that do not ship with the project: DRBENCH_WEIGHTS, or ~/.cache/drbench/weights."""
    return named("DRBENCH_WEIGHTS") or Path.home() / ".cache" / "drbench" / "weights"


def manifest(name: str, shared: bool = True) -> dict[str, dict]:
    """A file of `benchmarks/` that maps names to entries, not to be changed; empty if it is not there.

    A `shared` one is about things of others: a home that has none has that of the project.
    """
    for folder in (home(), PROJECT) if shared else (home(),):
        file = folder / "benchmarks" / name
        if file.is_file():
            return parsed(file.read_text(encoding="utf-8"))
    return {}


@lru_cache(maxsize=64)
def parsed(text: str) -> dict:
    """A mapping in YAML, not to be changed."""
    return yaml.safe_load(text) or {}  # slow, and asked for again and again
