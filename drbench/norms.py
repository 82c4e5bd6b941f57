"""Distances of adversarial examples, and whether they are allowed: the one verifier. numpy only, float64.

A user re-checks recorded examples with it, without torch and without the defense.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np

from drbench.errors import DrbenchError, did_you_mean

# norm -> distance of flattened differences (B, d)
DISTANCES = {
    "linf": lambda delta: np.abs(delta).max(axis=1, initial=0.0),
    "l2": lambda delta: np.sqrt((delta**2).sum(axis=1)),
    "l1": lambda delta: np.abs(delta).sum(axis=1),
}
FLOW = "stadv"  # spatial attacks: an example is a flow field, its distance the largest displacement in pixels
SLACK = 1e-6  # of float32 arithmetic: absolute in l_inf, relative in l2 and l1


def check(norm: str, eps: float) -> None:
    """Raise `DrbenchError` unless the norm is known and the radius is a finite number >= 0, in l_inf at most 1."""
    if norm not in (known := [*DISTANCES, FLOW]):
        raise DrbenchError(f"unknown norm {norm!r}{did_you_mean(norm, known)}")
    if not (np.isfinite(eps) and eps >= 0):
        raise DrbenchError(f"expected a finite radius eps >= 0 in pixel units, got {eps}")
    if norm == "linf" and eps > 1:  # meant in grey levels: every image would be allowed
        raise DrbenchError(f"expected an l_inf radius eps <= 1 for pixels in [0, 1], got {eps:g}; 8 grey levels: 8/255")


def number(value: float | str) -> float:
    """A radius written as a number or a fraction, e.g. "8/255"."""
    try:
        return float(Fraction(str(value)))
    except (ValueError, ZeroDivisionError) as error:
        raise DrbenchError(f"expected a radius such as 0.5 or 8/255, got {value!r}") from error


def distance(norm: str, x_adv: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(B,) float64 distances of examples from images (B, C, H, W); NaN where a number is NaN."""
    if norm == FLOW:
        return np.abs(x_adv.astype(np.float64)).reshape(len(x_adv), -1).max(axis=1, initial=0.0)
    return DISTANCES[norm]((x_adv.astype(np.float64) - x.astype(np.float64)).reshape(len(x), -1))


def limit(norm: str, eps: float) -> float:
    """The largest distance that counts as eps."""
    return eps + SLACK if norm == "linf" else eps * (1 + SLACK)


def feasible(norm: str, eps: float, x_adv: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(B,) bool: within the ball, and every pixel in [0, 1] exactly. False for NaN."""
    if norm == FLOW:  # a moved image stays in the range of its pixels
        return distance(norm, x_adv, x) <= eps
    pixels = x_adv.reshape(len(x_adv), -1)
    inside = (pixels.min(axis=1, initial=0.0) >= 0) & (pixels.max(axis=1, initial=0.0) <= 1)
    return inside & (distance(norm, x_adv, x) <= limit(norm, eps))


def digest(example: np.ndarray) -> str:
    """sha256 of the float32 pixels of one example."""
    return hashlib.sha256(np.ascontiguousarray(example, np.float32).tobytes()).hexdigest()
