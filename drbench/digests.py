"""Hashes that more than one room computes. Standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def names_digest(names: Iterable[int | str]) -> str:
    """Hash of a list of image ids: `sha256sum` of a file with one id a line."""
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
