"""How long the runs of a benchmark file take on a GPU: counted operations over an assumed rate.

benchmarks/effort.yaml holds the operations of one noisy draw, counted by `python -m benchmarks.effort`: they depend on
no device. `drbench plan` measures hours on the machine at hand instead. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from drbench import config
from drbench.attacks.presets import budget
from drbench.data.subsets import choose
from drbench.files import datasets, places

# Effective rate of an A100 in float32 with TF32, as published speeds imply: 53 s an image of 100,100 calls of RCM-B (67
# TFLOP/s, A800), 825 draws a second of denoised smoothing on CIFAR-10 (43 TFLOP/s, A100).
RATE = 50e12  # floating-point operations a second
BACKWARD = 2  # a gradient costs that many further forward passes


def counted() -> dict[str, dict]:
    """Defense and variant -> noise level -> GFLOP of a draw."""
    return places.manifest("effort.yaml")


def key(cell: DictConfig) -> str:
    """The entry of a cell: data set, defense, variant."""
    return " ".join(part for part in (cell.data.name, cell.defense.name, cell.defense.variant) if part)


def images(cell: DictConfig) -> int | None:
    """Images of its subset; None if nobody says how many there are."""
    count = datasets.count(cell.data.name, cell.data.split)
    return None if count is None else len(choose(cell.data.subset, range(count)))


def hours(cells: Sequence[DictConfig]) -> float | None:
    """GPU hours of all cells; None if one of them was not counted."""
    total, known = 0.0, counted()
    for cell in cells:
        gflop, count = known.get(key(cell)), images(cell)
        if gflop is None or count is None:
            return None
        total += sum(count * _draws(cell) * gflop[sigma] * 1e9 / RATE for sigma in config.levels(cell))
    return total / 3600


def _draws(cell: DictConfig) -> float:
    """Forward passes of the defense for one image: all scales of a cascade; of an attack with its gradients."""
    if cell.task == "certify":
        return config.draws(cell)
    spec = cell.attack
    attacks = spec.attacks or [{"steps": 100, "draws": 16}]
    return sum(map(budget, attacks)) * (1 + BACKWARD) + 2 * spec.evaluations + spec.select * len(attacks)
