"""Early stopping in the engine: the same draws as the fixed mode, the same decisions, no dependence on batches."""

import numpy as np
import pytest
import torch

from drbench import stats
from drbench.certifiers import adaptive, gaussian
from tests.unit.test_engine import Linear, images

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
SETTINGS = {"sigma": 0.5, "n0": 50, "n": 2000, "block": 100}


def stopped(mode, defense=None, rows=512, order=range(30), left=None, **changes):
    x, ids = images(30)[list(order)], list(order)
    settings = SETTINGS | {"radii": RADII, "alpha": 0.001, "batch_rows": rows} | changes
    seen = adaptive.observe(defense or Linear(), x, ids, mode=mode, rows=left, **settings)
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
    assert evidence() == evidence(at_once=1) == evidence(at_once=7, rows=4096)


def test_draws_are_the_first_of_the_fixed_mode():
    """With nothing to stop for, every vote is that of the fixed mode."""
    late = list(gaussian.observe(Linear(), images(3), range(3), batch_rows=300, **SETTINGS))
    seen = adaptive.observe(Linear(), images(3), range(3), mode="sequential", radii=[], alpha=0.001, **SETTINGS)
    assert all(found.evidence.stages[0].n == 100 for found in seen)
    dense = np.linspace(-1, 1, 201).tolist()  # some share is always near that of a target
    never = adaptive.observe(Linear(), images(3), range(3), mode="sequential", radii=dense, alpha=0.001, **SETTINGS)
    assert [found.evidence for found in sorted(never)] == [found.evidence for found in late]


def test_an_image_with_non_finite_logits_is_an_error():
    class Broken(Linear):
        def logits(self, z, sigma, draws):
            return super().logits(z, sigma, draws) + torch.where(z.flatten(1).sum(1) > 45, torch.nan, 0.0)[:, None]

    found = stopped("sequential", Broken())
    assert any(seen.error and "non-finite" in seen.error for seen in found.values())
    assert any(seen.evidence for seen in found.values()) and len(found) == 30


def test_late_rounds_are_not_padding():
    """Rows that go through the network, against draws that were asked for, although single images go on to the end."""
    defense = Linear()
    early = stopped("sequential", defense, rows=512)
    asked = sum(found.evidence.stages[0].n + 50 for found in early.values())
    assert asked <= sum(defense.batches) < 1.03 * asked


@pytest.mark.parametrize("mode", ["fixed", "hybrid"])
def test_label_mode_tests_the_label_without_selection(mode, fixed):
    labels = [(top + (i % 3 == 0)) % 2 for i, top in enumerate(stats.top_class(e.stages[0].select) for e in fixed)]
    x, settings = images(30), {key: SETTINGS[key] for key in ("sigma", "n", "block")}
    if mode == "fixed":
        seen = gaussian.observe(Linear(), x, range(30), labels=labels, batch_rows=300, **settings)
    else:
        seen = adaptive.observe(Linear(), x, range(30), mode=mode, radii=RADII, alpha=0.001, labels=labels, **settings)
    for found in sorted(seen):
        (stage,), full = found.evidence.stages, fixed[found.index].stages[0]
        assert (stage.n0, stage.select) == (0, {labels[found.index]: 0})
        assert stage.votes == full.votes or mode != "fixed"  # the same estimation draws
        options = {"mode": mode, "budget": 2000} if mode != "fixed" else {}
        prediction = stats.decide_gaussian(found.evidence, 0.001, **options).prediction
        assert prediction in (labels[found.index], -1)


def test_the_union_bound_is_another_rule_on_the_same_draws(fixed):
    early = stopped("sequential", sequence="union")
    for image, found in early.items():
        (stage,) = found.evidence.stages
        certificate = stats.decide_gaussian(
            found.evidence, 0.001, mode="sequential", budget=2000, sequence="union", block=100
        )
        assert certificate.radius <= stats.gaussian_radius(stage.votes.get(certificate.detail["class"], 0), stage.n,
                                                           0.001, 0.5)  # fmt: skip
        assert stage.select == fixed[image].stages[0].select
    plain = stopped("sequential")
    assert {i: f.evidence for i, f in early.items()} != {i: f.evidence for i, f in plain.items()}


def test_a_tolerance_stops_the_whole_table_at_one_checkpoint():
    whole, stopped_at = stopped("hybrid"), stopped("hybrid", tolerance=0.2)
    drawn = [found.evidence.stages[0].n for found in stopped_at.values()]
    assert sum(drawn) < sum(found.evidence.stages[0].n for found in whole.values())
    last = max(drawn)
    assert drawn.count(last) > 1 and last < 2000
    for image, found in stopped_at.items():  # what was settled before is settled as without it
        assert found.evidence == whole[image].evidence or found.evidence.stages[0].n == last
    reached = [[stats.decide_gaussian(e.evidence, 0.001, mode="hybrid", budget=2000).radius for e in run.values()]
               for run in (whole, {i: stopped_at[i] for i in whole})]  # fmt: skip
    for radius in RADII[1:]:
        lost = np.mean(np.array(reached[0]) >= radius) - np.mean(np.array(reached[1]) >= radius)
        assert 0 <= lost <= 0.2 + 1e-9


def test_a_tolerance_does_not_depend_on_batches_order_or_a_kill():
    whole = {image: found.evidence for image, found in stopped("hybrid", tolerance=0.2).items()}

    def again(**changes):
        return {image: found.evidence for image, found in stopped("hybrid", tolerance=0.2, **changes).items()}

    assert again(rows=64) == again(order=range(29, -1, -1)) == whole
    for kept in (1, 7, 20, 27, 29):  # killed after this many images were written
        first = list(whole)[:kept]
        rest = [image for image in range(30) if image not in first]
        resumed = again(left=rest, done=[whole[image] for image in first])
        assert resumed == {image: whole[image] for image in rest}
