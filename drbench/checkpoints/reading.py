"""Tensors of a checkpoint of another project. Nothing in the file is executed, and no switch allows it.

`torch.load` runs with `weights_only=True` and a short list of further names for that one call; the file's hash is the
caller's business (`drbench.weights`), before any of this.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Size, Tensor

from drbench.checkpoints.scalars import Dtype, scalar
from drbench.errors import DrbenchError

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save before version 1.6
HEADER_LIMIT = 100_000_000  # bytes of a safetensors header
# Where a state dict may be inside a saved dict. Averaged weights come first: they are what is evaluated.
CONTAINERS = (
    "params_ema", "state_dict_ema", "model_ema", "ema_model", "ema_state_dict", "ema",
    "state_dict", "model_state_dict", "model_state", "model", "network", "net",
)  # fmt: skip
NESTING = 8  # dicts in dicts; a dict may hold itself
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
PLAIN = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16,
         torch.int32, torch.int64}  # fmt: skip
SAFE = [
    argparse.Namespace,
    Dtype,
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    (Dtype, "numpy.dtype"),
]


def tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save` or safetensors, on the CPU, checked to be of finite numbers.

    A state dict inside `{"state_dict": ...}` and the like is found, of several the averaged one; `module.` in front
    of all names is removed.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "pickle":
        raise DrbenchError(
            f"{path}: refused: a bare pickle is a program, not a file of tensors; nothing in it was run. For a network "
            "snapshot of NVlabs/edm ask for the format edm"
        )
    loaded = _safetensors(path) if kind == "safetensors" else _torch(path)
    state = _unwrapped(loaded, path)
    check(state, path)
    return state


def sniff(path: Path) -> str:
    """ "torch", "pickle" (a bare one) or "safetensors", by the first bytes of a file; anything else is refused."""
    try:
        with path.open("rb") as file:
            start, size = file.read(512), path.stat().st_size
    except OSError as error:
        raise DrbenchError(f"cannot read {path}: {error.strerror}; expected a checkpoint file") from error
    if start.startswith((ZIP, LEGACY)):
        return "torch"
    if start.startswith(PICKLE):
        return "pickle"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise DrbenchError(
            f"{path}: this is an HTML page, not a checkpoint: the site sent its confirm or quota page instead of the "
            "file. Open the link in a browser and save the file by hand"
        )
    if start[8:9] == b"{":
        header = int.from_bytes(start[:8], "little")
        if header > min(HEADER_LIMIT, size - 8):
            raise DrbenchError(
                f"{path}: a safetensors file whose header claims {header} bytes, of {size} in the file: "
                "it is truncated or was tampered with; download it again"
            )
        return "safetensors"
    raise DrbenchError(
        f"{path}: neither safetensors nor a file of torch.save ({size} bytes, first {start[:8]!r}): "
        "it is damaged or of another format"
    )


def check(state: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise `DrbenchError`, naming the tensor, if it is no plain array, a number is not finite or a matrix all zero."""
    for key, tensor in state.items():
        if not _plain(tensor):
            raise DrbenchError(
                f"{where}: tensor {key!r} ({tensor.dtype}, {tuple(tensor.shape)}) is quantised, sparse, or claims more "
                "numbers than the file holds; expected plain arrays of 16 to 64 bits: ask for a file of such weights"
            )
        if not (tensor.is_floating_point() and tensor.numel()):
            continue
        low, high = torch.aminmax(tensor)  # NaN if there is one; unlike isfinite() it needs no memory
        if not (low.isfinite() and high.isfinite()):
            raise DrbenchError(f"{where}: tensor {key!r} holds values that are not finite; download the file again")
        if sum(side > 1 for side in tensor.shape) > 1 and low == high == 0:
            raise DrbenchError(
                f"{where}: tensor {key!r} {tuple(tensor.shape)} is all zero, which trained weights never are; "
                "the file is damaged or of an untrained network"
            )


def _plain(tensor: Tensor) -> bool:
    """Whether the tensor is dense, of a common type, and not larger than its memory, as a stride of 0 would make it."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in PLAIN
    return dense and tensor.nbytes <= tensor.untyped_storage().nbytes()


def match(expected: Mapping[str, Size], got: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise `DrbenchError` unless names and shapes agree; the report that comes before a strict load."""
    missing = [key for key in expected if key not in got]
    unexpected = [key for key in got if key not in expected]
    other = [key for key in expected if key in got and tuple(got[key].shape) != tuple(expected[key])]
    found = [f"{len(missing)} tensors missing, first {missing[0]!r}"] if missing else []
    if unexpected:
        found.append(f"{len(unexpected)} unexpected, first {unexpected[0]!r}")
    if other:
        key = other[0]
        found.append(
            f"{len(other)} of another shape, first {key!r}: expected {tuple(expected[key])}, "
            f"got {tuple(got[key].shape)}"
        )
    if found:
        raise DrbenchError(f"{where}: the weights do not fit the network: {'; '.join(found)}. Check its configuration")


def reason(error: Exception) -> str:
    """What torch.load found, without its advice to load the file in spite of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    found = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0])
    return found.rpartition("WeightsUnpickler error: ")[2].partition(" Please use")[0][:300].rstrip(".")


def _torch(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DrbenchError(
            f"{path}: refused, because it holds more than tensors and plain values: {reason(error)}. "
            "Ask for a file of its state dict; nothing in it was run"
        ) from error
    except Exception as error:  # a damaged file may fail in any way
        raise DrbenchError(f"{path}: damaged or truncated: {reason(error)}") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DrbenchError(f"{path}: damaged or truncated safetensors: {error}") from error


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    for _ in range(NESTING):
        if not isinstance(loaded, Mapping) or any(isinstance(value, Tensor) for value in loaded.values()):
            break
        inside = [loaded[key] for key in CONTAINERS if isinstance(loaded.get(key), Mapping)]
        if not inside:
            break
        loaded = inside[0]
    if not isinstance(loaded, Mapping) or not loaded:
        raise DrbenchError(f"{path}: expected a state dict (name -> tensor), got {type(loaded).__name__}")
    for key, value in loaded.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            raise DrbenchError(
                f"{path}: expected a state dict (name -> tensor), found {type(value).__name__} under {key!r}; "
                f"known containers: {', '.join(CONTAINERS)}"
            )
    state = dict(loaded)
    while wrapper := next((one for one in WRAPPERS if all(key.startswith(one) for key in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state
