"""Auto-PGD: gradient ascent that finds its own step size. Croce and Hein 2020, arXiv 2003.01690; l1: arXiv 2103.01208.

With several draws the loss, its gradient and the step-size control all use the mean over the same draws, which are
drawn anew at every iterate (EOT); then nothing is decided by a single misclassification.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from drbench.attacks.losses import Loss
from drbench.attacks.problem import Candidates, Problem
from drbench.attacks.threat import Threat

MOMENTUM = 0.75
RISES = 0.75  # rho: a window with fewer rises of the loss than this share halves the step
RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # l1: radius in units of eps, share of the steps


def apgd(problem: Problem, *, loss: str = "ce", pool: str = "loss", steps: int = 100, draws: int = 1,
         restarts: int = 1) -> Tensor:  # fmt: skip
    """Untargeted APGD: `steps` iterations of `draws` draws from each of `restarts` random starts."""
    runs = [(None, problem.named(f"restart{number}") if number else problem) for number in range(restarts)]
    return _several(problem, runs, Loss(loss, pool), steps, draws)


def apgd_t(problem: Problem, *, loss: str = "dlr", pool: str = "loss", steps: int = 100, draws: int = 1,
           targets: int = 9) -> Tensor:  # fmt: skip
    """Targeted APGD: one run towards each of the `targets` likeliest classes of the clean image but its label."""
    ranked = problem.ranked(draws)[:, :targets]
    runs = [(aim, problem.named(f"target{number}")) for number, aim in enumerate(ranked.T)]
    return _several(problem, runs, Loss(loss, pool), steps, draws)


def _several(problem: Problem, runs, loss: Loss, steps: int, draws: int) -> Tensor:
    """Candidates of several runs; on a deterministic defense only of images that no earlier run has broken."""
    if not problem.certain:
        return torch.cat([_run(part, loss, steps, draws, aim)[0] for aim, part in runs], 1)
    kept, open_ = problem.x.clone(), torch.ones(len(problem), dtype=torch.bool, device=problem.x.device)
    for aim, part in runs:
        places = open_.nonzero().flatten()
        if not len(places):
            break
        images, broken = _run(part.at(places), loss, steps, draws, None if aim is None else aim[places])
        kept[places], open_[places] = images[:, 0], ~broken
    return kept[:, None]


def _run(problem: Problem, loss: Loss, steps: int, draws: int, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """One run: candidates (B, c, C, H, W), and (B,) whether a deterministic defense is broken."""
    if problem.threat.norm != "l1":
        return climb(problem, problem.start(), loss, steps, draws, target, Halving(steps))
    x, eps, done = problem.threat.project(problem.x + problem.random().randn(*problem.x.shape), problem.x), 0.0, 0
    for number, (scale, share) in enumerate(RADII):  # a larger ball first: l1 is explored too slowly from within
        eps, last = scale * problem.threat.eps, number == len(RADII) - 1
        stage = replace(problem, threat=Threat("l1", eps)).named(f"radius{number}")
        count = steps - done if last else max(1, round(share * steps))
        done += count
        x = stage.threat.project(x, problem.x)
        images, broken = climb(stage, x, loss, count, draws, target, Shrinking(count), early=last)
        x = images[:, 0]
    return images, broken


@dataclass
class State:
    """Of each image in the search, first dimension B."""

    x: Tensor
    before: Tensor  # the iterate before x
    gradient: Tensor
    loss: Tensor
    size: Tensor  # of the step
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    rises: Tensor  # iterations of this window in which the loss rose
    checked_loss: Tensor  # best loss at the last checkpoint
    reduced: Tensor  # whether the step was reduced there
    support: Tensor  # l1: entries of the best perturbation at the last checkpoint

    def at(self, kept: Tensor) -> State:
        return State(*(getattr(self, field.name)[kept] for field in fields(self)))

    def restart(self, where: Tensor) -> None:
        """Go back to the best iterate."""
        self.x, self.gradient = _pick(where, self.best, self.x), _pick(where, self.best_gradient, self.gradient)
        self.loss = torch.where(where, self.best_loss, self.loss)


def climb(problem: Problem, x: Tensor, loss: Loss, steps: int, draws: int, target: Tensor | None, control,
          early: bool = True) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loop of APGD from `x`. On a deterministic defense broken images leave it at once, unless not `early`."""
    certain = problem.certain and early
    found, broken = problem.x.clone(), torch.zeros(len(problem), dtype=torch.bool, device=x.device)
    active, candidates = torch.arange(len(problem), device=x.device), Candidates(problem)
    asked, answer = x, problem.query(x, loss, 0, draws=draws, target=target)
    slope, losses, n = answer.gradient, answer.loss, len(problem)
    size = torch.full((n,), control.first * problem.threat.eps, device=x.device)
    state = State(x, x, slope, losses, size, x, losses, slope, torch.zeros(n, device=x.device), losses,
                  torch.ones(n, dtype=torch.bool, device=x.device), _support(x, problem.x))  # fmt: skip
    for step in range(1, steps + 1):
        if certain and (answer.failures > 0).any():
            out = answer.failures > 0
            found[active[out]], broken[active[out]] = asked[out], True  # `state.x` may have gone back to the best
            left = (~out).nonzero().flatten()
            active, state, problem = active[left], state.at(left), problem.at(left)
            target = None if target is None else target[left]
            if not len(left):
                return found[:, None], broken
        asked = moved = control.move(state, problem, step)
        answer = problem.query(moved, loss, step, draws=draws, target=target, gradient=step < steps)
        slope = state.gradient if answer.gradient is None else answer.gradient
        state.before, state.x, state.gradient = state.x, moved, slope
        state.rises += answer.loss > state.loss
        state.loss = answer.loss
        better = answer.loss > state.best_loss
        state.best, state.best_gradient = _pick(better, moved, state.best), _pick(better, slope, state.best_gradient)
        state.best_loss = torch.where(better, answer.loss, state.best_loss)
        if not certain:
            candidates.add(moved, answer.loss, rank=2 * step >= steps)
        control.check(state, problem, step)
    if not certain:
        return (candidates.all() if early else state.best[:, None]), broken
    out = answer.failures > 0
    found[active], broken[active] = _pick(out, asked, state.best), out
    return found[:, None], broken


