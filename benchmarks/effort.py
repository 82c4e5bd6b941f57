"""Counts the operations of one noisy draw of each row that `drbench reproduce` makes: `python -m benchmarks.effort`.

Writes benchmarks/effort.yaml: data set, defense and variant -> noise level -> GFLOP (a multiply-add is two), from which
`drbench reproduce` says how many GPU hours a table takes. Random weights; the operations of one row of each network,
times the calls that the defense declares. Only rows that are not in the file are counted: delete it to count all.
"""

from __future__ import annotations

import sys
from copy import deepcopy

import yaml
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from drbench import config, data, registry
from drbench.api import Defense
from drbench.files import datasets, places
from drbench.jobs import needs
from drbench.papers import reproduce
from drbench.planning import effort, first_calls

HEAD = (
    "# GFLOP of one noisy draw, by data set, defense, variant and noise level. Written by python -m benchmarks.effort\n"
)


def main() -> None:
    path, counted = places.home() / "benchmarks" / "effort.yaml", deepcopy(effort.counted())
    rows: dict[str, list[DictConfig]] = {}
    for cell in (cell for key in list(reproduce.keys()) for cell in reproduce.cells(key)):
        if not needs.unpublished(cell):
            rows.setdefault(effort.key(cell), []).append(cell)
    for key, cells in rows.items():
        levels, wanted = counted.setdefault(key, {}), {sigma for cell in cells for sigma in config.levels(cell)}
        if wanted <= levels.keys():
            continue
        defense = made(cells[0])
        for sigma in sorted(wanted):
            per_row, calls = first_calls.measured(defense, sigma, flops, rows=1), defense.nfe(sigma)
            levels[sigma] = round(sum(calls[name] * each for name, each in per_row.items()) / 1e9, 3)
        print(key, levels, file=sys.stderr, flush=True)
        path.write_text(HEAD + yaml.safe_dump(counted, sort_keys=True), encoding="utf-8")


def made(cell: DictConfig) -> Defense:
    """The defense with random weights."""
    about = datasets.entry(cell.data.name)
    shape = data.shape(cell.data.name, cell.data.preprocessing)
    args = OmegaConf.to_container(cell.defense.args)
    return registry.find(cell.defense.name)(input_shape=shape, num_classes=about["classes"], **args).eval()


def flops(call: first_calls.Call, rows: int) -> tuple[int, Tensor]:
    with FlopCounterMode(display=False) as counter:
        answer = call(1)
    return counter.get_total_flops(), answer


if __name__ == "__main__":
    main()
