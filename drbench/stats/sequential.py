"""Sequential tests of a vote share: valid whenever they are looked at. scipy only.

An e-process is a non-negative process whose mean is at most 1 under its null hypothesis at every stopping time; so the
chance that it ever reaches 1/a is at most a (Ville's inequality), and it may be looked at as often as one likes. The
processes here mix the likelihood ratio over Beta(1/2, 1/2), cut at the tested share (the untruncated mixture is the
betting martingale of Voracek 2024, "Treatment of statistical estimation problems in randomized smoothing", Alg. 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from scipy import special

from drbench.errors import DrbenchError


def log_e_above(votes: int, draws: int, share: float) -> float:
    """ln of the e-process against "the true share is at most `share`", after `votes` of `draws` draws.

    Mean <= 1 for every true share <= `share`: with q >= share >= p, one step has the mean
    p q / share + (1 - p)(1 - q) / (1 - share) <= 1.
    """
    if not (0 <= votes <= draws and 0 < share < 1):
        raise DrbenchError(f"expected 0 <= votes <= draws and a share in (0, 1), got {votes}, {draws}, {share}")
    hits, misses = votes + 0.5, draws - votes + 0.5
    mixture = special.betaln(hits, misses) - special.betaln(0.5, 0.5)
    mass = _log_tail(hits, misses, share) - _log_tail(0.5, 0.5, share)
    likelihood = special.xlogy(votes, share) + special.xlog1py(draws - votes, -share)
    return float(mixture + mass - likelihood)


def _log_tail(hits: float, misses: float, share: float) -> float:
    """ln P(Beta(hits, misses) > share); also where the probability itself underflows."""
    tail = special.betaincc(hits, misses, share)
    if tail > 1e-280:
        return math.log(tail)
    # Far out, the tail is its leading term: density at the cut over the slope of its logarithm.
    slope = abs((hits - 1) / share - (misses - 1) / (1 - share))
    density = (hits - 1) * math.log(share) + (misses - 1) * math.log1p(-share) - special.betaln(hits, misses)
    return float(density - math.log(slope))


def share_above(votes: int, draws: int, alpha: float) -> float:
    """Lower limit of the true share that may be looked at after every draw: P(ever above it) <= alpha.

    The largest share s such that every share up to s is refuted at level alpha. 0 if none is.
    """
    if votes == 0:
        return 0.0
    needed = -math.log(alpha)

    def excess(share: float) -> float:
        return log_e_above(votes, draws, share) - needed

    # Below the observed share the process falls in the tested share: the limit is its only crossing.
    top = min(votes / draws, 1 - 1e-15)
    low = 1e-12
    if excess(low) < 0:
        return 0.0
    return top if excess(top) >= 0 else root(excess, low, top, xtol=1e-15)


def root(function: Callable[[float], float], low: float, high: float, **precision: float) -> float:
    """Where a function changes its sign between two numbers, by Brent's method."""
    from scipy.optimize import brentq  # half a second to import, and most commands never ask

    return float(brentq(function, low, high, **precision))


def checkpoints(most: int, block: int = 100, growth: float = 1.1) -> list[int]:
    """Numbers of draws at which decisions are taken: multiples of `block`, about `growth` apart, the last is `most`."""
    found = [min(block, most)]
    while found[-1] < most:
        step = max(block, round(found[-1] * (growth - 1) / block) * block)
        found.append(min(found[-1] + step, most))
    return found


def union_level(alpha: float, draws: int, points: Sequence[int]) -> float:
    """Level of a fixed-size test at checkpoint number k = 1, 2, ...: 5 alpha / ((k + 4) (k + 5)), in sum alpha.

    So all of them hold together (Voracek 2024, Alg. 1 and App. C.2). Tests are taken at checkpoints only.
    """
    if draws not in points:
        raise DrbenchError(f"expected a number of draws at which the sequence is looked at, got {draws}")
    number = points.index(draws) + 1
    return 5 * alpha / ((number + 4) * (number + 5))