def checkpoints(steps: int) -> list[int]:
    """Iterations after which the step size is reconsidered: windows of 22 %, each 3 % shorter, at least 6 %."""
    window, marks = max(int(0.22 * steps), 1), [max(int(0.22 * steps), 1)]
    while marks[-1] < steps:
        window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
        marks.append(marks[-1] + window)
    return [mark for mark in marks if mark <= steps]


class Halving:
    """l_inf and l2: momentum, and a step that is halved where the loss rises too rarely."""

    first = 2.0  # step in units of eps

    def __init__(self, steps: int):
        self.marks, self.last = checkpoints(steps), 0

    def move(self, state: State, problem: Problem, step: int) -> Tensor:
        threat, x = problem.threat, problem.x
        ahead = threat.project(state.x + threat.step(state.gradient, state.size), x)
        momentum = MOMENTUM if step > 1 else 1.0
        return threat.project(
            state.x + momentum * (ahead - state.x) + (1 - momentum) * (state.x - state.before), x
        )  # fmt: skip

    def check(self, state: State, problem: Problem, step: int) -> None:
        if step not in self.marks:
            return
        stuck = ~state.reduced & (state.checked_loss >= state.best_loss)
        state.reduced = (state.rises <= RISES * (step - self.last)) | stuck
        state.size = torch.where(state.reduced, state.size / 2, state.size)
        state.restart(state.reduced)
        state.checked_loss, state.rises, self.last = state.best_loss, torch.zeros_like(state.rises), step


class Shrinking:
    """l1: no momentum; steps as sparse as the best perturbation, shorter where its support has settled."""

    first = 1.0

    def __init__(self, steps: int):
        self.window = max(int(0.04 * steps), 1)

    def move(self, state: State, problem: Problem, step: int) -> Tensor:
        everything = state.x[0].numel()
        known = state.support / 1.5
        sparsity = torch.where(known > 0, known, 0.2 * everything)
        return problem.threat.project(
            state.x + problem.threat.step(state.gradient, state.size, sparsity), problem.x
        )  # fmt: skip

    def check(self, state: State, problem: Problem, step: int) -> None:
        if step % self.window:
            return
        support, eps = _support(state.best, problem.x), problem.threat.eps
        sparser = support < 0.95 * state.support
        state.size = torch.where(sparser, torch.full_like(state.size, eps), state.size / 1.5).clamp(eps / 10, eps)
        state.restart(sparser)
        state.support = support


def _support(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv != x).flatten(1).sum(1).float()


def _pick(where: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(where.view(-1, *[1] * (first.ndim - 1)), first, second)
