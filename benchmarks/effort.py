"""Counts the operations of one noisy draw of each row that `drbench reproduce` makes: `python -m benchmarks.effort`.

Writes benchmarks/effort.yaml: data set, defense and variant -> noise level -> GFLOP (a multiply-add is two), from which
`drbench reproduce` says how many GPU hours a table takes. Random weights; the operations of one row of each network,
times the calls that the defense declares. Only rows that are not in the file are counted: delete it to count all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from drbench import config, data, datasets, effort, places, registry, reproduce
from drbench.api import Defense, Draws
from drbench.memory import parameters_elsewhere

HEAD = (
    "# GFLOP of one noisy draw, by data set, defense, variant and noise level. Written by python -m benchmarks.effort\n"
)
FEW = {"steps": 1, "votes": 1, "nodes": 4, "chunk": 1}  # arguments that only say how often a network is called


def main() -> None:
    path, counted = places.home() / "benchmarks" / "effort.yaml", deepcopy(effort.counted())
    rows: dict[str, list[DictConfig]] = {}
    for cell in (cell for key in list(reproduce.keys()) for cell in reproduce.cells(key)):
        rows.setdefault(effort.key(cell), []).append(cell)
    for key, cells in rows.items():
        levels, wanted = counted.setdefault(key, {}), {sigma for cell in cells for sigma in config.levels(cell)}
        if wanted <= levels.keys():
            continue
        per_row, whole = network_flops(cells[0]), declared(cells[0])
        for sigma in sorted(wanted):
            levels[sigma] = round(sum(calls * per_row[name] for name, calls in whole.nfe(sigma).items()) / 1e9, 3)
        print(key, levels, file=sys.stderr, flush=True)
        path.write_text(HEAD + yaml.safe_dump(counted, sort_keys=True), encoding="utf-8")


def arguments(cell: DictConfig, changed: Mapping | None = None) -> dict:
    about, args = datasets.entry(cell.data.name), OmegaConf.to_container(cell.defense.args)
    shape = {"input_shape": data.shape(cell.data.name, cell.data.preprocessing), "num_classes": about["classes"]}
    return {**shape, **args, **{key: value for key, value in (changed or {}).items() if key in args}}


def declared(cell: DictConfig) -> Defense:
    """The defense as it is, without weights."""
    with parameters_elsewhere():
        return registry.find(cell.defense.name)(**arguments(cell))


@torch.no_grad()
def network_flops(cell: DictConfig) -> dict[str, float]:
    """Operations of each network for one of its rows, in its first call; calls are few."""
    args, found = arguments(cell, FEW), {}
    if "likelihood" in args:
        args["likelihood"] = {**args["likelihood"], "steps": 1}
    defense = registry.find(cell.defense.name)(**args).eval()
    networks = defense.networks()
    hooks = [hook for name in networks for hook in _counters(name, networks[name], found, len(networks))]
    draws = Draws.seeded(0, 1)
    with suppress(_Enough):
        defense.logits(draws.randn(1, *defense.input_shape), max(config.levels(cell)), draws)
    for hook in hooks:
        hook.remove()
    names = {name.rpartition("_")[0] for name in found}  # networks of one level each are of one size
    return {name: found.get(name) or next(v for k, v in found.items() if k.rpartition("_")[0] in names)
            for name in networks}  # fmt: skip


class _Enough(Exception):
    """All networks are counted: of a thousand classes one call is enough."""


def _counters(name: str, network, found: dict, wanted: int):
    counter = FlopCounterMode(display=False)

    def before(module, args) -> None:
        if name not in found:
            counter.__enter__()

    def after(module, args, output) -> None:
        if name not in found:
            counter.__exit__(None, None, None)
            found[name] = counter.get_total_flops() / len(args[0])
        if len(found) == wanted:
            raise _Enough

    return network.register_forward_pre_hook(before), network.register_forward_hook(after)


if __name__ == "__main__":
    main()
