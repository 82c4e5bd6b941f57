"""Update rules against closed forms: on a linear model the worst case in each norm is known."""

import numpy as np
import pytest
import torch

import drbench
from drbench import norms
from drbench.attacks import apgd, fab, pgd, presets, square, views
from drbench.attacks.apgd import checkpoints
from drbench.attacks.losses import Loss
from drbench.attacks.presets import member
from drbench.attacks.problem import Problem
from drbench.attacks.suite import Suite
from drbench.attacks.threat import Threat, threat
from drbench.errors import DrbenchError
from tests.attacked import two_classes

DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


def problem(defense, x, y, norm, eps, sigma=0.0):
    return Problem.of(views.Direct(defense, sigma), threat(norm, eps), x, y, range(len(x)), "test")


def reach(margins, w, norm):
    """Distance of each image to the boundary: margin / dual norm of w (the box is out of reach)."""
    return margins / torch.linalg.vector_norm(w, ord=DUAL[norm])


def broken(defense, x_adv, y):
    return defense.logits(x_adv, 0.0, None).argmax(1) != y


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", ["apgd", "apgd_t", "pgd", "fab_t"])
def test_linear_worst_case_is_reached_exactly(norm, attack):
    defense, x, y, margins, w = two_classes()
    far = reach(margins, w, norm)
    eps = far.median().item()
    run = {"apgd": lambda p: apgd.apgd(p, steps=60), "apgd_t": lambda p: apgd.apgd_t(p, steps=60),
           "pgd": lambda p: pgd.pgd(p, steps=60), "fab_t": lambda p: fab.fab_t(p, steps=20)}[attack]  # fmt: skip
    tested = problem(defense, x, y, norm, eps)
    found = torch.zeros(len(x), dtype=torch.bool)
    for candidate in run(tested).unbind(1):
        mended, refused = tested.threat.repair(candidate, x)
        assert not refused.any()
        found |= broken(defense, mended, y)
    assert not found[far > eps * (1 + 1e-5)].any()  # impossible, whatever the attack
    missed = (~found[far < eps * (1 - 1e-3)]).sum()
    # a sparse l1 step of PGD is not the steepest one: it gets near
    assert missed <= (0.1 * len(x) if norm == "l1" and attack == "pgd" else 0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_finds_the_distance_of_a_linear_boundary(norm):
    defense, x, y, margins, w = two_classes(50)
    far = reach(margins, w, norm)
    steps = fab.to_plane(x.flatten(1), w.repeat(50, 1) * (1 - 2 * y[:, None]), margins, norm)
    np.testing.assert_allclose(fab.length(steps, norm), far, rtol=1e-5)
    images = fab.fab_t(problem(defense, x, y, norm, 1.06 * far.max().item()), steps=5)[:, 0]
    assert broken(defense, images, y).all()
    assert (norms.distance(norm, images.numpy(), x.numpy()) <= 1.06 * far.numpy()).all()  # overshoot is 1.05


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_steps_to_a_plane_respect_the_box_and_are_shortest(norm):
    """Brute force: no feasible random step that reaches the plane is shorter."""
    rng = torch.Generator().manual_seed(0)
    x, slope = torch.rand(20, 3, generator=rng), torch.randn(20, 3, generator=rng)
    corner = torch.where(slope > 0, 1 - x, -x)
    rise = 0.6 * (slope * corner).sum(1)
    step = fab.to_plane(x, slope, rise, norm)
    assert ((x + step) >= -1e-6).all() and ((x + step) <= 1 + 1e-6).all()
    torch.testing.assert_close((slope * step).sum(1), rise, atol=1e-5, rtol=1e-5)
    tried = torch.rand(4000, 20, 3, generator=rng) - x  # anywhere in the box
    reaches = (tried * slope).sum(2) >= rise
    length = torch.stack([fab.length(each, norm) for each in tried])
    assert (fab.length(step, norm) <= torch.where(reaches, length, torch.inf).amin(0) + 1e-5).all()
    full = fab.to_plane(x, slope, 5 * rise, norm)  # out of reach: the corner
    torch.testing.assert_close(full, corner, atol=1e-5, rtol=0)


def test_checkpoints_of_a_hundred_iterations():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_apgd_costs_one_gradient_an_iteration_and_one_to_start():
    defense, x, y, margins, w = two_classes(40)
    tested = problem(defense, x, y, "l2", 0.2 * reach(margins, w, "l2").min().item())
    apgd.apgd(tested, steps=30)
    assert (tested.cost.gradients == 30).all() and (tested.cost.forwards == 1).all()  # the last look needs no gradient
    noisy = problem(defense, x, y, "l2", 0.1, sigma=0.25)
    apgd.apgd(noisy, steps=30, draws=4)
    assert (noisy.cost.gradients == 120).all()


def test_square_breaks_what_is_easy_and_nothing_impossible():
    for norm in ("linf", "l2", "l1"):
        defense, x, y, margins, w = two_classes(100)
        far, x_adv = reach(margins, w, norm), None
        eps = far.median().item()
        tested = problem(defense, x, y, norm, eps)
        x_adv, refused = tested.threat.repair(square.square(tested, queries=400)[:, 0], x)
        hit = broken(defense, x_adv, y)
        assert not refused.any() and not hit[far > eps * (1 + 1e-5)].any()
        assert hit[far < 0.3 * eps].float().mean() > 0.9
        assert tested.cost.gradients.sum() == 0 and tested.cost.forwards.max() <= 400


def test_square_paints_flows_too():
    """What a flow does to the margin of a linear defense is seen at once; no flow leaves its bound."""
    defense, x, y, *_ = two_classes(40)
    tested = problem(defense, x, y, "stadv", 0.5)
    (flow,) = square.square(tested, queries=300).unbind(1)
    flow, refused = tested.threat.repair(flow, x)
    margin, still = Loss("margin"), tested.threat.none(x)
    before, after = (tested.query(tested.threat.image(each, x), margin, gradient=False).loss for each in (still, flow))
    assert not refused.any() and flow.shape == still.shape and float(flow.abs().max()) <= 0.5
    assert (after > before).all() and tested.cost.gradients.sum() == 0


def test_no_attack_moves_where_eps_is_zero():
    defense, x, y, *_ = two_classes(10)
    for attack in (apgd.apgd, pgd.pgd, square.square, pgd.noise):
        size = {"queries": 5} if attack is square.square else {} if attack is pgd.noise else {"steps": 5}
        found = attack(problem(defense, x, y, "linf", 0.0), **size)
        assert (found - x[:, None]).abs().max() < 1e-6


def test_zero_and_broken_gradients_are_replaced_and_noted():
    class Flat(views.View):
        classes, device, randomized, faithful = 4, torch.device("cpu"), False, True

        def logits(self, x, spans):
            half = (x.flatten(1)[:, :1] > 0.5).float()
            return torch.cat([1 + 0 * x.sum((1, 2, 3))[:, None], half, half / 2, 0 * half], 1) * self.scale

    view, x = Flat(), torch.rand(6, 1, 4, 4)
    for scale, note in ((1.0, "gradient zero"), (torch.nan, "gradient not finite")):
        view.scale = scale
        tested = Problem.of(view, Threat("l2", 0.1), x, torch.zeros(6, dtype=torch.long), range(6), "t")
        answer = tested.query(x, Loss("margin"))
        assert answer.gradient.isfinite().all() and (answer.gradient.flatten(1).norm(dim=1) > 0.5).all()
        assert tested.cost.notes[note] == 6
        assert tested.cost.notes["loss not finite"] == (6 if note == "gradient not finite" else 0)


def test_fab_refuses_randomised_views():
    defense, x, y, *_ = two_classes(4)
    with pytest.raises(DrbenchError, match="deterministic"):
        fab.fab_t(problem(defense, x, y, "l2", 0.1, sigma=0.25))


def test_noisy_linear_defense_is_attacked_to_its_closed_form():
    """Under noise sigma |w| the failure probability at the worst point is Phi((eps |w|_1 - margin) / (sigma |w|_2))."""
    defense, x, y, margins, w = two_classes(60, sigmas=(0.25,))
    eps, sigma = 0.05, 0.25
    suite = Suite(defense, Threat("linf", eps), [member("pgd", loss="margin", steps=20, draws=4)], sigma,
                  evaluations=400, select=30)  # fmt: skip
    found = suite.run(x, y, range(60))
    failed = np.array([each.evidence.adversarial.wrong(label) for each, label in zip(found, y.tolist(), strict=True)])
    shift = (eps * w.abs().sum() - margins) / (sigma * w.norm())
    p = torch.special.ndtr(shift).numpy()
    assert abs(failed.mean() / 400 - p.mean()) < 5 * (0.25 / (60 * 400)) ** 0.5
    assert (np.abs(failed / 400 - p) < 5 * np.sqrt(p * (1 - p) / 400) + 0.01).all()


@pytest.mark.parametrize("loss, rank", [("ce", 1), ("dlr", 1)])
def test_apgd_returns_what_it_broke(loss, rank):
    """Targeted losses may fall where the class changes, and a checkpoint goes back to where they were highest."""
    images = drbench.load_data("digits", split="validation")
    defense = drbench.load_defense("adversarial_training", images, ["digits/adversarial_training"])
    problem = Problem.of(views.Direct(defense), threat("l2", 0.8), images.x, images.y, images.ids, "t")
    found, broken = apgd._run(problem, Loss(loss), 40, 1, problem.ranked()[:, rank - 1])
    with torch.no_grad():
        wrong = defense.logits(found[:, 0], 0.0, None).argmax(1) != images.y
    assert 20 < broken.sum() < 180 and torch.equal(wrong, broken)


def test_an_adaptive_step_finds_more_in_l1():
    images = drbench.load_data("digits", split="validation", subset="first50")
    defense = drbench.load_defense("noise_augmented", images, ["digits/noise_augmented"])
    left = []
    for attack in (presets.preset("fast", "l1", False)[0], member("pgd", loss="margin", steps=40, draws=8)):
        suite = Suite(defense, threat("l1", 2.0), [attack], 0.25, select=20, evaluations=50)
        found = suite.run(images.x, images.y, images.ids)
        wrong = [each.evidence.adversarial.wrong(int(y)) for each, y in zip(found, images.y, strict=True)]
        left.append(1 - sum(wrong) / (50 * len(wrong)))
    assert left[0] < left[1] - 0.05
