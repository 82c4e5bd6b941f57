"""Observation of a cascade: the draws of the Gaussian certifier, no more scales than needed, the same in any batch."""

import pytest
import torch

from drbench import stats
from drbench.api import Defense, DrbenchError
from drbench.certifiers import cascade, gaussian

SIGMAS, SOUND = (0.1, 0.3, 1.0), stats.PROTOCOLS["sound"]


class Stripes(Defense):
    """Four classes in stripes of 0.47 along the diagonal: too narrow for sigma = 1, wide for sigma = 0.1."""

    citation, input_shape, num_classes, sigmas = "test", (1, 8, 8), 4, (0.0, *SIGMAS)

    def __init__(self):
        super().__init__()
        self.calls = []

    def logits(self, z, sigma, draws):
        self.calls.append((sigma, len(z)))
        stripe = (z.flatten(1).sum(1) / 8 / 0.47).floor().long() % 4
        return 5.0 * torch.nn.functional.one_hot(stripe, 4) + 0.123456

    def nfe(self, sigma):
        return {}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls()


class Dice(Stripes):
    """A second opinion of its own draws."""

    randomized = True

    def logits(self, z, sigma, draws):
        return super().logits(z, sigma, draws) + 3 * draws.randn(len(z), 4)


X = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def observe(defense, x=X, ids=None, **change):
    options = dict(sigmas=SIGMAS, alpha=0.001, n0=30, n=1000, block=100, batch_rows=128) | change
    return list(cascade.observe(defense, x, ids or range(len(x)), **options))


def decided(evidence, **change):
    return stats.decide("cascade", evidence, 0.001, sigmas=SIGMAS, classes=4, **(SOUND | change))


def test_draws_are_those_of_the_gaussian_certifier():
    seen, stops = observe(Stripes(), seed=3), set()
    for sigma in SIGMAS:
        alone = list(gaussian.observe(Stripes(), X, range(24), sigma=sigma, n0=30, n=1000, seed=3, batch_rows=64))
        for one, found in zip(alone, seen, strict=True):
            assert all(stage == one.evidence.stages[0] for stage in found.evidence.stages if stage.sigma == sigma)
    for found in seen:
        detail = decided(found.evidence).detail
        assert detail["sigma"] == found.evidence.stages[-1].sigma, "stops where the decision stops"
        stops.add((detail["sigma"], detail["reason"]))
    assert {sigma for sigma, _ in stops} == {0.1, 0.3}  # sigma = 1 passes everything on
    assert stops >= {(0.1, None), (0.3, None), (0.3, "undecided")}


@pytest.mark.parametrize("kind", [Stripes, Dice])
def test_counts_do_not_depend_on_batch_pool_or_order(kind, monkeypatch):
    x = X[:6]
    wanted = observe(kind(), x)
    for rows in (39, 4096):
        assert observe(kind(), x, batch_rows=rows) == wanted
    monkeypatch.setattr(cascade, "FULL_BATCHES", 1)  # pools of one image
    assert observe(kind(), x) == wanted
    back = observe(kind(), x.flip(0), list(range(6))[::-1])
    assert [found.evidence for found in back] == [found.evidence for found in wanted[::-1]]
    assert [found.evidence for found in observe(kind(), x[4:], [4, 5])] == [found.evidence for found in wanted[4:]]


def test_only_images_that_need_it_go_on():
    defense = Stripes()
    seen = observe(defense, batch_rows=512)
    drawn = {sigma: 1030 * sum(s.sigma == sigma for f in seen for s in f.evidence.stages) for sigma in SIGMAS}
    for sigma in SIGMAS:
        spent = sum(rows for level, rows in defense.calls if level == sigma)
        assert drawn[sigma] <= spent <= 1.05 * drawn[sigma]  # the rest is padding
    assert drawn[1.0] == 24 * 1030 > drawn[0.1] > 0
    assert sum(rows for level, rows in defense.calls if level == 0) == 24  # clean logits, one image at a time


def test_clean_logits_only_where_they_mean_something():
    assert all(
        found.evidence.clean is not None and set(found.evidence.clean) == {0.1235, 5.1235}
        for found in observe(Stripes())
    )

    class Noisy(Stripes):
        sigmas = SIGMAS

    assert all(found.evidence.clean is None for found in observe(Noisy()))


def test_nonfinite_logits_are_an_error_of_that_image():
    class Bad(Stripes):
        def logits(self, z, sigma, draws):
            scores = super().logits(z, sigma, draws)
            return scores.where(z[:, :1, 0, 0].abs() < 0.9 if sigma == 0.3 else torch.tensor(True), torch.nan)

    x = X.clone()
    x[:, 0, 0, 0] = 0.0
    x[3, 0, 0, 0] = 1.0
    seen = observe(Bad(), x)
    assert seen[3].evidence is None and "gave non-finite logits at sigma 0.3" in seen[3].error
    assert any(found.evidence for found in seen)


def test_out_of_memory_changes_nothing():
    class Small(Stripes):
        def logits(self, z, sigma, draws):
            if len(z) > 40:
                raise torch.OutOfMemoryError("out of memory")
            return super().logits(z, sigma, draws)

    told = []
    assert observe(Small(), backed_off=told.append) == observe(Stripes())
    assert 1 <= len(told) <= 3  # not once per scale and pool


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sigmas": (0.1, 0.7)}, "declares sigmas"),
        ({"sigmas": ()}, "expected the scales of a cascade"),
        ({"p0": 0.4}, "below 1/2"),
        ({"split": "x"}, "expected split"),
        ({"n": 0}, "positive integers"),
    ],
)
def test_refused(change, message):
    with pytest.raises(DrbenchError, match=message):
        observe(Stripes(), **change)
