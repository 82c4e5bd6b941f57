"""Arrays of bytes and integers in .npy files, read where they lie: alone, inside a tar, or inside an .npz. No torch.

Only the rows that are asked for are read; pickled (object) arrays are refused.
"""

from __future__ import annotations

import math
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from drbench.errors import DrbenchError


class Place(NamedTuple):
    """A .npy inside a file: where it begins, how long it is; `name` is printed in errors."""

    path: Path
    name: str
    offset: int
    size: int


def alone(path: Path) -> Place:
    """A .npy file."""
    return Place(path, str(path), 0, path.stat().st_size)


def in_tar(path: Path, name: str) -> Place:
    """The member of an uncompressed tar whose path ends with /`name`; nothing is unpacked."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() and member.name.rpartition("/")[2] == name:
                    if member.offset_data + member.size > path.stat().st_size:
                        raise tarfile.ReadError(f"{name} ends beyond the end of the file")
                    return Place(path, f"{path}:{member.name}", member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DrbenchError(f"{path}: not readable as tar ({error}): truncated or damaged; get it again") from error
    raise DrbenchError(f"{path}: expected a member {name}; the archive is of something else")


def mapped(place: Place, rows: int | None = None) -> np.ndarray:
    """The array, mapped from disk: (rows, ...) of bytes or integers. Rows are read when they are looked at."""
    with place.path.open("rb") as stream:
        stream.seek(place.offset)
        shape, by_column, dtype = _header(stream, place.name)
        start = stream.tell()
    length = dtype.itemsize * math.prod(shape)
    if start - place.offset + length != place.size or by_column:
        raise DrbenchError(
            f"{place.name}: expected {start - place.offset + length:,} bytes for {dtype} {shape}, row by row, got "
            f"{place.size:,}: truncated or damaged; get it again"
        )
    _require(shape, rows, place.name)
    return np.memmap(place.path, dtype, "r", start, shape)


def _require(shape: tuple, rows: int | None, name: str) -> None:
    if rows is not None and (not shape or shape[0] != rows):
        raise DrbenchError(f"{name}: expected {rows:,} rows, got an array of shape {shape}")


def _header(stream, name: str) -> tuple[tuple, bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, by_column, dtype = read(stream)
    except Exception as error:  # a damaged header may fail in any way
        raise DrbenchError(f"{name}: not readable as .npy: {error}; get it again") from error
    if not all(type(side) is int and side > 0 for side in shape):
        raise DrbenchError(f"{name}: an array of shape {shape}; get it again")
    if dtype.kind not in "iu":
        raise DrbenchError(f"{name}: expected bytes or integers, got {dtype}; pickled arrays are not read")
    return shape, by_column, dtype


class Zipped:
    """One array of an .npz, row by row. A compressed member is decompressed up to the row, and memory holds one row.

    Rows in rising order are cheap; going back starts anew.
    """

    def __init__(self, path: Path, key: str, rows: int | None = None):
        self.name, member = f"{path}:{key}.npy", f"{key}.npy"
        try:
            archive = zipfile.ZipFile(path)
            self.stream = archive.open(member)
        except (zipfile.BadZipFile, OSError, KeyError, EOFError, RuntimeError) as error:  # or encrypted
            raise DrbenchError(f"{path}: not readable as .npz with {member} ({error}); get it again") from error
        self.shape, by_column, self.dtype = _header(self.stream, self.name)
        self.start, size = self.stream.tell(), archive.getinfo(member).file_size
        if by_column or size - self.start != self.dtype.itemsize * math.prod(self.shape):
            raise DrbenchError(f"{self.name}: expected {self.dtype} {self.shape}, row by row, got {size:,} bytes")
        _require(self.shape, rows, self.name)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._read(row, 1)[0]

    def whole(self) -> np.ndarray:
        """All rows; for labels."""
        return self._read(0, self.shape[0])

    def _read(self, row: int, count: int) -> np.ndarray:
        length = self.dtype.itemsize * math.prod(self.shape[1:])
        try:
            self.stream.seek(self.start + row * length)
            content = self.stream.read(count * length)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise DrbenchError(f"{self.name}: row {row} is not readable ({error}); get the file again") from error
        if len(content) != count * length:
            raise DrbenchError(f"{self.name}: ends before row {row + count}; get the file again")
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])
