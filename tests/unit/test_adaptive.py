"""Early stopping in the engine: the same draws as the fixed mode, the same decisions, no dependence on batches."""

import numpy as np
import pytest
import torch

from drbench import stats
from drbench.certifiers import adaptive, gaussian
from tests.unit.test_engine import Linear, images

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
SETTINGS = {"sigma": 0.5, "n0": 50, "n": 2000, "block": 100}


def stopped(mode, defense=None, rows=512, order=range(30), **changes):
    x, ids = images(30)[list(order)], list(order)
    settings = SETTINGS | {"radii": RADII, "alpha": 0.001, "batch_rows": rows} | changes
    seen = adaptive.observe(defense or Linear(), x, ids, mode=mode, **settings)
    return {ids[found.index]: found for found in seen}


@pytest.fixture(scope="module")
def fixed():
    return [found.evidence for found in gaussian.observe(Linear(), images(30), range(30), batch_rows=512, **SETTINGS)]


def test_curtailed_certifies_what_fixed_does(fixed):
    early = stopped("curtailed")
    for image, late in enumerate(fixed):
        evidence = early[image].evidence
        found = stats.decide_gaussian(evidence, 0.001, mode="curtailed", budget=2000)
        full = stats.decide_gaussian(late, 0.001)
        assert found.prediction == full.prediction and found.radius <= full.radius
        assert [found.radius >= r for r in RADII] == [full.radius >= r for r in RADII]
        assert evidence.stages[0].select == late.stages[0].select
    assert sum(found.evidence.stages[0].n for found in early.values()) < 30 * 2000  # few images are hopeless here


@pytest.mark.parametrize("mode", ["sequential", "hybrid"])
def test_sequential_saves_draws_and_rarely_differs(mode, fixed):
    early = stopped(mode)
    radii = np.array(
        [stats.decide_gaussian(early[i].evidence, 0.001, mode=mode, budget=2000).radius for i in range(30)]
    )
    full = np.array([stats.decide_gaussian(late, 0.001).radius for late in fixed])
    same = sum(((radii >= r) == (full >= r)).sum() for r in RADII[1:])
    assert same >= 0.9 * 4 * 30
    assert sum(found.evidence.stages[0].n for found in early.values()) < 0.8 * 30 * 2000


def test_stops_do_not_depend_on_batches_or_order():
    def evidence(**changes):
        return {image: found.evidence.to_json() for image, found in stopped("hybrid", **changes).items()}

    assert evidence() == evidence(rows=64) == evidence(order=range(29, -1, -1)) == evidence(rows=4096)


def test_draws_are_the_first_of_the_fixed_mode():
    """With nothing to stop for, every vote is that of the fixed mode."""
    late = list(gaussian.observe(Linear(), images(3), range(3), batch_rows=300, **SETTINGS))
    seen = adaptive.observe(Linear(), images(3), range(3), mode="sequential", radii=[], alpha=0.001, **SETTINGS)
    assert all(found.evidence.stages[0].n == 100 for found in seen)
    never = adaptive.observe(
        Linear(), images(3), range(3), mode="sequential", radii=[0.0], alpha=1e-300, give_up=1e-300, **SETTINGS
    )
    assert [found.evidence for found in sorted(never)] == [found.evidence for found in late]


def test_an_image_with_non_finite_logits_is_an_error():
    class Broken(Linear):
        def logits(self, z, sigma, draws):
            return super().logits(z, sigma, draws) + torch.where(z.flatten(1).sum(1) > 45, torch.nan, 0.0)[:, None]

    found = stopped("sequential", Broken())
    assert any(seen.error and "non-finite" in seen.error for seen in found.values())
    assert any(seen.evidence for seen in found.values()) and len(found) == 30
