"""The continuous variance-preserving diffusion: noise over time, and its reverse by Euler and Maruyama's method.

dx = -1/2 beta(u) x du + sqrt(beta(u)) dW with beta(u) = 0.1 + 19.9 u, u in [0, 1]; so x_u = sqrt(abar(u)) x_0 +
sqrt(1 - abar(u)) noise with abar(u) = exp(-0.1 u - 19.9 u^2 / 2). Song et al. 2021, arXiv 2011.13456, appendix B and C.
In the units of a `Denoiser`: x_u / sqrt(abar) carries noise of level sqrt(1 / abar - 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from drbench.diffusion.denoiser import Denoiser
from drbench.errors import DrbenchError

BETA_MIN, BETA_MAX = 0.1, 20.0
U_END = 1e-5  # where the reverse process stops, as in the official code of DiffPure


def beta(u: float) -> float:
    """Rate of the noise at time u in [0, 1]."""
    return BETA_MIN + (BETA_MAX - BETA_MIN) * u


def alpha_bar(u: float) -> float:
    """Share of the signal's power that is left at time u in [0, 1]."""
    return math.exp(-BETA_MIN * u - (BETA_MAX - BETA_MIN) * u**2 / 2)


def sigma_net_at(u: float) -> float:
    """Noise level at time u, network units."""
    return math.sqrt(1 / alpha_bar(u) - 1)


def time_of(sigma_net: float) -> float:
    """The time u at which the noise level is `sigma_net`: a root of 19.9/2 u^2 + 0.1 u = ln(1 + sigma_net^2)."""
    slope, wanted = BETA_MAX - BETA_MIN, math.log1p(sigma_net**2)
    u = (math.sqrt(BETA_MIN**2 + 2 * slope * wanted) - BETA_MIN) / slope
    if not U_END < u <= 1:
        raise DrbenchError(
            f"the variance-preserving diffusion holds noise from sigma_net = {sigma_net_at(U_END):.4g} to "
            f"{sigma_net_at(1):.4g} (network units, twice the pixel sigma); got {sigma_net:.4g}"
        )
    return u


def reverse(denoise: Denoiser, z_net: Tensor, u: float, steps: int, draws=None) -> Tensor:
    """Reverse the diffusion from time u in equal steps; NFE = steps.

    Parameters
    ----------
    denoise : Denoiser
        Its score is (D(z, sigma) - z) / sigma^2 in the units of z.
    z_net : Tensor (B, C, H, W)
        Image plus noise of level `sigma_net_at(u)`, network units, unscaled.
    u : float
        Time in (1e-5, 1].
    steps : int
        Steps of Euler's method, >= 1, each with fresh noise, the last one too.
    draws : optional
        Source of standard normals `randn(*shape)` for the reverse SDE; None solves the probability-flow ODE.

    Returns
    -------
    Tensor (B, C, H, W)
        Image at u = 1e-5, network units, not clipped. Its gradient is exact; the activations of one step at a time are
        kept, the others are recomputed.

    References
    ----------
    Nie et al. 2022, "Diffusion models for adversarial purification", arXiv 2205.07460, eq. 4.
    """
    if steps < 1:
        raise DrbenchError(f"the reverse diffusion needs at least 1 step, got {steps}")
    length, x = (u - U_END) / steps, z_net * alpha_bar(u) ** 0.5
    keeps_graph = torch.is_grad_enabled() and steps > 1
    for step in range(steps):
        now = u - step * length
        noise = None if draws is None else draws.randn(*x.shape)
        arguments = (denoise, x, now, length, noise)
        x = (
            checkpoint(_step, *arguments, use_reentrant=False, preserve_rng_state=False)
            if keeps_graph
            else _step(*arguments)
        )
    return x


def _step(denoise: Denoiser, x: Tensor, u: float, length: float, noise: Tensor | None) -> Tensor:
    """x at u - length: x + (1/2 beta x + beta score) length + sqrt(beta length) noise; half the score without noise."""
    signal = alpha_bar(u)
    score = (signal**0.5 * denoise(x / signal**0.5, sigma_net_at(u)) - x) / (1 - signal)
    if noise is None:
        return x + beta(u) * (x + score) / 2 * length
    return x + beta(u) * (x / 2 + score) * length + (beta(u) * length) ** 0.5 * noise
