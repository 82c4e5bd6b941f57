"""CIFAR-10 under distribution shift: CIFAR-10-C, CIFAR-10.1, and corruptions made here where CIFAR-10-C is absent.

Sources: D. Hendrycks, T. Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
ICLR 2019, arXiv 1903.12261 (C); B. Recht et al., "Do CIFAR-10 classifiers generalize to CIFAR-10?", arXiv 1806.00451
(.1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drbench.data import arrays, cifar, corruptions
from drbench.data.source import Source, unit
from drbench.errors import DrbenchError, did_you_mean
from drbench.files import datasets

ROWS = 10_000  # test images; an array of CIFAR-10-C holds them at severity 1, then at 2, ... 5
SEVERITIES = 5
# The first 15 are the benchmark, whose mean error is reported; the others are its extras.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
    "gaussian_blur", "saturate", "spatter", "speckle_noise",
)  # fmt: skip
VERSIONS = {"v4": 2_021, "v6": 2_000}


def open_split(split: str, root: str | Path | None, name: str) -> Source:
    """CIFAR-10-C: split CORRUPTION/SEVERITY, e.g. "fog/3"; CIFAR-10.1: "v4" or "v6". Ids are row numbers."""
    if name == "cifar10.1":
        return _new_images(split, datasets.folder(name, root))
    corruption, severity = _parts(split, name)
    if name == "cifar10-c-generated":
        return _generated(corruption, severity, root)
    return _published(corruption, severity, datasets.folder(name, root))


def _parts(split: str, name: str) -> tuple[str, int]:
    corruption, _, severity = split.partition("/")
    if corruption not in CORRUPTIONS:
        raise DrbenchError(f"unknown split {split!r} of {name}{did_you_mean(corruption, CORRUPTIONS)}")
    if severity not in tuple("12345"):
        raise DrbenchError(
            f"{name}: expected a split CORRUPTION/SEVERITY with a severity 1-5, e.g. fog/3, got {split!r}"
        )
    return corruption, int(severity)


def _published(corruption: str, severity: int, folder: Path) -> Source:
    name, tar = "cifar10-c", "CIFAR-10-C.tar"

    def place(file: str) -> arrays.Place:
        for unpacked in (folder / "CIFAR-10-C" / file, folder / file):
            if unpacked.is_file():
                return arrays.alone(unpacked)
        if (folder / tar).is_file():
            return arrays.in_tar(datasets.check(name, folder, tar), file)
        raise datasets.missing(name, folder, f"{tar} or CIFAR-10-C/{file}")

    pixels = arrays.mapped(place(f"{corruption}.npy"), SEVERITIES * ROWS)
    labels = arrays.mapped(place("labels.npy"), SEVERITIES * ROWS)
    _require_images(pixels, folder / f"{corruption}.npy")
    first = (severity - 1) * ROWS
    own = np.asarray(labels[first : first + ROWS]).tolist()
    if labels.ndim != 1 or not 0 <= labels.min() <= labels.max() < 10:
        raise DrbenchError(
            f"{folder}: expected labels 0-9, one an image, got {labels.shape} of {labels.min()}-{labels.max()}; get "
            "labels.npy again"
        )
    if not np.array_equal(own, labels[:ROWS]):
        raise DrbenchError(
            f"{folder}: expected the labels of CIFAR-10-C to repeat at each severity; get labels.npy again"
        )
    cifar.check_order(name, own)
    return Source(range(ROWS), own, 10, (3, 32, 32), lambda row: unit(np.asarray(pixels[first + row])))


def _new_images(version: str, folder: Path) -> Source:
    if version not in VERSIONS:
        raise DrbenchError(f"unknown split {version!r} of cifar10.1; available: v4 (2,021 images), v6 (2,000)")
    files = [datasets.check("cifar10.1", folder, f"cifar10.1_{version}_{what}.npy") for what in ("data", "labels")]
    pixels, labels = (arrays.mapped(arrays.alone(path), VERSIONS[version]) for path in files)
    _require_images(pixels, files[0])
    return Source(
        range(len(labels)), np.asarray(labels).tolist(), 10, (3, 32, 32), lambda row: unit(np.asarray(pixels[row]))
    )


def _require_images(pixels: np.ndarray, where: Path) -> None:
    if pixels.shape[1:] != (32, 32, 3) or pixels.dtype != np.uint8:
        raise DrbenchError(f"{where}: expected bytes of shape (N, 32, 32, 3), got {pixels.dtype} {pixels.shape}")


def _generated(corruption: str, severity: int, root: str | Path | None) -> Source:
    clean = cifar.open_split("test", root, "cifar10")

    def read(position: int) -> np.ndarray:
        pixels = clean.read(position).transpose(1, 2, 0)
        return unit(corruptions.corrupt(pixels, corruption, severity, clean.ids[position]))

    return Source(clean.ids, clean.labels, 10, (3, 32, 32), read)
