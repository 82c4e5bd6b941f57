"""Network snapshots of NVlabs/edm (and StyleGAN 2/3), read without running the code that they carry.

Such a file is a plain pickle of objects that `torch_utils.persistence` (version 6) wrote: the source text of a module,
the name of a class in it, and the dictionary of the instance. The official reader executes the text. Here objects
become inert nodes, the text is ignored, every name that is not known is refused, and tensors and constructor arguments
are read off the nodes.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from drbench.checkpoints import reading, scalars
from drbench.errors import DrbenchError

VERSION = 6
MAX_BYTES = 8 * 2**30
MAX_STEPS = 1_000_000  # of the stream, and of the walk over its objects; an EDM snapshot has some ten thousand
CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")


class Snapshot(NamedTuple):
    """The averaged network of a snapshot.

    Attributes
    ----------
    class_name : str
    kwargs : dict
        Its constructor arguments by name, and under "model" those of the network inside it, if there is one.
    state : dict of Tensor
        What its `state_dict()` was.
    """

    class_name: str
    kwargs: dict
    state: dict[str, Tensor]


def snapshot(path: str | Path, entry: str = "ema") -> Snapshot:
    """Read the network under `entry` of a network snapshot.

    Raises
    ------
    DrbenchError
        If the file is damaged, too large, of another version, or names anything outside a fixed list.
    """
    path = Path(path)
    try:
        if reading.sniff(path) != "pickle":
            raise DrbenchError(f"{path}: expected a network snapshot (a pickle); it is a {reading.sniff(path)} file")
        if path.stat().st_size > MAX_BYTES:
            raise DrbenchError(f"{path}: larger than the {MAX_BYTES} bytes that a snapshot may have")
        with path.open("rb") as file:
            _scan(file)
            file.seek(0)
            loaded = _Reader(file).load()
        network = loaded.get(entry) if isinstance(loaded, dict) else None
        if not hasattr(network, "class_name"):
            raise pickle.UnpicklingError(f"expected a dict with a network under {entry!r}")
        steps = count()
        return Snapshot(network.class_name, _arguments(network, steps), dict(_tensors(network, "", steps)))
    except OSError as error:
        raise DrbenchError(f"cannot read {path}: {error.strerror or error}") from error
    except DrbenchError:
        raise
    except Exception as error:  # a hostile stream may make the unpickler fail in any way
        raise DrbenchError(f"{path}: refused: {error or type(error).__name__}; nothing in it was run") from error


def _scan(file: io.BufferedReader) -> None:
    """Refuse what would take the memory before a name is met: false lengths, far memo places, endless streams."""
    steps = count()
    for operation, argument, _ in pickletools.genops(file):
        _step(steps)
        if "PUT" in operation.name and int(argument) > MAX_STEPS:
            raise pickle.UnpicklingError("a memo place out of range")


def _step(steps: Iterator[int]) -> None:
    """Count; objects may be referred to many times over, so that a short stream is a long walk."""
    if next(steps) > MAX_STEPS:
        raise pickle.UnpicklingError(f"more than {MAX_STEPS} objects")


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BufferedReader):
        super().__init__(file)
        self.names = _names()

    def find_class(self, module: str, name: str) -> Callable:
        try:
            return self.names[f"{module}.{name}"]
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
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(loaded, torch.TypedStorage):
            raise pickle.UnpicklingError(f"a {type(loaded).__name__} where numbers belong")
        return torch.empty(0, dtype=loaded.dtype).set_(loaded)

    def tensor(flat: Tensor, offset: int, size: tuple, stride: tuple, *_) -> Tensor:
        if torch.Size(size).numel() > flat.numel():
            raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} with {flat.numel()} numbers")
        return torch.as_strided(flat, size, stride, offset)  # checks that it stays inside

    def parameter(value: Tensor, *_) -> Tensor:
        return value

    names = {
        "torch_utils.persistence._reconstruct_persistent_obj": object_of,
        "dnnlib.util.EasyDict": Record,
        "collections.OrderedDict": OrderedDict,
        "builtins.set": set,
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch.storage._load_from_bytes": storage,
        "numpy.dtype": Dtype,
    }
    names |= {f"{place}.multiarray.scalar": scalars.scalar for place in ("numpy.core", "numpy._core")}
    return names | {f"torch.nn.modules.container.{kind}": Node for kind in CONTAINERS}


def _tensors(node: object, prefix: str, steps: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and stored buffers of a node and of those in it, under the names of a state dict."""
    passing = node.state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, value in node.state[kind].items():
            _step(steps)
            if value is not None and name not in passing:
                if type(value) is not Tensor:
                    raise pickle.UnpicklingError(f"{prefix}{name} is no tensor")
                yield f"{prefix}{name}", value.detach().clone()
    for name, child in node.state["_modules"].items():
        _step(steps)
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.", steps)


def _arguments(node: object, steps: Iterator[int]) -> dict:
    kwargs = _plain(node.state.get("_init_kwargs", {}), steps)
    inner = node.state["_modules"].get("model")
    return kwargs | ({} if inner is None else {"model": _plain(inner.state.get("_init_kwargs", {}), steps)})


def _plain(value: object, steps: Iterator[int]) -> object:
    """Numbers, strings and containers of them; of anything else its type's name."""
    _step(steps)
    if isinstance(value, dict):
        return {str(key): _plain(one, steps) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, steps) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
