"""AutoAttack's version `rand`, with its defects, for comparison only.

Croce and Hein 2020, arXiv 2003.01690; behaviour of the authors' published code. It averages gradients over draws, but
lets single draws decide everything else: which images are attacked (one misclassification retires an image,
unperturbed), the loss that steers the step size and picks the best iterate (the last of the draws), which iterate is
returned (the latest one that the last draw misclassified) and success. So its verdict on a randomised defense is too
low, and the examples that it returns are too weak. Use `pgd` or `apgd` with draws instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drbench.attacks.apgd import Halving, climb
from drbench.attacks.losses import Loss
from drbench.attacks.problem import Problem
from drbench.attacks.views import Answer
from drbench.errors import DrbenchError

LOSSES = ("ce", "dlr")


def autoattack_rand(problem: Problem, *, steps: int = 100, draws: int = 20) -> Tensor:
    """(B, 1, C, H, W): the examples that AutoAttack `rand` returns; unperturbed where it found none.

    Its own verdict is noted in the cost: "robust by its own verdict" -> number of images.
    """
    if problem.certain:
        raise DrbenchError("autoattack_rand is for randomised defenses; use preset autoattack, or apgd")
    images = problem.x.clone()
    robust = _right(problem.named("clean"), images)
    for name in LOSSES:
        places = robust.nonzero().flatten()
        if not len(places):
            break
        search = LastDraw(problem.at(places).named(name))
        start = search.start()
        search.kept = start.clone()
        climb(search, start, Loss(name), steps, draws, None, Halving(steps))
        # Without any misclassified iterate the attack returns the clean image; success is decided by one more draw.
        found = torch.where(search.wrong.view(-1, 1, 1, 1), search.kept, search.x)
        fooled = ~_right(search.named("verdict"), found)
        images[places[fooled]] = found[fooled]
        robust[places[fooled]] = False
    problem.cost.notes["robust by its own verdict"] += int(robust.sum())
    return images[:, None]


def _right(problem: Problem, x: Tensor) -> Tensor:
    """(B,) bool by one draw."""
    return problem.query(x, Loss("margin"), gradient=False).failures == 0


class LastDraw:
    """A problem whose loss and failures are those of one draw, while its gradient is the mean over all of them.

    Remembers, in `kept` and `wrong`, the latest iterate of each image that this one draw misclassified.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self.kept, self.wrong = problem.x, torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device)

    def __getattr__(self, name: str):
        return getattr(self.problem, name)

    def __len__(self) -> int:
        return len(self.problem)

    def query(self, x_adv, loss, step=0, *, draws=1, target=None, gradient=True) -> Answer:
        last = self.problem.named("last").query(x_adv, loss, step, gradient=gradient)
        failed = last.failures > 0
        self.kept, self.wrong = torch.where(failed.view(-1, 1, 1, 1), x_adv, self.kept), self.wrong | failed
        if not gradient or draws == 1:
            return last
        others = self.problem.query(x_adv, loss, step, draws=draws - 1)
        return last._replace(gradient=(last.gradient + (draws - 1) * others.gradient) / draws)
