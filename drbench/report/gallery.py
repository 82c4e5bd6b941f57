"""Pictures that `drbench gallery` wrote: `gallery*.png` with a sidecar that says what they show. No torch."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from drbench.errors import DrbenchError


class Picture(NamedTuple):
    """A PNG as a data URI, what it shows in words, its caption, and the runs behind it with their marks."""

    source: str
    alt: str
    caption: str
    runs: list[tuple[str, list[str]]]


def pictures(roots: Iterable[str | Path]) -> list[Picture]:
    """All `gallery*.png` at or below the roots that have a sidecar, in the order of their paths."""
    found = {path.resolve() for root in map(Path, roots) for path in root.rglob("gallery*.png")}
    return [_picture(path) for path in sorted(found) if path.with_suffix(".json").exists()]


def _picture(path: Path) -> Picture:
    sidecar = path.with_suffix(".json")
    try:
        about = json.loads(sidecar.read_text(encoding="utf-8"))
        words = str(about["alt"]), str(about["caption"])
        runs = [(str(run["run"]), [str(mark) for mark in run.get("marks", [])]) for run in about.get("runs", [])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DrbenchError(f"{sidecar}: expected alt, caption and runs of the picture beside it: {error!r}") from error
    return Picture(f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}", *words, runs)
