"""Checks of the function under attack, before any attack: what makes gradients or verdicts meaningless.

Athalye et al. 2018, arXiv 1802.00420; Carlini et al. 2019, arXiv 1902.06705; Tramèr et al. 2020, arXiv 2002.08347;
Croce and Hein 2020 (the flags of AutoAttack), arXiv 2003.01690. Each probe takes a `Problem` of a few images and the
defense, and returns findings; `drbench.attacks.audit` adds the checks that compare attacks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from drbench.api import Defense, Draws
from drbench.attacks.losses import LOSSES, Loss
from drbench.attacks.problem import Problem
from drbench.attacks.views import Answer, Direct, joined
from drbench.draws import Span, block_key

SAME = 1e-4  # of logits that should be equal, relative to the largest: float32 in another batch
STEP = 1e-3  # of central differences, in each pixel
DIRECTIONS = 16
COSINE = 0.99  # between measured and claimed directional derivatives
ELSEWHERE = 0.5  # a cosine below it is no kink: autograd leads elsewhere
ZERO = 0.01  # share of images that may have no gradient
PLACES = 4  # random allowed images, near each image, where a surrogate gradient has to lead upwards
MISLED = 0.75  # share of them where it may fail to: votes rise in steps, so that an honest one fails at a third


class Finding(NamedTuple):
    """What a check saw: a number in words, and whether it is a red flag."""

    check: str
    flag: bool
    text: str


def run(defense: Defense, problem: Problem) -> Iterator[Finding]:
    """All probes, in order. Calls to the view are not counted as cost of an attack."""
    yield _training(defense)
    yield _interface(defense)
    logits = _logits(problem)
    yield _probabilities(logits)
    yield _classes(problem)
    yield _repeats(problem, logits)
    yield _batch(problem, logits)
    exact = defense.gradient == "exact" and problem.view.faithful
    yield _inference(problem, exact)
    yield _values(defense, problem)
    if defense.gradient == "none":
        return
    yield from _gradients(problem)
    yield _differences(problem) if exact else _uphill(problem)


def _spans(problem: Problem, step: int = 0) -> list[Span]:
    return problem.keys._replace(stage="audit/probe").spans(step, 1)


@torch.no_grad()
def _logits(problem: Problem, x: Tensor | None = None, step: int = 0) -> Tensor:
    return problem.view.rows(problem.x if x is None else x, _spans(problem, step))


def _away(problem: Problem, number: int = 0) -> Tensor:
    """Each image at a random place that the threat allows: what holds at clean images may hold nowhere else."""
    example = problem.threat.random(problem.x, problem.random(number))
    return problem.threat.image(example, problem.x)


def _scattered(problem: Problem, *places: Tensor) -> Problem:
    """The images, all of them at each of some places, with the same draws."""
    return replace(problem.at(torch.arange(len(problem)).repeat(len(places))), x=torch.cat(places))


def _calls(problem: Problem) -> list[slice]:
    """Parts of the images, each of which fits into one call."""
    return [slice(at, at + problem.rows) for at in range(0, len(problem), problem.rows)]


def _gap(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max().clamp_min(1))


def _training(defense: Defense) -> Finding:
    modes = [name or "the defense" for name, module in defense.named_modules() if module.training]
    return Finding(
        "eval-mode", bool(modes), f"{len(modes)} modules in training mode" + (f", first: {modes[0]}" if modes else "")
    )


def _interface(defense: Defense) -> Finding:
    """Labels reach a defense by no argument."""
    expected = ["z", "sigma", "draws"]
    for name in ("logits", "attack_logits"):
        found = list(inspect.signature(getattr(defense, name)).parameters)
        if len(found) != 3:
            return Finding("label-leak", True, f"{name} takes {', '.join(found)}; expected {', '.join(expected)}")
    return Finding("label-leak", False, "no argument carries labels")


def _probabilities(logits: Tensor) -> Finding:
    sums = (logits.sum(1) - 1).abs().max() < 1e-5
    flag = bool(sums and logits.min() > -1e-5 and logits.max() < 1 + 1e-5)
    return Finding(
        "softmax", flag, "scores are probabilities: losses on logits saturate" if flag else "scores are logits"
    )


def _classes(problem: Problem) -> Finding:
    few = problem.view.classes < 4
    return Finding("classes", False, f"{problem.view.classes} classes{': targeted DLR falls back to the margin' * few}")


def _repeats(problem: Problem, logits: Tensor) -> Finding:
    """The same streams give the same logits; other streams do so too unless randomness was declared."""
    same, other = _gap(logits, _logits(problem)), _gap(logits, _logits(problem, step=1))
    hidden = same > SAME or (other > SAME and not problem.view.randomized)
    text = f"logits differ by {same:.1e} with the same random streams and by {other:.1e} with others"
    return Finding("hidden-randomness", hidden, text + (": not from `draws`, or not declared" if hidden else ""))


def _batch(problem: Problem, logits: Tensor) -> Finding:
    """An image's logits with other images beside it, in another order."""
    order = torch.arange(len(problem)).flip(0)
    other = problem.at(order)
    moved = _gap(logits, _logits(other)[order.to(logits.device)])
    alone = _gap(logits[:1], _logits(problem.at(torch.tensor([0]))))
    gap = max(moved, alone)
    return Finding("batch-dependence", gap > SAME, f"logits change by {gap:.1e} with the rest of the batch")


