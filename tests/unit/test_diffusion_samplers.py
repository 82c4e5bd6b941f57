"""Samplers on data N(0, s^2) with the exact denoiser, where every law they should reach is known.

There D(z, sigma) = z s^2 / (s^2 + sigma^2), so each sampler is *linear* in z and in each of its draws of
noise. Running one batch whose row 0 is (z = 1, no noise) and whose row k is (z = 0, only draw k = 1) gives
all the gains of the real code at once, hence mean and variance of its output exactly: no Monte Carlo.
Everything is float64.

All solvers stop at sigma_min and then denoise once. That last step is no discretisation of an ODE, its error
depends on sigma_min alone (1 - (sigma_min/s)^2 / 2, about 8e-6) and would be a floor under the measured
orders; so the references below are the exact law at sigma_min followed by that very denoising, and what
remains is the error of the solver.
"""

import numpy as np
import pytest
import torch

from drbench.diffusion.denoiser import clipped
from drbench.diffusion.samplers import ddim, heun_pf_ode, one_shot, stochastic_reverse
from drbench.errors import DrbenchError

S, SIGMA, SIGMA_MIN = 0.5, 1.0, 0.002
LAST_GAIN = S**2 / (S**2 + SIGMA_MIN**2)
STEPS = [16, 32, 64, 128, 256]


def gaussian_denoiser(z_net, sigma_net, labels=None):
    return z_net * S**2 / (S**2 + sigma_net**2)


class Counting:
    """The Gaussian denoiser; counts its calls and keeps the levels and labels it was asked for."""

    def __init__(self):
        self.levels, self.labels = [], []

    def __call__(self, z_net, sigma_net, labels=None):
        self.levels.append(sigma_net)
        self.labels.append(labels)
        return gaussian_denoiser(z_net, sigma_net)


class UnitDraws:
    """Draw k is 1 in row k + 1 and 0 elsewhere, so that row k + 1 carries the gain of draw k."""

    def __init__(self):
        self.drawn = 0

    def randn(self, *shape):
        self.drawn += 1
        noise = torch.zeros(*shape, dtype=torch.float64)
        noise[self.drawn] = 1
        return noise


class SeededDraws:
    def __init__(self, seed):
        self.rng = torch.Generator().manual_seed(seed)

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.rng, dtype=torch.float64)


def ancestral(denoise, z_net, sigma_net, steps, draws, **options):
    return ddim(denoise, z_net, sigma_net, steps, 1.0, draws, **options)


STOCHASTIC = [ancestral, stochastic_reverse]


def gains(sampler, steps, **options):
    """Gain of z (float) and gains of the draws (array) of a stochastic sampler."""
    z = torch.zeros(steps, 1, 1, 1, dtype=torch.float64)
    z[0] = 1
    draws = UnitDraws()
    out = sampler(gaussian_denoiser, z, SIGMA, steps, draws, **options).flatten().numpy()
    assert draws.drawn == steps - 1
    return out[0], out[1:]


def fitted_order(errors):
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def ode_gain(sampler, steps):
    z = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return sampler(gaussian_denoiser, z, SIGMA, steps).item()


def exact_ode_gain():
    return ((S**2 + SIGMA_MIN**2) / (S**2 + SIGMA**2)) ** 0.5 * LAST_GAIN


# Fitted slopes over 16..256 steps lie within 0.1 of the theory; 0.3 leaves room for the higher-order terms.
@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (heun_pf_ode, 2)], ids=["ddim", "heun"])
def test_order_of_the_ode_solvers(sampler, order):
    errors = [abs(ode_gain(sampler, steps) - exact_ode_gain()) for steps in STEPS]
    assert fitted_order(errors) == pytest.approx(order, abs=0.3)


