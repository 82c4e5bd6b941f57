"""The EDM loss: closed forms, determinism, label dropout, and that it can be minimised."""

import pytest
import torch
from torch import nn

from drbench.diffusion.networks.unet import small_unet
from drbench.diffusion.precond import EDMDenoiser
from drbench.diffusion.train import edm_loss, sigma_data_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


class Zero(nn.Module):
    """Returns zeros, and keeps the labels and c_noise of the last call."""

    def forward(self, x, c_noise, labels):
        self.c_noise, self.labels = c_noise, labels
        return torch.zeros_like(x)


def test_sigma_data():
    x = torch.tensor([-1.0, 1.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
    assert sigma_data_of(x) == pytest.approx(0.75**0.5, rel=1e-12)


def test_loss_of_the_zero_network_is_one():
    """On N(0, s^2) the optimal error is sigma^2 s^2 / (sigma^2 + s^2) = 1 / weight, at every level."""
    s, rows = 0.5, 20_000
    loss = edm_loss(EDMDenoiser(Zero(), s), s * images(rows, 1, 2, 2), generator(1))
    # each of 80,000 terms is a chi^2 of one degree, variance 2: five standard errors
    assert float(loss) == pytest.approx(1, abs=5 * (2 / (4 * rows)) ** 0.5)


def test_noise_levels_are_lognormal():
    network, rows = Zero(), 20_000
    edm_loss(EDMDenoiser(network, 0.5), images(rows, 1, 1, 1), generator(1), p_mean=-0.5, p_std=0.8)
    log_sigma = 4 * network.c_noise
    assert float(log_sigma.mean()) == pytest.approx(-0.5, abs=5 * 0.8 / rows**0.5)  # five standard errors
    assert float(log_sigma.std()) == pytest.approx(0.8, abs=5 * 0.8 / (2 * rows) ** 0.5)


def test_label_dropout_rate():
    network, rows, rate = Zero(), 20_000, 0.1
    denoiser = EDMDenoiser(network, 0.5, num_classes=10)
    labels = torch.arange(rows) % 10
    edm_loss(denoiser, images(rows, 1, 1, 1), generator(1), labels, label_dropout=rate)
    dropped = network.labels == 10
    assert float(dropped.float().mean()) == pytest.approx(rate, abs=5 * (rate * (1 - rate) / rows) ** 0.5)
    assert torch.equal(network.labels[~dropped], labels[~dropped])
    for certain, expected in [(0.0, labels), (1.0, torch.full_like(labels, 10))]:
        edm_loss(denoiser, images(rows, 1, 1, 1), generator(1), labels, label_dropout=certain)
        assert torch.equal(network.labels, expected)
    edm_loss(denoiser, images(3, 1, 1, 1), generator(1))
    assert network.labels.tolist() == [10, 10, 10]


def test_loss_is_set_by_the_generator_alone():
    denoiser = EDMDenoiser(small_unet((1, 8, 8), num_classes=10), 0.5, num_classes=10)
    x, labels = images(4, 1, 8, 8), torch.arange(4)
    before = torch.get_rng_state()
    first, same, other = (edm_loss(denoiser, x, generator(seed), labels) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == () and first.item() == same.item() != other.item()


def test_loss_decreases():
    """Data of one image: a network can learn it, so the loss must fall well below where it starts."""
    x = images(1, 1, 8, 8).clamp(-1, 1).expand(32, -1, -1, -1)
    denoiser = EDMDenoiser(small_unet((1, 8, 8)), sigma_data_of(x))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    fixed = [edm_loss(denoiser, x, generator(99)).item()]
    rng = generator(0)
    for _ in range(30):
        optimizer.zero_grad()
        edm_loss(denoiser, x, rng).backward()
        optimizer.step()
    fixed.append(edm_loss(denoiser, x, generator(99)).item())  # same noise before and after: no luck involved
    assert fixed[1] < 0.5 * fixed[0]  # measured: 0.33
