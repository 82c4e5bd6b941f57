"""The denoiser contract: EDM and VP wrappers against closed forms on Gaussian data, and the small UNet."""

import copy

import pytest
import torch
from torch import nn

from drbench.diffusion.denoiser import per_row
from drbench.diffusion.networks.unet import small_unet
from drbench.diffusion.precond import EDMDenoiser, VPDenoiser
from drbench.diffusion.schedules import alphas_bar, cosine_betas, sigma_net_of, timestep_for
from drbench.errors import DrbenchError

ABAR = alphas_bar(cosine_betas(1000))


class Zero(nn.Module):
    def forward(self, x, c_noise, labels):
        return torch.zeros_like(x)


class Recorder(nn.Module):
    """Returns its input and keeps what it was called with."""

    def forward(self, x, c_noise, labels):
        self.x, self.c_noise, self.labels = x, c_noise, labels
        return x


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_per_row():
    z = images(3, 1, 4, 4)
    for level in (0.5, torch.tensor(0.5), torch.full((3,), 0.5, dtype=torch.float64)):
        rows = per_row(level, z)
        assert rows.shape == (3, 1, 1, 1) and rows.dtype == z.dtype
        assert (rows == 0.5).all()
    assert per_row(torch.tensor([1.0, 2.0, 3.0]), z).flatten().tolist() == [1, 2, 3]
    with pytest.raises(DrbenchError, match="one number a row"):
        per_row(torch.ones(2), z)


@pytest.mark.parametrize("sigma_net", [0.01, 0.24, 0.5, 2.0, 80.0])
def test_zero_network_is_the_optimal_gaussian_denoiser(sigma_net):
    z, s = images(4, 3, 4, 4), 0.5
    optimal = z * s**2 / (s**2 + sigma_net**2)
    # a handful of float32 roundings, 6e-8 each
    torch.testing.assert_close(EDMDenoiser(Zero(), s)(z, sigma_net), optimal, rtol=1e-6, atol=0)


def test_edm_network_sees_unit_variance_and_c_noise():
    s, sigma_net = 0.5, 2.0
    network = Recorder()
    z = (s**2 + sigma_net**2) ** 0.5 * images(8, 3, 32, 32)
    out = EDMDenoiser(network, s)(z, sigma_net)
    # 24,576 draws: the std of a unit normal is known to 1/sqrt(2n) = 0.0045; five of them
    assert float(network.x.std()) == pytest.approx(1, abs=0.023)
    torch.testing.assert_close(network.c_noise, torch.full((8,), 0.17328680), rtol=1e-6, atol=0)  # ln(2)/4
    c_out = sigma_net * s / (s**2 + sigma_net**2) ** 0.5
    expected = z * s**2 / (s**2 + sigma_net**2) + c_out * network.x
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_edm_limits_of_little_and_much_noise():
    z = images(2, 1, 4, 4)
    denoiser = EDMDenoiser(Recorder(), 0.5)
    # c_skip -> 1 and c_out -> sigma: the distance to z is about sigma * |F|, |F| = |z| / 0.5 < 8 here
    assert float((denoiser(z, 1e-6) - z).abs().max()) < 1e-5
    # c_out -> s: D -> s * F(z / sigma), and F is the identity; what c_skip leaves is s/sigma = 5e-4 of that
    torch.testing.assert_close(denoiser(1e3 * z, 1e3), 0.5 * z, rtol=1e-3, atol=0)


def test_sigma_data_travels_in_the_state_dict():
    state = EDMDenoiser(Zero(), 0.75).state_dict()
    assert float(state["sigma_data"]) == 0.75
    loaded = EDMDenoiser(Zero(), 0.1)
    loaded.load_state_dict(state)
    assert float(loaded.sigma_data) == 0.75


def test_no_labels_means_the_null_class_if_there_is_one():
    network = Recorder()
    denoiser = EDMDenoiser(network, 0.5, num_classes=10)
    denoiser(images(3, 1, 4, 4), 0.5)
    assert network.labels.tolist() == [10, 10, 10] and network.labels.dtype == torch.int64
    denoiser(images(3, 1, 4, 4), 0.5, torch.tensor([0, 5, 9]))
    assert network.labels.tolist() == [0, 5, 9]
    EDMDenoiser(network, 0.5)(images(1, 1, 4, 4), 0.5)
    assert network.labels is None
    with pytest.raises(DrbenchError, match="unconditional"):
        EDMDenoiser(network, 0.5)(images(1, 1, 4, 4), 0.5, torch.tensor([0]))


