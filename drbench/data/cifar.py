"""CIFAR-10 and CIFAR-100 from local files, in any of the layouts in which they are published. Nothing is downloaded.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009: 50,000 + 10,000 colour images of
32x32 pixels. The order of the test images is the same in all layouts; that of the training images need not be, so
"validation" of one layout may hold other images than that of another (`Images.sha256` tells).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from drbench.data import batches, decoding, parquet
from drbench.data.source import Source, unit
from drbench.errors import DrbenchError
from drbench.files import datasets

ROWS = {"train": 50_000, "test": 10_000}
VALIDATION_EVERY = 10  # every tenth row of the training file is held out
CODECS = {"cifar10": (b"\x89PNG", "PNG"), "cifar10-jpeg": (b"\xff\xd8\xff", "JPEG"), "cifar100": (b"\x89PNG", "PNG")}
# Labels of the test images 0, 20, 40, ... as in the logs of Cohen et al.: a shuffled copy is not the benchmark.
ORDER = dict.fromkeys(("cifar10", "cifar10-c"), "8e6bf6602db40068d932482ac7afe85c63089194d72b83c04209c36ca4054e61")


class Layout(NamedTuple):
    """Where a data set's files lie: {} in `parquet` is train or test; `batches` are by part, in folder or archive."""

    classes: int
    parquet: str
    column: str
    python: str = ""
    binary: str = ""
    batches: dict[str, list[str]] = {}  # noqa: RUF012
    label_bytes: int = 1
    key: str = "labels"


_TEN = Layout(10, "plain_text/{}-00000-of-00001.parquet", "label")
LAYOUTS = {
    "cifar10": _TEN._replace(
        python="cifar-10-batches-py",
        binary="cifar-10-batches-bin",
        batches={"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    ),
    "cifar10-jpeg": _TEN,
    "cifar100": Layout(
        100, "cifar100/{}-00000-of-00001.parquet", "fine_label", "cifar-100-python", "cifar-100-binary",
        {"train": ["train"], "test": ["test"]}, 2, "fine_labels",
    ),
}  # fmt: skip
ARCHIVES = {
    "cifar-10-batches-py": "cifar-10-python.tar.gz",
    "cifar-10-batches-bin": "cifar-10-binary.tar.gz",
    "cifar-100-python": "cifar-100-python.tar.gz",
    "cifar-100-binary": "cifar-100-binary.tar.gz",
}


def open_split(split: str, root: str | Path | None, name: str = "cifar10") -> Source:
    """Source of "train" (45,000), "validation" (5,000 of the training images) or "test" (10,000); ids are row numbers.

    `name` also says how the pixels of a parquet file were stored: "cifar10" the originals (PNG), "cifar10-jpeg" a
    re-encoding, whose results must never be called CIFAR-10. Files of the other kind are refused.
    """
    if split not in ("train", "validation", "test"):
        raise DrbenchError(f"unknown split {split!r} of {name}; available: train, validation, test")
    part = "test" if split == "test" else "train"
    labels, image = _open(name, part, datasets.folder(name, root))
    classes = LAYOUTS[name].classes
    if len(labels) != ROWS[part] or set(labels) != set(range(classes)):
        raise DrbenchError(
            f"{name}, {part}: expected {ROWS[part]:,} images of the classes 0-{classes - 1}, got {len(labels):,} of "
            f"{len(set(labels))} classes; get the files again"
        )
    if part == "test" and len(labels) == 10_000:
        check_order(name, labels)
    rows = [i for i in range(len(labels)) if split == "test" or (i % VALIDATION_EVERY == 9) == (split == "validation")]
    return Source(rows, [labels[i] for i in rows], classes, (3, 32, 32), lambda position: image(rows[position]))


def check_order(name: str, labels: list[int]) -> None:
    """Raise unless the labels, all of one byte, are those of the published test images in their order."""
    if name in ORDER and hashlib.sha256(bytes(labels[::20])).hexdigest() != ORDER[name]:
        raise DrbenchError(
            f"{name}: the test images are not in the published order (their labels differ), so no subset of them is "
            "what its name says; get the files of the data set's page"
        )


def _open(name: str, part: str, folder: Path) -> tuple[list[int], Callable[[int], np.ndarray]]:
    """Labels, and a function from row number to image, of the first layout that is there."""
    layout, file = LAYOUTS[name], LAYOUTS[name].parquet.format(part)
    if (folder / file).is_file():
        return _of_parquet(datasets.check(name, folder, file), name)
    for inside, suffix in ((layout.binary, ".bin"), (layout.python, "")):
        names = [f"{inside}/{batch}{suffix}" for batch in layout.batches.get(part, [])]
        if names and all((folder / each).is_file() for each in names):
            files = {each: batches.from_file(datasets.check(name, folder, each)) for each in names}
            return _of_batches(files, layout, part, folder)
    for inside, suffix in ((layout.binary, ".bin"), (layout.python, "")):
        if inside and (folder / ARCHIVES[inside]).is_file():
            path = datasets.check(name, folder, ARCHIVES[inside])
            names = [f"{inside}/{batch}{suffix}" for batch in layout.batches[part]]
            return _of_batches(batches.from_archive(path, names), layout, part, path)
    raise datasets.missing(name, folder, f"file of the {part} images")


def _of_batches(files: dict[str, bytes], layout: Layout, part: str, where: Path):
    rows = ROWS[part] // len(files)
    pixels, labels = [], []
    for file in sorted(files):
        if file.endswith(".bin"):
            found = batches.binary(files[file], rows, layout.label_bytes, where / file)
        else:
            found = batches.python(files[file], rows, layout.key, where / file)
        pixels.append(found[0])
        labels += found[1]

    def image(row: int) -> np.ndarray:
        return unit(pixels[row // rows][row % rows].reshape(3, 32, 32).transpose(1, 2, 0))

    return labels, image


def _of_parquet(path: Path, name: str):
    encoded, labels = parquet.read(path, LAYOUTS[name].column)
    magic, codec = CODECS[name]

    def image(row: int) -> np.ndarray:
        content, where = encoded[row], f"{name}, row {row}"
        if not content.startswith(magic):
            others = [n for n, (first, _) in CODECS.items() if content.startswith(first) and n.startswith("cifar10")]
            known = others and name.startswith("cifar10")
            advice = f"ask for data.name={others[0]}" if known else "the file is not of this data set"
            raise DrbenchError(f"{where}: expected a {codec} image; {advice}")
        found = decoding.decode(content, where, rgb=False)
        if found.size != (32, 32) or found.mode != "RGB":
            raise DrbenchError(f"{where}: expected 32x32 RGB, got {found.size[0]}x{found.size[1]} {found.mode}")
        return unit(np.asarray(found))

    return labels, image
