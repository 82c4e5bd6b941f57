"""The audit of an attack run: on its first images, into its header, and as flags into its tables."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig

from drbench.attacks import presets
from drbench.attacks.audit import PROBED, audit
from drbench.attacks.suite import Found, Suite
from drbench.data import Images
from drbench.records import examples, record

OF_OWN_ATTACKS = 8  # images, where the attacks are not those of a preset


def size(cell: DictConfig) -> int:
    """On how many images attacks are compared."""
    spec = cell.attack
    if spec.audit is not None:
        return spec.audit
    return presets.AUDITED[spec.preset] if spec.attacks is None else OF_OWN_ATTACKS


def probed(cell: DictConfig) -> int:
    """On how many the defense is probed: not fewer."""
    compared, given = size(cell), cell.attack.probe
    return max(compared, (PROBED if compared else 0) if given is None else given)


def due(cell: DictConfig, begun: record.Run | None) -> bool:
    """Whether a run that has all its rows was killed before its audit."""
    return bool(begun and begun.rows and cell.task == "attack" and probed(cell) and "audit" not in begun.header)


def add(cell: DictConfig, folder: Path, images: Images, suite: Suite, about: dict) -> None:
    """Audit the first recorded images and note the findings in the header `about`; nothing if that was done."""
    rows = [row for row in record.read(folder).ordered() if row.evidence][: probed(cell)]
    names = [row.id for row in rows]
    of = {"ids": names[: size(cell)], "probed": names}
    if not names or {key: about.get("audit", {}).get(key) for key in of} == of:
        return
    begun, stored = time.perf_counter(), examples.read(folder)
    places = [images.ids.index(name) for name in names]
    found = [Found(row.evidence, torch.from_numpy(stored[row.id][2])) for row in rows]
    findings = audit(suite, images.x[places], images.y[places], names, found, compared=len(of["ids"]))
    about["audit"] = {
        **of,
        "seconds": time.perf_counter() - begun,
        "findings": [list(finding) for finding in findings],
    }
    flags = [f"{presets.FLAG} {each.check}: {each.text}" for each in findings if each.flag]
    about["flags"] = [flag for flag in about["flags"] if not flag.startswith(presets.FLAG)] + flags


def flags(folders: Iterable[Path]) -> list[str]:
    """The red flags of some runs, each with its folder."""
    found = ((folder, flag) for folder in folders for flag in record.read(folder).header["flags"])
    return [f"{folder}: {flag}" for folder, flag in found if flag.startswith(presets.FLAG)]
