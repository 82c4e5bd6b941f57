"""Consistency functions: scalings, grids, and their training on data N(0, s^2), where the function is known."""

import math

import pytest
import torch
from torch import nn

from drbench.diffusion.consistency import (
    ConsistencyFunction,
    ConsistencyTraining,
    ema_at,
    nearest,
    scale_at,
    tuning_loss,
)
from drbench.diffusion.networks.unet import small_unet
from drbench.diffusion.samplers import heun_pf_ode
from drbench.diffusion.schedules import karras_grid

S, T_MIN, T_MAX = 0.5, 0.002, 80.0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mean_square(a, b):
    return (a - b).square().flatten(1).mean(1)


def gaussian_denoiser(z, level, labels=None):
    """Posterior mean of data N(0, S^2)."""
    level = torch.as_tensor(level).reshape(-1, 1, 1, 1)
    return z * S**2 / (S**2 + level**2)


class Exact(nn.Module):
    """F of the exact consistency function of data N(0, S^2), which takes z to z sqrt((S^2 + e^2) / (S^2 + t^2))."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, c_noise, labels):
        t = (4 * c_noise).exp().reshape(-1, 1, 1, 1)
        z, shifted = x * (t**2 + S**2).sqrt(), t - T_MIN
        wanted = z * ((S**2 + T_MIN**2) / (S**2 + t**2)).sqrt()
        c_skip, c_out = S**2 / (shifted**2 + S**2), shifted * S / (t**2 + S**2).sqrt()
        return self.gain * (wanted - c_skip * z) / c_out.clamp_min(1e-6)


def test_scalings():
    function = ConsistencyFunction(nn.Identity(), S)
    c_skip, c_out = function.scalings(torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(c_skip, torch.tensor([0.50200, 0.20064, 0.058934]), rtol=0, atol=5e-6)
    torch.testing.assert_close(c_out, torch.tensor([0.35214, 0.44632, 0.484586]), rtol=0, atol=5e-6)


def test_boundary_is_the_identity_whatever_the_network():
    function = ConsistencyFunction(small_unet((1, 8, 8), 10), 0.37, 10, T_MIN)
    z = torch.randn(4, 1, 8, 8, generator=generator())
    with torch.no_grad():
        assert torch.equal(function(z, T_MIN), z)
        assert torch.equal(function(z, torch.full((4,), T_MIN)), z)
        near, far = ((function(z, t) - z).abs().max() for t in (2 * T_MIN, 1.0))
    assert near < 0.01 < far


GRID_18 = [80, 57.586, 40.786, 28.375, 19.353, 12.910, 8.4009, 5.3152, 3.2568, 1.9233, 1.0882, 0.5853, 0.2964, 0.1395,
           0.0599, 0.0229, 0.0075, 0.002]  # fmt: skip


def test_grid_of_the_published_model():
    assert karras_grid(18, T_MIN, T_MAX) == pytest.approx(GRID_18, abs=1e-3)  # known to three or four decimals


@pytest.mark.parametrize(
    "points, expected",
    [
        (18, [(12, 0.2964), (11, 0.5853), (10, 1.0882), (9, 1.9233)]),
        (40, [(28, 0.2556), (26, 0.4700), (23, 1.0717), (21, 1.7672)]),
        (151, [(108, 0.2492), (99, 0.5068), (89, 1.0334), (79, 1.9730)]),
        (201, [(145, 0.2341), (132, 0.5068), (119, 1.0161), (105, 2.0036)]),
    ],
)
def test_snapped_times_of_released_models(points, expected):
    grid = karras_grid(points, T_MIN, T_MAX)
    for sigma, (index, time) in zip((0.12, 0.25, 0.5, 1.0), expected, strict=True):
        assert grid.index(nearest(2 * sigma, grid)) == index
        assert nearest(2 * sigma, grid) == pytest.approx(time, abs=5e-5)


def test_scales_grow_as_in_the_released_code():
    assert [scale_at(k, 1000, 2, 150) for k in (0, 1, 500, 999, 1000)] == [1, 5, 106, 150, 150]
    scales = [scale_at(k, 1000, 2, 150) for k in range(1001)]
    assert scales == sorted(scales)
    assert [ema_at(s, 2, 0.9) for s in (1, 2, 150)] == pytest.approx([0.81, 0.9, 0.9 ** (1 / 75)])


def training(student, teacher=None, decay=0.0, grid=None):
    grid = karras_grid(40, T_MIN, 2.0) if grid is None else grid
    return ConsistencyTraining(student, lambda step: grid, lambda step: decay, mean_square, teacher, moving=decay > 0)


def test_the_exact_function_is_constant_along_the_teachers_path():
    """Its distillation loss is the error of a Heun step, of third order in its length: 8 times the points, 8^6 less."""
    student, x = ConsistencyFunction(Exact(), S), S * torch.randn(500, 1, 2, 2, generator=generator())
    z = x + 1.0 * torch.randn(x.shape, generator=generator(1))
    ends = [student(heun_at, t) for t, heun_at in ((1.0, z), (0.5, _along(z, 1.0, 0.5)), (0.1, _along(z, 1.0, 0.1)))]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-3, atol=1e-4)
    coarse, fine = (
        training(student, gaussian_denoiser, grid=karras_grid(n, 0.1, 2.0)).loss(x, generator()).item() for n in (4, 32)
    )
    assert 0 < fine < coarse / 1000
    # without a teacher the neighbour lies on a straight line, not on the path: the loss is no longer small
    assert training(student).loss(x, generator()).item() > 100 * fine


def _along(z, start, end):
    """The exact path of the probability-flow ODE of data N(0, S^2)."""
    return z * math.sqrt((S**2 + end**2) / (S**2 + start**2))


def test_heun_with_the_exact_denoiser_follows_that_path():
    z = torch.randn(10, 1, 2, 2, generator=generator())
    torch.testing.assert_close(heun_pf_ode(gaussian_denoiser, z, 1.0, 40), _along(z, 1.0, 0.0), rtol=1e-3, atol=1e-4)


class Recorder(nn.Module):
    """A student of one parameter that keeps what it is asked."""

    def __init__(self):
        super().__init__()
        self.gain, self.calls = nn.Parameter(torch.tensor(0.5)), []

    def forward(self, z, t, labels=None):
        self.calls.append((z.detach().clone(), t.clone(), torch.is_grad_enabled()))
        return self.gain * z


@pytest.mark.parametrize("teacher", [None, gaussian_denoiser])
def test_one_step_by_hand(teacher):
    """Neighbours of the grid, one noise for both, the target without gradient."""
    student, x, grid = Recorder(), torch.randn(64, 1, 2, 2, generator=generator()), [2.0, 1.0, 0.25]
    training(student, teacher, grid=grid).loss(x, generator(1)).backward()
    (z_next, t_next, with_gradient), (z, t, student_gradient) = student.calls
    assert not with_gradient and student_gradient
    assert {(a.item(), b.item()) for a, b in zip(t, t_next, strict=True)} == {(2.0, 1.0), (1.0, 0.25)}
    t, t_next = t.reshape(-1, 1, 1, 1), t_next.reshape(-1, 1, 1, 1)
    noise = (z - x) / t
    if teacher is None:
        expected = x + t_next * noise
    else:  # Heun: Euler, then the mean of the slopes at both ends
        slope = (z - teacher(z, t)) / t
        euler = z + (t_next - t) * slope
        expected = z + (t_next - t) * (slope + (euler - teacher(euler, t_next)) / t_next) / 2
    torch.testing.assert_close(z_next, expected, rtol=1e-5, atol=1e-5)
    gradient = (2 * (0.5 * z - 0.5 * z_next) * z).flatten(1).mean(1).mean()  # of the student's branch alone
    assert student.gain.grad.item() == pytest.approx(gradient.item(), rel=1e-4)
    assert float(noise.std()) == pytest.approx(1, abs=5 / (2 * noise.numel()) ** 0.5)


def test_pairs_are_uniform():
    student, grid = Recorder(), karras_grid(5, 0.1, 2.0)
    training(student, grid=grid).loss(torch.zeros(8000, 1, 1, 1), generator())
    _, t, _ = student.calls[1]
    counts = [int(torch.isclose(t, torch.tensor(level)).sum()) for level in grid[:-1]]
    assert sum(counts) == 8000 and all(abs(count - 2000) < 5 * (8000 * 0.25 * 0.75) ** 0.5 for count in counts)


def test_target_moves_after_each_step():
    student = Recorder()
    stage = training(student, decay=0.9)
    x = torch.ones(2, 1, 1, 1)
    stage.loss(x, generator())
    assert stage.average.gain.item() == 0.5
    with torch.no_grad():
        student.gain.fill_(1.5)  # an optimiser's step
    stage.loss(x, generator())
    assert stage.average.gain.item() == pytest.approx(0.9 * 0.5 + 0.1 * 1.5)
    assert not stage.average.gain.requires_grad and int(stage.step) == 2


def test_tuning_has_exact_noise_told_times_and_clean_targets():
    purifier, x, seen = Recorder(), torch.rand(3000, 1, 2, 2, generator=generator()), []
    levels = [(0.5, 0.5853), (1.0, 1.0882), (2.0, 1.9233)]

    def distance(a, b):
        seen.append(b)
        return mean_square(a, b)

    loss = tuning_loss(purifier, x, levels, distance, generator(1))
    ((z, t, _),) = purifier.calls
    assert seen[0] is x and loss.item() == pytest.approx(mean_square(0.5 * z, x).mean().item(), rel=1e-5)
    for level, told in levels:
        rows = torch.isclose(t, torch.tensor(told))
        assert abs(int(rows.sum()) - 1000) < 5 * (3000 * 2 / 9) ** 0.5
        std, count = float((z - x)[rows].std()), 4 * int(rows.sum())
        assert std == pytest.approx(level, rel=5 / (2 * count) ** 0.5)


def test_karras_weight_counts_errors_of_the_network_alike():
    """With target 0 and output 1 the loss is the mean of 1 / t^2 + 1 / s^2 over the times; uniform it is 1."""
    grid, losses = [2.0, 1.0, 0.25], []
    for weight in ("uniform", "karras"):
        student = ConsistencyFunction(Exact(), S)
        stage = ConsistencyTraining(
            student, lambda step: grid, lambda step: 0.0, lambda a, b: torch.ones(len(a)), None, False, weight
        )
        losses.append(stage.loss(torch.zeros(20_000, 1, 1, 1), generator()).item())
    terms = [level**-2 + S**-2 for level in grid[:-1]]
    spread = abs(terms[0] - terms[1]) / 2
    assert losses[0] == 1 and losses[1] == pytest.approx(sum(terms) / 2, abs=5 * spread / 20_000**0.5)
