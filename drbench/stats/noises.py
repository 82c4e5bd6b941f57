"""Smoothing distributions and what they certify. numpy and scipy only.

The noise of a coordinate is sigma times a standardised variable, so every radius is sigma times a function of
q = 1 - p, the upper limit of the probability of all other classes together. Each distribution certifies in a norm of
its own; radii in other norms follow from how balls lie inside each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from scipy import special

from drbench.errors import DrbenchError, did_you_mean

ROOT3, ROOT2 = math.sqrt(3), math.sqrt(2)
SMALLEST_TAIL = 2.0**-53  # a limit of p beyond what float64 tells from 1 claims no more than this


class Noise(NamedTuple):
    """One distribution, for coordinates of standard deviation 1.

    norm : in which it certifies. radius : q -> radius, negative for q > 1/2. tail : radius -> the q that certifies it.
    """

    norm: str
    radius: Callable[[float], float]
    tail: Callable[[float], float]


NOISES = {
    # Cohen et al. 2019, Theorem 1 with p_B = 1 - p_A.
    "gaussian": Noise("l2", lambda q: float(-special.ndtri(q)), lambda r: float(special.ndtr(-r))),
    # On [-b, b], b = sqrt(3): 2 b (p - 1/2). Two cubes that are shifted by d share at least 1 - |d|_1 / (2 b) of their
    # volume (Yang et al. 2020, arXiv 2002.08118).
    "uniform": Noise("l1", lambda q: ROOT3 * (1 - 2 * q), lambda r: 0.5 - r / (2 * ROOT3)),
    # Of scale 1 / sqrt(2): -scale ln(2 (1 - p)) (Teng et al. 2020; Yang et al. 2020).
    "laplace": Noise("l1", lambda q: -math.log(2 * q) / ROOT2, lambda r: math.exp(-ROOT2 * r) / 2),
}
NORMS = ("l1", "l2", "linf")


def radius(q_upper: float, sigma: float, noise: str = "gaussian") -> float:
    """Certified radius in the norm of `noise`, pixel units, at least 0, from the upper limit of q = 1 - p."""
    return max(0.0, sigma * NOISES[noise].radius(max(q_upper, SMALLEST_TAIL)))


def in_norm(radius: float, norm: str, dimension: int, sigma: float, noise: str = "gaussian") -> float:
    """What a radius in the norm of `noise` says in another norm, pixel units.

    Parameters
    ----------
    radius : float
        In the norm in which `noise` certifies.
    norm : {"l1", "l2", "linf"}
    dimension : int
        Number of coordinates d, channels x height x width. l2 holds as it is in l1, and l2 / sqrt(d) in l-infinity; l1
        / sqrt(d) in l2. Of uniform noise the l-infinity radius is that of the cubes themselves, 2 b (1 - (3/2 -
        p)^(1/d)), which exceeds l1 / d.
    """
    if norm not in NORMS:
        raise DrbenchError(f"unknown norm {norm!r}{did_you_mean(norm, NORMS)}")
    own = NOISES[noise].norm
    if own == norm or (own, norm) == ("l2", "l1"):
        return radius
    if norm == "l2" or own == "l2":
        return radius / math.sqrt(dimension)
    if noise == "uniform":
        width = 2 * ROOT3 * sigma
        return -width * math.expm1(math.log1p(-radius / width) / dimension)
    return radius / dimension
