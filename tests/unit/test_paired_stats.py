"""Paired statistics and thinned votes against enumeration and known distributions."""

import itertools

import numpy as np
import pytest

from drbench import stats
from drbench.comparisons import paired_stats, thinning
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


def test_thinned_votes_are_a_random_subset(tmp_path):
    """Mean and variance of the kept votes are those of the hypergeometric distribution."""
    n, k, fewer, images = 1000, 700, 200, 500
    run = make_run(tmp_path / "a", [k] * images, n=n)
    part = thinning.thinned(run, fewer)
    kept = np.array([row.evidence.stages[0].votes.get(1, 0) for row in part.rows.values()])
    assert part.header["engine"]["n"] == fewer and run.header["engine"]["n"] == n
    assert {row.evidence.stages[0].n for row in part.rows.values()} == {fewer}
    variance = fewer * 0.7 * 0.3 * (n - fewer) / (n - 1)
    assert kept.mean() == pytest.approx(fewer * 0.7, abs=4 * np.sqrt(variance / images))
    assert kept.var() == pytest.approx(variance, rel=0.25)
    again = thinning.thinned(run, fewer)
    assert again.rows == part.rows and thinning.thinned(run, n) is run


def test_what_cannot_be_thinned(tmp_path):
    run = make_run(tmp_path / "a", [990, None])
    assert thinning.thinned(run, 100).rows[1].evidence is None
    with pytest.raises(DrbenchError, match="at least 2000 draws"):
        thinning.thinned(run, 2000)
    with pytest.raises(DrbenchError, match="at one noise level"):
        thinning.thinned(make_cascade(tmp_path / "b", [[900]]), 10)
