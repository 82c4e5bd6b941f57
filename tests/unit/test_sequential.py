"""Anytime-valid limits against the sheet's values, exact enumeration and long simulated streams."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import Evidence, Stage
from drbench.stats import noises
from drbench.stats.sequential import checkpoints, log_e_above, share_above, union_level
from drbench.stats.stopping import Table, _chance, rule, simulate


@pytest.mark.parametrize(
    ("votes", "draws", "radius", "value"),
    [(100, 100, 1, 15.743140), (950, 1000, 1, 55.315262), (990, 1000, 2, 3.267125)],
)
def test_known_values(votes, draws, radius, value):
    assert log_e_above(votes, draws, reference.norm.cdf(radius)) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.84, 0.99])
def test_mean_is_at_most_one_under_every_null(share):
    """Exactly, over all outcomes of n draws: 1 at the tested share, less below it."""
    n = 60
    e_values = np.exp([log_e_above(k, n, share) for k in range(n + 1)])
    at = e_values @ reference.binom.pmf(np.arange(n + 1), n, share)
    assert at <= 1 + 1e-12
    for smaller in (0.5 * share, 0.9 * share, 0.99 * share):
        assert e_values @ reference.binom.pmf(np.arange(n + 1), n, smaller) <= at + 1e-12


def ever_above(share: float, horizon: int, alpha: float) -> float:
    """P(the process reaches 1 / alpha within `horizon` draws), exactly, when the true share is the tested one."""
    alive, hit = np.array([1.0]), 0.0  # probability of each number of votes, without a crossing so far
    for draws in range(1, horizon + 1):
        alive = np.concatenate((alive * (1 - share), [0])) + np.concatenate(([0], alive * share))
        crossed = np.array([log_e_above(k, draws, share) >= -math.log(alpha) for k in range(draws + 1)])
        hit += alive[crossed].sum()
        alive[crossed] = 0
    return hit


@pytest.mark.parametrize(("share", "alpha"), [(0.5, 0.05), (0.84, 0.05)])
def test_level_by_enumeration(share, alpha):
    """Looked at after each of 100 draws: never above alpha, and not uselessly far below."""
    assert alpha / 20 < ever_above(share, 100, alpha) <= alpha


def test_limits_cross_where_the_process_does():
    for votes, draws in ((950, 1000), (60, 100), (99_900, 100_000), (100, 100), (1000, 1000)):
        limit = share_above(votes, draws, 0.001)
        assert log_e_above(votes, draws, limit) == pytest.approx(math.log(1000), abs=1e-3)
        assert limit < stats.cp_lower(votes, draws, 0.001)  # the price of looking at any time
        below = [log_e_above(votes, draws, limit * share) for share in (0.999, 0.9, 0.5, 0.1)]
        assert min(below) >= math.log(1000)  # everything below the limit is refuted too
    assert share_above(0, 10, 0.001) == 0 and share_above(5, 10, 0.001) > 0


def test_far_tails_are_finite():
    for votes, draws, share in ((10, 1000, 0.9), (100, 100_000, 0.9), (99_990, 100_000, 0.5)):
        assert np.isfinite(log_e_above(votes, draws, share))
    with pytest.raises(DrbenchError, match="share in"):
        log_e_above(1, 2, 1.0)


def test_checkpoints_are_multiples_of_a_block_and_end_at_the_budget():
    points = checkpoints(100_000)
    assert points[:11] == [*range(100, 1200, 100)] and points[-1] == 100_000
    assert all(point % 100 == 0 for point in points) and len(points) < 70
    assert checkpoints(50) == [50] and checkpoints(250)[-1] == 250
    assert max(b / a for a, b in itertools.pairwise(points[10:])) < 1.16


def test_levels_of_the_union_bound_sum_to_alpha():
    points = checkpoints(10**9, 1)
    levels = [union_level(0.001, point, points) for point in points]
    assert levels[0] == pytest.approx(0.001 / 6) and 0.0009 < sum(levels) < 0.001
    with pytest.raises(DrbenchError, match="at which the sequence is looked at"):
        union_level(0.001, 101, checkpoints(1000))


@pytest.mark.parametrize("sequence", ["e-process", "union"])
@pytest.mark.parametrize("mode", ["sequential", "hybrid", "curtailed"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.84])
def test_claims_at_any_checkpoint_by_enumeration(mode, sequence, share):
    """P(the limit exceeds the true share at some checkpoint), over all paths: so for every stopping rule."""
    budget, block, alpha = 60, 5, 0.05
    alive, hit, before = np.array([1.0]), 0.0, 0
    for draws in checkpoints(budget, block):
        step = reference.binom.pmf(np.arange(draws - before + 1), draws - before, share)
        alive, before = np.convolve(alive, step), draws
        limits = np.array(
            [stats.vote_share(mode, k, draws, budget, alpha, sequence, block)[0] for k in range(draws + 1)]
        )
        hit += alive[limits > share].sum()
        alive[limits > share] = 0
    assert hit <= alpha
    assert hit > alpha / 50  # and not for free


RADII = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


def test_curtailed_decides_as_fixed_does():
    """On every path: votes in any order, stopped early, certify the same targets as all draws would."""
    budget, alpha, rng = 1000, 0.001, np.random.default_rng(0)
    stop = rule("curtailed", RADII, budget, alpha)
    saved = []
    for share in (0.3, 0.5, 0.55, 0.84, 0.95, 0.97, 0.98, 0.999, 1.0):
        for _ in range(40):
            stream = rng.random(budget) < share
            point = next(i for i, draws in enumerate(stop.points) if stop.stops(int(stream[:draws].sum()), i))
            drawn = int(stop.points[point])
            early = stats.gaussian_radius(int(stream[:drawn].sum()), budget, alpha, 1.0)
            late = stats.gaussian_radius(int(stream.sum()), budget, alpha, 1.0)
            for radius in RADII:
                reached = [r > 0 if radius == 0 else r >= radius for r in (early, late)]
                assert reached[0] == reached[1]
            saved.append(budget - drawn)
    assert np.mean(saved[:40]) > 250  # hopeless images stop early: 549 votes certify, and 30 % vote


def test_sequential_rule_is_where_the_limits_pass_the_targets():
    stop = rule("sequential", (0.0, 1.0, 2.0), 5000, 0.001, give_up=0.01)
    for target, share in enumerate(reference.norm.cdf([0.0, 1.0, 2.0])):
        for point in (3, 12, len(stop.points) - 1):
            draws, votes = int(stop.points[point]), int(stop.reached[point, target])
            if votes <= draws:
                assert share_above(votes, draws, 0.001) >= share > share_above(votes - 1, draws, 0.001)


@pytest.mark.parametrize("mode", ["sequential", "hybrid"])
def test_hopeless_is_what_the_rest_of_the_budget_hardly_mends(mode):
    """Against the exact beta-binomial: the last votes given up have about the named chance, or less."""
    budget, radii, chance = 5000, (0.0, 1.0, 2.0), 0.01
    stop = rule(mode, radii, budget, 0.001, give_up=chance)
    tests = [stats.smallest_votes(budget, 0.9 * 0.001, radius) for radius in radii]
    final = np.minimum(stop.reached[-1], tests) if mode == "hybrid" else stop.reached[-1]
    assert (stop.hopeless[-1] == final - 1).all() and (stop.hopeless < stop.reached).all()
    for target, point in itertools.product(range(len(radii)), (5, 15, 25)):
        draws, votes = int(stop.points[point]), int(stop.hopeless[point, target])
        given = [reference.betabinom(budget - draws, v + 0.5, draws - v + 0.5) for v in (votes, votes + 3)]
        exact = [each.sf(final[target] - v - 1) for each, v in zip(given, (votes, votes + 3), strict=True)]
        assert exact[0] < 1.1 * chance and exact[1] > 0.3 * chance


def test_giving_up_costs_little_at_the_worst_share():
    """By the exact distribution over the checkpoints: at most one stream in twenty that all draws would certify."""
    budget, alpha, radius = 5000, 0.001, 1.0
    stop = rule("hybrid", (radius,), budget, alpha)
    needed = stats.smallest_votes(budget, 0.9 * alpha, radius)
    for share in np.linspace(0.84, 0.88, 9):
        alive, before, reached = np.array([1.0]), 0, 0.0
        for draws, most, fewest in zip(stop.points, stop.hopeless[:, 0], stop.reached[:, 0], strict=True):
            alive = np.convolve(alive, reference.binom.pmf(np.arange(draws - before + 1), draws - before, share))
            last = draws == budget
            fewest = min(fewest, needed) if last else fewest
            reached += alive[fewest:].sum()
            alive[fewest:] = 0
            alive[: most + 1] = 0
            before = draws
        without = reference.binom.sf(needed - 1, budget, share)
        assert without - reached < 0.05


@pytest.mark.parametrize("noise", ["uniform", "laplace"])
def test_rules_for_other_noises_are_at_their_own_shares(noise):
    stop = rule("sequential", (0.5,), 5000, 0.001, noise=noise)
    same = rule("sequential", (float(reference.norm.ppf(1 - noises.NOISES[noise].tail(0.5))),), 5000, 0.001)
    assert abs(stop.reached - same.reached).max() <= 1 and abs(stop.hopeless - same.hopeless).max() <= 1


def test_what_may_have_gone_on():
    """Votes after which no path can have left a target open at the checkpoint before are found."""
    stop = rule("curtailed", (0.0,), 1000, 0.001)  # 550 votes certify
    assert stop.points[:7].tolist() == [100, 200, 300, 400, 500, 600, 700]
    assert not stop.may_pass(700, 6)  # all of 600 votes: settled there
    assert stop.may_pass(600, 6) and stop.may_pass(3, 0)
    assert not stop.may_pass(10, 6)  # at most 10 votes of 600: hopeless there


def test_a_simulated_stream_stops_where_the_rule_does():
    stop = rule("sequential", (0.0, 1.0), 5000, 0.001)
    for share in (0.1, 0.6, 0.9, 1.0):
        votes, draws = simulate(stop, share, np.random.default_rng(0))
        assert stop.stops(votes, stop.points.tolist().index(draws))
    assert simulate(stop, 1.0, np.random.default_rng(0))[1] == 100


def test_a_table_stops_when_no_column_can_rise_by_more():
    stop = rule("sequential", (0.0, 1.0), 5000, 0.001)
    assert stop.final.tolist() == [stats.smallest_votes(5000, 0.001, r) for r in (0.0, 1.0)]
    likely, settled = (60, 0), (100, 0)  # 60 of 100 votes: not yet above 1/2, but likely with 5000
    assert stop.open_targets(*likely).tolist() == [True, False] and not stop.open_targets(*settled).any()
    assert Table(stop, 0.11, (), 20).enough([likely] * 2 + [settled] * 18)
    assert not Table(stop, 0.11, (), 20).enough([likely] * 3 + [settled] * 17)
    assert Table(stop, 0.0, (), 20).enough([settled] * 20)
    assert not Table(stop, None, (), 20).enough([settled] * 20)
    assert not Table(stop, 0.11, (), 20).enough([settled] * 19)  # one image is elsewhere
    assert Table(stop, 0.11, (), 20).enough([settled] * 12, ended=8)
    # Images of an earlier session: one is open for good, and the table was drawn on to the second checkpoint.
    done = [Evidence((Stage(1.0, {1: 5}, 5, {1: 118, 0: 82}, 200),)), None]
    assert not Table(stop, 0.11, done, 20).enough([likely] + [settled] * 17)
    assert Table(stop, 0.11, done, 20).enough([(118, 1)] + [(200, 1)] * 17)
    assert not Table(stop, 0.11, done, 20).enough([(118, 1)] * 2 + [(200, 1)] * 16)


@pytest.mark.parametrize(("votes", "draws"), [(60, 100), (50, 100), (420, 500), (500, 600), (2400, 5000)])
def test_the_forecast_is_near_the_beta_binomial(votes, draws):
    stop = rule("hybrid", (0.0, 1.0), 5000, 0.001)
    exact = reference.betabinom.sf(stop.final - votes - 1, 5000 - draws, votes + 0.5, draws - votes + 0.5)
    assert _chance(np.array(votes), np.array(draws), stop.final, 5000) == pytest.approx(exact, abs=0.02)


@pytest.mark.slow
def test_false_certifications_at_the_boundary():
    """100,000 streams whose true share is the tested one, looked at on the checkpoints of a budget of 10,000."""
    share, alpha, streams, rng = reference.norm.cdf(1.0), 0.001, 100_000, np.random.default_rng(0)
    stop = rule("sequential", (1.0,), 10_000, alpha)
    votes, before, hit = np.zeros(streams, np.int64), 0, np.zeros(streams, bool)
    for draws, reached in zip(stop.points, stop.reached[:, 0], strict=True):
        votes += rng.binomial(draws - before, share, streams)
        hit |= votes >= reached
        before = draws
    assert 0 < hit.sum() <= reference.binom.ppf(0.999, streams, alpha)
