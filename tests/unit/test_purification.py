"""The report on purified images: distances with known values, and measures of purifiers that do nothing."""

import numpy as np
import pytest
import torch

import drbench
from benchmarks import purification
from methods.consistency.features import Encoder


def test_frechet_of_gaussians():
    """Equal covariances: the squared distance of the means. Scaled by k: d (k - 1)^2 for unit variances."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200_000, 3))
    assert purification.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert purification.frechet(a, a + np.array([1.0, 2.0, 0.0])) == pytest.approx(5, rel=1e-9)
    assert purification.frechet(a, 3 * rng.standard_normal((200_000, 3))) == pytest.approx(12, rel=0.01)
    mixing = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    first, second = np.cov(a @ mixing, rowvar=False), np.cov(a, rowvar=False)
    values, vectors = np.linalg.eigh(second)
    root = vectors @ np.diag(values**0.5) @ vectors.T  # (root A root)^1/2 has the trace of (A B)^1/2
    cross = np.sqrt(np.linalg.eigvalsh(root @ first @ root)).sum()
    assert purification.frechet(a @ mixing, a) == pytest.approx(np.trace(first + second) - 2 * cross, abs=1e-3)


class Nothing:
    """Purifies nothing; classifies by the first pixel."""

    @staticmethod
    def purify(z, sigma, draws):
        return z

    @staticmethod
    def classifier(x):
        return torch.stack([0 * x[:, 0, 0, 0], x[:, 0, 0, 0]], 1)


def test_measures_of_plain_noise():
    images = drbench.load_data("digits", subset="first50")
    torch.manual_seed(0)
    encoder = Encoder(1, 4, width=2)
    measured = purification.measure(Nothing, images.x, images.y, images.ids, 0.5, encoder)
    count = measured["pixel"].size * 64 * purification.COPIES
    assert measured["pixel"].shape == (50,) and measured["fd_small"].shape == (purification.COPIES,)
    assert measured["pixel"].mean() == pytest.approx(0.25, rel=5 * (2 / count) ** 0.5)  # sigma^2, chi-squared
    again = purification.measure(Nothing, images.x, images.y, images.ids, 0.5, encoder)
    assert all(np.array_equal(measured[name], again[name]) for name in measured)
    few = purification.measure(Nothing, images.x[:20], images.y[:20], images.ids[:20], 0.5, encoder)
    assert np.array_equal(few["transport"], measured["transport"][:20])  # the noise belongs to the image
    none = purification.measure(Nothing, images.x, images.y, images.ids, 0.0, encoder)
    assert not none["pixel"].any() and not none["transport"].any() and abs(none["fd_small"]).max() < 1e-9


def test_cells_are_paired():
    base = {name: np.full(4, 2.0) for name in purification.COLUMNS}
    own = {name: np.array([1.0, 2.0, 2.0, 3.0]) for name in purification.COLUMNS}
    assert list(purification.row(base, base))[1] == "2"
    cells = list(purification.row(own, base))
    assert cells[1].startswith("2 (+0 [") and cells[2] == "2 [1, 3]"
