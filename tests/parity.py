"""Where the numeric fixtures of the official codes are; they are not part of the project."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data"
PARITY = SHARED / "parity"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="needs numeric fixtures in $DRBENCH_SHARED/data/parity")
TOLERANCE = 1e-4  # of the fixtures; a wrong choice moves outputs by 5e-4 or more


def recorded(name: str) -> dict[str, torch.Tensor]:
    """Inputs and outputs of an official network."""
    return torch.load(PARITY / f"{name}_io.pt", weights_only=True)


def assert_equal_outputs(ours: torch.Tensor, official: torch.Tensor) -> None:
    torch.testing.assert_close(ours, official, rtol=0, atol=TOLERANCE)
