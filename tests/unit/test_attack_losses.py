"""Losses by hand, and the ways to pool draws."""

import math

import pytest
import torch

from drbench.attacks.losses import Loss, ce, dlr, margin
from drbench.errors import DrbenchError

Z = torch.tensor([[4.0, 1.0, 3.0, 0.0, -2.0]])
Y, T = torch.tensor([0]), torch.tensor([3])


def test_values_by_hand():
    assert margin(Z, Y) == -1 and margin(Z, torch.tensor([2])) == 1 and margin(Z, Y, T) == -4
    assert dlr(Z, Y).item() == pytest.approx(-1 / 3)
    assert dlr(Z, Y, T).item() == pytest.approx(-4 / (4 - 0.5))
    logs = torch.log_softmax(Z, 1)
    assert ce(Z, Y) == -logs[0, 0] and ce(Z, Y, T) == logs[0, 3]


def test_dlr_is_shift_and_scale_invariant():
    torch.testing.assert_close(dlr(100 * Z + 7, Y), dlr(Z, Y))


def test_pools():
    draws = torch.tensor([[[2.0, 0.0], [0.0, 4.0]]])  # one image, two draws, classes 0 and 1
    y = torch.tensor([0])
    assert Loss("margin").__call__(draws, y).item() == (-2 + 4) / 2
    assert Loss("margin", "logits")(draws, y).item() == 1
    p = (1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(4))) / 2
    assert Loss("ce", "probability")(draws, y).item() == pytest.approx(-math.log(p), rel=1e-6)
    assert Loss("margin", "probability")(draws, y).item() == pytest.approx(math.log((1 - p) / p), rel=1e-5)


def test_too_few_classes_fall_back_to_the_margin():
    assert Loss("dlr").fitted(2) == Loss("margin") and Loss("dlr").fitted(3) == Loss("dlr")
    assert Loss("dlr", "logits").fitted(3, targeted=True) == Loss("margin", "logits")
    assert Loss("ce").fitted(2) == Loss("ce")


def test_unknown_names():
    with pytest.raises(DrbenchError, match="did you mean 'margin'"):
        Loss("margins")
    with pytest.raises(DrbenchError, match="probability"):
        Loss("ce", "softmax")
