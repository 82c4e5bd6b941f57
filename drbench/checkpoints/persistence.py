"""Network snapshots of NVlabs/edm (and StyleGAN 2/3), read without running the code that they carry.

Such a file is a plain pickle of objects that `torch_utils.persistence` (version 6) wrote: the source text of a module,
the name of a class in it, and the dictionary of the instance. The official reader executes the text. Here objects
become inert nodes, the text is ignored, every name that is not known is refused, and tensors and constructor arguments
are read off the nodes.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from drbench.checkpoints import reading, unpickling
from drbench.checkpoints.unpickling import step
from drbench.errors import DrbenchError

MAX_BYTES = 8 * 2**30


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
            loaded = unpickling.load(file)
        network = loaded.get(entry) if isinstance(loaded, dict) else None
        if not hasattr(network, "class_name"):
            raise pickle.UnpicklingError(f"expected a dict with a network under {entry!r}")
        steps = count()
        state = _copied(_tensors(network, "", steps), path.stat().st_size)
        return Snapshot(network.class_name, _arguments(network, steps), state)
    except OSError as error:
        raise DrbenchError(f"cannot read {path}: {error.strerror or error}") from error
    except DrbenchError:
        raise
    except Exception as error:  # a hostile stream may make the unpickler fail in any way
        raise DrbenchError(f"{path}: refused: {error or type(error).__name__}; nothing in it was run") from error


def _tensors(node: object, prefix: str, steps: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and stored buffers of a node and of those in it, under the names of a state dict."""
    passing = node.state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, value in node.state[kind].items():
            step(steps)
            if value is not None and name not in passing:
                if type(value) is not Tensor:
                    raise pickle.UnpicklingError(f"{prefix}{name} is no tensor")
                yield f"{prefix}{name}", value
    for name, child in node.state["_modules"].items():
        step(steps)
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.", steps)


def _copied(tensors: Iterator[tuple[str, Tensor]], most: int) -> dict[str, Tensor]:
    """Tensors with memory of their own, together not more than `most` bytes: a stream may refer to one many times."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        most -= tensor.nbytes
        if most < 0:
            raise pickle.UnpicklingError("its tensors hold more bytes than the file")
        found[name] = tensor.detach().clone()
    return found


def _arguments(node: object, steps: Iterator[int]) -> dict:
    kwargs = _plain(node.state.get("_init_kwargs", {}), steps)
    inner = node.state["_modules"].get("model")
    return kwargs | ({} if inner is None else {"model": _plain(inner.state.get("_init_kwargs", {}), steps)})


def _plain(value: object, steps: Iterator[int]) -> object:
    """Numbers, strings and containers of them; of anything else its type's name."""
    step(steps)
    if isinstance(value, dict):
        return {str(key): _plain(one, steps) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, steps) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