def test_heun_reaches_the_exact_end_value():
    # the end of the flow at sigma = 0 itself: (sigma_min/s)^2 / 2 = 8e-6 by the last step, and Heun's error
    exact = (S**2 / (S**2 + SIGMA**2)) ** 0.5
    assert ode_gain(heun_pf_ode, 512) == pytest.approx(exact, rel=2e-5)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_weak_order_of_the_stochastic_samplers(sampler):
    """For z ~ N(0, s^2 + sigma^2) the variance of the output tends to that of the data."""
    errors = []
    for steps in STEPS:
        of_z, of_draws = gains(sampler, steps)
        variance = of_z**2 * (S**2 + SIGMA**2) + (of_draws**2).sum()
        errors.append(abs(variance - (S**2 + SIGMA_MIN**2) * LAST_GAIN**2))
    assert fitted_order(errors) == pytest.approx(1, abs=0.3)
    assert errors[-1] < 0.02 * S**2


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_stochastic_samplers_draw_from_the_posterior(sampler):
    of_z, of_draws = gains(sampler, 512)
    # one step multiplies the mean by (s^2 + b^2)/(s^2 + a^2), whatever its length: the product is exact
    assert of_z == pytest.approx(S**2 / (S**2 + SIGMA**2), rel=1e-12)
    # weak order 1: at 512 steps the variance is within 2 % (the test above measures the rate)
    assert (of_draws**2).sum() == pytest.approx(S**2 * SIGMA**2 / (S**2 + SIGMA**2), rel=0.02)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_gains_describe_real_draws(sampler):
    steps, rows = 4, 40_000
    of_z, of_draws = gains(sampler, steps)
    z = torch.full((rows, 1, 1, 1), 0.7, dtype=torch.float64)
    out = sampler(gaussian_denoiser, z, SIGMA, steps, SeededDraws(0)).flatten()
    std = (of_draws**2).sum() ** 0.5
    assert abs(float(out.mean()) - 0.7 * of_z) < 5 * std / rows**0.5  # five standard errors
    assert abs(float(out.std()) / std - 1) < 5 / (2 * rows) ** 0.5


def test_eta_interpolates_between_ddim_and_ancestral():
    of_z, of_draws = gains(lambda *a: ddim(*a[:4], 1e-6, a[4]), 16)
    assert of_z == pytest.approx(ode_gain(ddim, 16), rel=1e-9)
    assert (of_draws**2).sum() < 1e-11  # eta^2 times variances below 1
    spread = [(gains(lambda *a, e=eta: ddim(*a[:4], e, a[4]), 16)[1] ** 2).sum() for eta in (0.25, 0.5, 1.0)]
    assert spread[0] < spread[1] < spread[2]


def test_ddim_is_euler_on_the_flow():
    z = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    middle = z + (SIGMA_MIN - SIGMA) * (z - gaussian_denoiser(z, SIGMA)) / SIGMA
    torch.testing.assert_close(ddim(gaussian_denoiser, z, SIGMA, 2), gaussian_denoiser(middle, SIGMA_MIN))


SAMPLERS = {
    "heun": lambda D, z, steps, **o: heun_pf_ode(D, z, SIGMA, steps, **o),
    "ddim": lambda D, z, steps, **o: ddim(D, z, SIGMA, steps, **o),
    "ancestral": lambda D, z, steps, **o: ddim(D, z, SIGMA, steps, 1.0, SeededDraws(0), **o),
    "reverse": lambda D, z, steps, **o: stochastic_reverse(D, z, SIGMA, steps, SeededDraws(0), **o),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5, 18])
def test_nfe_levels_and_labels(name, steps):
    denoise, labels = Counting(), torch.tensor([3])
    SAMPLERS[name](denoise, torch.ones(1, 1, 2, 2), steps, labels=labels)
    assert len(denoise.levels) == (2 * steps - 1 if name == "heun" else steps)
    assert denoise.levels[0] == SIGMA  # exactly, not the nearest level of a fixed grid
    assert denoise.levels[-1] == (SIGMA if steps == 1 else SIGMA_MIN)
    assert all(given is labels for given in denoise.labels)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_one_shot(name):
    z = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    denoise = Counting()
    assert torch.equal(SAMPLERS[name](gaussian_denoiser, z, 1), one_shot(denoise, z, SIGMA))
    assert denoise.levels == [SIGMA] and denoise.labels == [None]  # NFE 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_rows_shape_gradient_and_clamping(name):
    z = (20 * torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    out = SAMPLERS[name](gaussian_denoiser, z, 5)
    assert out.shape == z.shape
    (gradient,) = torch.autograd.grad(out.sum(), z)
    # the samplers are linear, so the gradient is the gain, the same everywhere; 1e-12 is float64 rounding
    torch.testing.assert_close(gradient, gradient.mean().expand_as(z), rtol=1e-12, atol=0)
    assert float(gradient.mean()) > 0
    assert out.abs().max() > 1
    assert SAMPLERS[name](clipped(gaussian_denoiser), z, 5).abs().max() <= 1


def test_what_samplers_refuse():
    z = torch.ones(1, 1, 2, 2)
    with pytest.raises(DrbenchError, match="at least 1 step"):
        heun_pf_ode(gaussian_denoiser, z, SIGMA, 0)
    with pytest.raises(DrbenchError, match="sigma_min"):
        ddim(gaussian_denoiser, z, 0.001, 5)
    with pytest.raises(DrbenchError, match="eta"):
        ddim(gaussian_denoiser, z, SIGMA, 5, 1.5, SeededDraws(0))
