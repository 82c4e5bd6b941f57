"""The batches of CIFAR's own archives, binary or python, from the archive or from its unpacked folder. No torch.

An archive is read as a stream, nothing of it is written to disk, and only the wanted members are held in memory.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from drbench.data import pickled
from drbench.errors import DrbenchError

PIXELS = 3 * 32 * 32  # the red plane, then the green, then the blue, row by row
MEMBERS = 100  # the archives have about ten
BYTES = 256 * 2**20  # of one member; the largest, CIFAR-100's training batch, has 155 million


def binary(content: bytes, rows: int, label_bytes: int, where: object) -> tuple[np.ndarray, list[int]]:
    """Pixels (rows, 3072) and labels of a binary batch. A record is its labels (the last one counts), then pixels."""
    record = label_bytes + PIXELS
    if len(content) != rows * record:
        raise DrbenchError(f"{where}: expected {rows:,} records of {record:,} bytes, got {len(content):,} bytes")
    table = np.frombuffer(content, np.uint8).reshape(rows, record)
    return table[:, label_bytes:], table[:, label_bytes - 1].tolist()


def python(content: bytes, rows: int, key: str, where: object) -> tuple[np.ndarray, list[int]]:
    """Pixels (rows, 3072) and labels of a python batch, which holds the labels under `key`."""
    batch = pickled.read(io.BytesIO(content), where)
    pixels, labels = batch.get("data"), batch.get(key)
    fits = isinstance(pixels, np.ndarray) and pixels.shape == (rows, PIXELS) and isinstance(labels, list)
    if not fits or len(labels) != rows or not all(type(label) is int for label in labels):
        raise DrbenchError(f"{where}: expected data ({rows:,}, {PIXELS:,}) and as many {key}; it holds {sorted(batch)}")
    return pixels, labels


def from_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Members of a tar.gz by name. Links, devices, absolute paths, `..`, doubles and oversize members are refused."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for count, member in enumerate(archive):
                _check(member, count, found, path)
                if member.name in names:
                    found[member.name] = archive.extractfile(member).read()
                if len(found) == len(names):
                    break
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DrbenchError(f"{path}: not readable as tar.gz ({error}): truncated or damaged; get it again") from error
    if missing := sorted(set(names) - set(found)):
        raise DrbenchError(f"{path}: expected the member {missing[0]}; the archive is of something else")
    return found


def _check(member: tarfile.TarInfo, count: int, found: dict, path: Path) -> None:
    parts = PurePosixPath(member.name).parts
    problem = (
        "is not a plain file or folder" if not (member.isfile() or member.isdir())
        else "leaves the archive's folder" if ".." in parts or member.name.startswith("/")
        else f"has {member.size:,} bytes" if member.size > BYTES
        else "occurs twice" if member.name in found
        else f"is one of more than {MEMBERS}" if count >= MEMBERS
        else ""
    )  # fmt: skip
    if problem:
        raise DrbenchError(f"{path}: refused, because its member {member.name!r} {problem}")
