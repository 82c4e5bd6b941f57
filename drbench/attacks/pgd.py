"""Projected gradient ascent on the mean over draws (EOT-PGD), and random noise as the floor.

Athalye et al. 2018, arXiv 1707.07397 (EOT); Madry et al. 2018, arXiv 1706.06083. On a noisy loss a planned decay of the
step beats a step that reacts to the loss, and more iterations beat more draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drbench.attacks.losses import Loss
from drbench.attacks.problem import Candidates, Problem
from drbench.errors import DrbenchError

SCHEDULES = {
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "constant": lambda share: 1.0,
}


def pgd(
    problem: Problem,
    *,
    loss: str = "margin",
    pool: str = "loss",
    steps: int = 100,
    draws: int = 1,
    size: float = 0.25,
    schedule: str = "cosine",
    start: str = "clean",
) -> Tensor:
    """PGD; its candidates are the best iterates of the second half by mean loss, and the last.

    Parameters
    ----------
    draws : int
        Of each iterate, all in one call.
    size : float
        First step in units of eps.
    schedule : {"cosine", "constant"}
    start : {"clean", "random"}
    """
    if schedule not in SCHEDULES or start not in ("clean", "random"):
        raise DrbenchError(f"pgd: expected schedule cosine or constant, start clean or random; got {schedule}, {start}")
    objective, candidates = Loss(loss, pool), Candidates(problem)
    x_adv = problem.x if start == "clean" else problem.start()
    for step in range(steps + 1):
        answer = problem.query(x_adv, objective, step, draws=draws, gradient=step < steps)
        if step:
            won = problem.certain & (answer.failures > 0)  # for good, whatever the loss
            candidates.add(x_adv, answer.loss.where(~won, torch.inf), rank=problem.certain or 2 * step >= steps)
        if step < steps:
            length = size * problem.threat.eps * SCHEDULES[schedule](step / steps)
            move = problem.threat.step(answer.gradient, torch.full((len(problem),), length, device=x_adv.device))
            x_adv = problem.threat.project(x_adv + move, problem.x)
    return candidates.all()


def noise(problem: Problem, *, tries: int = 10) -> Tensor:
    """Random signs (l_inf) or random directions (l2, l1) of full length: what every attack has to beat."""
    if problem.threat.norm != "linf":
        return torch.stack([problem.start(number) for number in range(tries)], 1)
    signs = (problem.random(number).randn(*problem.x.shape).sign() for number in range(tries))
    return torch.stack([problem.threat.project(problem.x + problem.threat.eps * sign, problem.x) for sign in signs], 1)
