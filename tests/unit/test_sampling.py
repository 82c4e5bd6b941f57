"""How noisy copies are made: exact probabilities, exact sums, draws that are not certain, no dependence on batches."""

from decimal import Decimal

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats as reference

from drbench.certifiers import gaussian, noise
from drbench.certifiers.noise import Smoothing
from drbench.draws import Span, block_key, words
from drbench.evidence import ABSTAIN
from tests.unit.test_engine import Linear

SPANS = [Span(block_key(0, "image", 0.5, "estimate", block), 0, 100) for block in range(40)]
KINDS = [Smoothing("uniform"), Smoothing("laplace"), Smoothing(sampler="grid", grid=16),
         Smoothing(sampler="sound", grid=16), Smoothing("laplace", "grid", 255)]  # fmt: skip


def scans(count=5):
    return torch.randint(0, 17, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 16


@pytest.mark.parametrize("smoothing", KINDS, ids=str)
def test_counts_do_not_depend_on_batches(smoothing):
    x = scans()

    def votes(rows):
        found = gaussian.observe(Linear(), x, range(5), sigma=0.5, n0=30, n=250, batch_rows=rows, smoothing=smoothing)
        return [seen.evidence for seen in found]

    assert votes(64) == votes(7) == votes(999)


@pytest.mark.parametrize(
    ("kind", "law"),
    [("uniform", reference.uniform(-(3**0.5), 2 * 3**0.5)), ("laplace", reference.laplace(scale=0.5**0.5))],
)
def test_distributions(kind, law):
    drawn, uncertain = Smoothing(kind).copies(SPANS, np.zeros((4000, 63), np.float32), 1.0)
    assert uncertain is None and drawn.std() == pytest.approx(1, abs=0.01)
    assert reference.kstest(drawn.ravel(), law.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.06


@pytest.mark.parametrize(("sigma", "grid"), [(0.25, 16), (0.12, 255), (1.0, 16)])
def test_thresholds_are_exact(sigma, grid):
    mpmath.mp.prec = 200
    limits = noise.thresholds(sigma, grid)
    wide = grid * (max(1, int(6 * sigma)) + 1)
    assert len(limits) == 2 * wide
    for i in (-wide, -wide // 2, -1, 0, 1, wide // 3, wide - 1):
        x = mpmath.mpf(2 * i + 1) / (2 * grid * mpmath.mpf(Decimal(sigma).to_eng_string()))
        assert abs(2**60 * mpmath.ncdf(x) - int(limits[i + wide])) < 0.6
    assert (np.diff(limits) >= 0).all()


def test_steps_have_the_probabilities_of_the_rounded_normal():
    steps, uncertain = noise.grid_steps(words(SPANS, 0, 64), 0.25, 16)
    assert not uncertain.any()
    edges = (np.arange(-12, 13) - 0.5) / 16 / 0.25
    expected = np.diff(reference.norm.cdf(np.r_[-np.inf, edges, np.inf])) * len(steps)
    counted = np.histogram(steps.clip(-13, 12), np.arange(-13, 14) - 0.5)[0]
    assert reference.chisquare(counted, expected).pvalue > 1e-3


def test_a_draw_beside_a_threshold_is_not_certain():
    (limit, *_) = noise.thresholds(0.5, 16)[16:17]
    drawn = np.array([limit - 2, limit - 1, limit, limit + 1], np.uint64) << np.uint64(4)
    steps, uncertain = noise.grid_steps(drawn, 0.5, 16)
    assert uncertain.tolist() == [False, True, True, False]
    assert steps[3] == steps[0] + 1
    assert not noise.grid_steps(np.array([2**63], np.uint64), 0.5, 16)[1].any()


def test_uncertain_draws_vote_against_every_class(monkeypatch):
    def some(bits, sigma, grid):
        steps = np.zeros(len(bits), np.int64)
        uncertain = np.zeros((len(bits) // 64, 64), bool)
        uncertain[::10, 3] = True
        return steps, uncertain.ravel()

    monkeypatch.setattr(noise, "grid_steps", some)
    sound = Smoothing(sampler="sound", grid=16)
    (seen,) = gaussian.observe(Linear(0.0), scans(1), [0], sigma=0.5, n0=10, n=100, batch_rows=10, smoothing=sound)
    (stage,) = seen.evidence.stages
    assert stage.votes == {1: 90, ABSTAIN: 10} and stage.select == {1: 9, ABSTAIN: 1}


@pytest.mark.parametrize("sampler", ["grid", "sound"])
def test_sums_are_exact_and_stay_on_the_grid(sampler):
    """The noise that is added is the same for every image: nothing of the image is left in the sum but itself."""
    dark, light = np.zeros((4000, 64), np.float32), np.full((4000, 64), 1.0, np.float32)
    far = Smoothing(sampler=sampler, grid=16)
    a, b = (far.copies(SPANS, clean, 0.5)[0] * 16 for clean in (dark, light))
    assert (a == np.rint(a)).all() and a.min() >= -3 * 16 and b.max() <= 4 * 16
    inside = (np.abs(a) < 40) & (np.abs(b) < 40)
    assert inside.mean() > 0.99 and (b - a)[inside].tolist() == [16.0] * int(inside.sum())


def test_floating_point_sums_do_tell():
    """Why the grid is there: float32 noise added to 1 has lost bits that noise added to 0 still has."""
    a, b = (Smoothing().copies(SPANS, np.full((4000, 64), value, np.float32), 0.25)[0] for value in (0.0, 1.0))
    near = np.abs(a) < 0.2
    fine = np.float32(2**26)  # more digits than float32 has near 1
    assert (a[near] * fine % 1 != 0).mean() > 0.3 and (b[near] * fine % 1 == 0).all()


def test_the_grid_of_images():
    from drbench.data import Images

    def grid(x):
        return Images(x.float(), torch.zeros(1, dtype=torch.int64), (0,), "d", "s", 2).grid

    assert grid(scans(1)) == 16 and grid(torch.arange(256).reshape(1, 1, 16, 16) / 255) == 255
    assert grid(torch.full((1, 1, 2, 2), 0.3)) is None
