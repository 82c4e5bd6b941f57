"""Noisy copies of images: which distribution, and how its numbers are made.

Theory adds real numbers; floating-point addition lets the sum tell something of what was added (Voracek and Hein 2023,
"Sound randomized smoothing in floating-point arithmetic", arXiv 2207.07209). Where images lie on a grid of L levels, as
8-bit images do, the remedy is to round the noisy image to that grid, and to clip it far out. That step belongs to the
classifier, so the certificate holds as it stands; and it turns the sum into one of whole numbers, which is exact.

    float   the usual sum
    grid    noise in float32, rounded to the grid: the sum tells nothing, the noise is as good as its float32 numbers
    sound   noise on the grid with its exact probabilities, from thresholds in fair random bits
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from functools import cache
from typing import NamedTuple

import numpy as np

from drbench.draws import INPUT_NOISE, Span, normals, words
from drbench.errors import DrbenchError

BITS = 60  # of a random integer that is compared with the thresholds of the sound sampler
CERTAINLY_ONE = 9.3  # beyond, the normal distribution function is nearer to 1 than the last bit


class Smoothing(NamedTuple):
    """How noisy copies are made.

    kind : gaussian, uniform or laplace (`stats.noises`). sampler : float, grid or sound. grid : L, the pixels are
    multiples of 1 / L; not needed for "float".
    """

    kind: str = "gaussian"
    sampler: str = "float"
    grid: int | None = None

    def copies(self, spans: Sequence[Span], clean: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray | None]:
        """Noisy copies of the images `clean`, (rows, D) float32, and (rows,) which of them are not certain.

        A row is not certain if random bits and a threshold lie so near to each other that their order is not known,
        which happens once in some 10^14 numbers; it must count as a vote against every class. None: all are.
        """
        if self.sampler == "sound":
            steps, uncertain = grid_steps(words(spans, INPUT_NOISE, clean.shape[1]), sigma, self.grid)
            return _on_grid(steps, clean, sigma, self.grid), uncertain.reshape(clean.shape).any(axis=1)
        noise = SAMPLERS[self.kind](spans, clean.shape[1])
        if self.sampler == "grid":
            noise *= np.float32(self.grid * sigma)
            return _on_grid(np.rint(noise, out=noise), clean, sigma, self.grid), None
        noise *= np.float32(sigma)
        noise += clean
        return noise, None


def _on_grid(steps: np.ndarray, clean: np.ndarray, sigma: float, grid: int) -> np.ndarray:
    """Sum of two arrays of whole numbers, exact in float32; clipped to [-K, K + 1], K = max(1, int(6 sigma))."""
    wide = _reach(sigma)
    noisy = steps.reshape(clean.shape).astype(np.float32) + np.rint(clean * np.float32(grid))
    return np.clip(noisy, -wide * grid, (wide + 1) * grid) / np.float32(grid)


def _reach(sigma: float) -> int:
    return max(1, int(6 * sigma))


PLAIN = Smoothing()


def sampling(sampler: str, images, kind: str = "gaussian") -> dict:
    """`sampler` and `grid` of a `Smoothing` for these images (with `grid`, `dataset`, `subset`, as `data.Images`)."""
    if sampler not in ("grid", "sound") or (sampler == "sound" and kind != "gaussian"):
        raise DrbenchError(f"expected sampler float or grid, or sound for Gaussian noise; got {sampler!r} for {kind}")
    if images.grid is None:
        raise DrbenchError(
            f"sampler {sampler!r} needs images on a grid (pixels k / 255 or k / 16), those of "
            f"{images.dataset} {images.subset} are not; use sampler 'float'"
        )
    return {"sampler": sampler, "grid": images.grid}


# ---- samplers: (rows, D) float32 of variance 1, from stream 0 of each block ------------------------------------------


def _gaussian(spans: Sequence[Span], size: int) -> np.ndarray:
    return normals(spans, INPUT_NOISE, size)


def _uniform(spans: Sequence[Span], size: int) -> np.ndarray:
    """Uniform on [-sqrt(3), sqrt(3)], from 32 random bits each."""
    return ((_halves(spans, size) + 0.5) * (2 * 3**0.5 / 2**32) - 3**0.5).astype(np.float32)


def _laplace(spans: Sequence[Span], size: int) -> np.ndarray:
    """Laplace of scale 1 / sqrt(2): one bit for the sign, 31 for an exponential variable."""
    bits = _halves(spans, size)
    size_of = np.log(((bits >> np.uint32(1)) + 0.5) * 2.0**-31) * -(2**-0.5)
    return np.where(bits & np.uint32(1), size_of, -size_of).astype(np.float32)


def _halves(spans: Sequence[Span], size: int) -> np.ndarray:
    """(rows, size) of 32 random bits; a row starts at a word of its own."""
    half = (size + 1) // 2
    return words(spans, INPUT_NOISE, half).view(np.uint32).reshape(-1, 2 * half)[:, :size]


SAMPLERS = {"gaussian": _gaussian, "uniform": _uniform, "laplace": _laplace}


# ---- the sound sampler ----------------------------------------------------------------------------------------------


def grid_steps(bits: np.ndarray, sigma: float, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the grid, int64, whose probabilities are those of a rounded Gaussian; and where that is not certain.

    P(step = i) = Phi((2 i + 1) / (2 L sigma)) - Phi((2 i - 1) / (2 L sigma)), the ends standing for all beyond them,
    which clipping makes equal. `bits` are 64 fair bits each.
    """
    limits = thresholds(sigma, grid)
    drawn = (bits >> np.uint64(64 - BITS)).astype(np.int64)
    above = np.searchsorted(limits, drawn, side="right")
    # `drawn` stands for the reals from it to the next integer, and a limit is within 1 of the real threshold.
    fence = np.concatenate(([-(2**62)], limits, [2**62]))
    return above - len(limits) // 2, (drawn - fence[above] < 1) | (fence[above + 1] - drawn <= 1)


@cache
def thresholds(sigma: float, grid: int) -> np.ndarray:
    """round(2^60 Phi((2 i + 1) / (2 L sigma))) for i = -L (K + 1), ..., L (K + 1) - 1, each within 1/2 + 2^-4."""
    steps = grid * (_reach(sigma) + 1)
    with localcontext() as context:
        context.prec = 50
        scale = 2 * grid * Decimal(sigma)
        upper = [_rounded_phi((2 * i + 1) / scale) for i in range(steps)]
    return np.array([2**BITS - limit for limit in reversed(upper)] + upper, dtype=np.int64)


def _rounded_phi(x: Decimal) -> int:
    """round(2^60 Phi(x)) for x > 0: Phi(x) = 1/2 + phi(x) (x + x^3 / 3 + x^5 / 15 + ...), all terms positive."""
    if x > Decimal(CERTAINLY_ONE):
        return 2**BITS
    term, total, odd = x, x, 1
    while term > total * Decimal("1e-45"):
        odd += 2
        term *= x * x / odd
        total += term
    density = (-x * x / 2).exp() / (2 * PI).sqrt()
    return int((2**BITS * (Decimal("0.5") + density * total)).to_integral_value())


PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
