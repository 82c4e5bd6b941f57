"""Which denoising errors a diffusion classifier sums: noise levels and weights, and the Lipschitz constant of the sum.

Everything is in network units (images in [-1, 1]) and float64. A term says: noise the image, denoise it under the
assumption of class y, compare. For row b, class y and standard normal noise e it is

    weight * mean over pixels of (D(base_b + spread * e; level, y) - anchor_b - shift * e)^2

DC has base = anchor = the image, spread = level, shift = 0. Sources: Chen et al. 2024, arXiv 2305.15241 (DC; "RDC"
below) and arXiv 2402.02316 (noised forms; "NDC").
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from drbench.diffusion.schedules import alphas_bar, linear_betas, sigma_net_of
from drbench.errors import DrbenchError

WEIGHTS = ("released", "true", "elbo", "uniform")
VP_STEPS = 1000  # of the linear schedule
SKIPPED = 5 / 125  # first intervals of EPNDC that the official code leaves out: their derived weights are huge


class Terms(NamedTuple):
    """T terms, each field (T,) float64."""

    level: Tensor  # noise level that the network is told
    spread: Tensor  # std of the noise that is added to the base
    shift: Tensor  # share of that noise in the target
    weight: Tensor


def density(kind: str, s: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Density of training levels, ln s ~ N(mean, std^2): "true"; or as both official repositories have it: "released".

    The released one multiplies by std^2 where it should divide: a slip that moves the weight from tiny to middle levels
    (a log-normal of log-std 1/std, times 1/std^2). EDM: Karras et al. 2022, Table 1.
    """
    square = (s.log() - mean) ** 2
    exponent = square * std**2 / 2 if kind == "released" else square / (2 * std**2)
    return torch.exp(-exponent) / (s * std * math.sqrt(2 * math.pi))


def weights(kind: str, s: Tensor, step: float, sigma_data: float, levels: tuple[float, float] = (-1.2, 1.2)) -> Tensor:
    """Weight of each node of a sum with spacing `step`.

    "released", "true": lambda(s) p(s) ds with EDM's lambda = (s^2 + sd^2) / (s sd)^2 and `density`; "elbo": ds / s^3,
    of the evidence lower bound; "uniform": 1 / T, whose sum is 1.
    """
    if kind not in WEIGHTS:
        raise DrbenchError(f"unknown weight {kind!r}; available: {', '.join(WEIGHTS)}")
    if kind == "uniform":
        return torch.full_like(s, 1 / len(s))
    if kind == "elbo":
        return step / s**3
    return (s**2 + sigma_data**2) / (s * sigma_data) ** 2 * density(kind, s, *levels) * step


def grid(low: float, high: float, count: int) -> tuple[Tensor, float]:
    """`count` left ends of equal intervals of [low, high], and their length: the official linspace without its end."""
    if not (0 < low < high and count >= 1):
        raise DrbenchError(f"expected levels 0 < low < high and at least one node, got [{low}, {high}], {count} nodes")
    edges = torch.linspace(low, high, count + 1, dtype=torch.float64)
    return edges[:-1], (high - low) / count


def plain(low: float, high: float, count: int, kind: str, sigma_data: float, levels=(-1.2, 1.2)) -> Terms:
    """DC (RDC, Theorem 3.1, in EDM's parameterisation); around a denoised image the same sum is APNDC (NDC, Eq. 16)."""
    s, step = grid(low, high, count)
    return Terms(s, s, torch.zeros_like(s), weights(kind, s, step, sigma_data, levels))


def vp(count: int) -> Terms:
    """DC in the parameterisation of a VP network (RDC, Theorem 3.1, w_t = 1): mean error of the noise over timesteps.

    `count` evenly spaced ones of the linear schedule; the official code takes all 1,000. x_t = sqrt(abar) (x + s e)
    with s^2 = (1 - abar) / abar, and to such a network the image is D = x + s (e - its noise): the square of the
    noise's error is that of D over s^2.
    """
    if not 1 <= count <= VP_STEPS:
        raise DrbenchError(f"weight vp has 1 to {VP_STEPS} nodes, one for each timestep, got {count}")
    timesteps = torch.arange(count) * VP_STEPS // count
    s = sigma_net_of(timesteps, alphas_bar(linear_betas(VP_STEPS)))
    # A VP network takes the first timestep as noisy as it is told: rounding must not make that the next one.
    return Terms(s * (1 - 1e-6), s, torch.zeros_like(s), 1 / (count * s**2))


def from_noisy(tau: float, high: float, count: int, kind: str, sigma_data: float, levels=(-1.2, 1.2)) -> Terms:
    """APNDC as the text has it (NDC, Remark 3.5): noise is added to the noisy image, up to each level above `tau`."""
    terms = plain(tau, high, count, kind, sigma_data, levels)
    return terms._replace(spread=(terms.level**2 - tau**2).clamp_min(0).sqrt())


def posterior(tau: float, high: float, count: int, kind: str, sigma_data: float, levels=(-1.2, 1.2)) -> Terms:
    """EPNDC (NDC, section 3.2 and A.6): both posteriors of the next lower level s given a noisier image at s'.

    With x' = x_tau + sqrt(s'^2 - tau^2) e, the difference of posterior means mu_q - mu_p is -(s'^2 - s^2) / s'^2 times
    D(x'; s', y) - x_tau + tau^2 / sqrt(s'^2 - tau^2) e: a term with spread sqrt(s'^2 - tau^2) and shift -tau^2 /
    spread. The derived weight, for kind "elbo", is that of ||mu_q - mu_p||^2; the others multiply it by training weight
    over ELBO weight, in the official code's approximation s + s' ~ 2 s'.
    """
    s, step = grid(tau, high, count)
    first = max(1, round(SKIPPED * count))
    s = s[first:]
    if len(s) < 2:
        raise DrbenchError(f"EPNDC leaves out the first {first} of {count} intervals and the last: ask for more nodes")
    s, above = s[:-1], s[1:]
    ratio = (above**2 - tau**2) / (s**2 - tau**2)
    if kind == "elbo":
        weight = ratio / (2 * (above**2 - s**2))
    else:
        weight = weights(kind, s, step, sigma_data, levels) * above**2 * ratio / (4 * step**2)
    spread = (above**2 - tau**2).sqrt()
    return Terms(above, spread, -(tau**2) / spread, weight * ((above**2 - s**2) / above**2) ** 2)


NOISED = {
    "apndc": plain,  # around the denoised image
    "apndc_noisy": from_noisy,
    "epndc": posterior,
    "denoise": plain,  # likewise, but from the lowest of the defense's `levels`
}


def lipschitz(terms: Terms, dimension: int) -> float:
    """Lipschitz constant (l2, pixel units) of the expected sum of DC, if the network's output is clamped to the box.

    In pixel units (level s / 2, squares / 4) the mean square E ||h(x + s e) - x||^2 / D of a denoiser h in [0, 1]^D
    has, on the box, a gradient of at most 1 / (s sqrt(2 pi)) + 2 / sqrt(D): the first from the noise (f in [0, 1] has
    |E f(x + s e) v.e / s| <= E |v.e| / (2 s)), the second from the target. NDC's Theorem 3.1 has 2 / sqrt(2 pi) in the
    first, which is valid but twice as large, and 1 / s in the second.
    """
    per_term = 2 / (terms.level * math.sqrt(2 * math.pi)) + 2 / math.sqrt(dimension)
    return float(4 * (terms.weight * per_term).sum())