def _inference(problem: Problem, exact: bool) -> Finding:
    """Gradients taken inside the defense: an attack through it needs second derivatives.

    A defense that claims to have them (`exact`) is held to that by the check of its gradient.
    """
    with (
        mock.patch("torch.autograd.grad", wraps=torch.autograd.grad) as grad,
        mock.patch("torch.Tensor.backward", autospec=True, side_effect=torch.Tensor.backward) as backward,
        torch.enable_grad(),
    ):
        problem.view.rows(problem.x[:2], _spans(problem)[:2])
    calls = grad.call_count + backward.call_count
    return Finding("dynamic", calls > 0 and not exact, f"{calls} gradient calls inside one answer")


def _values(defense: Defense, problem: Problem) -> Finding:
    """What is differentiated has the values of what decides."""
    part = _scattered(problem, problem.x, _away(problem))
    spans, decisive = _spans(part), Direct(defense, part.view.sigma, surrogate=False)
    attacked, decided = [], []
    for at in _calls(part):
        with torch.enable_grad():
            attacked.append(part.view.rows(part.x[at].clone().requires_grad_(), spans[at]).detach())
        with torch.no_grad():
            decided.append(decisive.rows(part.x[at], spans[at]))
    gap = _gap(torch.cat(decided), torch.cat(attacked))
    return Finding("attack-values", gap > SAME, f"logits under attack differ by {gap:.1e} from those that decide")


def _margins(problem: Problem, x: Tensor, gradient: bool = False) -> Answer:
    spans, margin = _spans(problem), Loss("margin")
    return joined([problem.view.answer(x[at], problem.y[at], spans[at], 1, margin, gradient=gradient)
                   for at in _calls(problem)])  # fmt: skip


def _uphill(problem: Problem) -> Finding:
    """A surrogate gradient need not be that of the function, but a step along it does better than one against it."""
    part, clean = (_scattered(problem, *places) for places in
                   ([_away(problem, number) for number in range(PLACES)], [problem.x] * PLACES))  # fmt: skip
    slope = _margins(part, part.x, gradient=True).gradient
    length = (part.x - clean.x).flatten(1).norm(dim=1, keepdim=True) / 4
    step = (torch.nn.functional.normalize(slope.flatten(1)) * length).view_as(slope)
    up, down = (_margins(part, part.x + way * step).loss for way in (1, -1))
    share = float(((down > up) | (slope == 0).flatten(1).all(1)).double().mean())
    text = f"at {share:.0%} of random allowed images a step along the gradient is worse than one against it"
    return Finding("uphill", share > MISLED, text)


def _gradients(problem: Problem) -> Iterator[Finding]:
    """Zero and non-finite gradients of each loss; agreement of the gradients of two draws."""
    worst, broken, slopes = ("", 0.0), 0, []
    for name in LOSSES:
        loss = Loss(name).fitted(problem.view.classes)
        answer = problem.view.answer(problem.x, problem.y, _spans(problem), 1, loss)
        flat = answer.gradient.flatten(1)
        broken += int((~flat.isfinite()).any(1).sum())
        # Of images that are right: a wrong one has none of DLR where its label is third.
        zero = float(((flat == 0).all(1) & (answer.failures == 0)).float().mean())
        worst = max(worst, (name, zero), key=lambda pair: pair[1])
        slopes.append(flat)
    yield Finding("gradient-finite", broken > 0, f"{broken} gradients hold NaN or infinite values")
    name, zero = worst
    text = f"{zero:.0%} of the clean images have no gradient{f' of {name}' * (zero > 0)}"
    yield Finding("gradient-zero", zero > ZERO, text)
    if problem.view.randomized:
        other = problem.view.answer(problem.x, problem.y, _spans(problem, 1), 1, Loss("margin")).gradient.flatten(1)
        cosine = float(torch.nn.functional.cosine_similarity(slopes[-1], other).mean())
        yield Finding("gradient-noise", False, f"mean cosine {cosine:.2f} between the gradients of two draws")


def _differences(problem: Problem) -> Finding:
    """Directional derivatives of the margin of each image, by central differences and by autograd.

    The median over the images, and over them with as many random allowed ones: wrong at half of them is wrong, of two
    middle ones the lower counts. Kinks make the gradients of honest defenses wrong at a few; one that leads elsewhere
    at more than a quarter of the clean images is none of theirs.
    """
    part = _scattered(problem, problem.x, _away(problem))
    slope = _margins(part, part.x, gradient=True).gradient
    rng = Draws([Span(block_key(0, "", 0.0, "audit/directions", 0), 0, DIRECTIONS)])
    signs = rng.randn(DIRECTIONS, *part.x.shape[1:]).sign().to(part.x)
    measured, claimed = [], []
    for sign in signs:
        up, down = (_margins(part, part.x + h * sign).loss for h in (STEP, -STEP))
        measured.append((up - down) / (2 * STEP))
        claimed.append((slope * sign).flatten(1).sum(1))
    measured, claimed = torch.stack(measured), torch.stack(claimed)
    cosines = torch.nn.functional.cosine_similarity(measured, claimed, dim=0)
    ratios = claimed.norm(dim=0) / measured.norm(dim=0).clamp_min(1e-12)
    clean = len(part) // 2
    cosine = float(min(cosines[:clean].median(), cosines.median()))
    ratio = float(max(ratios[:clean].median(), ratios.median(), key=lambda each: abs(each - 1)))
    lost = float((cosines[:clean] < ELSEWHERE).double().mean())
    text = (
        f"autograd against central differences: median cosine {cosine:.3f}, ratio of sizes {ratio:.3f}; below "
        f"{ELSEWHERE:g} at {lost:.0%} of the clean images"
    )
    right = cosine >= COSINE and abs(ratio - 1) <= 0.1 and lost <= 0.25
    return Finding("gradient-check", not right, text)
