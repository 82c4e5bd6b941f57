"""Statistics of certification: exact binomial bounds, radii, curves and intervals. numpy and scipy only.

Everything here is a pure function of counts, so each table can be recomputed from stored evidence, for another alpha
or another formula, without torch. Main source: Cohen, Rosenfeld, Kolter 2019 (arXiv 1902.02918).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

from drbench import noises
from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Certificate, Evidence, Stage
from drbench.sequential import checkpoints, root, share_above, union_level

VERSIONS = {
    "gaussian": 1,
    "cascade": 1,
    "lipschitz": 1,
    "imported": 1,
}  # raised when a certifier's numbers may change; part of every record
remembered = lru_cache(maxsize=1 << 16)  # tables ask for the limits of the same few counts again and again

# ---- exact binomial bounds ----------------------------------------------------------------------------------------


@remembered
def cp_lower(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson lower limit of a binomial proportion, level 1 - alpha.

    P(limit > p) <= alpha for every true p. Equals `scipy.stats.beta.ppf(alpha, k, n - k + 1)`; 0 for k = 0.
    """
    _check_counts(k, n, alpha)
    return 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, alpha))


@remembered
def cp_upper(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson upper limit, level 1 - alpha; 1 for k = n."""
    _check_counts(k, n, alpha)
    return 1.0 if k == n else float(special.betainccinv(k + 1, n - k, alpha))


def randomized_upper(k: int, n: int, alpha: float, uniform: float) -> float:
    """Upper limit of a proportion, level exactly 1 - alpha (Stevens 1950; Voracek 2024, Definition 2.3).

    The p at which P(Bin(n, p) < k) + u P(Bin(n, p) = k) = alpha, with u = `uniform` drawn once from (0, 1),
    independently of the counts: between the Clopper-Pearson limits of k - 1 and of k. 0 if k = 0 and u <= alpha.
    """
    _check_counts(k, n, alpha)
    if not 0 <= uniform <= 1:
        raise DrbenchError(f"expected a uniform number in [0, 1] for a randomized limit, got {uniform}")
    if k == 0:
        return float(-np.expm1(math.log(alpha / uniform) / n)) if uniform > alpha else 0.0

    def excess(p: float) -> float:
        below, up_to = special.bdtr(k - 1, n, p), special.bdtr(k, n, p) if k < n else 1.0
        return float((1 - uniform) * below + uniform * up_to) - alpha

    low, high = cp_upper(k - 1, n, alpha), cp_upper(k, n, alpha)
    if excess(high) >= 0:  # u = 1, or rounding
        return high
    return low if excess(low) <= 0 else root(excess, low, high, xtol=1e-300, rtol=1e-12)


def _check_counts(k: int, n: int, alpha: float) -> None:
    if not (0 <= k <= n and n > 0):
        raise DrbenchError(f"expected 0 <= k <= n successes of n > 0 draws, got k={k}, n={n}")
    if not 0 < alpha < 1:
        raise DrbenchError(f"expected a failure probability alpha in (0, 1), got {alpha}")


def interval(k: int, n: int, confidence: float = 0.95, method: str = "clopper-pearson") -> tuple[float, float]:
    """Two-sided interval of a proportion: k of n images.

    Parameters
    ----------
    method : {"clopper-pearson", "wilson"}
        Exact (never below the confidence), or Wilson 1927 (close to it on average).
    """
    alpha = 1 - confidence
    if method == "clopper-pearson":
        return cp_lower(k, n, alpha / 2), cp_upper(k, n, alpha / 2)
    if method != "wilson":
        raise DrbenchError(f"unknown interval method {method!r}; available: clopper-pearson, wilson")
    _check_counts(k, n, alpha)
    z = float(-special.ndtri(alpha / 2))
    centre, shrink = (k + z * z / 2) / (n + z * z), 1 / (1 + z * z / n)
    half = shrink * z * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of p_A - p_B for two methods on the same n images; not degenerate without differences.

    `only_a` images are right under A alone, `only_b` under B alone. A limit is a difference d whose score
    (only_a - only_b - n d) / sqrt(n (2 q + d (1 - d))) is +-z, where q is the maximum-likelihood estimate of
    P(B alone) given d (Tango 1998, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17).
    """
    if not (min(only_a, only_b) >= 0 and only_a + only_b <= n and n > 0):
        raise DrbenchError(f"expected counts of n > 0 images, got only_a={only_a}, only_b={only_b}, n={n}")
    z = float(-special.ndtri((1 - confidence) / 2))

    def excess(d: float) -> float:  # (score^2 - z^2) times the squared denominator
        b = -only_a - only_b + (2 * n - only_a + only_b) * d
        q = (math.sqrt(max(0.0, b * b + 8 * n * only_b * d * (1 - d))) - b) / (4 * n)
        return (only_a - only_b - n * d) ** 2 - z * z * n * (2 * q + d * (1 - d))

    middle, beside = (only_a - only_b) / n, 1e-9  # without any difference the excess vanishes at the middle too
    low = root(excess, -1, middle - beside) if excess(-1) > 0 else -1.0
    high = root(excess, middle + beside, 1) if excess(1) > 0 else 1.0
    return low, high


# ---- radii --------------------------------------------------------------------------------------------------------


def gaussian_radius(k: int, n: int, alpha: float, sigma: float) -> float:
    """sigma * Phi^-1(p_lower), at least 0 (Cohen et al. 2019, Theorem 1 with p_B = 1 - p_A).

    Computed from the upper tail 1 - p_lower, which keeps full precision when p_lower is close to 1.
    """
    q_upper = cp_upper(n - k, n, alpha)
    return max(0.0, sigma * float(-special.ndtri(q_upper)))


@remembered
def multiclass_radius(k: int, rival: int, n: int, alpha: float, sigma: float) -> float:
    """(sigma / 2) (Phi^-1(pA_lower) - Phi^-1(pB_upper)), both bounds at alpha / 2 (Cohen et al. 2019, Theorem 1).

    `rival` is the largest count of any other class. Two bounds suffice for any number of classes: the true runner-up
    is one fixed class, and the bound from the largest rival count dominates its own (Voracek 2024, App. B).
    """
    q_a = cp_upper(n - k, n, alpha / 2)  # 1 - pA_lower
    p_b = min(q_a, cp_upper(rival, n, alpha / 2))
    return max(0.0, sigma / 2 * float(-special.ndtri(q_a) - special.ndtri(p_b)))


def ceiling_radius(n: int, alpha: float, sigma: float, noise: str = "gaussian") -> float:
    """The largest radius that n unanimous votes can certify: sigma * Phi^-1(alpha^(1/n)) for Gaussian noise."""
    return noises.radius(cp_upper(0, n, alpha), sigma, noise)


def smallest_votes(n: int, alpha: float, radius_over_sigma: float = 0.0, noise: str = "gaussian") -> int | None:
    """Fewest votes of n that certify a radius > 0 (or >= `radius_over_sigma` > 0); None if no number does."""

    def certifies(k: int) -> bool:
        radius = noises.radius(cp_upper(n - k, n, alpha), 1.0, noise)
        return radius > 0 if radius_over_sigma == 0 else radius >= radius_over_sigma

    if not certifies(n):
        return None
    low, high = 0, n  # certifies(low) is false, certifies(high) is true
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if certifies(middle) else (middle, high)
    return high


def check_budget(n: int, alpha: float) -> None:
    """Raise `DrbenchError` if even n unanimous votes abstain."""
    if smallest_votes(n, alpha) is None:
        needed = math.floor(math.log(alpha) / math.log(0.5)) + 1
        raise DrbenchError(
            f"n={n} draws can certify nothing at alpha={alpha:g}: even a unanimous vote abstains; "
            f"expected n >= {needed} (and thousands for a useful radius)"
        )


# ---- decisions: evidence -> certificate ---------------------------------------------------------------------------


def decide(kind: str, evidence: Evidence, alpha: float, **options) -> Certificate:
    """Turn stored evidence into a certificate. Pure: the same evidence gives the same answer for ever.

    Guarantee: with probability >= 1 - alpha over the draws, the certificate abstains or is true; except for a cascade
    that follows the paper's code, and for Lipschitz radii of estimated logits. `options` are the keyword arguments of
    `decide_<kind>`.
    """
    if kind not in VERSIONS:
        raise DrbenchError(f"unknown certifier {kind!r}; available: {', '.join(VERSIONS)}")
    if kind == "imported":
        raise DrbenchError("an imported log holds no votes: its certificates cannot be recomputed")
    return DECISIONS[kind](evidence, alpha, **options)


def decide_as(engine: Mapping, evidence: Evidence) -> Certificate:
    """The decision that the section `engine` of a run's header describes."""
    return decide(engine["certifier"], evidence, engine["alpha"], **engine.get("options", {}))


def conclusion(engine: Mapping, row) -> Certificate | None:
    """What follows for one recorded image; from a log the certificate that it states. None if the image failed."""
    return row.certificate if engine["certifier"] == "imported" else row.evidence and decide_as(engine, row.evidence)


def levels(engine: Mapping) -> list[float]:
    """Noise levels of such a run, in the order in which they are tried."""
    options = engine.get("options", {})
    return sorted(options["sigmas"], reverse=True) if "sigmas" in options else [engine["sigma"]]


def noise(engine: Mapping) -> str:
    """Smoothing distribution of such a run."""
    return engine.get("options", {}).get("noise", "gaussian")


def norm(engine: Mapping) -> str:
    """Norm in which such a run certifies."""
    return noises.NOISES[noise(engine)].norm


def reach(engine: Mapping) -> float:
    """The largest radius that such a run can certify: that of unanimous votes at the first level.

    With a randomized bound, that of the least fortunate image with unanimous votes.
    """
    if engine["certifier"] == "imported":
        return engine["reach"]
    if engine["certifier"] == "lipschitz":
        return engine.get("options", {}).get("ceiling", math.inf)
    n0, n = engine["n0"], engine["n"]
    return decide_as(engine, Evidence((Stage(levels(engine)[0], {0: n0}, n0, {0: n}, n),), uniform=1.0)).radius


# Mode of drawing -> the share of alpha that is spent on looking at the votes before the budget ends.
MODES = {"fixed": 0.0, "curtailed": 0.0, "sequential": 1.0, "hybrid": 0.1}


def check_reach(engine: Mapping) -> None:
    """Raise `DrbenchError` if even unanimous votes certify nothing under this protocol."""
    if reach(engine) == 0:
        raise DrbenchError(
            f"n={engine['n']} draws can certify nothing under this protocol (alpha={engine['alpha']:g}"
            f"{', mode ' + engine['options']['mode'] if 'mode' in engine.get('options', {}) else ''}): "
            "even unanimous votes abstain; expected more draws"
        )


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


def sign_test(k: int, n: int) -> float:
    """Two-sided p-value of k successes in n fair coin tosses: min(1, 2 P(Bin(n, 1/2) >= max(k, n - k)))."""
    if n == 0:
        return 1.0
    return min(1.0, 2 * float(special.betainc(max(k, n - k), n - max(k, n - k) + 1, 0.5)))


# ---- cascades -----------------------------------------------------------------------------------------------------

# name in configs -> keyword arguments of `decide_cascade`
PROTOCOLS = {
    "sound": {"split": "bonferroni", "bounds": "exact"},
    "paper_code": {"split": "paper_code", "bounds": "goodman"},
}


def decide_cascade(
    evidence: Evidence,
    alpha: float,
    *,
    sigmas: Sequence[float],
    classes: int,
    split: str = "bonferroni",
    bounds: str = "exact",
    p0: float = 0.5,
) -> Certificate:
    """Multi-scale smoothing: from the largest scale down, the first class with a probability above p0 is the answer.

    Halting at scale k with class c, the cascade answers c within the smaller of two radii: sigma_k (Phi^-1(p_lower) -
    Phi^-1(p0)), where p_lower bounds p_c from below, and the least of sigma_i (Phi^-1(p0) - Phi^-1(p_upper)) over the
    earlier scales i, where p_upper bounds every class but c from above, so that none of them can halt the cascade
    there (Jeong and Shin 2023, arXiv 2310.16779; p0 >= 1/2 makes the halting class unique). A scale that is neither
    surely above nor surely below p0 makes the cascade abstain.

    Parameters
    ----------
    sigmas : sequence of float
        All K scales, also those that were not reached: they share alpha.
    classes : int
        Number of classes, with or without votes.
    split : {"bonferroni", "paper_code"}
        Level of each bound: alpha / K, which is sound (docs/decisions/0005); or, as the official code has it, alpha /
        (1 + number of earlier scales), which is not, because the halting scale depends on the votes.
    bounds : {"exact", "goodman"}
        p_upper from Clopper-Pearson limits shared by the classes, or from Goodman's approximate simultaneous limits
        as in the official code. Its special case for two groups, which can be wrong, is replaced by an exact limit.
    """
    check_cascade(sigmas, p0, split, bounds)
    if classes < 2:
        raise DrbenchError(f"expected at least 2 classes, got {classes}")
    scales, tried = sorted(sigmas, reverse=True), [stage.sigma for stage in evidence.stages]
    if not tried or tried != scales[: len(tried)]:
        raise DrbenchError(f"certifier 'cascade' expects evidence of the scales {scales} in this order, got {tried}")
    detail: dict = {"p_hat": [], "reason": None}
    for place, stage in enumerate(evidence.stages):
        level, top = cascade_level(alpha, place, len(scales), split), top_class(stage.select)
        k = stage.votes.get(top, 0)
        detail |= {"class": top, "sigma": stage.sigma, "p_hat": [*detail["p_hat"], k / stage.n]}
        if not passes(stage, level, p0):
            own = stage.sigma * float(-special.ndtri(cp_upper(stage.n - k, stage.n, level)) - special.ndtri(p0))
            if own <= 0:
                return Certificate(ABSTAIN, 0.0, detail | {"reason": "undecided"})
            earlier = [
                float(s.sigma * (special.ndtri(p0) - special.ndtri(_off_class(s, top, level, classes, bounds))))
                for s in evidence.stages[:place]
            ]
            radius = max(0.0, min([own, *earlier]))
            detail |= {
                "p_lower": cp_lower(k, stage.n, level),
                "radius_own": own,
                "radius_earlier": max(0.0, min(earlier)) if earlier else None,
                "limit": "own scale" if own <= min(earlier, default=math.inf) else "earlier scale",
                "reason": None if radius > 0 else "no radius",
            }
            return Certificate(top if radius > 0 else ABSTAIN, radius, detail)
    if len(tried) < len(scales):
        raise DrbenchError(
            f"the votes at sigma = {tried[-1]:g} pass the image on, but there is no evidence of sigma = "
            f"{scales[len(tried)]:g}: expected the alpha, scales and protocol under which it was drawn; draw it anew"
        )
    return Certificate(ABSTAIN, 0.0, detail | {"reason": "none halted"})


def check_cascade(sigmas: Sequence[float], p0: float, split: str = "bonferroni", bounds: str = "exact") -> None:
    """Raise `DrbenchError` unless the parameters describe a cascade that can be certified."""
    if not sigmas or min(sigmas) <= 0 or len(set(sigmas)) < len(sigmas):
        raise DrbenchError(f"expected the scales of a cascade, different noise levels > 0, got {list(sigmas)}")
    if split not in ("bonferroni", "paper_code") or bounds not in ("exact", "goodman"):
        raise DrbenchError(
            f"expected split 'bonferroni' or 'paper_code' and bounds 'exact' or 'goodman', got {split!r}, {bounds!r}"
        )
    if not 0.5 <= p0 < 1:
        raise DrbenchError(f"expected p0 in [1/2, 1), got {p0}: below 1/2 two classes can halt the cascade at once")
    if (split, bounds) != ("bonferroni", "exact") and p0 != 0.5:
        raise DrbenchError(f"what follows the paper's code is offered for p0 = 1/2 only, got {p0}; use protocol sound")


def cascade_level(alpha: float, place: int, scales: int, split: str) -> float:
    """Failure probability of each bound that is used when the cascade stops at its scale number `place` (from 0)."""
    return alpha / (scales if split == "bonferroni" else place + 1)


def passes(stage: Stage, level: float, p0: float) -> bool:
    """Whether the selected class is surely below p0, so that the next smaller scale is tried."""
    return cp_upper(stage.votes.get(top_class(stage.select), 0), stage.n, level) < p0


def _off_class(stage: Stage, top: int, level: float, classes: int, bounds: str) -> float:
    """Upper bound, at once for all classes but `top`, of their probabilities; fails with probability <= `level`."""
    rivals = sorted((count for c, count in stage.votes.items() if c != top), reverse=True) or [0]
    if bounds == "exact":
        return cp_upper(rivals[0], stage.n, level / (classes - 1))
    groups = _pooled(rivals)
    if len(groups) < 2:  # besides `top`
        return cp_upper(sum(rivals), stage.n, level)
    return goodman_upper(max(groups), stage.n, 2 * level, 1 + len(groups))


def _pooled(counts: Sequence[int], least: int = 5) -> list[int]:
    """Descending counts, those below `least` added up in turn to groups of at least that; the rest joins the last."""
    groups, pool = [count for count in counts if count >= least], 0
    for count in counts[len(groups) :]:
        pool += count
        if pool >= least:
            groups, pool = [*groups, pool], 0
    return [*groups[:-1], groups[-1] + pool] if groups else [pool]


def goodman_upper(k: int, n: int, alpha: float, groups: int) -> float:
    """Upper end of Goodman's (1965) simultaneous intervals of `groups` multinomial proportions. Approximate."""
    quantile = float(special.chdtri(1, alpha / groups))
    root = math.sqrt(quantile * (quantile + 4 * k * (n - k) / n))
    return (quantile + 2 * k + root) / (2 * (n + quantile))


# ---- Lipschitz constants -------------------------------------------------------------------------------------------


def decide_lipschitz(evidence: Evidence, alpha: float, *, lipschitz: float, exact: bool, ceiling: float) -> Certificate:
    """margin / (2 L) around the clean image: no logit moves faster than L, so none overtakes the largest before that.

    True with certainty if `exact`: constant and logits are those of the classifier that answers. Otherwise an
    estimate, whatever alpha. `ceiling` is for tables.
    """
    if evidence.clean is None or not lipschitz > 0:
        raise DrbenchError(f"certifier 'lipschitz' expects clean logits and a constant > 0, got {lipschitz}")
    logits = np.asarray(evidence.clean)
    top = int(logits.argmax())
    margin = float(logits[top] - np.delete(logits, top).max())
    return Certificate(top if margin > 0 else ABSTAIN, margin / (2 * lipschitz), {"class": top, "margin": margin})


DECISIONS = {"gaussian": decide_gaussian, "cascade": decide_cascade, "lipschitz": decide_lipschitz}


class Empirical(NamedTuple):
    """What a cascade answers when it must answer; neither answer carries a certificate."""

    clean: int  # class of the clean image
    fallback: int  # the certified class, after an abstention that of the clean image
    mixed: int  # votes as a prior on the clean logits, as in the official code


def empirical(evidence: Evidence, certificate: Certificate, p0: float = 0.5) -> Empirical | None:
    """The uncertified answers; None without clean logits.

    The official code's PREDICT halts where a class has a share >= p0 of the votes, without a test, and answers the
    argmax over c of log-softmax_c + log(0.9 share_c + 0.1 / C) of the clean image; without a halt the clean class.
    Here the estimation votes of the recorded scales are used: after "undecided" no further scale is asked.
    """
    if evidence.clean is None:
        return None
    clean = np.asarray(evidence.clean)
    alone = int(clean.argmax())
    halted = next((s for s in evidence.stages if max(s.votes.values()) >= p0 * s.n), None)
    share = np.zeros(len(clean))
    for c, count in halted.votes.items() if halted else ():
        share[c] = count / halted.n
    mixed = int((clean + np.log(0.9 * share + 0.1 / len(clean))).argmax())
    return Empirical(alone, alone if certificate.prediction == ABSTAIN else certificate.prediction, mixed)


# ---- quantities over a data set -----------------------------------------------------------------------------------


class Curve(NamedTuple):
    """Certified accuracy at each of `radii`, with two-sided intervals over the images; all of shape (R,)."""

    radii: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray


def certified_accuracy(correct: Sequence[bool], radius: Sequence[float], radii: Sequence[float]) -> Curve:
    """Share of images that are certified correct at each radius, with 95 % Clopper-Pearson intervals.

    An image counts at r iff it is correct (an abstention is not) and its certified radius is >= r; also at r = 0.
    """
    reach = np.sort(np.asarray(radius, float)[np.asarray(correct, bool)])
    images, radii = len(correct), np.asarray(radii, float)
    hits = len(reach) - np.searchsorted(reach, radii, side="left")
    limits = np.array([interval(int(k), images) for k in hits]).reshape(-1, 2)
    return Curve(radii, hits / images, limits[:, 0], limits[:, 1])


def average_certified_radius(correct: Sequence[bool], radius: Sequence[float]) -> float:
    """ACR: mean of correct * radius = area under the certified-accuracy curve (Zhai et al. 2020).

    Depends on n and alpha through the ceiling radius, and is dominated by easy images (Sun et al. 2024): compare it
    only between rows of the same protocol.
    """
    return float(np.mean(np.where(np.asarray(correct, bool), np.asarray(radius, float), 0.0)))


@lru_cache(maxsize=4)
def _resampled(images: int, resamples: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=0))
    return rng.integers(0, images, (resamples, images))


