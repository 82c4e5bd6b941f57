"""Discrete schedules and the Karras grid against tabulated values and identities."""

from itertools import pairwise

import pytest
import torch

from drbench.diffusion.schedules import (
    alphas_bar,
    cosine_betas,
    karras_grid,
    linear_betas,
    sigma_net_of,
    timestep_for,
)
from drbench.errors import DrbenchError

SCHEDULES = {
    "cosine4000": alphas_bar(cosine_betas(4000)),
    "linear1000": alphas_bar(linear_betas(1000)),
    "cosine1000": alphas_bar(cosine_betas(1000)),
}
# schedule, pixel sigma, t, sqrt(abar_t), abar_t (None: not tabulated), pixel sigma of t. The first is the 50M
# CIFAR-10 model of Nichol & Dhariwal 2021, the second the ImageNet model of Dhariwal & Nichol 2021.
TABLE = [
    ("cosine4000", 0.12, 573, 0.97233624, 0.94543776, 0.120116),
    ("cosine4000", 0.25, 1158, 0.89434232, 0.79984819, 0.250119),
    ("cosine4000", 0.50, 1984, 0.70688618, 0.49968807, 0.500312),
    ("cosine4000", 1.00, 2809, 0.44720852, 0.19999546, 1.000014),
    ("linear1000", 0.12, 70, 0.97208236, 0.94494411, 0.120689),
    ("linear1000", 0.25, 145, 0.89329437, 0.79797484, 0.251581),
    ("linear1000", 0.50, 259, 0.70541747, 0.49761381, 0.502392),
    ("linear1000", 1.00, 396, 0.44712740, 0.19992291, 1.000241),
    ("cosine1000", 0.25, 289, 0.89416789, None, 0.250362),
    ("cosine1000", 0.50, 496, 0.70605888, None, 0.501483),
    ("cosine1000", 1.00, 702, 0.44651141, None, 1.001965),
]


@pytest.mark.parametrize(("schedule", "sigma", "t", "signal", "power", "sigma_eff"), TABLE)
def test_timestep_table(schedule, sigma, t, signal, power, sigma_eff):
    abar = SCHEDULES[schedule]
    found = timestep_for(2 * sigma, abar)
    assert int(found) == t
    # half a unit of the last tabulated digit: 8 decimals of the powers, 6 of sigma
    assert float(abar[t].sqrt()) == pytest.approx(signal, abs=5.1e-9)
    if power is not None:
        assert float(abar[t]) == pytest.approx(power, abs=5.1e-9)
    assert float(sigma_net_of(found, abar)) / 2 == pytest.approx(sigma_eff, abs=5.1e-7)


@pytest.mark.parametrize("abar", SCHEDULES.values(), ids=SCHEDULES)
def test_schedule_is_float64_and_decreasing(abar):
    assert abar.dtype == torch.float64
    assert ((abar > 0) & (abar < 1)).all()
    assert (abar.diff() < 0).all()


@pytest.mark.parametrize("abar", SCHEDULES.values(), ids=SCHEDULES)
def test_round_trips(abar):
    t = torch.arange(len(abar))
    levels = sigma_net_of(t, abar)
    assert torch.equal(timestep_for(levels, abar), t)  # a level finds its own timestep, bit for bit
    between = (levels[:-1] + levels[1:]) / 2
    assert torch.equal(timestep_for(between, abar), t[1:])  # and what lies between rounds up
    assert timestep_for(1e-9, abar) == 0


def test_unreachable_level_is_refused():
    abar = SCHEDULES["linear1000"]
    top = float(sigma_net_of(-1, abar))
    assert timestep_for(top, abar) == 999
    for level in (1.0001 * top, float("nan"), torch.tensor([0.5, 2 * top])):
        with pytest.raises(DrbenchError, match="holds noise up to"):
            timestep_for(level, abar)


def test_linear_schedule_ends():
    betas = linear_betas(4000)
    assert float(betas[0]) == pytest.approx(2.5e-5, rel=1e-12)
    assert float(betas[-1]) == pytest.approx(5e-3, rel=1e-12)
    with pytest.raises(DrbenchError, match="more than 20"):
        linear_betas(20)


def test_karras_grid_published_values():
    published = [80, 57.586, 40.786, 28.375, 19.353, 12.910, 8.4009, 5.3152, 3.2568, 1.9233, 1.0882]
    published += [0.5853, 0.2964, 0.1395, 0.0599, 0.0229, 0.0075, 0.002]
    # 5e-4 relative: the shortest tabulated entries have two significant digits after rounding to 4 decimals
    for value, expected in zip(karras_grid(18, 0.002, 80.0), published, strict=True):
        assert value == pytest.approx(expected, rel=5e-4, abs=5.1e-5)


@pytest.mark.parametrize("steps", [2, 3, 18, 201])
@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_grid_ends_exactly_and_descends(steps, rho):
    grid = karras_grid(steps, 0.002, 0.24, rho)
    assert len(grid) == steps
    assert grid[0] == 0.24 and grid[-1] == 0.002  # exact: the input carries noise of exactly the first level
    assert all(a > b for a, b in pairwise(grid))


def test_karras_grid_of_one_step_and_errors():
    assert karras_grid(1, 0.002, 0.5) == [0.5]
    for arguments in [(0, 0.002, 0.5), (5, 0.0, 0.5), (5, 0.5, 0.5), (5, 0.002, float("nan"))]:
        with pytest.raises(DrbenchError):
            karras_grid(*arguments)
