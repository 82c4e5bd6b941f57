"""Data sets: `load(name, split, subset)` gives `Images` with stable ids and pixels in [0, 1].

A data set is a module with `open_split(split, root, name, ...) -> Source`; only the images of the subset are decoded.
Importing this package, and opening a source, loads no torch.

source, images
             a split before anything is decoded; decoded images
subsets      which images of a split
digits, cifar, imagenet, imagenet64
             data sets, from local files
shifts       CIFAR-10 under distribution shift
preprocessing
             how photographs become squares
folders, decoding
             folders of images, one a class; image files as pixels
batches, pickled
             CIFAR's own archives, and the pickles in them
arrays, parquet
             .npy and .npz; parquet as Hugging Face writes it
corruptions  what stands in for CIFAR-10-C where it is not at hand
blurs, weather, frost, spatter
             the corruptions that have a file of their own
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from drbench.data import preprocessing as squares
from drbench.data import subsets
from drbench.data.source import Source
from drbench.errors import DrbenchError, did_you_mean
from drbench.files import datasets

if TYPE_CHECKING:
    from drbench.data.images import Images

__all__ = ["DATASETS", "Images", "Overview", "Source", "coverage", "from_source", "load", "open_split", "overview",
           "shape"]  # fmt: skip

DATASETS = {
    "digits": "digits",
    "cifar10": "cifar",
    "cifar10-jpeg": "cifar",
    "cifar100": "cifar",
    "cifar10-c": "shifts",
    "cifar10-c-generated": "shifts",
    "cifar10.1": "shifts",
    "imagenet": "imagenet",
    "imagenet-sample": "imagenet",
    "imagenet-a": "imagenet",
    "imagenet-r": "imagenet",
    "restricted-imagenet": "imagenet",
    "imagenet64": "imagenet64",
}


def __getattr__(name: str):
    if name != "Images":
        raise AttributeError(f"module 'drbench.data' has no attribute {name!r}")
    return import_module("drbench.data.images").Images


class Overview(NamedTuple):
    """What a subset holds, without pixels."""

    images: int
    present: int
    num_classes: int
    ids_sha256: str

    @property
    def few_classes(self) -> bool:
        """Whether far fewer classes are met than as many random images would meet (a list sorted by class)."""
        return self.images >= 20 and self.present < min(self.images, self.num_classes) / 2

    def __str__(self) -> str:
        return f"{self.images:,} images, {self.present:,} of {self.num_classes:,} classes"


def load(
    name: str,
    split: str = "test",
    subset: str = "all",
    root: str | Path | None = None,
    preprocessing: str | None = None,
) -> Images:
    """Load a named subset of a data set as `Images`.

    Parameters
    ----------
    name : str
        A key of `DATASETS`.
    split : str
        e.g. "train", "validation", "test"; ImageNet: "val"; CIFAR-10-C: "fog/3".
    subset : str
        "all", "firstN", "everyN", "AtoB", "randomNseedS", "ids:FILE", or a name of subsets.yaml.
    root : path, optional
        Folder of the data set's files, by default its sub-folder of the folder that DRBENCH_DATA names.
    preprocessing : str, optional
        How ImageNet's photographs become squares, see `drbench.data.preprocessing`.
    """
    source = open_split(name, split, root, preprocessing)
    return from_source(source, name, split, subset, preprocessing)


def open_split(
    name: str, split: str = "test", root: str | Path | None = None, preprocessing: str | None = None
) -> Source:
    """The split before anything is decoded."""
    if name not in DATASETS:
        raise DrbenchError(f"unknown data set {name!r}{did_you_mean(name, DATASETS)}")
    opener = import_module(f"drbench.data.{DATASETS[name]}").open_split
    if preprocessing is None:
        return opener(split, root, name)
    if "preprocessing" not in inspect.signature(opener).parameters:
        raise DrbenchError(f"data {name!r} takes no data.preprocessing, got {preprocessing!r}; ImageNet's folders do")
    return opener(split, root, name, preprocessing)


def shape(name: str, preprocessing: str | None = None) -> tuple[int, int, int]:
    """(C, H, W) of a data set's images, also where none is here."""
    channels, *sides = datasets.entry(name)["shape"]
    return (channels, *(sides if preprocessing is None else [squares.get(preprocessing).side] * 2))


def overview(name: str, split: str, subset: str, root: str | Path | None = None) -> Overview:
    """Number of images and classes of a subset, and the hash of its ids, from labels alone."""
    source = open_split(name, split, root)
    chosen = subsets.choose(subset, source.ids, name, split)
    present = len({int(source.labels[i]) for i in chosen})
    return Overview(len(chosen), present, source.num_classes, subsets.digest(source.ids[i] for i in chosen))


def coverage(images: Images) -> Overview:
    """The same of decoded images."""
    return Overview(len(images), len(set(images.y.tolist())), images.num_classes, subsets.digest(images.ids))


def from_source(source: Source, name: str, split: str, subset: str = "all", preprocessing: str | None = None) -> Images:
    """Decode the chosen images of a source."""
    import torch

    from drbench.data.images import Images

    chosen = subsets.choose(subset, source.ids, name, split)
    pixels = np.empty((len(chosen), *source.shape), np.float32)
    for row, position in zip(pixels, chosen, strict=True):
        image = source.read(position)
        if image.shape != row.shape:
            raise DrbenchError(
                f"data '{name}', image {source.ids[position]}: expected shape {row.shape} (C, H, W), got {image.shape}"
            )
        row[:] = image
    return Images(
        x=torch.from_numpy(pixels),
        y=torch.tensor([int(source.labels[i]) for i in chosen]),
        ids=tuple(source.ids[i] for i in chosen),
        dataset=name,
        subset=subsets.label(split if preprocessing is None else f"{split}@{preprocessing}", subset),
        num_classes=source.num_classes,
        within=source.within,
    )
