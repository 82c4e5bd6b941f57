"""Protocols of published evaluations as presets of configs: `protocol: cohen2019`. No torch.

The constants are in protocols.yaml, with their sources. A preset lies under the file that names it: what the file, or
an override, says wins, and is listed with the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml

from drbench.errors import DrbenchError, did_you_mean

FILE = Path(__file__).with_name("protocols.yaml")


@cache
def load() -> dict[str, dict]:
    """All protocols by name, as they stand in the file."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def preset(name: str, dataset: str) -> dict:
    """What a protocol says about a data set, as a part of a config: sections certify, data (subset only) and sweep.

    A data set that the paper does not use gets what is common to all of them.
    """
    if name not in load():
        raise DrbenchError(f"unknown protocol {name!r}{did_you_mean(name, load())}")
    protocol = load()[name]
    own = protocol["data"].get(dataset, {})
    part = {key: {**protocol.get(key, {}), **own.get(key, {})} for key in ("certify", "sweep")}
    return part | ({"data": {"subset": own["subset"]}} if "subset" in own else {})


def differences(name: str, config: Mapping) -> list[str]:
    """What a resolved config has otherwise than the protocol, e.g. "certify.n = 1000, not 100000"."""
    part, dataset = preset(name, config["data"]["name"]), config["data"]["name"]
    wanted = {f"certify.{key}": [value] for key, value in part["certify"].items()} | part["sweep"]
    wanted |= {"data.subset": [part["data"]["subset"]]} if "data" in part else {}
    found = [] if dataset in load()[name]["data"] else [f"data.name = {dataset}, none of its data sets"]
    for key, values in wanted.items():
        section, _, last = key.partition(".")
        if config[section][last] not in values:
            found.append(f"{key} = {config[section][last]}, not {' or '.join(map(str, values))}")
    return found


def table() -> list[tuple[str, ...]]:
    """Rows of words: name, data and subset, n0, n, alpha, source."""
    rows = []
    for name, protocol in load().items():
        for dataset, own in protocol["data"].items():
            certify = preset(name, dataset)["certify"]
            numbers = (str(certify.get(key, "-")) for key in ("n0", "n", "alpha"))
            rows.append((name, f"{dataset}/{own['subset']}", *numbers, protocol["source"]))
    return rows
