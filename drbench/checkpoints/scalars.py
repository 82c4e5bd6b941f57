"""numpy's numbers in a pickle, read without numpy's own unpickling: plain numbers, and no objects."""

from __future__ import annotations

import pickle

import numpy

KINDS = "fiub"  # float, int, unsigned, bool


class Dtype:
    """Stands for `numpy.dtype` in a pickle; the names of plain numbers alone."""

    def __init__(self, name: str, *_):
        if not isinstance(name, str) or name[:1] not in KINDS or not name[1:].isdigit():
            raise pickle.UnpicklingError(f"numpy dtype {name!r} is not one of plain numbers")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("numpy dtype with an odd state")
        self.order = state[1]


def scalar(dtype: Dtype, data: bytes | str) -> float | int | bool:
    """The number that `numpy.core.multiarray.scalar` would make, as one of Python."""
    if not isinstance(dtype, Dtype):
        raise pickle.UnpicklingError("numpy scalar without a dtype")
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    order = "" if dtype.order == "|" else dtype.order
    return numpy.frombuffer(raw, order + dtype.name, 1)[0].item()
