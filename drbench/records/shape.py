"""Keys of run.json on which readers rely, and what they hold. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping

from drbench.errors import DrbenchError

# key -> its type, or the keys of the mapping below it; one that ends in ? may be absent
COMMON = {"status": str, "identity": str, "log?": {"oddities": list}}
KEYS = {
    "certify": {
        **COMMON,
        "data": {"ids": list},
        "engine": {"certifier": str, "version": int, "sigma": float, "n0": int, "n": int, "alpha": float,
                   "block?": int, "options?": {}},
    },
    "attack": {
        **COMMON,
        "data": {"ids": list, "sha256": str},
        "engine": {"version": int, "norm": str, "eps": float, "evaluations": int, "select": int, "attacks": {}},
    },
}  # fmt: skip
WORDS = {str: "a text", int: "a whole number >= 0", float: "a number", list: "a list", dict: "a mapping"}


def check(header: Mapping) -> None:
    """Raise `DrbenchError` for the first key of a header that is missing or holds something else."""
    task = header.get("task", "certify")
    if task not in list(KEYS):  # it may be no text
        raise DrbenchError(f"run.json: task is {task!r}, expected {' or '.join(KEYS)}")
    _check("run.json", header, KEYS[task])
    if odd := [name for name in header["data"]["ids"] if not isinstance(name, int | str)]:
        raise DrbenchError(f"run.json: ids of data are whole numbers or texts, got {odd[0]!r}")


def _check(part: str, found: Mapping, keys: Mapping) -> None:
    for key, kind in keys.items():
        name, kind, below = key.removesuffix("?"), *((dict, kind) if isinstance(kind, dict) else (kind, {}))
        if name not in found:
            if name == key:
                raise DrbenchError(f"{part} has no {name!r}, expected {WORDS[kind]}")
            continue
        value = found[name]
        if not isinstance(value, int | float if kind is float else kind) or (kind is int and value < 0):
            raise DrbenchError(f"{part}: {name!r} is {value!r}, expected {WORDS[kind]}")
        _check(f"run.json: {name}", found[name], below)
