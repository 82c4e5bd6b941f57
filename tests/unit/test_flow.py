"""Flow fields: shifts by whole pixels, the identity, sizes in pixels, roughness by brute force."""

import torch

from drbench.attacks import flow as flows

X = torch.rand(3, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_no_flow_is_the_identity():
    assert torch.allclose(flows.warp(X, torch.zeros(3, 6, 8, 2, dtype=X.dtype)), X, atol=1e-12)
    single = X.float()
    assert (flows.warp(single, torch.zeros(3, 6, 8, 2)) - single).abs().max() < 1e-6


def test_one_pixel_to_the_right_and_two_down():
    flow = torch.tensor([1.0, 2.0], dtype=X.dtype).expand(3, 6, 8, 2)
    assert torch.allclose(flows.warp(X, flow)[:, :, :4, :7], X[:, :, 2:, 1:], atol=1e-12)


def test_a_fifth_of_a_pixel_is_bilinear():
    flow = torch.tensor([0.2, 0.0], dtype=X.dtype).expand(3, 6, 8, 2)
    assert torch.allclose(flows.warp(X, flow)[..., :7], 0.8 * X[..., :7] + 0.2 * X[..., 1:], atol=1e-12)


def test_range():
    flow = 3 * torch.randn(3, 6, 8, 2, generator=torch.Generator().manual_seed(1), dtype=X.dtype)
    moved = flows.warp(X, flow)
    assert moved.min() >= 0 and moved.max() <= X.max()


def test_roughness_by_brute_force():
    flow = torch.randn(1, 3, 4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    total = 0.0
    for i in range(3):
        for j in range(4):
            for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if 0 <= a < 3 and 0 <= b < 4:
                    total += float(((flow[0, i, j] - flow[0, a, b]).square().sum() + 1e-10).sqrt())
    assert abs(float(flows.roughness(flow)) - total) < 1e-9
