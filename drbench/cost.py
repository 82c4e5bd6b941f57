"""Counting network evaluations with forward hooks."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from drbench.api import Defense, Draws
from drbench.asking import ask


class Evaluations:
    """While open, counts the rows that go through each of `defense.networks()`: `counts` is name -> rows."""

    def __init__(self, defense: Defense):
        self.counts = dict.fromkeys(defense.networks(), 0)
        self._lock = threading.Lock()  # the engine calls the networks from several threads
        self._hooks = [
            network.register_forward_pre_hook(self._counter(name), with_kwargs=True)
            for name, network in defense.networks().items()
        ]

    def _counter(self, name: str):
        def count(module, args, kwargs) -> None:
            first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            with self._lock:
                self.counts[name] += len(first)

        return count

    def __enter__(self) -> Evaluations:
        return self

    def __exit__(self, *exception) -> None:
        for hook in self._hooks:
            hook.remove()


@torch.inference_mode()
def measured_nfe(defense: Defense, sigma: float, rows: int = 2) -> dict[str, float]:
    """Evaluations of each network per input row of one `logits` call, counted on a small batch."""
    draws = Draws.seeded(0, rows, defense.device)
    with Evaluations(defense) as evaluations:
        ask(defense, "logits", draws.randn(rows, *defense.input_shape), sigma, draws)
    return {name: count / rows for name, count in evaluations.counts.items() if count}
