"""DiffAttack's and DiffHammer's views: known fixed points, exact gradients, and what they need."""

from threading import Thread

import pytest
import torch

import drbench
from drbench.attacks.diffusion import Deviated, graft
from drbench.attacks.losses import Loss
from drbench.attacks.names import VIEWS
from drbench.attacks.oracle import Keys, oracle
from drbench.attacks.problem import Problem
from drbench.attacks.threat import threat
from drbench.draws import Draws
from drbench.errors import DrbenchError
from methods.consistency.defense import Consistency
from methods.denoised.defense import Denoised
from methods.diffpure.defense import DiffPure

IMAGES = drbench.load_data("digits", subset="first3")


def purifier(**options):
    torch.manual_seed(0)
    made = Denoised((1, 8, 8), 10, channels=(8, 16), width=4, **options).eval().requires_grad_(False)
    for parameter in made.denoiser.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def diffpure():
    """Its own noise and reversal, where none was asked for."""
    torch.manual_seed(0)
    made = DiffPure((1, 8, 8), 10, steps=3, channels=(8, 16), width=4).eval().requires_grad_(False)
    for parameter in made.denoiser.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def ask(view, x=IMAGES.x, draws=3, gradient=True):
    return oracle(view, x, IMAGES.y, Loss("margin"), Keys(0, IMAGES.ids, "t"), draws=draws, gradient=gradient)


@pytest.mark.parametrize("sigma", [0.5, 0.0])
def test_deviation_is_added_and_its_gradient_is_exact(sigma):
    defense = purifier(sampler="pf_ode", steps=3) if sigma else diffpure()
    view = Deviated(defense, sigma, weight=0.3)
    plain, answer = ask(VIEWS["exact"](defense, sigma)), ask(view)
    assert (answer.loss > plain.loss + 1e-3).all() and torch.equal(answer.failures, plain.failures)
    direction = torch.randn(IMAGES.x.shape, generator=torch.Generator().manual_seed(1))
    up, down = (ask(view, IMAGES.x + step * direction, gradient=False).loss for step in (2e-3, -2e-3))
    claimed = (answer.gradient * direction).flatten(1).sum(1)
    assert torch.allclose((up - down) / 4e-3, claimed, rtol=0.05, atol=0.05 * float(claimed.abs().max()))


def test_states_of_an_attack_in_another_thread_are_not_its_own(monkeypatch):
    defense = purifier(sampler="pf_ode", steps=3)
    alone, purify = ask(Deviated(defense, 0.5)), Denoised.attack_logits

    def beside(self, z, sigma, draws):
        other = Thread(target=lambda: self.denoiser(torch.zeros(1, 1, 8, 8), 0.3))
        other.start()
        other.join()
        return purify(self, z, sigma, draws)

    monkeypatch.setattr(Denoised, "attack_logits", beside)
    assert all(map(torch.equal, alone, ask(Deviated(defense, 0.5))))


@pytest.mark.parametrize("made, sigma", [(purifier, 0.5), (lambda: Consistency.tiny((1, 8, 8), 10).eval(), 0.0)])
def test_one_step_or_none_has_nothing_to_deviate(made, sigma):
    defense = made()
    plain, answer = ask(VIEWS["exact"](defense, sigma)), ask(VIEWS["deviated"](defense, sigma))
    assert torch.allclose(plain.loss, answer.loss, atol=1e-5) and torch.allclose(
        plain.gradient, answer.gradient, atol=1e-5
    )


@pytest.mark.parametrize("sigma", [0.5, 0.0])
def test_grafting_one_draw_is_the_exact_gradient(sigma):
    """With a single draw the common direction is its own gradient, whatever its weight."""
    defense = purifier(sampler="pf_ode", steps=2) if sigma else diffpure()
    plain, answer = ask(VIEWS["exact"](defense, sigma), draws=1), ask(VIEWS["grafted"](defense, sigma), draws=1)
    assert torch.allclose(plain.loss, answer.loss, atol=1e-5)
    assert torch.allclose(plain.gradient, answer.gradient, rtol=1e-3, atol=1e-6)
    assert plain.gradient.abs().max() > 1e-4


def test_graft_follows_the_draws_that_can_be_broken_together():
    """Two draws agree, a third that is out of reach disagrees: it gets no weight, and one of the two stands for all."""
    slopes = torch.tensor([[[2.0, 0.0], [2.0, 0.2], [-3.0, 0.0]]])
    direction, chosen = graft(torch.tensor([[-0.5, -0.5, -9.0]]), slopes)
    assert torch.allclose(direction, slopes[:, :2].mean(1), atol=0.02) and chosen.item() in (0, 1)


def test_a_purifier_of_its_own_noise_is_looked_behind():
    """Identity has the values of DiffPure and the slope of its classifier; bare is that classifier alone."""
    defense, keys = diffpure(), Keys(0, IMAGES.ids, "t")
    plain, identity, bare = (ask(VIEWS[name](defense, 0.0), draws=1) for name in ("exact", "identity", "bare"))
    assert torch.allclose(plain.loss, identity.loss, atol=1e-6)
    with torch.no_grad():
        purified = defense.purify(IMAGES.x, 0.0, Draws(keys.spans(0, 1)))
    for view, at in ((identity, purified), (bare, IMAGES.x)):
        at = at.clone().requires_grad_()
        loss = Loss("margin")(defense.classifier(at)[:, None], IMAGES.y)
        slope = torch.autograd.grad(loss.sum(), at)[0]
        assert torch.allclose(view.loss, loss, atol=1e-5) and torch.allclose(view.gradient, slope, atol=1e-5)
    assert not torch.allclose(plain.gradient, identity.gradient, atol=1e-3) and not VIEWS["bare"](defense, 0.0).faithful


def test_draws_without_finite_logits_are_lost():
    defense = diffpure()
    defense.classify = lambda x, sigma, draws: defense.classifier(x) * torch.nan
    for name in ("exact", "deviated", "grafted"):
        assert ask(VIEWS[name](defense, 0.0)).failures.tolist() == [3, 3, 3]


def test_what_the_views_need():
    plain = drbench.load_defense("undefended", IMAGES, "digits/classifier")
    for name in ("bare", "bypass", "deviated", "grafted", "identity"):
        with pytest.raises(DrbenchError, match=f"view {name} needs"):
            VIEWS[name](plain, 0.25)


def test_bypass_takes_off_the_denoising_error():
    """With a denoiser that always says 0.5 the error is known: it is taken off the loss, and so is its gradient."""
    defense = purifier()
    defense.networks()["denoiser"].forward = lambda z_net, sigma_net, labels=None: 0 * z_net + 0.5
    plain, answer = ask(VIEWS["exact"](defense, 0.0), draws=1), ask(VIEWS["bypass"](defense, 0.0), draws=1)
    x_net = 2 * IMAGES.x - 1
    error = (0.5 - x_net).square().flatten(1).sum(1)
    assert torch.allclose(plain.loss - answer.loss, error, rtol=1e-4)
    assert torch.allclose(plain.gradient - answer.gradient, 4 * (x_net - 0.5), atol=1e-4)


def test_costs_are_counted_as_draws():
    view = VIEWS["grafted"](purifier(), 0.5)
    problem = Problem.of(view, threat("l2", 0.5), IMAGES.x, IMAGES.y, IMAGES.ids, "test")
    problem.query(IMAGES.x, Loss("ce"), draws=4)
    assert problem.cost.gradients.tolist() == [4, 4, 4]
