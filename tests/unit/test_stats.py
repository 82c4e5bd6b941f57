"""Bounds, radii and curves against closed forms, exact enumeration and reference values."""

import numpy as np
import pytest
from scipy import stats as reference

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Evidence, Stage

ALPHA = 0.001


@pytest.mark.parametrize(
    "k, n, lower, radius, upper",
    [
        (99, 100, 0.91137311, 1.349259, 0.99999000),
        (100, 100, 0.93325430, 1.500475, 1),
        (990, 1000, 0.97603619, 1.978010, 0.99703050),
        (1000, 1000, 0.99311605, 2.463263, 1),
        (9900, 10000, 0.98653116, 2.212420, 0.99279809),
        (10000, 10000, 0.99930946, 3.198578, 1),
        (50500, 100000, 0.50010895, 0.000273, 0.50989038),
        (60000, 100000, 0.59520105, 0.240945, 0.60478553),
        (99000, 100000, 0.98898934, 2.290000, 0.99094453),
        (99999, 100000, 0.99990767, 3.739127, 0.99999999),
        (100000, 100000, 0.99993092, 3.811457, 1),
    ],
)
def test_reference_values(k, n, lower, radius, upper):
    assert stats.cp_lower(k, n, ALPHA) == pytest.approx(lower, abs=6e-9)
    assert stats.cp_upper(k, n, ALPHA) == pytest.approx(upper, abs=6e-9)
    assert stats.gaussian_radius(k, n, ALPHA, 1.0) == pytest.approx(radius, abs=6e-7)


