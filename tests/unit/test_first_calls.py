"""Costs by the first call of each network."""

import pytest
import torch
from torch import nn

from drbench.api import Defense
from drbench.planning import first_calls


class Clock:
    """Stands for `time`: it goes on when a network says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Working(nn.Module):
    """Takes `once` seconds in its first call, and `each` for a row; notes the rows of its calls."""

    def __init__(self, clock, each, once=0.0):
        super().__init__()
        self.clock, self.each, self.once, self.rows = clock, each, once, []

    def forward(self, x, labels=None):
        self.clock.now += len(x) * self.each + (0 if self.rows else self.once)
        self.rows.append(len(x))
        assert labels is None or len(labels) == len(x)
        return x.flatten(1)[:, :10]


class Purified(Defense):
    """Five calls of a denoiser on three copies of an image at once, then one of a classifier."""

    sigmas = (0.25,)

    def __init__(self, denoiser, classifier):
        super().__init__()
        self.input_shape, self.num_classes = (1, 8, 8), 10
        self.denoiser, self.classifier = denoiser, classifier

    def logits(self, z, sigma, draws):
        copies = z.repeat_interleave(3, 0)
        for _ in range(5):
            copies = copies + self.denoiser(copies, labels=torch.zeros(len(copies))).mean()
        return self.classifier(copies[::3])

    def nfe(self, sigma):
        return {"denoiser": 15, "classifier": 1, "unused": 0}

    def tiny(cls, input_shape, num_classes):
        raise NotImplementedError


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(first_calls, "time", found)
    return found


def test_one_call_of_each_network_times_its_number(clock):
    denoiser, classifier = Working(clock, each=20.0), Working(clock, each=2.0, once=5.0)
    seconds = first_calls.seconds_per_draw(Purified(denoiser, classifier), 0.25)
    assert denoiser.rows == [1]  # so slow that the first call counts, although it may have prepared for others
    assert classifier.rows == [1, 1]
    assert seconds == pytest.approx(15 * 20 + 2)


def test_quick_networks_are_asked_about_more_rows(clock):
    denoiser, classifier = Working(clock, each=0.05), Working(clock, each=0.001, once=3.0)
    seconds = first_calls.seconds_per_draw(Purified(denoiser, classifier), 0.25)
    assert denoiser.rows == [1, 1, 4, 16]  # 0.8 seconds
    assert classifier.rows == [1, 1, 4, 16]  # all there are
    assert seconds == pytest.approx(15 * 0.05 + 0.001)


def test_nothing_stays_replaced(clock):
    defense = Purified(Working(clock, each=20.0), Working(clock, each=20.0))
    first_calls.seconds_per_draw(defense, 0.25)
    assert not any("forward" in vars(network) for network in defense.networks().values())
    assert defense.denoiser(torch.rand(4, 1, 8, 8)).shape == (4, 10)
    assert defense.denoiser.rows == [1, 4]
