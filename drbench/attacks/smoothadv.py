"""SmoothAdv-PGD: the attack on a smoothed classifier. Salman et al. 2019, arXiv 1906.04584, section 3.1."""

from __future__ import annotations

import torch
from torch import Tensor

from drbench.attacks.losses import Loss
from drbench.attacks.problem import Candidates, Problem


def smoothadv(problem: Problem, *, steps: int = 100, draws: int = 64, redraw: int = 10, size: float = 2.0) -> Tensor:
    """Ascend -log of the mean softmax of the label over draws that are kept for some iterations.

    That is the classifier that is deployed and certified, not the mean of a loss over draws. Kept draws make the
    objective a fixed function for `redraw` steps; new ones keep the attack from fitting their noise.

    Parameters
    ----------
    draws : int
        m in the paper, 1 to 8 there in training.
    redraw : int
        Iterations between new draws; 0 keeps one set throughout, as the authors' code does.
    size : float
        Sum of all steps in units of eps.
    """
    objective, candidates, x_adv = Loss("ce", "probability"), Candidates(problem), problem.x
    length = torch.full((len(problem),), size * problem.threat.eps / steps, device=x_adv.device)
    for step in range(steps + 1):
        answer = problem.query(
            x_adv, objective, step // redraw if redraw else 0, draws=draws, gradient=step < steps
        )  # fmt: skip
        candidates.add(x_adv, answer.loss, rank=2 * step >= steps)
        if step < steps:
            x_adv = problem.threat.project(x_adv + problem.threat.step(answer.gradient, length), problem.x)
    return candidates.all()
