"""From stored evidence to a certificate, as the header of a run says."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Certificate, Evidence, Stage
from drbench.stats import noises
from drbench.stats.cascade import decide_cascade
from drbench.stats.gaussian import decide_gaussian

VERSIONS = {
    "gaussian": 1,
    "cascade": 1,
    "lipschitz": 1,
    "imported": 1,
}  # raised when a certifier's numbers may change; part of every record


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


def check_reach(engine: Mapping) -> None:
    """Raise `DrbenchError` if even unanimous votes certify nothing under this protocol."""
    if reach(engine) == 0:
        raise DrbenchError(
            f"n={engine['n']} draws can certify nothing under this protocol (alpha={engine['alpha']:g}"
            f"{', mode ' + engine['options']['mode'] if 'mode' in engine.get('options', {}) else ''}): "
            "even unanimous votes abstain; expected more draws"
        )