class GaussianEpsilon(nn.Module):
    """E[noise | x_t] for data N(0, s^2): sqrt(1 - abar) x_t / (abar s^2 + 1 - abar)."""

    def __init__(self, s, scale=1.0):
        super().__init__()
        self.s, self.scale, self.times = s, scale, None

    def forward(self, x_t, time, labels):
        self.times = time
        abar = ABAR[(time.double() / self.scale).round().long()].reshape(-1, 1, 1, 1)
        return ((1 - abar).sqrt() * x_t / (abar * self.s**2 + 1 - abar)).float()


@pytest.mark.parametrize("sigma_net", [0.05, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_vp_denoiser_is_the_posterior_mean_at_the_rounded_level(sigma_net, scale):
    s, z = 0.5, images(4, 3, 4, 4)
    network = GaussianEpsilon(s, scale)
    x0 = VPDenoiser(network, ABAR, time_scale=scale)(z, sigma_net)
    t = timestep_for(sigma_net, ABAR)
    level = float(sigma_net_of(t, ABAR))
    assert network.times.tolist() == [int(t) * scale] * 4
    assert x0.dtype == torch.float32
    # z - sigma_t eps cancels digits: float32 (6e-8) times (sigma_t^2 + s^2)/s^2, which is 400 at level 10
    torch.testing.assert_close(x0, z * s**2 / (s**2 + level**2), rtol=5e-5, atol=5e-6)


def test_vp_denoiser_ignores_the_learned_variance():
    class TwoHeaded(GaussianEpsilon):
        def forward(self, x_t, time, labels):
            eps = super().forward(x_t, time, labels)
            return torch.cat([eps, torch.full_like(eps, torch.nan)], dim=1)

    z = images(2, 3, 4, 4)
    plain = VPDenoiser(GaussianEpsilon(0.5), ABAR)
    assert torch.equal(VPDenoiser(TwoHeaded(0.5), ABAR)(z, 0.5), plain(z, 0.5))
    assert torch.equal(plain.half().float().alphas_bar, ABAR)  # casting must not round the schedule


@pytest.fixture(scope="module")
def conditional():
    return EDMDenoiser(small_unet((1, 8, 8), num_classes=10), 0.75, num_classes=10).eval()


@pytest.mark.parametrize("wrap", ["edm", "vp"])
def test_level_of_a_row_equals_level_of_a_call(wrap, conditional):
    denoiser = conditional if wrap == "edm" else VPDenoiser(GaussianEpsilon(0.5), ABAR)
    z, levels = images(3, 1, 8, 8), [0.24, 0.5, 2.0]
    together = denoiser(z, torch.tensor(levels))
    for row, level in enumerate(levels):
        alone = denoiser(z[row : row + 1], level)
        # convolutions sum in another order for another batch: float32 roundings of values of order 1
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "expected"), [((1, 8, 8), 159_697), ((3, 32, 32), 160_275)])
def test_small_unet_shape_and_size(shape, expected):
    network = small_unet(shape)
    assert sum(p.numel() for p in network.parameters()) == expected
    z = images(2, *shape).requires_grad_()
    out = EDMDenoiser(network, 0.5)(z, 0.5)
    assert out.shape == z.shape and out.dtype == torch.float32 and out.isfinite().all()
    out.square().sum().backward()
    assert (z.grad != 0).any()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_small_unet_hears_noise_level_and_class(conditional):
    network = conditional.network
    x = images(1, 1, 8, 8).expand(4, -1, -1, -1)
    c_noise = torch.tensor([0.0, 0.01 / 4, 0.0, 0.0])  # the second: 1 % more noise
    out = network(x, c_noise, torch.tensor([3, 3, 4, 10]))
    # far above the float32 roundings (1e-6) of identical rows
    assert all((out[row] - out[0]).abs().max() > 1e-4 for row in (1, 2, 3))


def test_small_unet_null_class_and_copy(conditional):
    z = images(2, 1, 8, 8)
    assert torch.equal(conditional(z, 0.5), conditional(z, 0.5, torch.full((2,), 10)))
    assert torch.equal(copy.deepcopy(conditional)(z, 0.5), conditional(z, 0.5))  # what an EMA does


def test_small_unet_refuses_sizes_it_cannot_halve():
    with pytest.raises(DrbenchError, match="multiples of 2, got 7x7"):
        small_unet((1, 7, 7))
    with pytest.raises(DrbenchError, match="multiples of groups=8"):
        small_unet((1, 8, 8), channels=(12, 24))
