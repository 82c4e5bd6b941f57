"""Paired statistics and fewer draws against enumeration and known distributions."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import hypergeom, norm

from drbench import stats
from drbench.comparisons import paired_stats, per_image, thinning
from drbench.errors import DrbenchError
from tests.runs import make_cascade, make_run


def test_the_test_of_equal_sizes_is_the_sign_test():
    gaps = np.array([0.5] * 9 + [-0.5] * 2 + [0.0] * 20)
    assert paired_stats.exchanged(gaps) == stats.sign_test(9, 11)
    assert paired_stats.exchanged(np.zeros(5)) == 1.0


def test_the_test_of_the_mean_against_all_sign_flips():
    gaps = np.array([1.0, 0.5, 0.25, -0.25, 2.0, 0.75, -0.1, 1.5, 0.3, 0.9])
    sums = np.array([np.dot(signs, gaps) for signs in itertools.product((-1, 1), repeat=len(gaps))])
    exact = np.mean(np.abs(sums) >= abs(gaps.sum()) - 1e-12)
    assert paired_stats.exchanged(gaps) == pytest.approx(exact, abs=4 * np.sqrt(exact / paired_stats.FLIPS))
    assert paired_stats.exchanged(-gaps) == pytest.approx(exact, abs=0.02)


def test_the_level_of_the_test():
    """Under exchange p <= 0.05 in no more than about one case of twenty."""
    rng = np.random.default_rng(0)
    p = [paired_stats.exchanged(rng.exponential(size=30) * rng.choice((-1, 1), 30)) for _ in range(200)]
    assert 1 <= sum(each <= 0.05 for each in p) <= 20


def test_interval_of_one_training_and_of_several():
    binary = np.array([[1.0] * 7 + [-1.0] * 2 + [0.0] * 31])
    assert paired_stats.interval(binary) == stats.paired_interval(7, 2, 40)
    numbers = np.linspace(-1, 2, 40)[None]
    assert paired_stats.interval(numbers) == stats.bootstrap_mean(numbers[0])
    apart = np.concatenate([numbers - 1, numbers, numbers + 1])
    low, high = paired_stats.interval(apart)
    alike = paired_stats.interval(np.concatenate([numbers] * 3))
    assert high - low > alike[1] - alike[0] and low < numbers.mean() < high


def test_fewer_draws_are_the_mean_over_all_subsets(tmp_path):
    """Against every subset of twelve draws, and against random ones of a thousand."""
    small = make_run(tmp_path / "a", [12, 11, 9, 6, 0, None], n=12, alpha=0.05, n0=10)
    each = {right: [] for right in (12, 11, 9)}
    for right, found in each.items():
        for kept in itertools.combinations([1] * right + [0] * (12 - right), 8):
            low = stats.cp_lower(sum(kept), 8, 0.05)
            found.append(0.5 * norm.ppf(low) if low > 0.5 else -1.0)
    radii = per_image.values(small, "radius", draws=8)
    certified = per_image.values(small, "certified", radii=[0.0, 0.2], draws=8)
    for place, found in enumerate(map(np.array, each.values())):
        assert radii.iloc[place] == pytest.approx(found.clip(0).mean(), rel=1e-9)
        assert certified.iloc[place] == pytest.approx(((found >= 0).mean() + (found >= 0.2).mean()) / 2, rel=1e-9)
    assert 0 < certified.iloc[2] < certified.iloc[0] == 1
    assert not certified.iloc[3:].any() and not radii.iloc[3:].any()

    for n, right, total in ((8, 9, 12), (200, 975, 1000), (1000, 99_990, 100_000), (5, 0, 9), (5, 9, 9)):
        chances = hypergeom.pmf(np.arange(n + 1), total, right, n)
        assert np.allclose(stats.hypergeometric(n, right, total), chances, rtol=1e-6, atol=1e-12)
    many = make_run(tmp_path / "b", [975], n=1000)
    kept = np.random.default_rng(0).hypergeometric(975, 25, 200, 20_000)
    hits = (kept >= stats.smallest_votes(200, 0.001, 1.5)).mean()
    assert 0.05 < hits < 0.95
    assert per_image.values(many, "certified", radii=[0.75], draws=200).item() == pytest.approx(hits, abs=0.015)


def test_the_draws_that_were_made_are_the_run_itself(tmp_path):
    run = make_run(tmp_path / "a", [990, 700, None], n=1000)
    for measure, radii in (("certified", [0.0, 0.5]), ("radius", [])):
        as_recorded = per_image.values(run, measure, radii=radii)
        assert per_image.values(run, measure, radii=radii, draws=1000).equals(as_recorded)
        every = thinning.expected(run, 1000, partial(per_image.values, measure=measure, radii=radii))
        assert np.allclose(every, as_recorded, atol=1e-12) and list(every.index) == list(as_recorded.index)
    assert thinning.reach(run, 1000) == thinning.reach(run, None) > thinning.reach(run, 100)


def test_what_cannot_be_thinned(tmp_path):
    run, cascade = make_run(tmp_path / "a", [990, None]), make_cascade(tmp_path / "b", [[900]])
    with pytest.raises(DrbenchError, match="at least 2000 draws"):
        thinning.at(run, 2000)
    with pytest.raises(DrbenchError, match="at one noise level"):
        thinning.at(cascade, 10)
    engine = run.header["engine"] | {"options": {"bound": "randomized"}}
    assert thinning.can_thin(run) and not thinning.can_thin(cascade)
    assert not thinning.can_thin(replace(run, header=run.header | {"engine": engine}))
