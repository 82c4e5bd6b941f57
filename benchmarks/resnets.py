"""CIFAR-10 ResNets with the shared weights, undefended."""

from __future__ import annotations

import os
from pathlib import Path

from drbench.checkpoints import formats
from methods.undefended.defense import Undefended

SHARED = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data"
FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}


def pretrained(depth: int) -> Undefended:
    """ResNet-20 or ResNet-56, a classifier of clean images."""
    file = SHARED / "checkpoints" / "pytorch_resnet_cifar10" / FILES[depth]
    state, role, spec = formats.convert(file, "resnet_cifar")
    state = {f"{role}.{key}": value for key, value in state.items()}
    defense = Undefended.from_checkpoint(state, input_shape=(3, 32, 32), sigmas=(0.0,), classifier=spec)
    return defense.eval().requires_grad_(False)
