"""Folders of images, one a class, named by WordNet id (ImageFolder): what is in them, in order, and whether it is all.

No torch.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from drbench.errors import DrbenchError
from drbench.files import datasets

SUFFIXES = (".jpeg", ".jpg", ".png")


class File(NamedTuple):
    """An image file: its class, which is its folder, and its name."""

    wnid: str
    name: str

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]


@cache
def wnids(file: str = "imagenet_wnids.txt") -> tuple[str, ...]:
    """A list of classes by number. ImageNet's is in the order of the ids, as every program of the field has it."""
    return tuple(Path(__file__).with_name(file).read_text().split())


def listed(name: str, where: Path) -> list[File]:
    """Image files below `where`, by class, then name. Hidden and other files are left out.

    Strange or empty folders are errors.
    """
    if not where.is_dir():
        raise datasets.missing(name, where.parent, f"folder {where.name}")
    found = []
    for folder in sorted(
        entry.name for entry in os.scandir(where) if entry.is_dir() and not entry.name.startswith(".")
    ):
        if not re.fullmatch(r"n\d{8}", folder) or folder not in _numbers():
            raise DrbenchError(
                f"data {name!r}: {where / folder} is not named by the WordNet id of one of ImageNet's 1,000 classes "
                "(such as n01440764); expected one folder a class"
            )
        names = (file for file in os.listdir(where / folder) if not file.startswith("."))
        images = sorted(file for file in names if file.lower().endswith(SUFFIXES))
        if not images:
            raise DrbenchError(f"data {name!r}: no image in {where / folder}; unpack the class again")
        found += [File(folder, image) for image in images]
    if not found:
        raise datasets.missing(name, where, "folder of images named by WordNet id")
    return found


def number(wnid: str) -> int:
    """Class of a WordNet id among ImageNet's 1,000."""
    return _numbers()[wnid]


@cache
def _numbers() -> dict[str, int]:
    return {wnid: i for i, wnid in enumerate(wnids())}


def require_counts(name: str, where: Path, found: list[File], tree: dict) -> None:
    """Raise unless all classes and images of the published data set are there."""
    classes = {file.wnid for file in found}
    if (len(classes), len(found)) == (tree["folders"], tree["files"]):
        return
    part = " To use a part of ImageNet as what it is, ask for data.name=imagenet-sample." if name == "imagenet" else ""
    absent = sorted(set(wnids()) - classes) if tree["folders"] == len(wnids()) else []
    first = f" ({absent[0]} is the first missing class)" if absent else ""
    raise DrbenchError(
        f"data {name!r}: expected {tree['files']:,} images in {tree['folders']:,} folders in {where}, got "
        f"{len(found):,} in {len(classes):,}{first}: unpack the archive again.{part}"
    )
