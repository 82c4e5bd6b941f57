"""Projections against brute force, steps, starts, repair."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from drbench import norms
from drbench.attacks.threat import Threat, project_l1_box


def images(count, size=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 1, size, generator=rng), rng


@pytest.mark.parametrize("seed", range(3))
def test_l1_projection_is_the_nearest_point(seed):
    """Against a quadratic programme: min |d - v|^2, split d = p - q, sum p + q <= eps, 0 <= x + d <= 1."""
    x, rng = images(4, seed=seed)
    v = 2 * torch.randn(x.shape, generator=rng)
    ours = project_l1_box(v, x, 0.7).flatten(1).double().numpy()
    for mine, point, base in zip(ours, v.flatten(1).double().numpy(), x.flatten(1).double().numpy(), strict=True):
        d = len(point)
        solved = minimize(
            lambda pq, point=point, d=d: np.sum((pq[:d] - pq[d:] - point) ** 2),
            np.zeros(2 * d), method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
            bounds=[(0, 1 - b) for b in base] + [(0, b) for b in base],
            constraints={"type": "ineq", "fun": lambda pq: 0.7 - pq.sum()},
        )  # fmt: skip
        best = solved.x[:d] - solved.x[d:]
        np.testing.assert_allclose(mine, best, atol=2e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_projections_are_feasible_idempotent_and_leave_the_inside_alone(norm, eps):
    threat = Threat(norm, eps)
    x, rng = images(50, 16)
    far = x + torch.randn(x.shape, generator=rng)
    once = threat.project(far, x)
    mended, refused = threat.repair(once, x)
    assert not refused.any() and norms.feasible(norm, eps, mended.numpy(), x.numpy()).all()
    torch.testing.assert_close(threat.project(once, x), once, atol=2e-7, rtol=0)
    inside = x + 0.5 * (once - x)
    torch.testing.assert_close(threat.project(inside, x), inside, atol=2e-7, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_starts_and_steps_have_full_length(norm):
    threat, rng = Threat(norm, 0.2), torch.Generator().manual_seed(1)
    x = torch.full((20, 3, 4, 4), 0.5)
    start = threat.start(x, torch.rand(x.shape, generator=rng), torch.randn(x.shape, generator=rng))
    far = norms.distance(norm, start.numpy(), x.numpy())
    assert (far <= norms.limit(norm, 0.2)).all() and (far >= 0.2 * (1 - 1e-5) - (norm == "l1")).all()
    move = threat.step(torch.randn(x.shape, generator=rng), torch.full((20,), 0.3))
    np.testing.assert_allclose(norms.distance(norm, move.numpy(), 0 * x.numpy()), 0.3, rtol=1e-5)


def test_l1_steps_move_as_many_entries_as_asked():
    move = Threat("l1", 1.0).step(torch.arange(1.0, 11).view(1, 1, 1, 10), torch.ones(1), torch.tensor([4.0]))
    assert move.flatten().tolist() == pytest.approx([0] * 6 + [0.25] * 4)


def test_repair_mends_rounding_and_refuses_the_rest():
    """x + 8/255 on the 8-bit grid leaves the ball by up to 6e-8; anything further was not made by the threat."""
    eps, x = 8 / 255, (torch.arange(256) / 255).view(256, 1, 1, 1)
    mended, refused = Threat("linf", eps).repair((x + eps).clamp(0, 1), x)
    assert not refused.any()
    assert (norms.distance("linf", mended.numpy(), x.numpy()) <= eps).all()  # without any slack
    bad = torch.stack([x[0] + 2 * eps, x[1] * torch.nan, x[2] + torch.inf])
    kept, refused = Threat("linf", eps).repair(bad, x[:3])
    assert refused.all() and torch.equal(kept, x[:3])
