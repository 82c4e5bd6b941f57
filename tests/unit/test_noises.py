"""Certificates of other smoothing distributions: closed forms, and the worst classifier by brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Evidence, Stage
from drbench.stats import noises

B, SCALE = math.sqrt(3), 1 / math.sqrt(2)  # half width of uniform, scale of Laplace noise of variance 1


@pytest.mark.parametrize("p", [0.5001, 0.6, 0.9, 0.999, 1 - 1e-9])
def test_closed_forms(p):
    q = 1 - p
    assert noises.radius(q, 0.7) == pytest.approx(0.7 * reference.norm.ppf(p), rel=1e-6)
    assert noises.radius(q, 0.7, "uniform") == pytest.approx(0.7 * 2 * B * (p - 0.5), rel=1e-9)
    assert noises.radius(q, 0.7, "laplace") == pytest.approx(-0.7 * SCALE * math.log(2 * q), rel=1e-9)


@pytest.mark.parametrize("kind", noises.NOISES)
def test_the_tail_belongs_to_the_radius(kind):
    for q in (0.5, 0.3, 0.01, 1e-6):
        assert noises.NOISES[kind].tail(noises.NOISES[kind].radius(q)) == pytest.approx(q, rel=1e-9)
    assert noises.radius(0.7, 1.0, kind) == 0
    assert math.isfinite(noises.radius(0.0, 1.0, kind))  # a randomized limit may be 1


def test_upper_tail_keeps_its_digits():
    """With one miss in 10^6 draws, 1 - p has its full precision: R / sigma from the tail, not from 1 - p."""
    q = stats.cp_upper(0, 10**12, 0.001)
    assert noises.radius(q, 1.0) == pytest.approx(reference.norm.isf(6.907755e-12), rel=1e-6)


def lattice(kind, dimension, half, step):
    """Points and probabilities of a product of discretised distributions of `step`-wide cells."""
    axis = np.arange(-half, half + 1)
    if kind == "uniform":
        weight = (np.abs(axis * step) <= B + 1e-9).astype(float)
    else:
        weight = np.exp(-np.abs(axis * step) / SCALE)
    weight /= weight.sum()
    points = list(itertools.product(axis, repeat=dimension))
    return points, dict(zip(points, np.prod(list(itertools.product(weight, repeat=dimension)), axis=1), strict=True))


def worst(kind, p, shift, half, step):
    """Least probability that any classifier with probability p at 0 can have at `shift` steps (Neyman and Pearson)."""
    points, at = lattice(kind, len(shift), half, step)
    moved = np.array([at.get(tuple(np.subtract(point, shift)), 0.0) for point in points])
    here = np.array([at[point] for point in points])
    left, least = p, 0.0  # fill the set with the points that lose most by the shift
    for i in np.argsort(moved / np.maximum(here, 1e-300)):
        take = min(left, here[i])
        least += moved[i] * take / here[i] if here[i] else 0.0
        left -= take
    return least


@pytest.mark.parametrize(("kind", "step"), [("uniform", B / 12), ("laplace", SCALE / 4)])
@pytest.mark.parametrize("p", [0.7, 0.9])
def test_no_classifier_falls_below_a_half_inside_the_radius(kind, step, p):
    """In two dimensions, shifts along the axis and oblique: safe inside the l1 radius; along the axis it is tight."""
    half = 12 if kind == "uniform" else 40
    radius = noises.radius(1 - p, 1.0, kind)
    inside = int(radius / step)
    # The uniform lattice has 25 cells on a width of 24 steps: its own certificate is that much wider.
    for shift in ((inside, 0), (inside // 2, inside - inside // 2), (inside - 1, 1)):
        assert worst(kind, p, shift, half, step) >= 0.5 - 1e-9
    beyond = math.ceil(radius / step * 25 / 24) + 1 if kind == "uniform" else inside + 2
    assert worst(kind, p, (beyond, 0), half, step) < 0.5


def test_radii_in_other_norms():
    assert noises.in_norm(0.8, "l1", 64, 0.5) == 0.8 and noises.in_norm(0.8, "l2", 64, 0.5) == 0.8
    assert noises.in_norm(0.8, "linf", 64, 0.5) == pytest.approx(0.1)
    assert noises.in_norm(1.0, "linf", 3072, 0.5) == pytest.approx(1 / 55.4256, rel=1e-5)
    assert noises.in_norm(1.0, "linf", 150528, 0.5) == pytest.approx(1 / 387.979, rel=1e-5)
    assert noises.in_norm(0.8, "l2", 64, 0.5, "laplace") == pytest.approx(0.1)
    assert noises.in_norm(0.8, "linf", 64, 0.5, "laplace") == pytest.approx(0.0125)
    p, width, d = 0.9, 2 * B * 0.5, 64
    direct = noises.in_norm(noises.radius(1 - p, 0.5, "uniform"), "linf", d, 0.5, "uniform")
    assert direct == pytest.approx(width * (1 - (1.5 - p) ** (1 / d)), rel=1e-9)
    assert (1 - direct / width) ** d == pytest.approx(1.5 - p)  # the shared volume of two cubes is just enough
    with pytest.raises(DrbenchError, match="unknown norm 'l3'"):
        noises.in_norm(1.0, "l3", 64, 0.5)


@pytest.mark.parametrize("kind", ["uniform", "laplace"])
def test_false_certificates_of_a_half_line_by_enumeration(kind):
    """In one dimension the class is 1 where z > 0 and the image lies at the true radius of its share."""
    n, alpha, p = 30, 0.05, 0.8
    truth, false = noises.radius(1 - p, 1.0, kind), 0.0
    for k in range(n + 1):
        evidence = Evidence((Stage(1.0, {1: 0}, 0, {0: n - k, 1: k}, n),))
        found = stats.decide("gaussian", evidence, alpha, noise=kind)
        assert "radius_multiclass" not in found.detail
        if found.prediction != ABSTAIN and found.radius > truth:
            false += reference.binom.pmf(k, n, p)
    assert alpha / 10 < false <= alpha
