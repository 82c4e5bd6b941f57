"""Names of public checkpoints: `{"preset": name, ...}` instead of a network's whole configuration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml

from drbench.errors import DrbenchError, did_you_mean

FACTS = ("parameters", "source")  # what the table says beside the configuration


@cache
def table() -> dict[str, dict]:
    """name -> {"kind": ..., its configuration, "parameters": count, "source": where it is described}."""
    return yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text())


def expanded(spec: Mapping) -> dict:
    """The spec with its preset written out; what the spec says itself has precedence."""
    own = {key: value for key, value in spec.items() if key != "preset"}
    if "preset" not in spec:
        return own
    if spec["preset"] not in table():
        raise DrbenchError(f"unknown preset {spec['preset']!r}{did_you_mean(str(spec['preset']), table())}")
    entry = {key: value for key, value in table()[spec["preset"]].items() if key not in FACTS}
    if own.get("kind", entry["kind"]) != entry["kind"]:
        raise DrbenchError(f"preset {spec['preset']!r} is of kind {entry['kind']!r}, got kind {own['kind']!r}")
    return {**entry, **own}
