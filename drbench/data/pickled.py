"""The pickles of CIFAR's python archives, read without executing anything.

They are dictionaries, made by Python 2, of lists, strings and one array of bytes. An array is pickled as a call of
numpy's `_reconstruct` followed by its state: here a plain object takes the state, and its bytes become the array
afterwards. Any other global makes the file no CIFAR.
"""

from __future__ import annotations

import pickle
from typing import BinaryIO

import numpy as np

from drbench.errors import DrbenchError


class _Type:
    """Takes what is said about an element type; only bytes are known."""

    def __init__(self, code=None, *_):
        if code not in (b"u1", "u1", b"|u1", "|u1"):
            raise pickle.UnpicklingError(f"an array of {code!r}, not of bytes")

    def __setstate__(self, state):
        pass


class _Array:
    """Takes the state of a pickled array: version, shape, element type, order, content."""

    def __setstate__(self, state):
        _, self.shape, kind, self.by_column, self.content = state
        if not isinstance(kind, _Type) or not isinstance(self.content, bytes):
            raise pickle.UnpicklingError("not an array of bytes")

    def numpy(self) -> np.ndarray:
        flat = np.frombuffer(self.content, np.uint8)
        return flat.reshape(self.shape, order="F" if self.by_column else "C")


class _Marker:
    """Stands for `numpy.ndarray`, which is only ever an argument."""


def _reconstruct(*_) -> _Array:
    return _Array()


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Marker,
    ("numpy", "dtype"): _Type,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR does not contain")
        return ALLOWED[module, name]


def read(stream: BinaryIO, where: object) -> dict[str, np.ndarray | list]:
    """Arrays and lists of a batch by name, e.g. "data", "labels"; `where` names the file in errors."""
    try:
        found = _Reader(stream, encoding="bytes").load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError(f"expected a dictionary, got {type(found).__name__}")
        named = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
        return {key: value.numpy() if isinstance(value, _Array) else value for key, value in named.items()}
    except Exception as error:  # a damaged pickle may fail in any way
        raise DrbenchError(f"{where}: not readable as a batch of CIFAR: {error or type(error).__name__}") from error
