"""What a draw costs by the first call of each network, where a whole draw would take too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar
from unittest import mock

import torch
from torch import Tensor

from drbench.api import Defense, Draws

ROWS = 16  # of the images that the defense is asked about; a network may be asked about more rows at once
TIMED = 0.5  # seconds of a call that says enough; a shorter one is followed by one with more rows
SLOW = 10.0  # seconds of a call that is not repeated, although it is the first and prepares for others

Value = TypeVar("Value")
Call = Callable[[int], Tensor]  # of a network, on the first so many of its rows


@torch.inference_mode()
def measured(
    defense: Defense, sigma: float, measure: Callable[[Call, int], tuple[Value, Tensor]], rows: int = ROWS
) -> dict[str, Value]:
    """What `measure` says of each network that the defense declares to call at this noise level.

    `measure` gets the network's first call and the number of its rows, and returns a value and an answer. The first
    row of that stands for the answers to all rows and to all later calls, which are not made.
    """
    found, networks, draws = {}, defense.networks(), Draws.seeded(0, rows, defense.device)
    with ExitStack() as replaced:
        for name, count in defense.nfe(sigma).items():
            if count:
                found[name] = _FirstCall(networks[name].forward, measure)
                replaced.enter_context(mock.patch.object(networks[name], "forward", found[name]))
        defense.logits(draws.randn(rows, *defense.input_shape), sigma, draws)
    return {name: call.value for name, call in found.items()}


class _FirstCall:
    def __init__(self, forward: Callable[..., Tensor], measure: Callable):
        self.forward, self.measure, self.value, self.answer = forward, measure, None, None

    def __call__(self, *args, **kwargs) -> Tensor:
        total = next(len(each) for each in (*args, *kwargs.values()) if isinstance(each, Tensor))

        def call(rows: int) -> Tensor:
            def first(value):
                return value[:rows] if isinstance(value, Tensor) and value.ndim and len(value) == total else value

            return self.forward(*map(first, args), **{key: first(value) for key, value in kwargs.items()})

        if self.answer is None:
            self.value, answer = self.measure(call, total)
            self.answer = answer[:1]
        return self.answer.expand(total, *self.answer.shape[1:])


def seconds_per_draw(defense: Defense, sigma: float) -> float:
    """Seconds of a row of each network's first call times the calls that the defense declares."""
    per_row = measured(defense, sigma, _seconds)
    return sum(defense.nfe(sigma)[name] * seconds for name, seconds in per_row.items())


def _seconds(call: Call, total: int) -> tuple[float, Tensor]:
    """Seconds of a row, of as many rows as it takes to tell."""
    rows, warm = 1, False
    while True:
        start = time.perf_counter()
        answer = call(rows)
        if answer.device.type == "cuda":
            torch.cuda.synchronize(answer.device)
        seconds = time.perf_counter() - start
        if seconds > SLOW or (warm and (seconds > TIMED or rows == total)):
            return seconds / rows, answer
        rows, warm = min(total, 4 * rows) if warm else rows, True
