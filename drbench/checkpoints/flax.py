"""Trees of arrays that flax wrote (`flax.serialization.to_bytes`), read without JAX and without running anything.

The format is msgpack with three extension types: 1 an array, 2 a complex number, 3 a scalar of numpy; the payload of an
array is msgpack again: shape, name of its type, bytes in C order. Arrays of more than 1 GiB are cut: a mapping with
"__msgpack_chunked_array__", "shape" and "chunks".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from drbench.errors import DrbenchError

SIZE_LIMIT = 8 << 30  # bytes of a file; the largest public one has 0.9e9
ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64,
    "int8": torch.int8, "int32": torch.int32, "int64": torch.int64, "uint8": torch.uint8, "uint32": torch.uint32,
    "bool": torch.bool,
}  # fmt: skip


class Array(NamedTuple):
    """An array as it lies in the file; `tensor` copies it, so that an optimizer's state never costs memory twice."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes

    def tensor(self) -> Tensor:
        if not self.data:
            return torch.zeros(self.shape, dtype=DTYPES[self.dtype])
        return torch.frombuffer(bytearray(self.data), dtype=DTYPES[self.dtype]).reshape(self.shape)


def tree(path: Path) -> dict:
    """The nested mapping in a file; its leaves are `Array`s, numbers, strings and None.

    Raises
    ------
    DrbenchError
        If it is no msgpack file of a mapping, is damaged, or holds an extension or a type that is not named above.
    """
    path = Path(path)
    try:
        import msgpack
    except ImportError as error:
        raise DrbenchError("checkpoints of JAX need the package 'msgpack': pip install 'drbench[jax]'") from error
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise DrbenchError(f"{path}: {path.stat().st_size} bytes, more than the {SIZE_LIMIT} that are read")
        # every length inside is bounded by that of the data, nesting by the parser
        found = msgpack.unpackb(path.read_bytes(), ext_hook=_extension, raw=False, strict_map_key=False)
    except OSError as error:
        raise DrbenchError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, msgpack.exceptions.UnpackException) as error:  # truncated, trailing bytes, not msgpack
        raise DrbenchError(f"{path}: not a readable msgpack file of flax: {error or type(error).__name__}") from error
    if not isinstance(found, dict):
        raise DrbenchError(f"{path}: expected a mapping, as flax writes it, got {type(found).__name__}")
    return found


def flattened(tree: Mapping) -> dict[str, Tensor]:
    """name/of/leaf -> tensor, for a tree of arrays and of nothing else."""
    found: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and CHUNKED in value:
            found[str(name)] = _joined(value)
        elif isinstance(value, Mapping):
            found |= {f"{name}/{inner}": leaf for inner, leaf in flattened(value).items()}
        elif isinstance(value, Array):
            found[str(name)] = value.tensor()
        else:
            raise DrbenchError(f"expected arrays, found {type(value).__name__} under {name!r}")
    return found


def _extension(code: int, data: bytes):
    import msgpack

    if code == COMPLEX:
        raise ValueError("it holds complex numbers")
    if code not in (ARRAY, SCALAR):
        raise ValueError(f"it holds msgpack extension {code}; flax writes 1, 2 and 3")
    read = msgpack.unpackb(data, raw=False)
    if not (isinstance(read, list) and len(read) == 3 and isinstance(read[0], list) and isinstance(read[2], bytes)):
        raise ValueError("an array without shape, type and bytes")
    shape, dtype, content = read
    if dtype not in DTYPES:
        raise ValueError(f"an array of type {dtype!r}; known: {', '.join(DTYPES)}")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    if math.prod(shape) * DTYPES[dtype].itemsize != len(content):
        raise ValueError(f"an array of {len(content)} bytes that claims {dtype} {shape}")
    return Array(tuple(shape), dtype, content)


def _joined(value: Mapping) -> Tensor:
    try:
        shape, chunks = ([part[str(i)] for i in range(len(part))] for part in (value["shape"], value["chunks"]))
        return torch.cat([chunk.tensor().flatten() for chunk in chunks]).reshape(shape)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise DrbenchError(f"a cut array whose pieces do not fit: {error}") from error
