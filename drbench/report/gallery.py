"""Pictures that `drbench gallery` wrote: `gallery*.png` with a sidecar that says what they show. No torch."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from drbench.errors import DrbenchError


class Picture(NamedTuple):
    """A PNG as a data URI, what it shows in words, its caption; of each run behind it folder, marks, number or None."""

    source: str
    alt: str
    caption: str
    runs: list[tuple[str, list[str], int | None]]


def pictures(roots: Iterable[str | Path], places: Sequence[str] = ()) -> list[Picture]:
    """All `gallery*.png` at or below the roots that have a sidecar, in the order of their paths.

    `places` are the folders of the runs of the page, in the order of their numbers.
    """
    found = {path.resolve() for root in map(Path, roots) for path in root.rglob("gallery*.png")}
    return [_picture(path, places) for path in sorted(found) if path.with_suffix(".json").exists()]


def _picture(path: Path, places: Sequence[str]) -> Picture:
    sidecar = path.with_suffix(".json")
    try:
        about = json.loads(sidecar.read_text(encoding="utf-8"))
        words = str(about["alt"]), str(about["caption"])
        runs = [_run(about, places) for about in about.get("runs", [])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DrbenchError(f"{sidecar}: expected alt, caption and runs of the picture beside it: {error!r}") from error
    return Picture(f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}", *words, runs)


def _run(about: dict, places: Sequence[str]) -> tuple[str, list[str], int | None]:
    name = str(about["run"])
    return name, [str(mark) for mark in about.get("marks", [])], places.index(name) if name in places else None