def share_interval(values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Interval of the mean of numbers in [0, 1], one an image: Clopper-Pearson if all are 0 or 1, else Gaffke's.

    A Bayesian bootstrap with one more image at the far end, 0 for the lower limit and 1 for the upper one (Gaffke 2005;
    Learned-Miller and Thomas 2019, arXiv 1905.06208). Of zeros and ones that is Clopper-Pearson; elsewhere no case is
    known in which it misses too often, while the percentile bootstrap does with few images or a mean near an end. A
    fixed seed, so a table never changes by itself.
    """
    values = np.asarray(values, float)
    if not ((values >= 0) & (values <= 1)).all():
        raise DrbenchError(f"expected numbers in [0, 1], got {values.min():g} to {values.max():g}")
    if np.isin(values, (0.0, 1.0)).all():
        return interval(int(values.sum()), len(values), confidence)
    of_images, of_end = _weighed(len(values), resamples)
    inside, tail = of_images @ values, (1 - confidence) / 2
    low, high = np.quantile(inside, tail), np.quantile(inside + of_end, 1 - tail)
    return round(float(low), 6), round(float(high), 6)  # the last bits of a matrix product depend on the machine


@lru_cache(maxsize=4)
def _weighed(images: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the images, (resamples, images), and of one more; each row is uniform on the simplex."""
    weights = np.random.Generator(np.random.Philox(key=0)).standard_exponential((resamples, images + 1))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights[:, :-1], weights[:, -1]


def bootstrap_mean(values: Sequence[float], confidence: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over images; a fixed seed, so a table never changes by itself."""
    values = np.asarray(values, float)
    means = values.take(_resampled(len(values), resamples)).mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
