"""Certificates and answers from the votes of a cascade. Source: Jeong and Shin 2023 (arXiv 2310.16779)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Certificate, Evidence, Stage
from drbench.stats.binomial import cp_lower, cp_upper
from drbench.stats.gaussian import top_class

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
