"""Checks of run.json against config.yaml, whose hash is the run's identity. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set

from omegaconf import DictConfig

from drbench import config
from drbench.records import settings
from drbench.records.record import Run

FROM_DEFENSE = {"version", "sampling", "attacks", "sources"}  # keys of `engine` that a config does not tell


def problems(run: Run) -> list[str]:
    """What run.json says otherwise than config.yaml; nothing where there is none, as beside an imported log."""
    path = run.folder / "config.yaml"
    return list(_differences(config.recorded(path), run)) if path.exists() else []


def _differences(cell: DictConfig, run: Run) -> Iterator[str]:
    engine, defense, data = run.header["engine"], run.header["defense"], run.header["data"]
    if cell.task != run.task:
        yield f"run.json: task is {run.task}, by config.yaml {cell.task}"
        return
    if cell.task == "attack":
        wanted, apart = settings.attack(cell, defense["randomized"]), FROM_DEFENSE
    else:
        wanted = settings.certification(cell, data["classes"][1])
        apart = FROM_DEFENSE | ({"options"} if cell.certify.kind == "lipschitz" else set())
    named = {"name": cell.defense.name, "variant": cell.defense.variant, "args": cell.defense.args}
    yield from _unlike("engine", engine, wanted, (engine.keys() | wanted.keys()) - apart)
    yield from _unlike("defense", defense, named, named.keys())
    yield from _unlike("data", data, {"name": cell.data.name, "subset": _subset(cell, data)}, {"name", "subset"})
    if config.identity(cell, _weights(cell, defense, engine)) != run.header["identity"]:
        yield "run.json: identity is not the hash of config.yaml and of the weights that are named"


def _unlike(part: str, said: Mapping, wanted: Mapping, keys: Set[str]) -> Iterator[str]:
    for key in sorted(keys):
        if said.get(key) != wanted.get(key):
            yield f"run.json: {key!r} of {part} is {said.get(key)!r}, by config.yaml {wanted.get(key)!r}"


def _subset(cell: DictConfig, said: Mapping) -> str:
    """As `drbench.data.subsets.label`; a list of ids that may be gone is taken from the header."""
    spec = cell.data
    split = spec.split if spec.preprocessing is None else f"{spec.split}@{spec.preprocessing}"
    if spec.subset.startswith("ids:") and str(said["subset"]).startswith(f"{split}/ids:"):
        return said["subset"]
    return split if spec.subset == "all" else f"{split}/{spec.subset}"


def _weights(cell: DictConfig, defense: Mapping, engine: Mapping) -> list[str | None]:
    """Hashes of the weights of the defense, and of those that attacks transfer from."""
    own = [defense["checkpoints"].get(re.sub(r" as \w+$", "", name)) for name in cell.defense.checkpoint]
    return own + [sha256 for each in engine.get("sources", {}).values() for sha256 in each]
