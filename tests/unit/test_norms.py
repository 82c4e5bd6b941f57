"""The verifier of adversarial examples."""

import numpy as np
import pytest

from drbench import norms
from drbench.errors import DrbenchError


def test_distances_are_worked_in_float64():
    x = np.full((1, 1, 2, 2), 0.25, np.float32)
    x_adv = x + np.array([0.5, 0, -0.25, 0.125], np.float32).reshape(1, 1, 2, 2)
    assert norms.distance("linf", x_adv, x) == 0.5
    assert norms.distance("l1", x_adv, x) == 0.875
    assert norms.distance("l2", x_adv, x)[0] == pytest.approx((0.25 + 0.0625 + 0.015625) ** 0.5, rel=1e-15)


@pytest.mark.parametrize(("pixel", "allowed"), [(0.35, True), (0.3500005, True), (0.350002, False), (np.nan, False)])
def test_slack_covers_float32_and_no_more(pixel, allowed):
    x = np.full((1, 1, 1, 1), 0.25, np.float32)
    assert norms.feasible("linf", 0.1, np.full_like(x, pixel), x)[0] == allowed


def test_pixels_outside_the_box_are_refused():
    x = np.array([0.0, 1.0], np.float32).reshape(2, 1, 1, 1)
    outside = np.nextafter(x, np.array([-1.0, 2.0], np.float32).reshape(2, 1, 1, 1))
    assert norms.feasible("l2", 1.0, x, x).all()
    assert not norms.feasible("l2", 1.0, outside, x).any()


def test_radii_may_be_fractions():
    assert norms.number("8/255") == 8 / 255
    assert norms.number(0.5) == 0.5
    with pytest.raises(DrbenchError, match="8/255"):
        norms.number("8/255ths")
    with pytest.raises(DrbenchError, match="did you mean 'linf'"):
        norms.check("inf", 0.1)
    with pytest.raises(DrbenchError, match="got 8; 8 grey levels: 8/255"):
        norms.check("linf", norms.number("8"))
    norms.check("l2", 8.0)
    with pytest.raises(DrbenchError, match="eps >= 0"):
        norms.check("l2", float("nan"))
