"""ImageNet, parts of it, ImageNet-A, ImageNet-R and Restricted ImageNet from folders of image files.

Sources: O. Russakovsky et al. 2015, arXiv 1409.0575; D. Hendrycks et al., "Natural adversarial examples", arXiv
1907.07174 (A); "The many faces of robustness", arXiv 2006.16241 (R).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drbench.data import decoding, folders
from drbench.data.folders import File
from drbench.data.preprocessing import get as square
from drbench.data.source import Source, unit
from drbench.digests import names_digest
from drbench.errors import DrbenchError
from drbench.files import datasets

# Restricted ImageNet: dog, cat, frog, turtle, bird, primate, fish, crab, insect. First and last class of each among the
# 1,000, in the order of the code of Chen et al. 2024, arXiv 2305.15241.
SUPERCLASSES = (
    (151, 268), (281, 285), (30, 32), (33, 37), (80, 100), (365, 382), (389, 397), (118, 121), (300, 319),
)  # fmt: skip


def open_split(split: str, root: str | Path | None, name: str = "imagenet", preprocessing: str | None = None) -> Source:
    """Source of a split; classes are numbered by the rank of their WordNet id.

    "imagenet" has "val" (50,000) and "train" (1,281,167), "imagenet-sample" any folder that is there, with the classes
    of the 1,000; their ids are file names without suffix. "imagenet-a" and "imagenet-r" have "test"; their 200 classes
    are numbered among themselves, `within` has their numbers among the 1,000; ids are folder/file.
    "restricted-imagenet" has the images of "val" that are of `SUPERCLASSES`, numbered as there.
    """
    made = square(preprocessing)
    shifted = name in ("imagenet-a", "imagenet-r")
    splits = {"restricted-imagenet": ("val",)}.get(name, ("test",) if shifted else ("val", "train"))
    if split not in splits and name != "imagenet-sample":
        raise DrbenchError(f"unknown split {split!r} of {name}; available: {', '.join(splits)}")
    if Path(split).name != split:
        raise DrbenchError(f"{name}: expected the name of a folder as split, such as val, got {split!r}")
    path = name if shifted else split
    where = datasets.folder(name, root) / path
    files = folders.listed(name, where)
    tree = next((tree for tree in datasets.entry(name).get("trees", []) if tree["path"] == path), None)
    if tree:
        folders.require_counts(name, where, files, tree)
        _require_names(name, where, files, tree)
    within = tuple(sorted({folders.number(file.wnid) for file in files})) if shifted else None
    groups = SUPERCLASSES if name == "restricted-imagenet" else [(c, c) for c in within or range(1000)]
    rank = {c: i for i, (first, last) in enumerate(groups) for c in range(first, last + 1)}
    files = [file for file in files if folders.number(file.wnid) in rank]

    def read(position: int) -> np.ndarray:
        path = where / files[position].wnid / files[position].name
        image = decoding.decode(path, f"data {name!r}: {path}")
        return unit(np.asarray(made.make(image)))

    ids = [f"{file.wnid}/{file.stem}" if shifted else file.stem for file in files]
    if len(set(ids)) < len(ids):
        raise DrbenchError(f"data {name!r}: two files below {where} have the same name; names are the images' ids")
    labels = [rank[folders.number(file.wnid)] for file in files]
    return Source(ids, labels, len(groups), (3, made.side, made.side), read, within)


def _require_names(name: str, where: Path, files: list[File], tree: dict) -> None:
    """Each image must lie in the folder of its published label."""
    names = names_digest(f"{file.wnid}/{file.stem}" for file in files)
    if tree.get("names_sha256", names) != names:
        raise DrbenchError(
            f"data {name!r}: the images in {where} are not in the folders of their published labels, or have other "
            "names; sort them into folders again"
        )
