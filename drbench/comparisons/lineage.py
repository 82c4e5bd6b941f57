"""What shipped weights cost to train, with the weights that they were trained from. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from drbench import weights
from drbench.errors import DrbenchError
from drbench.files import places


class Lineage:
    """The manifest of weights, read once."""

    def __init__(self) -> None:
        self._known = weights.manifest()
        self._chains: dict[str, list[str]] = {}

    def chain(self, name: str) -> list[str]:
        """The weights of a name, before them all that their training files load."""
        if name not in self._chains:
            parents = _parents(self._known[name]["command"]) if name in self._known else ()
            found = [each for parent in parents for each in self.chain(parent)]
            self._chains[name] = [*dict.fromkeys(found), name]
        return self._chains[name]

    def seconds(self, checkpoints: Mapping[str, str]) -> dict[str, float | None]:
        """Name -> seconds of training for weights (name -> sha256 of the file that ran) and all in their chains.

        None where the manifest does not know the weights, or other ones under that name.
        """
        known, names = self._known, dict.fromkeys(each for name in checkpoints for each in self.chain(name))
        return {
            name: known[name].get("seconds")
            if name in known and checkpoints.get(name) in (None, known[name]["sha256"])
            else None
            for name in names
        }


def _parents(command: str) -> Iterable[str]:
    """Weights that a `drbench train FILE` command needs; its own overrides name only what it writes."""
    path = weights.home() / command.split()[2]
    start, frozen = _value(path, "train", "start"), _value(path, "defense", "checkpoint")
    return dict.fromkeys([*(start or ()), *(frozen or ())])


def _value(path: Path, section: str, key: str):
    """A value of a benchmark file, or of the one that it extends."""
    try:
        raw = places.parsed(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DrbenchError(f"expected the training file that the manifest of weights names: {error}") from error
    if key in (raw.get(section) or {}):
        return raw[section][key]
    return _value(path.parent / raw["extends"], section, key) if "extends" in raw else None
