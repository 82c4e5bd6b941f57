"""Quantities that stand beside the curve, against their definitions."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from drbench.tables import quantities


@pytest.mark.parametrize(("images", "expected"), [(500, 4), (10_000, 21)])
def test_known_quantiles(images, expected):
    assert quantities.false_certificates(images, 0.001) == expected


@pytest.mark.parametrize("images", [1, 20, 300])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
def test_the_level_is_exact(images, alpha):
    for rho in (0.001, 0.1):
        most = quantities.false_certificates(images, alpha, rho)
        assert reference.binom.sf(most, images, alpha) <= rho
        assert most == 0 or reference.binom.sf(most - 1, images, alpha) > rho


def test_the_bernstein_bound_of_the_released_code_is_not_one():
    """Its constants are too small: for one image it takes off less than the worst case asks for."""
    alpha, rho, images = 0.1, 0.01, 1000
    released = alpha + math.sqrt(alpha * (1 - alpha) * math.log(1 / rho) / images) + math.log(1 / rho) / 3 / images
    exact = quantities.false_certificates(images, alpha, rho) / images
    assert reference.binom.sf(math.floor(released * images), images, alpha) > rho  # fails more often than it says
    assert reference.binom.sf(math.floor(exact * images), images, alpha) <= rho


def test_easy_images():
    correct, radius = [True] * 9 + [False], [1.0] * 9 + [5.0]
    assert quantities.easiest_share(correct, radius) == pytest.approx(1 / 9)
    assert quantities.easiest_share([True] + [False] * 9, [2.0] * 10) == 1.0
    assert math.isnan(quantities.easiest_share([False], [1.0]))


def test_a_constant_answer():
    assert quantities.constant_acr([3, 3, 3, 1], 2.0) == pytest.approx(1.5)


def test_ecdf_is_that_of_scipy():
    values = np.random.default_rng(0).random(50).round(1)
    at = [0.0, 0.1, 0.55, 1.0]
    assert quantities.ecdf(values, at) == pytest.approx(reference.ecdf(values).cdf.evaluate(at))
