"""Weights on disk: the manifest, hashes before parsing, safetensors only.

A checkpoint is named in benchmarks/checkpoints.yaml (shipped) or foreign.yaml (`files.foreign`), or given as a path.
"NAME as PART" gives its tensors to another part of the defense than the one that they name: it may have two networks of
one kind. The module needs torch only to read tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from drbench.errors import DrbenchError, did_you_mean
from drbench.files import fetching, foreign, places
from drbench.files.places import home

SUFFIX = ".safetensors"
RAW = (".bin", ".ckpt", ".msgpack", ".npz", ".pkl", ".pt", ".pth", ".th")  # as other projects write weights
LARGE = 64 * 2**20  # bytes
HEADER = "# Weights that ship with the project. Written by `drbench train`; figures are on validation images.\n"


class Weights(NamedTuple):
    """A checkpoint whose hash was verified."""

    name: str
    path: Path
    sha256: str
    part: str = ""  # of the defense; "": the one that its tensors name


def manifest_path() -> Path:
    return home() / "benchmarks" / "checkpoints.yaml"


def manifest() -> dict[str, dict]:
    """name -> entry with at least `file` (relative to the manifest) and `sha256`."""
    return places.manifest("checkpoints.yaml", shared=False)


def resolve(name: str) -> Weights:
    """Find a checkpoint by manifest name or path, and verify its hash before anything parses it."""
    name, part = parted(name)
    entries, others = manifest(), foreign.manifest()
    path = place(name)
    if path is None:
        if Path(name).suffix in RAW:
            raise DrbenchError(
                f"checkpoint {name}: expected a path that ends in {SUFFIX}, or a name, got a file of another project; "
                f"`drbench weights add {name}` converts it to one of `drbench weights list`, whose name belongs here"
            )
        raise DrbenchError(
            f"unknown checkpoint {name!r}: expected a name in {manifest_path().name} or foreign.yaml, or a path that "
            f"ends in .safetensors{did_you_mean(name, [*entries, *others])}"
        )
    if name in entries:
        expected, command = entries[name]["sha256"], entries[name].get("command", "drbench train")
    elif name in others:
        if not path.is_file():
            raise DrbenchError(f"weights {name} are not here\n{foreign.advice(name)}")
        known, command = fetching.seen(foreign.own(name)), foreign.command(name)
        expected = known and known.content.sha256
    else:
        expected, command = None, "drbench train"
    try:
        actual = _hash(path)
    except OSError as error:
        raise DrbenchError(
            f"checkpoint {name}: cannot read {path}: {error.strerror}; train it with: {command}"
        ) from error
    if expected not in (None, actual):
        raise DrbenchError(
            f"checkpoint {path}: sha256 {actual[:12]}... does not match the manifest (expected "
            f"{expected[:12]}...): the file is damaged or was replaced; restore it or make it anew with: {command}"
        )
    return Weights(name, path, actual, part)


def parted(given: str) -> tuple[str, str]:
    """Name and part of "NAME as PART"; the part is "" where none is said."""
    found = re.fullmatch(r"(.+) as (\w+)", given)
    return (found[1], found[2]) if found else (given, "")


def place(name: str) -> Path | None:
    """Where a checkpoint lies, or would; None if nothing says so."""
    entries = manifest()
    if name in entries:
        return manifest_path().parent / entries[name]["file"]
    if name in foreign.manifest():
        return foreign.own(name).path
    return places.path(name) if name.endswith(SUFFIX) else None


def _hash(path: Path) -> str:
    stat = path.stat()
    # The same large file is asked for by each cell of a sweep.
    return _hash_as_of(path, stat.st_size, stat.st_mtime_ns) if stat.st_size > LARGE else sha256_of(path)


@cache
def _hash_as_of(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    """Hash of a file of any size, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(checkpoints: Sequence[Weights]) -> dict:
    """Merge the state dicts of several files; a tensor may come from one file only, and must be finite.

    Each tensor is read by itself: a mapping of the whole file would hold its pages beside the copies.
    """
    import torch
    from safetensors import SafetensorError

    merged: dict = {}
    for name, path, _, part in checkpoints:
        try:
            state = _tensors(path)
        except (SafetensorError, OSError) as error:
            raise DrbenchError(f"checkpoint {path}: not a readable safetensors file: {error}") from error
        for own, tensor in state.items():
            key = f"{part}.{own.partition('.')[2]}" if part else own
            if key in merged:
                raise DrbenchError(
                    f"checkpoint {name}: tensor {key!r} is already given by an earlier checkpoint of the list"
                )
            # the extremes are NaN if there is one; unlike isfinite() they take no memory
            if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, torch.aminmax(tensor))):
                raise DrbenchError(f"checkpoint {path}: tensor {key!r} holds values that are not finite")
            merged[key] = tensor
    return merged


def facts(checkpoint: Weights) -> dict:
    """What a file says of itself; nothing, if it was not written by `write`."""
    from safetensors import safe_open

    with safe_open(checkpoint.path, "pt") as file:
        said = (file.metadata() or {}).get("facts", "{}")
    try:
        return dict(json.loads(said))
    except (TypeError, ValueError):  # of another program, which uses the same word
        return {}


def _tensors(path: Path) -> dict:
    from safetensors import safe_open

    def tensor(key: str):
        with safe_open(path, "pt") as file:
            return file.get_tensor(key).clone()

    with safe_open(path, "pt") as file:
        keys = list(file.keys())
    return {key: tensor(key) for key in keys}


def write(name: str, state: Mapping, facts: Mapping) -> Weights:
    """Save a state dict under a manifest name such as "digits/classifier", or as a file if the name is a path.

    `facts` (command, seed, validation figures, ...) go into the manifest, or for other files into their metadata.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    outside = name in foreign.manifest()
    listed = not outside and not name.endswith(SUFFIX)
    path = manifest_path().parent / _file_of(name) if listed else place(name)
    partial = path.with_suffix(f".{os.getpid()}.partial")  # two processes may write the same weights
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode  # that of other new files; safetensors lets nobody but the owner read
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, partial, {"facts": json.dumps(facts)})
        partial.chmod(mode)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise DrbenchError(f"cannot write weights to {path}: {getattr(error, 'strerror', error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    written = Weights(name, path, sha256_of(path))
    if outside:
        fetching.note(foreign.own(name), facts.get("command", ""))
    if listed:
        _list(name, {"file": _file_of(name), "sha256": written.sha256, "bytes": path.stat().st_size, **facts})
    return written


def _list(name: str, entry: Mapping) -> None:
    """Enter weights into the manifest, beside what other processes enter meanwhile."""
    with fetching.locked(manifest_path()):
        partial = manifest_path().with_suffix(".partial")
        partial.write_text(HEADER + yaml.safe_dump(manifest() | {name: entry}, sort_keys=True, width=110))
        os.replace(partial, manifest_path())


def _file_of(name: str) -> str:
    return f"checkpoints/{name}{SUFFIX}"
