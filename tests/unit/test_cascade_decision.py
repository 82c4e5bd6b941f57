"""The cascade's decision: reference values, brute force on exact probabilities, exact enumeration of its level."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Evidence, Stage
from drbench.stats import cascade

N, SCALES = 10_000, (0.25, 0.5, 1.0)
PASSED = {0: 4000, 1: 3000, 2: 2000, 3: 996, 4: 4}


def stage(sigma, votes, selected=0):
    return Stage(sigma, {selected: 100}, 100, votes, sum(votes.values()))


def decide(*stages, sigmas=SCALES, classes=5, alpha=0.001, clean=None, **options):
    return stats.decide("cascade", Evidence(stages, clean), alpha, sigmas=sigmas, classes=classes, **options)


# ---- reference values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hits, reason, radius", [(5200, None, 0.0113), (5100, "undecided", 0), (4900, "undecided", 0)])
def test_a_scale_halts_or_is_undecided(hits, reason, radius):
    found = decide(stage(1.0, {0: hits, 1: N - hits}), split="paper_code")
    assert found.detail["reason"] == reason and found.radius == pytest.approx(radius, abs=6e-5)
    assert found.prediction == (ABSTAIN if reason else 0)


def test_a_scale_surely_below_p0_passes_the_image_on():
    assert not stats.passes(stage(1.0, {0: 4900, 1: 5100}), 0.001, 0.5)
    assert stats.passes(stage(1.0, {0: 4800, 1: 5200}), 0.001, 0.5)
    assert stats.cp_upper(4800, N, 0.001) == pytest.approx(0.495498, abs=6e-7)
    assert stats.cp_upper(4900, N, 0.001) == pytest.approx(0.505501, abs=6e-7)
    assert stats.cp_lower(5200, N, 0.001) == pytest.approx(0.504502, abs=6e-7)


@pytest.mark.parametrize("level, sigma, radius", [(0.0005, 0.5, 0.6127), (0.001 / 3, 0.25, 0.3059)])
def test_radius_at_a_split_level(level, sigma, radius):
    assert stats.gaussian_radius(9000, N, level, sigma) == pytest.approx(radius, abs=6e-5)


@pytest.mark.parametrize(
    "counts, top, goodman, exact",
    [
        ([4000, 3000, 2000, 996, 4], 0, (0.317041, 0.4760), (0.317013, 0.4761)),
        ([4000, 3000, 2000, 996, 4], 1, (0.418064, 0.2068), (0.418078, 0.2068)),
        ([40, 25, 15, 10, 5, 3, 1, 1, 0, 0], 0, (0.436728, 0.1593), (0.441889, 0.1462)),
        ([40, 25, 15, 10, 5, 3, 1, 1, 0, 0], 1, (0.585471, -0.2159), (0.596859, -0.2452)),
    ],
)
def test_off_class_bounds(counts, top, goodman, exact):
    """The bound, and the radius that it leaves at sigma = 1."""
    early = stage(1.0, dict(enumerate(counts)))
    for bounds, (limit, radius) in (("goodman", goodman), ("exact", exact)):
        found = cascade._off_class(early, top, 0.0005, len(counts), bounds)
        assert found == pytest.approx(limit, abs=6e-7)
        assert -reference.norm.ppf(found) == pytest.approx(radius, abs=6e-5)


def test_rare_classes_are_pooled():
    assert cascade._pooled([3000, 2000, 996, 4]) == [3000, 2000, 1000]
    assert cascade._pooled([25, 15, 10, 5, 3, 1, 1, 0, 0]) == [25, 15, 10, 5, 5]
    assert cascade._pooled([4, 4, 2, 1]) == [11] and cascade._pooled([2]) == [2]


def test_few_groups_get_an_exact_bound_for_the_halting_class():
    """Where the official code bounds the class that an earlier scale selected."""
    early = stage(1.0, {0: 300, 1: 697, 2: 3}, selected=0)
    assert cascade._off_class(early, 0, 0.001, 3, "goodman") == pytest.approx(stats.cp_upper(700, 1000, 0.001))
    assert cascade._off_class(early, 1, 0.001, 3, "goodman") == pytest.approx(stats.cp_upper(303, 1000, 0.001))


@pytest.mark.parametrize(
    "halting, split, bounds, earlier",
    [(0, "paper_code", "goodman", 0.4760), (1, "paper_code", "goodman", 0.2068), (1, "paper_code", "exact", 0.2068)],
)
def test_an_earlier_scale_limits_the_radius(halting, split, bounds, earlier):
    last = stage(0.25, {halting: N}, halting)
    found = decide(stage(1.0, PASSED), last, sigmas=(0.25, 1.0), split=split, bounds=bounds)
    own = stats.gaussian_radius(N, N, 0.0005, 0.25)
    assert found.prediction == halting and found.detail["sigma"] == 0.25 and found.detail["p_hat"] == [0.4, 1.0]
    assert found.radius == pytest.approx(min(own, earlier), abs=6e-5) and found.detail["limit"] == "earlier scale"
    short = decide(stage(1.0, PASSED), stage(0.25, {0: 6000, 1: 4000}), sigmas=(0.25, 1.0))
    assert short.detail["limit"] == "own scale" and short.radius == stats.gaussian_radius(6000, N, 0.0005, 0.25)


def test_a_rival_that_may_halt_before_takes_the_radius_away():
    votes = stage(1.0, {0: 20, 1: 55, 2: 25}, selected=0), stage(0.25, {0: 100}, 0)
    for options in ({}, stats.PROTOCOLS["paper_code"]):
        found = decide(*votes, sigmas=(0.25, 1.0), classes=10, **options)
        assert (found.prediction, found.radius, found.detail["reason"]) == (ABSTAIN, 0.0, "no radius")


# ---- against the Gaussian certifier -------------------------------------------------------------------------------


@pytest.mark.parametrize("hits", [N, 9000, 5200, 5000, 100])
def test_one_scale_is_the_gaussian_certifier(hits):
    votes = stage(0.5, {0: hits, 1: N - hits})
    gaussian = stats.decide("gaussian", Evidence((votes,)), 0.001)
    for options in ({}, stats.PROTOCOLS["paper_code"]):
        cascade = decide(votes, sigmas=(0.5,), **options)
        assert (cascade.prediction, cascade.radius) == (gaussian.prediction, gaussian.radius)  # to the last bit


def test_halting_at_the_first_scale_is_the_gaussian_certificate_there():
    votes = stage(1.0, {0: 9000, 1: 1000})
    gaussian = stats.decide("gaussian", Evidence((votes,)), 0.001).radius
    assert decide(votes, **stats.PROTOCOLS["paper_code"]).radius == gaussian
    assert (
        decide(votes).radius == stats.gaussian_radius(9000, N, 0.001 / 3, 1.0) < gaussian < 1.01 * decide(votes).radius
    )


def test_all_scales_share_alpha_also_those_that_were_not_reached():
    votes = stage(1.0, {0: 9000, 1: 1000})
    radii = [decide(votes, sigmas=sigmas).radius for sigmas in ((1.0,), (0.5, 1.0), SCALES)]
    assert radii == [stats.gaussian_radius(9000, N, 0.001 / k, 1.0) for k in (1, 2, 3)]


def test_ceiling_is_that_of_unanimous_votes_at_the_first_scale():
    engine = {"certifier": "cascade", "alpha": 0.001, "n0": 100, "n": N, "sigma": 1.0,
              "options": {"sigmas": SCALES, "classes": 5, "p0": 0.5, **stats.PROTOCOLS["sound"]}}  # fmt: skip
    assert stats.levels(engine) == [1.0, 0.5, 0.25]
    assert stats.reach(engine) == stats.ceiling_radius(N, 0.001 / 3, 1.0)


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"p0": 0.49}, "below 1/2 two classes"),
        ({"p0": 0.6, "split": "paper_code"}, "p0 = 1/2 only"),
        ({"p0": 0.6, "bounds": "goodman"}, "p0 = 1/2 only"),
        ({"split": "halves"}, "expected split 'bonferroni'"),
        ({"sigmas": []}, "expected the scales of a cascade"),
        ({"sigmas": [0.0, 1.0]}, "expected the scales of a cascade"),
        ({"sigmas": [0.5, 2.0]}, "expects evidence of the scales"),
        ({"classes": 1}, "at least 2 classes"),
    ],
)
def test_refused(options, message):
    with pytest.raises(DrbenchError, match=message):
        decide(stage(1.0, {0: N}), **options)


def test_evidence_that_ends_too_early_is_refused():
    with pytest.raises(DrbenchError, match="no evidence of sigma"):
        decide(stage(1.0, PASSED))
    found = decide(*(stage(sigma, PASSED) for sigma in (1.0, 0.5, 0.25)))
    assert (found.prediction, found.detail["reason"]) == (ABSTAIN, "none halted")


# ---- truth --------------------------------------------------------------------------------------------------------

# A classifier on the line: pieces between the edges, each of a class.
STRIPES = [([0.0, 3.0], [0, 1, 0]), ([0.0, 1.2], [0, 1, 2]), ([-1.0, 0.0, 0.7, 1.1, 2.5], [2, 0, 1, 0, 2, 1])]


def probabilities(stripes, x, sigma):
    edges, owners = stripes
    steps = np.diff(reference.norm.cdf((np.array([-math.inf, *edges, math.inf]) - x) / sigma))
    return np.bincount(owners, steps, minlength=3)


def answer(stripes, x, scales, p0):
    for sigma in scales:
        p = probabilities(stripes, x, sigma)
        if p.max() > p0:
            return int(p.argmax())
    return ABSTAIN


@pytest.mark.parametrize("p0", [0.5, 0.6])
def test_nothing_inside_the_radius_changes_the_answer(p0):
    """Votes in exact proportion to the probabilities: the radius falls short of the true one by the bounds alone."""
    scales, n, halted, beyond = (1.0, 0.5, 0.25), 10**8, set(), 0
    for stripes, x in itertools.product(STRIPES, np.linspace(-2.03, 3.01, 32)):
        stages = []
        for sigma in scales:
            votes = np.floor(n * probabilities(stripes, x, sigma)).astype(int)
            votes[0] += n - votes.sum()
            top = int(votes.argmax())
            stages.append(Stage(sigma, {top: 1}, 1, {c: int(k) for c, k in enumerate(votes)}, n))
        found = decide(*stages, sigmas=scales, classes=3, p0=p0)
        if found.prediction == ABSTAIN:
            continue
        halted.add(found.detail["sigma"])
        inside = np.linspace(-1, 1, 41) * found.radius
        assert {answer(stripes, x + d, scales, p0) for d in inside} == {found.prediction}
        outside = np.linspace(-1, 1, 41) * found.detail["radius_own"]
        beyond += {answer(stripes, x + d, scales, p0) for d in outside} != {found.prediction}
    assert halted == set(scales)
    assert beyond >= 3 or p0 > 0.5, (
        "the radius of the halting scale alone is too large for some images; else this test is idle"
    )


def exceeds(alpha, n, pair, split, first_level):
    """P(the certificate claims more than exact probabilities allow): 2 scales, 2 classes, all outcomes of the draws."""
    sigmas, outcomes = (1.0, 0.25), np.arange(n + 1)
    mass = [reference.binom.pmf(outcomes, n, p) for p in pair]  # votes for class 1
    total = 0.0
    for chosen in itertools.product((0, 1), repeat=2):
        weight = math.prod(p if c else 1 - p for c, p in zip(chosen, pair, strict=True))
        for first in outcomes:
            early = stage(1.0, {0: int(n - first), 1: int(first)}, chosen[0])
            seconds = outcomes if stats.passes(early, first_level, 0.5) else (0,)
            for second in seconds:
                late = stage(0.25, {0: int(n - second), 1: int(second)}, chosen[1])
                found = decide(early, late, sigmas=sigmas, classes=2, alpha=alpha, split=split)
                if found.prediction == ABSTAIN:
                    continue
                own = pair if found.prediction else 1 - np.array(pair)
                z = reference.norm.ppf(own)  # with two classes, the rival's quantile is minus this one
                true = z[0] if found.detail["sigma"] == 1.0 else min(0.25 * z[1], z[0])
                if found.radius > true:
                    total += weight * mass[0][first] * (mass[1][second] if len(seconds) > 1 else 1.0)
    return total


@pytest.mark.parametrize("split, first_level, worst", [("bonferroni", 0.05, 0.0430), ("paper_code", 0.1, 0.1041)])
def test_level_by_exact_enumeration(split, first_level, worst):
    """The split over a fixed number of scales keeps alpha; that of the paper's code does not."""
    pairs = itertools.product((0.3, 0.42, 0.5, 0.55, 0.999), repeat=2)
    found = max(exceeds(0.1, 14, pair, split, first_level) for pair in pairs)
    assert found == pytest.approx(worst, abs=6e-5) and (found <= 0.1) == (split == "bonferroni")


# ---- answers without a certificate --------------------------------------------------------------------------------


def test_uncertified_answers():
    clean = (0.0, 1.0, 5.0)
    halted, low = stage(1.0, {0: N}), [stage(sigma, {0: 4000, 1: 3000, 2: 3000}) for sigma in (1.0, 0.5, 0.25)]
    for stages, fallback, mixed in (
        ((halted,), 0, 0),  # log(0.9 + 0.1 / 3) - log(0.1 / 3) = 3.33 < 5: the clean logits win
        (low, 2, 2),
    ):
        found = decide(*stages, classes=3, clean=clean)
        answers = stats.empirical(Evidence(tuple(stages), clean), found)
        assert (answers.clean, answers.fallback) == (2, fallback)
        assert answers.mixed == (2 if stages is not low else mixed)
    near = (0.0, 1.0, 3.0)
    found = decide(halted, classes=3, clean=near)
    assert stats.empirical(Evidence((halted,), near), found).mixed == 0
    assert stats.empirical(Evidence((halted,)), found) is None
