"""The continuous variance-preserving diffusion and its reverse, on data N(0, s^2), whose laws are known."""

import math

import numpy as np
import pytest
import torch

from drbench.diffusion.vp_sde import U_END, alpha_bar, beta, reverse, sigma_net_at, time_of
from drbench.errors import DrbenchError

S = 0.5


def gaussian_denoiser(z, level, labels=None):
    return z * S**2 / (S**2 + level**2)


class UnitDraws:
    """Draw k is 1 in row k + 1 and 0 elsewhere: one batch gives the gain of z (row 0) and of every draw."""

    def __init__(self):
        self.drawn = 0

    def randn(self, *shape):
        self.drawn += 1
        noise = torch.zeros(*shape, dtype=torch.float64)
        noise[self.drawn] = 1
        return noise


def gains(u, steps, stochastic):
    z, draws = torch.zeros(steps + 1, 1, 1, 1, dtype=torch.float64), UnitDraws()
    z[0] = 1
    out = reverse(gaussian_denoiser, z, u, steps, draws if stochastic else None).flatten().numpy()
    assert draws.drawn == (steps if stochastic else 0)
    return out[0], out[1:]


def test_alpha_bar_is_the_integral_of_beta():
    for u in (0.1, 0.5, 1.0):
        points = np.linspace(0, u, 20_001)
        assert alpha_bar(u) == pytest.approx(math.exp(-np.trapezoid([beta(p) for p in points], points)), rel=1e-8)


def test_levels_of_the_published_runs():
    """t* of DiffPure on CIFAR-10, as noise levels of its discrete chain of 1,000 steps; the continuous one is near."""
    discrete = np.cumprod(1 - np.linspace(0.1, 20, 1000) / 1000)
    for t, level in ((75, 0.2546), (100, 0.3388), (125, 0.4264), (150, 0.5182)):
        assert math.sqrt(1 / discrete[t - 1] - 1) == pytest.approx(level, abs=5e-5)
        assert sigma_net_at(t / 1000) == pytest.approx(level, rel=0.01)


def test_time_of_is_the_inverse():
    for u in (0.01, 0.1, 0.5, 1.0):
        assert time_of(sigma_net_at(u)) == pytest.approx(u, rel=1e-12)
    for level in (0.0, 1e4):
        with pytest.raises(DrbenchError, match="diffusion holds noise from"):
            time_of(level)


STEPS = [32, 64, 128, 256]


def fitted_order(errors):
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def test_order_of_the_flow():
    """Euler on the probability-flow ODE: z goes to z times the ratio of the standard deviations at both ends."""
    u = time_of(1.0)
    ends = [math.sqrt(alpha_bar(v) * S**2 + 1 - alpha_bar(v)) for v in (U_END, u)]
    exact = alpha_bar(u) ** 0.5 * ends[0] / ends[1]
    assert fitted_order([abs(gains(u, n, False)[0] - exact) for n in STEPS]) == pytest.approx(1, abs=0.15)


def test_weak_order_of_the_reverse_sde():
    """From the law at time u, the variance of the result tends to that of the data."""
    u, errors = time_of(1.0), []
    for steps in STEPS:
        of_z, of_draws = gains(u, steps, True)
        errors.append(abs(of_z**2 * (S**2 + 1) + (of_draws**2).sum() - S**2))
    assert fitted_order(errors) == pytest.approx(1, abs=0.15) and errors[-1] < 0.02 * S**2
    posterior_mean, posterior_variance = S**2 / (S**2 + 1), S**2 / (S**2 + 1)
    assert of_z == pytest.approx(posterior_mean, rel=0.02)
    assert (of_draws**2).sum() == pytest.approx(posterior_variance, rel=0.03)


def test_each_step_is_recomputed_for_an_exact_gradient():
    network, calls = (
        torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 1, 1)),
        [],
    )

    def denoise(z, level, labels=None):
        calls.append(level)
        return network(z) / (1 + level)

    def draws():
        rng = torch.Generator().manual_seed(1)
        return type("Draws", (), {"randn": lambda self, *shape: torch.randn(*shape, generator=rng)})()

    z = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = reverse(denoise, z, 0.2, 5, draws())
    assert len(calls) == 5
    (ours,) = torch.autograd.grad(out.square().sum(), z)
    assert len(calls) == 10
    with torch.no_grad():
        torch.testing.assert_close(reverse(denoise, z, 0.2, 5, draws()), out)
    x, noise, length = z * alpha_bar(0.2) ** 0.5, draws(), (0.2 - U_END) / 5
    for step in range(5):
        u = 0.2 - step * length
        a = alpha_bar(u)
        score = (a**0.5 * network(x / a**0.5) / (1 + sigma_net_at(u)) - x) / (1 - a)
        x = x + beta(u) * (x / 2 + score) * length + (beta(u) * length) ** 0.5 * noise.randn(*x.shape)
    (plain,) = torch.autograd.grad(x.square().sum(), z)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_no_steps():
    with pytest.raises(DrbenchError, match="at least 1 step"):
        reverse(gaussian_denoiser, torch.zeros(1, 1, 1, 1), 0.1, 0)
