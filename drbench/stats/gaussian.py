"""Certificates and answers from the votes at one noise level. Source: Cohen et al. 2019 (arXiv 1902.02918)."""

from __future__ import annotations

from collections.abc import Mapping

from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Certificate, Evidence
from drbench.stats import noises
from drbench.stats.binomial import cp_lower, cp_upper, randomized_upper, sign_test
from drbench.stats.radii import multiclass_radius
from drbench.stats.sequential import checkpoints, share_above, union_level

# Mode of drawing -> the share of alpha that is spent on looking at the votes before the budget ends.
MODES = {"fixed": 0.0, "curtailed": 0.0, "sequential": 1.0, "hybrid": 0.1}


def decide_gaussian(
    evidence: Evidence,
    alpha: float,
    *,
    mode: str = "fixed",
    budget: int | None = None,
    sequence: str = "e-process",
    block: int = 100,
    noise: str = "gaussian",
    bound: str = "clopper-pearson",
) -> Certificate:
    """Cohen's CERTIFY: class from the selection votes (ties: lowest class), bound from the estimation votes.

    Abstains unless p_lower > 1/2. `detail` holds p_lower and, in mode `fixed` under Gaussian noise, the multi-class
    radius of the same class (certified at alpha by itself: a further column, not a second claim to be combined with
    the first). Without selection draws the one class of `select` was named in advance.

    Parameters
    ----------
    mode : {"fixed", "curtailed", "sequential", "hybrid"}
        How many draws were made: a fixed number; of a fixed number those that could still change the outcome (the rest
        count as votes against the class); or as many as it took, at most `budget`. "sequential" bounds the share at
        any time, "hybrid" too, with a tenth of alpha, and with the rest by Clopper-Pearson where the whole budget was
        drawn; the better of the two holds by a union bound.
    budget : int, optional
        Most draws of an image; needed in every mode but "fixed".
    sequence : {"e-process", "union"}, block : int
        What bounds the share at any time: `sequential.share_above`, or Clopper-Pearson limits that share alpha over the
        checkpoints of `budget` and `block`.
    noise : {"gaussian", "uniform", "laplace"}
        Smoothing distribution: in which norm, and how far, a share certifies (`drbench.noises`).
    bound : {"clopper-pearson", "randomized"}
        In mode `fixed`: the second uses the uniform number of the evidence (`randomized_upper`).
    """
    if len(evidence.stages) != 1:
        raise DrbenchError(f"certifier 'gaussian' expects evidence of one stage, got {len(evidence.stages)}")
    (stage,) = evidence.stages
    top = top_class(stage.select)
    k = stage.votes.get(top, 0)
    if bound == "randomized":
        if mode != "fixed" or evidence.uniform is None:
            raise DrbenchError("a randomized bound needs mode fixed and evidence with a uniform number of the image")
        q_upper = randomized_upper(stage.n - k, stage.n, alpha, evidence.uniform)
        p_lower = 1 - q_upper
    else:
        most = stage.n if mode == "fixed" else budget
        p_lower, q_upper = vote_share(mode, k, stage.n, most, alpha, sequence, block)
    radius = noises.radius(q_upper, stage.sigma, noise)
    detail = {"class": top, "p_lower": p_lower}
    if mode == "fixed" and noise == "gaussian" and bound == "clopper-pearson":
        rival = max((count for c, count in stage.votes.items() if c != top), default=0)
        detail["radius_multiclass"] = multiclass_radius(k, rival, stage.n, alpha, stage.sigma)
    return Certificate(top if radius > 0 else ABSTAIN, radius, detail)


def vote_share(
    mode: str, k: int, n: int, budget: int | None, alpha: float, sequence: str = "e-process", block: int = 100
) -> tuple[float, float]:
    """Lower limit of a share after k votes in n draws, level 1 - alpha, and 1 minus it without loss of digits."""
    if mode not in MODES:
        raise DrbenchError(f"unknown mode {mode!r}; available: {', '.join(MODES)}")
    if budget is None or not 0 <= k <= n <= budget:
        raise DrbenchError(f"mode {mode}: expected k <= n <= budget, got k={k}, n={n}, budget={budget}")
    if mode in ("fixed", "curtailed"):
        return cp_lower(k, budget, alpha), cp_upper(budget - k, budget, alpha)
    if sequence == "union":
        limits = [cp_lower(k, n, union_level(MODES[mode] * alpha, n, checkpoints(budget, block)))]
    else:
        limits = [share_above(k, n, MODES[mode] * alpha)]
    if mode == "hybrid" and n == budget:
        limits.append(cp_lower(k, n, (1 - MODES[mode]) * alpha))
    return max(limits), 1 - max(limits)


def top_class(counts: Mapping[int, int]) -> int:
    """Class with the most votes; ties go to the lowest class. Draws without a class (`ABSTAIN`) vote for none."""
    classes = [c for c in counts if c != ABSTAIN] or [0]
    return min(classes, key=lambda c: (-counts.get(c, 0), c))


def predict(votes: Mapping[int, int], alpha: float) -> int:
    """Cohen's PREDICT: the most voted class, or `ABSTAIN` unless the two-sided sign test of the top two has p <= alpha.

    If a class is returned, it is the smoothed classifier's with probability >= 1 - alpha (Hung and Fithian 2019).
    """
    first, second = sorted([*votes.values(), 0, 0], reverse=True)[:2]
    return top_class(votes) if sign_test(first, first + second) <= alpha else ABSTAIN
