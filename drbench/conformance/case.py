"""What a check receives (`Case`), what it raises (`Failure`, `Skip`) and how it calls an adapter."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drbench.api import Defense
from drbench.draws import Draws

TOLERANCE = 1e-4  # relative to the largest logit: float32 and another batch size, with room to spare


class Failure(AssertionError):
    """The adapter breaks its contract."""


class Skip(Exception):
    """There is nothing to check here; the message is the reason."""


@dataclass(frozen=True)
class Case:
    """One adapter at one input size."""

    defense_class: type[Defense]
    shape: tuple[int, int, int]
    num_classes: int

    def fresh(self, seed: int = 0) -> Defense:
        """A new miniature in eval mode; `seed` fixes its random weights."""
        with global_seed(seed):
            made = self.defense_class.tiny(self.shape, self.num_classes)
        expect(
            isinstance(made, Defense),
            f"tiny(): expected a {self.defense_class.__name__}, got {type(made).__name__}; `return cls(...)`",
        )
        return made.eval()

    def noisy(self, rows: int, sigma: float) -> Tensor:
        """(rows, C, H, W) float32: uniform pixels plus sigma times a standard normal, always the same."""
        rng = np.random.default_rng(0)
        clean = rng.random((rows, *self.shape), np.float32)
        return torch.from_numpy(clean + np.float32(sigma) * rng.standard_normal(clean.shape, np.float32))


# ---- helpers -----------------------------------------------------------------------------------------------


def expect(condition: bool, message: str) -> None:
    """Raise `Failure` with the message unless the condition holds."""
    if not condition:
        raise Failure(message)


def global_states() -> dict[str, object]:
    """The states of the global generators, comparable with `==`."""
    kind, words, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (kind, words.tolist(), rest),
        "random": random.getstate(),
    }


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), numpy and random inside the block; restore them after it."""
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])


def ends(defense: Defense) -> tuple[float, ...]:
    """The lowest and the highest declared level: where a method's code usually branches."""
    return tuple(sorted({defense.sigmas[0], defense.sigmas[-1]}))


def scores(defense: Defense, z: Tensor, sigma: float, draws: Draws | int = 0) -> Tensor:
    """Logits of a copy of `z`, without gradients. `draws` may be a seed."""
    draws = Draws.seeded(draws, len(z), z.device) if isinstance(draws, int) else draws[:]
    with torch.inference_mode():
        return defense.logits(z.clone(), sigma, draws)


def gaps(a: Tensor, b: Tensor) -> Tensor:
    """(B,) largest difference of each row of logits, relative to the largest logit (or 1) of the batch."""
    return (a - b).abs().amax(1) / b.abs().max().clamp_min(1)


def repeated(draws: Draws, row: int, copies: int) -> Draws:
    """Draws that give the same numbers, those of `row`, to each of `copies` rows."""
    return Draws(draws[row : row + 1].spans * copies, draws.device)
