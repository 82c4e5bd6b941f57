"""CIFAR-10 from local files in the layout of the Hugging Face data set `uoft-cs/cifar10`.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009: 50,000 + 10,000 colour images of
32x32 pixels. Nothing is downloaded.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from drbench.errors import DrbenchError

FILE = "plain_text/{}-00000-of-00001.parquet"
ROWS = {"train": 50_000, "test": 10_000}
VALIDATION_EVERY = 10  # every tenth row of the training file is held out
CODECS = {"cifar10": (b"\x89PNG", "PNG"), "cifar10-jpeg": (b"\xff\xd8\xff", "JPEG")}


def open_split(split: str, root: str | Path | None, name: str = "cifar10"):
    """Source of "train" (45,000), "validation" (5,000 of the training file) or "test" (10,000); ids are row numbers.

    `name` says how the pixels were stored: "cifar10" the originals (PNG), "cifar10-jpeg" a re-encoding, whose results
    must never be called CIFAR-10. Files of the other kind are refused.
    """
    from drbench.data import Source

    if split not in ("train", "validation", "test"):
        raise DrbenchError(f"unknown split {split!r} of {name}; available: train, validation, test")
    file = "test" if split == "test" else "train"
    encoded, labels = _read(_path(root, file, name), ROWS[file])
    rows = [i for i in range(len(labels)) if split == "test" or (i % VALIDATION_EVERY == 9) == (split == "validation")]
    magic, codec = CODECS[name]

    def read(position: int) -> np.ndarray:
        content = encoded[rows[position]]
        if not content.startswith(magic):
            other = next((n for n, (first, _) in CODECS.items() if content.startswith(first)), None)
            advice = f"ask for data.name={other}" if other else "the file is not of this data set"
            raise DrbenchError(f"{name}, row {rows[position]}: expected a {codec} image; {advice}")
        return _decode(content, f"{name}, row {rows[position]}")

    return Source(rows, [labels[i] for i in rows], 10, (3, 32, 32), read)


def _path(root: str | Path | None, file: str, name: str) -> Path:
    wanted = f"<root>/{FILE.format(file)}"
    if root is None:
        raise DrbenchError(
            f"data {name!r} needs data.root, a folder with {wanted} (layout of the Hugging Face data set "
            "uoft-cs/cifar10); nothing is downloaded"
        )
    path = Path(root) / FILE.format(file)
    if not path.is_file():
        raise DrbenchError(f"data {name!r}: no file {path}; expected {wanted} (data set uoft-cs/cifar10)")
    return path


def _read(path: Path, rows: int) -> tuple[list[bytes], list[int]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=["img", "label"])
        encoded = table["img"].combine_chunks().field("bytes").to_pylist()
        labels = table["label"].to_pylist()
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise DrbenchError(f"{path}: not readable as CIFAR-10 in parquet ({error}); get the file again") from error
    if len(labels) != rows or None in encoded or set(labels) != set(range(10)):
        raise DrbenchError(f"{path}: expected {rows:,} images of the classes 0-9, got {len(labels):,}; get it again")
    return encoded, labels


def _decode(content: bytes, where: str) -> np.ndarray:
    """(3, 32, 32) float32 in [0, 1]."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise DrbenchError(f"{where}: not a readable image: {error}") from error
    if image.size != (32, 32) or image.mode != "RGB":
        raise DrbenchError(f"{where}: expected 32x32 RGB, got {image.size[0]}x{image.size[1]} {image.mode}")
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255