@pytest.mark.parametrize("n", [1, 2, 20, 1000, 100_000])
def test_bounds_equal_scipy(n):
    for k in {0, 1, n // 3, n // 2, n - 1, n}:
        for side, bound in (("greater", stats.cp_lower), ("less", stats.cp_upper)):
            interval = reference.binomtest(k, n, alternative=side).proportion_ci(1 - ALPHA)
            expected = interval.low if side == "greater" else interval.high
            assert bound(k, n, ALPHA) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_unanimous_votes_have_a_closed_form():
    for n in (10, 100, 1000, 10_000, 100_000):
        assert stats.cp_lower(n, n, ALPHA) == pytest.approx(ALPHA ** (1 / n), rel=1e-12)


@pytest.mark.parametrize("alpha, worst", [(0.05, 0.04992), (0.001, 0.000995)])
def test_level_by_exact_enumeration(alpha, worst):
    n = 20
    bounds = np.array([stats.cp_lower(k, n, alpha) for k in range(n + 1)])
    grid = np.arange(1, 1000) / 1000
    missed = [reference.binom.pmf(np.arange(n + 1), n, p)[bounds > p].sum() for p in grid]
    assert max(missed) <= alpha
    assert max(missed) == pytest.approx(worst, abs=6e-6 if alpha == 0.05 else 6e-7)


@pytest.mark.parametrize("n, p", [(12, 0.45), (12, 0.5), (30, 0.5), (30, 0.62), (30, 0.8)])
def test_false_certificates_by_exact_enumeration(n, p):
    """Selection included: P(certificate claims more than the truth) over all outcomes of a two-class vote."""
    alpha, n0 = 0.05, 5
    truth = max(0.0, float(reference.norm.ppf(p)))  # largest true radius for class 1, sigma = 1
    false = 0.0
    for k0 in range(n0 + 1):
        for k in range(n + 1):
            evidence = Evidence((Stage(1.0, {0: n0 - k0, 1: k0}, n0, {0: n - k, 1: k}, n),))
            found = stats.decide("gaussian", evidence, alpha)
            # class 0 has probability 1 - p, so its true radius is 0 unless p < 1/2
            true_radius = truth if found.prediction == 1 else max(0.0, float(reference.norm.ppf(1 - p)))
            if found.prediction != ABSTAIN and found.radius > true_radius:
                false += reference.binom.pmf(k0, n0, p) * reference.binom.pmf(k, n, p)
    assert 0 <= false <= alpha


def test_smallest_votes():
    assert [stats.smallest_votes(n, ALPHA) for n in (9, 10, 100, 1000, 10_000, 100_000)] == [
        None,
        10,
        66,
        550,
        5156,
        50490,
    ]
    assert [stats.smallest_votes(10_000, ALPHA, r) for r in (1, 2, 3)] == [8526, 9818, 9997]
    assert [stats.smallest_votes(100_000, ALPHA, r) for r in (1, 2, 3)] == [84492, 97870, 99900]
    for r, needed in ((1, 40), (2, 301), (3, 5114)):
        assert stats.ceiling_radius(needed, ALPHA, 1.0) >= r > stats.ceiling_radius(needed - 1, ALPHA, 1.0)


def test_budget_that_certifies_nothing_is_refused():
    stats.check_budget(10, ALPHA)
    with pytest.raises(DrbenchError, match=r"n=9 draws can certify nothing .* expected n >= 10"):
        stats.check_budget(9, ALPHA)


def test_multiclass_radius():
    n = 100_000
    assert stats.multiclass_radius(45_000, 30_000, n, ALPHA, 1.0) == pytest.approx(0.18596, abs=6e-6)
    assert stats.gaussian_radius(45_000, n, ALPHA, 1.0) == 0
    assert stats.gaussian_radius(80_000, n, ALPHA, 1.0) == pytest.approx(0.82765, abs=6e-6)
    assert stats.multiclass_radius(80_000, 5_000, n, ALPHA, 1.0) == pytest.approx(1.22482, abs=6e-6)
    assert stats.multiclass_radius(30_000, 45_000, n, ALPHA, 1.0) == 0


def test_sign_test_and_predict():
    for k, n, p in ((510, 1000, 0.54797), (550, 1000, 0.00173054), (60, 100, 0.0568879), (70, 100, 7.85014e-5)):
        assert stats.sign_test(k, n) == pytest.approx(p, rel=1e-5)
        assert stats.sign_test(n - k, n) == pytest.approx(reference.binomtest(k, n).pvalue, rel=1e-9)
    assert stats.predict({3: 10}, ALPHA) == ABSTAIN  # p(10:0) = 0.00195
    assert stats.predict({3: 11}, ALPHA) == 3  # p(11:0) = 0.000977
    assert stats.predict({3: 50, 5: 50}, ALPHA) == ABSTAIN
    assert stats.predict({3: 600, 5: 300, 7: 100}, ALPHA) == 3


def test_decision():
    stage = Stage(0.5, {2: 60, 7: 40}, 100, {2: 990, 7: 10}, 1000)
    found = stats.decide("gaussian", Evidence((stage,)), ALPHA)
    assert found.prediction == 2
    assert found.radius == pytest.approx(0.5 * 1.978010, abs=1e-6)
    assert found.detail["p_lower"] == pytest.approx(0.97603619, abs=1e-8)
    # ties in the selection go to the lowest class, whatever the estimation votes say
    tied = Stage(0.5, {7: 50, 2: 50}, 100, {7: 1000}, 1000)
    assert stats.decide("gaussian", Evidence((tied,)), ALPHA).detail["class"] == 2
    assert stats.decide("gaussian", Evidence((tied,)), ALPHA).prediction == ABSTAIN
    with pytest.raises(DrbenchError, match="unknown certifier"):
        stats.decide("gausian", Evidence((stage,)), ALPHA)


@pytest.mark.parametrize("votes", [{1: 999}, {1: 1001}, {1: 1010, 2: -10}])
def test_votes_that_do_not_sum_to_n_are_refused(votes):
    with pytest.raises(DrbenchError, match="never scaled"):
        Stage(0.5, {1: 100}, 100, votes, 1000)


def test_linear_classifier_end_to_end():
    """f(x) = sign(w x): the true radius is the margin m; certified radii stay below it and approach it."""
    m, sigma, n = 0.3, 0.25, 100_000
    hits = np.random.default_rng(0).binomial(n, reference.norm.cdf(m / sigma), size=300)
    radii = np.array([stats.gaussian_radius(int(k), n, ALPHA, sigma) for k in hits])
    assert (radii > m).sum() <= reference.binom.ppf(0.999, 300, ALPHA)
    assert radii.mean() == pytest.approx(0.2959, abs=3e-4)


def test_curve():
    correct, radius = [True, True, False, True], [0.5, 0.25, 0.9, 0.0]
    curve = stats.certified_accuracy(correct, radius, [0.0, 0.25, 0.2500001, 0.5, 0.75])
    assert curve.accuracy.tolist() == [0.75, 0.5, 0.25, 0.25, 0.0]
    for hits, low, high in zip((3, 2, 1, 1, 0), curve.low, curve.high, strict=True):
        expected = reference.binomtest(hits, 4).proportion_ci(0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_area_under_the_curve_is_acr():
    rng = np.random.default_rng(1)
    correct, radius = rng.random(50) < 0.7, rng.random(50)
    corners = np.unique(np.concatenate([[0.0], radius]))
    heights = stats.certified_accuracy(correct, radius, corners[1:]).accuracy
    assert np.sum(np.diff(corners) * heights) == pytest.approx(stats.average_certified_radius(correct, radius))


def test_intervals():
    assert stats.interval(250, 500) == pytest.approx(tuple(reference.binomtest(250, 500).proportion_ci(0.95)), abs=1e-9)
    wilson = reference.binomtest(3, 40).proportion_ci(0.95, method="wilson")
    assert stats.interval(3, 40, method="wilson") == pytest.approx((wilson.low, wilson.high), abs=1e-9)
    low, high = stats.bootstrap_mean(np.arange(100.0))
    # normal approximation: 49.5 +- 1.96 * 28.87 / 10; the percentile bootstrap agrees to Monte-Carlo error
    assert (low, high) == pytest.approx((43.84, 55.16), abs=0.6)
    with pytest.raises(DrbenchError, match="expected 0 <= k <= n"):
        stats.interval(5, 4)


def test_share_interval_of_zeros_and_ones_is_exact():
    assert stats.share_interval([1.0] * 18 + [0.0] * 7) == stats.interval(18, 25)
    # what is next to zeros and ones has nearly their interval, up to Monte-Carlo error
    assert stats.share_interval([1.0] * 18 + [1e-6] * 7) == pytest.approx(stats.interval(18, 25), abs=0.005)


@pytest.mark.parametrize("value, images", [(0.5, 10), (0.9, 40)])
def test_share_interval_of_equal_numbers(value, images):
    """The weight of the images is Beta(images, 1), whose quantile is q^(1 / images)."""
    weight = 0.025 ** (1 / images)
    expected = value * weight, 1 - (1 - value) * weight
    assert stats.share_interval([value] * images) == pytest.approx(expected, abs=0.003)


def test_share_interval_covers_where_the_bootstrap_does_not():
    """50 images of which one in thirty is ever right: percentile intervals often end at 0, below the mean."""
    rng, hits = np.random.default_rng(0), np.zeros(2)
    for _ in range(300):
        values = np.where(rng.random(50) < 1 / 30, rng.uniform(0.2, 1.0, 50), 0.0)
        found = stats.share_interval(values, resamples=2000), stats.bootstrap_mean(values)
        hits += [low <= 0.6 / 30 <= high for low, high in found]
    assert hits[0] / 300 >= 0.95 and hits[1] / 300 <= 0.85


def test_share_interval_is_of_shares():
    with pytest.raises(DrbenchError, match=r"expected numbers in \[0, 1\], got -1 to 0.5"):
        stats.share_interval([0.5, -1.0])


# ---- randomized limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, alpha", [(8, 0.05), (30, 0.01)])
def test_randomized_limits_miss_with_probability_alpha_exactly(n, alpha):
    """P(limit < p) over counts and uniform numbers, for p where many counts matter and where one does."""
    uniforms = (np.arange(400) + 0.5) / 400
    limits = np.array([[stats.randomized_upper(k, n, alpha, u) for u in uniforms] for k in range(n + 1)])
    assert (np.diff(limits, axis=1) >= 0).all()
    for p in (0.05, 0.3, 0.5, 0.83):
        missed = reference.binom.pmf(np.arange(n + 1), n, p) @ (limits < p).mean(axis=1)
        assert missed == pytest.approx(alpha, abs=1.01 * reference.binom.pmf(np.arange(n + 1), n, p).max() / 400)


def test_randomized_limits_lie_between_those_of_neighbours():
    for k, n in ((0, 100), (7, 100), (99, 100), (3, 100_000)):
        assert stats.randomized_upper(k, n, ALPHA, 1.0) == pytest.approx(stats.cp_upper(k, n, ALPHA), rel=1e-9)
        least = stats.randomized_upper(k, n, ALPHA, 1e-12)
        assert least == pytest.approx(stats.cp_upper(k - 1, n, ALPHA) if k else 0.0, rel=1e-6)
    assert stats.randomized_upper(0, 100, ALPHA, 0.5) == pytest.approx(1 - (ALPHA / 0.5) ** (1 / 100), rel=1e-12)
    with pytest.raises(DrbenchError, match="uniform number in"):
        stats.randomized_upper(1, 10, ALPHA, 1.5)


def test_randomized_decision():
    stage = Stage(0.5, {1: 10}, 10, {1: 990, 0: 10}, 1000)
    plain = stats.decide_gaussian(Evidence((stage,)), ALPHA).radius
    radii = [
        stats.decide_gaussian(Evidence((stage,), uniform=u), ALPHA, bound="randomized").radius for u in (1.0, 0.5, 1e-9)
    ]
    assert radii[0] == pytest.approx(plain) and plain < radii[1] < radii[2] < 1.1 * plain
    all_agree = Evidence((Stage(0.5, {1: 10}, 10, {1: 1000}, 1000),), uniform=ALPHA / 2)
    assert 4 < stats.decide_gaussian(all_agree, ALPHA, bound="randomized").radius < 4.2  # no ceiling, but no infinity
    with pytest.raises(DrbenchError, match="uniform number of the image"):
        stats.decide_gaussian(Evidence((stage,)), ALPHA, bound="randomized")
    assert Evidence.from_json(all_agree.to_json()) == all_agree


def test_a_class_named_in_advance_needs_no_selection():
    named = Evidence((Stage(0.5, {2: 0}, 0, {1: 990, 2: 10}, 1000),))
    assert stats.decide("gaussian", named, ALPHA).detail["class"] == 2
    assert stats.decide("gaussian", named, ALPHA).prediction == ABSTAIN
    # Draws without a class are no votes for one, whatever their number.
    unsure = Evidence((Stage(0.5, {ABSTAIN: 9, 3: 1}, 10, {ABSTAIN: 600, 3: 400}, 1000),))
    assert stats.decide("gaussian", unsure, ALPHA).detail["class"] == 3
    assert stats.decide("gaussian", unsure, ALPHA).prediction == ABSTAIN
