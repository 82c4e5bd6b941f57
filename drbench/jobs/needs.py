"""What a run needs that is not here: weights, data, settings; each with what brings it. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from drbench import weights
from drbench.errors import DrbenchError
from drbench.files import data_files, foreign


class Need(NamedTuple):
    """Something that is not here."""

    kind: str  # "weights" | "data" | "setting"
    name: str
    command: str  # or, where no command helps, what to do
    bytes: int | None = None


def missing(cells: Iterable[DictConfig]) -> list[Need]:
    """What the cells need and do not find, each once, data first."""
    found: dict[tuple[str, str], Need] = {}
    for cell in cells:
        for need in (*_data(cell), *_settings(cell), *_weights(cell)):
            found.setdefault((need.kind, need.name), need)
    return sorted(found.values(), key=lambda need: need.kind)


def checkpoints(cell: DictConfig) -> list[str]:
    """Names of all weights that a cell reads, those of the sources of an attack among them."""
    sources = (cell.attack.sources or {}).values() if cell.task == "attack" else []
    start = cell.train.start if cell.task == "train" and cell.train else []
    given = [*cell.defense.checkpoint, *(name for source in sources for name in source.get("checkpoint", [])), *start]
    return [weights.parted(name)[0] for name in given]


def unpublished(cell: DictConfig) -> list[str]:
    """Keys that a file leaves open (`???`)."""
    return sorted(OmegaConf.missing_keys(cell))


def require(cells: Iterable[DictConfig]) -> None:
    """Raise one error that lists everything that is missing."""
    _refuse(missing(cells))


def require_settings(cells: Iterable[DictConfig]) -> None:
    """The same of settings alone: weights and data that are not here may be replaced, or made."""
    _refuse(dict.fromkeys(need for cell in cells for need in _settings(cell)))


def _refuse(found: Collection[Need]) -> None:
    if found:
        raise DrbenchError(f"not here, and needed:\n{render(found)}")


def render(found: Iterable[Need]) -> str:
    """A line for each: name, size, what to do."""
    return "\n".join(
        f"  {need.kind} {need.name}" + (f" ({need.bytes:,} bytes)" if need.bytes else "") + f": {need.command}"
        for need in found
    )


def _data(cell: DictConfig) -> list[Need]:
    found, split = [], cell.data.split
    for name in [cell.data.name, *data_files.others(cell.data.name, split)]:
        lacking = data_files.lacking(name, split, cell.data.root if name == cell.data.name else None)
        if lacking:
            found.append(Need("data", name, f"{data_files.command(name)} ({lacking})", data_files.size(name)))
    return found


def _settings(cell: DictConfig) -> list[Need]:
    row = f"{cell.defense.name} {cell.defense.variant}".strip()
    return [Need("setting", key, f"not published ({row}); give it as {key}=VALUE") for key in unpublished(cell)]


def _weights(cell: DictConfig) -> list[Need]:
    found = []
    for name in checkpoints(cell):
        place, known = weights.place(name), foreign.manifest()
        if place is None:
            weights.resolve(name)  # which explains that nothing has this name
        if place.is_file():
            continue
        if name in known:
            size = known[name].get("bytes")
            about = known[name].get("where", "") if not foreign.fetchable(name) else ""
            found.append(Need("weights", name, foreign.command(name) + (f" ({about})" if about else ""), size))
        else:
            command = weights.manifest().get(name, {}).get("command", "drbench train")
            found.append(Need("weights", name, f"no file {place}; train it with: {command}"))
    return found
