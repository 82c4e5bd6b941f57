"""What a gallery shows: pictures of recorded runs with the text below each, and what a report says of them. No torch.

Gathered by `gathering` (torch: it purifies), drawn by `drawing` (matplotlib): between them, arrays and words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drbench.errors import DrbenchError
from drbench.records.record import Run

RIGHT, WRONG, ABSTAINS = "right", "wrong", "abstains"
MARKS = {RIGHT: "✓", WRONG: "✗", ABSTAINS: "?", "": ""}
FIRST = 3  # images that are shown if none are named


@dataclass(frozen=True)
class Tile:
    """One place of a grid.

    Parameters
    ----------
    pixels : array or None
        (C, H, W), C = 1 or 3, as the defense saw them: shown clipped to [0, 1]. None: no picture, text alone.
    lines : tuple of str
        Below the picture.
    verdict : {"", "right", "wrong", "abstains"}
        Of a tile that stands for an answer; its mark begins the first line.
    """

    pixels: np.ndarray | None
    lines: tuple[str, ...] = ()
    verdict: str = ""


@dataclass(frozen=True)
class Grid:
    """Tiles in rows and columns.

    Parameters
    ----------
    titles, heads : tuple of str
        Above the columns, and left of the rows; empty for none.
    rows : tuple of tuples of Tile or None
        None leaves a place empty.
    row_group, column_group : int
        A wider gap stands after so many of them.
    """

    titles: tuple[str, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[Tile | None, ...], ...]
    row_group: int = 1000
    column_group: int = 1000


@dataclass(frozen=True)
class Gallery:
    """Grids below each other, a line of explanation, and the sidecar: alt text, caption, images, runs."""

    grids: tuple[Grid, ...]
    note: str
    sidecar: dict


def choose(runs: Sequence[Run], wanted: Sequence[str] | None, first: int | None) -> list[int | str]:
    """Ids of the images to show: those named, or the first ones that all runs have done, in the order of the first run.

    Raises `DrbenchError` if a run lacks one, or if the runs are of different data.
    """
    data = sorted({f"{run.header['data']['name']} {run.header['data']['subset'].partition('/')[0]}" for run in runs})
    if len(data) > 1:
        raise DrbenchError(f"expected runs on the same data, got {' and '.join(data)}: make a gallery of each")
    if not wanted:
        common = [name for name in runs[0].wanted if all(name in run.rows and run.rows[name].evidence for run in runs)]
        if not common:
            raise DrbenchError("the runs have no recorded image in common; choose runs on the same subset of the data")
        return common[: first or FIRST]
    chosen = []
    for word in wanted:
        for run in runs:
            known = {str(name): name for name in run.wanted if name in run.rows}
            if word not in known:
                some = ", ".join(list(known)[:8])
                raise DrbenchError(f"{run.folder}: no recorded image with id {word}; it has {some or 'none'}, ... "
                                   f"({len(known)} images; ids are those of the data set, in run.json)")  # fmt: skip
            found = known[word]
        chosen += [] if found in chosen else [found]
    return chosen


def name_of(run: Run) -> str:
    """Last two parts of a run's folder, the same wherever the results lie."""
    return "/".join(run.folder.resolve().parts[-2:])


def about(run: Run) -> dict:
    """Provenance of a run, for the sidecar."""
    header, engine = run.header, run.header["engine"]
    return {
        "run": name_of(run),
        "task": run.task,
        "identity": header["identity"],
        "evidence_sha256": header.get("evidence_sha256"),
        "defense": header["defense"]["name"],
        "variant": header["defense"]["variant"],
        "checkpoints": header["defense"]["checkpoints"],
        "sigma": engine["sigma"],
        "seed": engine["seed"],
        "marks": [*run.marks, *header.get("flags", [])],
    }


def write_sidecar(gallery: Gallery, stem: str | Path) -> Path:
    """`<stem>.json`: {"alt", "caption", "images", "runs"}; the same gallery gives the same bytes."""
    path = Path(stem).with_name(Path(stem).name + ".json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(gallery.sidecar, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DrbenchError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    return path
