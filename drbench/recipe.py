"""Hyper-parameters of one training. Standard library only, so that configs are checked without torch."""

from __future__ import annotations

from dataclasses import dataclass

from drbench.errors import DrbenchError


@dataclass
class Recipe:
    """Hyper-parameters of one training. A state saved under one recipe is not resumed under another."""

    steps: int = 2000
    batch: int = 128
    lr: float = 1e-3  # peak, reached after `warmup` steps
    decay: str = "cosine"  # of the learning rate after its peak: cosine (to zero) | constant
    optimizer: str = "adamw"  # adamw | radam (Liu et al. 2020, arXiv 1908.03265)
    weight_decay: float = 0.0
    warmup: int = 100  # steps
    ema_halflife: int = 250  # steps; the trained weights are the averaged ones
    clip: float = 1.0  # largest gradient norm
    shift: float = 0.0  # augmentation: largest translation, pixels
    rotate: float = 0.0  # augmentation: largest rotation, degrees
    flip: bool = False  # augmentation: mirror every other image, left to right
    mixup: float = 0.0  # classifiers: share of each batch that is mixed with other images, in [0, 1]
    seed: int = 0
    state: str | None = None  # file for the resumable state; None: not resumable

    def __post_init__(self) -> None:
        positive = {name: getattr(self, name) for name in ("steps", "batch", "lr", "ema_halflife", "clip")}
        wrong = [f"{name}={value}" for name, value in positive.items() if value <= 0]
        if wrong or self.warmup < 0 or self.weight_decay < 0:
            raise DrbenchError(f"training recipe: expected positive values, got {', '.join(wrong) or self}")
        if self.decay not in ("cosine", "constant") or self.optimizer not in ("adamw", "radam"):
            raise DrbenchError(
                "training recipe: decay is cosine or constant and optimizer is adamw or radam, "
                f"got {self.decay!r} and {self.optimizer!r}"
            )
        if not 0 <= self.mixup <= 1:
            raise DrbenchError(f"training recipe: mixup is a share in [0, 1], got {self.mixup}")
