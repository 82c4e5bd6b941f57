"""What the engines do with an adapter: certify it, train it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from drbench.api import Defense
from drbench.conformance.case import Case, Skip, expect, global_seed, scores


def check_certifiable(case: Case) -> None:
    """The Gaussian certifier runs end to end at the lowest positive level and can be decided."""
    from drbench.certifiers import gaussian
    from drbench.stats import decide

    defense = case.fresh()
    sigma = next((level for level in defense.sigmas if level > 0), None)
    if sigma is None:
        raise Skip("no positive level is declared: there is no Gaussian noise to certify under")
    found = gaussian.observe(
        defense, case.noisy(2, 0.0), [0, 1], sigma=sigma, n0=10, n=200, seed=0, block=50, batch_rows=64
    )
    for image, evidence, error in found:
        expect(evidence is not None, f"sigma {sigma:g}: image {image} cannot be certified: {error}")
        certificate = decide("gaussian", evidence, alpha=0.001)
        expect(
            certificate.prediction in range(-1, case.num_classes) and 0 <= certificate.radius < math.inf,
            f"sigma {sigma:g}: image {image} is certified as class {certificate.prediction} with radius "
            f"{certificate.radius}, expected one of {case.num_classes} classes (or -1) and a finite radius",
        )


def check_trainable(case: Case) -> None:
    """20 steps of `fit` on 64 images change the weights and lower the loss.

    `fit` reports every step by `log(step, loss)`; where the steps start anew, another curve begins. The mean
    over the last quarter of a curve must be below that over its first quarter, summed over the curves. An
    objective that need not fall, such as a distance to a moving teacher, passes if the cross-entropy of the
    logits on the training images does.
    """
    defense = case.fresh()
    if type(defense).fit is Defense.fit:
        raise Skip("fit is not implemented: the adapter is evaluation-only")
    x, y = _toy_problem(case)
    state = {name: value.clone() for name, value in defense.state_dict().items()}
    before = _cross_entropy(defense, x, y)
    falls = [_quarters(curve) for curve in _fit(defense, x, y)]
    after = _cross_entropy(defense.eval(), x, y)
    changed = [name for name, value in defense.state_dict().items() if not torch.equal(value, state[name])]
    expect(bool(changed), "`fit` changes no weight: does its optimizer hold the parameters of this object?")
    parts = tuple(f"{child}." for child in defense.trained())
    lost = [name for name in changed if not name.startswith(parts)]
    expect(
        not lost,
        f"`fit` changes {', '.join(lost)}, but trained() names {', '.join(defense.trained()) or 'nothing'}, and "
        "`drbench train` writes these children alone: name every child that `fit` changes, keep weights inside them",
    )
    expect(math.isfinite(after), f"after `fit` the cross-entropy of the images is {after}: it diverged")
    quarters = ", ".join(f"{first:.3g} -> {last:.3g}" for first, last in falls)
    expect(
        sum(last - first for first, last in falls) < 0 or after < 0.99 * before,
        f"20 steps of `fit` on 64 images do not lower the loss (first -> last quarter: {quarters}; "
        f"cross-entropy of the logits: {before:.3g} -> {after:.3g}): look at the sign of the loss, at "
        "zero_grad and at the labels",
    )


def check_fit_seeded(case: Case) -> None:
    """Two steps of `fit` with one `recipe.seed` end at the same weights under any global seed."""
    from drbench.training import Recipe

    ends, (x, y) = [], _toy_problem(case)
    for seed in (1, 2):
        defense = case.fresh()
        if type(defense).fit is Defense.fit:
            raise Skip("fit is not implemented: the adapter is evaluation-only")
        with global_seed(seed):
            defense.fit(x.clone(), y.clone(), Recipe(steps=2, batch=32, warmup=0), lambda step, loss: None)
        ends.append(defense.state_dict())
    moved = [name for name, value in ends[0].items() if not torch.allclose(value, ends[1][name], 1e-4, 1e-6)]
    expect(
        not moved,
        f"two trainings with the same recipe.seed end at different weights ({', '.join(moved[:3])}): take all "
        "randomness of `fit` from recipe.seed, e.g. by the generator that drbench.training.train hands to the loss",
    )


def _fit(defense: Defense, x: Tensor, y: Tensor) -> list[list[float]]:
    """The curves of losses that `fit` logged."""
    from drbench.training import Recipe

    recipe, logged = Recipe(steps=20, batch=32, lr=1e-2, warmup=0), []
    with global_seed(0):
        defense.fit(x, y, recipe, lambda step, loss: logged.append((step, float(loss))))
    expect(
        len(logged) >= recipe.steps and all(math.isfinite(loss) for _, loss in logged),
        f"expected `fit` to call log(step, loss) at each of {recipe.steps} steps, with finite losses; got "
        f"{len(logged)} calls (the last: {logged[-1:]})",
    )
    curves, previous = [], math.inf
    for step, loss in logged:
        if step <= previous:
            curves.append([])
        curves[-1].append(loss)
        previous = step
    return curves


def _toy_problem(case: Case, rows: int = 64) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] that show a pattern per class, and their labels."""
    rng = np.random.default_rng(0)
    y = np.arange(rows) % case.num_classes
    patterns = rng.random((case.num_classes, *case.shape), np.float32)
    x = 0.8 * patterns[y] + 0.2 * rng.random((rows, *case.shape), np.float32)
    return torch.from_numpy(x), torch.from_numpy(y)


def _cross_entropy(defense: Defense, x: Tensor, y: Tensor) -> float:
    return float(nn.functional.cross_entropy(scores(defense, x, defense.sigmas[0]), y))


def _quarters(curve: list[float]) -> tuple[float, float]:
    size = max(1, len(curve) // 4)
    return sum(curve[:size]) / size, sum(curve[-size:]) / size
