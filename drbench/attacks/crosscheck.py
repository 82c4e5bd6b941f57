"""Attacks of the library `torchattacks` (Kim 2020, arXiv 2010.01950) behind our interface: an independent cross-check.

`make setup` installs it, without its dependencies: it pins an old `requests`. Every setting that matters is stated
here, because the library's own defaults are not those of AutoAttack (10 steps instead of 100). Its update rules,
projections and random numbers are its own, so a mistake of ours is not repeated; its cost is counted by watching the
network calls.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn

from drbench.attacks.problem import Problem
from drbench.draws import Span, block_key
from drbench.errors import DrbenchError, did_you_mean

NORMS = {"linf": "Linf", "l2": "L2"}
# name -> settings from (steps, queries, classes); those of AutoAttack (Croce and Hein 2020, arXiv 2003.01690)
SETTINGS: dict[str, Callable[[int, int, int], dict]] = {
    "APGD": lambda steps, queries, classes: {"steps": steps, "loss": "ce"},
    "APGDT": lambda steps, queries, classes: {"steps": steps, "n_classes": classes},
    "FAB": lambda steps, queries, classes: {"steps": steps, "n_classes": classes, "multi_targeted": True},
    "Square": lambda steps, queries, classes: {"n_queries": queries, "resc_schedule": False},
}


def library_attack(problem: Problem, *, name: str = "APGD", steps: int = 100, queries: int = 5000) -> Tensor:
    """One attack of the library on a deterministic view: (B, 1, C, H, W) candidates.

    Parameters
    ----------
    name : {"APGD", "APGDT", "FAB", "Square"}
    steps, queries : int
        Iterations of each restart (Square: network calls).

    Raises
    ------
    DrbenchError
        If the library is not installed, or the view is randomised, or the norm is none of the library's.
    """
    if name not in SETTINGS:
        raise DrbenchError(f"unknown attack of torchattacks: {name!r}{did_you_mean(name, SETTINGS)}")
    if problem.view.randomized or problem.threat.norm not in NORMS:
        raise DrbenchError(
            f"torchattacks cross-checks deterministic defenses in {' and '.join(NORMS)}; got a "
            f"{'randomised' if problem.view.randomized else 'deterministic'} view in {problem.threat.norm}"
        )
    try:
        library = import_module("torchattacks")
    except ImportError as error:
        raise DrbenchError(f"the cross-check needs `pip install --no-deps torchattacks==3.5.1`: {error}") from error
    network = Counted(problem)
    norm, eps, seed = NORMS[problem.threat.norm], problem.threat.eps, problem.keys.seed
    own = SETTINGS[name](steps, queries, problem.view.classes)
    attack = getattr(library, name)(network, norm=norm, eps=eps, n_restarts=1, seed=seed, **own)
    devices = [problem.x.device] if problem.x.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():  # the library seeds the global generators
        found = attack(problem.x.contiguous(), problem.y).detach()  # it takes views, which other layouts refuse
    network.charge()
    return found[:, None]


class Counted(nn.Module):
    """A problem's view as a network: pixels to logits. Counts the rows that pass it forwards and backwards."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.problem, self.forwards, self.backwards = problem, 0, 0
        self.anchor = nn.Parameter(torch.zeros((), device=problem.x.device), requires_grad=False)  # shows the device

    def forward(self, x: Tensor) -> Tensor:
        watched = x.view_as(x)
        if watched.requires_grad:
            watched.register_hook(self._backward)
        self.forwards += len(x)
        return self.problem.view.rows(watched, [Span(block_key(0, "", 0.0, "crosscheck", 0), 0, len(x))])

    def _backward(self, gradient: Tensor) -> Tensor:
        self.backwards += len(gradient)
        return gradient.contiguous()

    def charge(self) -> None:
        """Add the counts to the problem's, in equal shares: the library does not say whose row it was."""
        cost, places = self.problem.cost, self.problem.places
        for counts, total in ((cost.gradients, self.backwards), (cost.forwards, self.forwards - self.backwards)):
            counts[places] += total // len(places)
            counts[places[: total % len(places)]] += 1
