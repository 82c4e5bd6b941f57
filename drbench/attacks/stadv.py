"""StAdv: images bent by a smooth flow field. Xiao et al. 2018, arXiv 1801.02612.

The settings are those with which diffusion-based defenses are attacked (code of DiffPure, arXiv 2205.07460): Adam on
the flow of every image, bounded displacement, margin plus roughness, EOT, start at no flow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drbench.attacks import flow as flows
from drbench.attacks.losses import Loss
from drbench.attacks.problem import Candidates, Problem

ROUGHNESS = 0.0025  # weight of the roughness in units of the bound
WON = 1e3  # added to the objective of images that are fooled for good
RATE = 0.2  # learning rate in units of the bound: 0.01 of 0.05


def stadv(problem: Problem, *, loss: str = "margin", steps: int = 100, draws: int = 1) -> Tensor:
    """(B, c, H, W, 2) flow fields in pixels: the iterates with the best objective, and the last.

    The bound on displacements is `problem.threat.eps`, pixels. The objective that ranks iterates includes the
    roughness, so an image that is fooled early is made smoother while it stays fooled.
    """
    bound, x = max(problem.threat.eps, 1e-6), problem.x  # a bound of 0 leaves nothing to do, nor to divide by
    flow = problem.threat.none(x)
    mean, square, found = torch.zeros_like(flow), torch.zeros_like(flow), Candidates(problem)
    for step in range(steps + 1):
        flow.requires_grad_()
        with torch.enable_grad():
            moved, rough = flows.warp(x, flow), flows.roughness(flow)
        answer = problem.query(moved.detach(), Loss(loss), step, draws=draws, gradient=step < steps)
        won = problem.certain & (answer.failures > 0)  # for good: smoothness ranks among these
        objective = answer.loss - ROUGHNESS / bound * rough.detach()
        found.add(flow.detach(), objective + WON * won, rank=problem.certain or 2 * step >= steps)
        if step == steps:
            break
        (through,) = torch.autograd.grad(moved, flow, answer.gradient, retain_graph=True)
        (smooth,) = torch.autograd.grad(rough.sum(), flow)
        slope = through - ROUGHNESS / bound * smooth
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        ascent = mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        flow = (flow.detach() + RATE * bound * ascent).clamp(-bound, bound)
    return found.all()
