"""The unpickler of foreign checkpoints: it knows a short list of names, makes inert objects, calls nothing of others.

For the objects that `torch_utils.persistence` of NVlabs/edm writes; see `persistence`.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import count
from typing import BinaryIO

import torch
from torch import Tensor

from drbench.checkpoints import reading, scalars

VERSION = 6  # of the format
MAX_STEPS = 300_000  # of a stream, and of a walk over its objects; an EDM snapshot has some ten thousand
CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")


def load(file: BinaryIO) -> object:
    """The object in a pickle stream. Persistent objects have `class_name` and `state`, containers of torch `state`.

    Raises
    ------
    Exception
        UnpicklingError for a name that is not known; anything else for a stream that is damaged or hostile.
    """
    _scan(file)
    file.seek(0)
    return _Reader(file).load()


def step(steps: Iterator[int]) -> None:
    """Count; objects may be referred to many times over, so that a short stream is a long walk."""
    if next(steps) > MAX_STEPS:
        raise pickle.UnpicklingError(f"more than {MAX_STEPS} objects")


def _scan(file: BinaryIO) -> None:
    """Refuse what would take the memory before a name is met: false lengths, far memo places, endless streams."""
    steps = count()
    for operation, argument, _ in pickletools.genops(file):
        step(steps)
        if "PUT" in operation.name and int(argument) > MAX_STEPS:
            raise pickle.UnpicklingError("a memo place out of range")


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.names = _names()

    def find_class(self, module: str, name: str) -> Callable:
        try:
            return self.names[f"{module}:{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not in the list of known names") from None

    def persistent_load(self, pid: object) -> None:
        raise pickle.UnpicklingError("persistent ids are not part of the format")


def _names() -> dict[str, Callable]:
    """All that a snapshot may name. Made anew for each file: a stream could set attributes of a class it is given."""

    class Node:
        """An object of the file: its state, and for persistent ones its class."""

        def __setstate__(self, state: dict) -> None:
            self.state = state

    class Record(dict):
        """Stands for EasyDict."""

    class Dtype(scalars.Dtype):
        pass

    def object_of(meta: dict) -> Node:
        if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != VERSION:
            version = meta.get("version") if isinstance(meta, dict) else None
            raise pickle.UnpicklingError(f"expected persistence version {VERSION} of a class, got version {version}")
        node = Node()
        node.class_name, node.state = str(meta["class_name"]), meta["state"]
        return node

    def storage(data: bytes) -> Tensor:
        try:
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(reading.reason(error)) from error
        if not isinstance(loaded, torch.TypedStorage):
            raise pickle.UnpicklingError(f"a {type(loaded).__name__} where numbers belong")
        return torch.empty(0, dtype=loaded.dtype).set_(loaded)

    def tensor(flat: Tensor, offset: int, size: tuple, stride: tuple, *_) -> Tensor:
        if torch.Size(size).numel() > flat.numel():
            raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} with {flat.numel()} numbers")
        return torch.as_strided(flat, size, stride, offset)  # checks that it stays inside

    def parameter(value: Tensor, *_) -> Tensor:
        return value

    def number(dtype: Dtype, data: bytes) -> float | int | bool:
        return scalars.scalar(dtype, data)

    def encoded(text: str, *_) -> bytes:
        return text.encode("latin1")

    names = {
        "torch_utils.persistence:_reconstruct_persistent_obj": object_of,
        "dnnlib.util:EasyDict": Record,
        "collections:OrderedDict": OrderedDict,
        "builtins:set": set,
        "_codecs:encode": encoded,  # bytes, in old protocols
        "torch._utils:_rebuild_parameter": parameter,
        "torch._utils:_rebuild_tensor_v2": tensor,
        "torch.storage:_load_from_bytes": storage,
        "numpy:dtype": Dtype,
    }
    names |= {f"{place}.multiarray:scalar": number for place in ("numpy.core", "numpy._core")}
    return names | {f"torch.nn.modules.container:{kind}": Node for kind in CONTAINERS}
