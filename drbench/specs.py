"""Something that a dict describes: {"kind": name, ...its configuration}. Imports nothing until it is made."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from drbench.errors import DrbenchError, did_you_mean


def make(what: str, kinds: Mapping[str, str], spec: Mapping[str, Any], *args) -> Any:
    """What `spec` describes.

    Parameters
    ----------
    what : str
        Its name in errors, e.g. "classifier".
    kinds : mapping
        kind -> "module:function", which is called with `args` and the rest of `spec` as keyword arguments.
    """
    config = dict(spec)
    kind = config.pop("kind", None)
    if kind not in kinds:
        raise DrbenchError(f"{what}: unknown kind {kind!r}{did_you_mean(str(kind), kinds)}")
    try:
        return resolve_name(kinds[kind])(*args, **config)
    except (TypeError, ValueError) as error:
        raise DrbenchError(f"{what} of kind {kind!r} cannot be built with {config}: {error}") from error
