"""From a noisy image to a clean one: one-shot, PF-ODE, DDIM / ancestral and reverse-SDE sampling.

Plain functions over the `Denoiser` contract, in variance-exploding coordinates: the state at noise level
sigma is x0 + sigma * noise. All walk down `karras_grid(steps, sigma_min, sigma_net, rho)`, which starts
exactly at the level of the input, and end with one step to 0, which is the denoiser at the last level:
`steps=1` is `one_shot`. For clamped x0 estimates pass `clipped(denoise)`. `draws` is anything with a method
`randn(*shape)` that returns standard normals on the device of the images.
"""

from itertools import pairwise

import torch

from drbench.diffusion.denoiser import Denoiser
from drbench.diffusion.schedules import karras_grid
from drbench.errors import DrbenchError


def one_shot(
    denoise: Denoiser, z_net: torch.Tensor, sigma_net: float, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """The posterior mean E[x0 | z], one call (Carlini et al. 2023, algorithm 1). Deterministic; NFE = 1.

    Parameters and result as in `Denoiser`.
    """
    return denoise(z_net, sigma_net, labels)


def heun_pf_ode(
    denoise: Denoiser,
    z_net: torch.Tensor,
    sigma_net: float,
    steps: int,
    sigma_min: float = 0.002,
    rho: float = 7.0,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Solve the probability-flow ODE dz/dsigma = (z - D(z, sigma)) / sigma by Heun's method (second order).

    Deterministic; NFE = 2 * steps - 1: two calls for each of the steps - 1 intervals, one for the step to 0.

    Parameters
    ----------
    denoise : Denoiser
    z_net : Tensor (B, C, H, W)
        Noisy image in network units.
    sigma_net : float
        Its noise std in network units, > sigma_min.
    steps : int
        Number of noise levels visited before 0, >= 1.
    sigma_min : float
        Last level before 0, network units.
    rho : float
        Spacing of the levels, see `karras_grid`.
    labels : Tensor (B,) int64, optional

    Returns
    -------
    Tensor (B, C, H, W)
        Clean image in network units, not clipped.

    References
    ----------
    Karras et al. 2022, algorithm 1, with sigma(t) = t and s(t) = 1.
    """
    levels = karras_grid(steps, sigma_min, sigma_net, rho)
    z = z_net
    for now, after in pairwise(levels):
        z = heun_step(denoise, z, now, after, labels)
    return denoise(z, levels[-1], labels)


def heun_step(denoise: Denoiser, z, now, after, labels: torch.Tensor | None = None) -> torch.Tensor:
    """One step of Heun's method on the probability-flow ODE, from noise level `now` to `after` > 0. NFE = 2.

    The levels are floats, or tensors that broadcast with `z` and that `denoise` accepts.
    """
    slope = (z - denoise(z, now, labels)) / now
    euler = z + (after - now) * slope
    slope_after = (euler - denoise(euler, after, labels)) / after
    return z + (after - now) * (slope + slope_after) / 2


def ddim(
    denoise: Denoiser,
    z_net: torch.Tensor,
    sigma_net: float,
    steps: int,
    eta: float = 0.0,
    draws=None,
    sigma_min: float = 0.002,
    rho: float = 7.0,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """DDIM sampling: eta = 0 is deterministic (Euler on the PF-ODE), eta = 1 ancestral DDPM sampling.

    From level a to b < a, with x0 = D(z, a) and v = eta^2 b^2 (a^2 - b^2) / a^2:
    z <- x0 + sqrt(b^2 - v) (z - x0) / a + sqrt(v) noise. At eta = 1, v is the variance of the posterior
    q(z_b | z_a, x0). NFE = steps; steps - 1 draws of noise if eta > 0, none otherwise.

    Parameters
    ----------
    eta : float
        Share of the posterior std that is drawn, in [0, 1].
    draws : optional
        Source of standard normals `randn(*shape)`, needed if eta > 0.
    denoise, z_net, sigma_net, steps, sigma_min, rho, labels
        As in `heun_pf_ode`.

    Returns
    -------
    Tensor (B, C, H, W)
        Clean image in network units, not clipped.

    References
    ----------
    Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", eq. 12 and 16, divided by sqrt(abar).
    """
    if not 0 <= eta <= 1:
        raise DrbenchError(f"ddim needs 0 <= eta <= 1 (0 deterministic, 1 ancestral), got {eta}")
    levels = karras_grid(steps, sigma_min, sigma_net, rho)
    z = z_net
    for now, after in pairwise(levels):
        x0 = denoise(z, now, labels)
        variance = eta**2 * after**2 * (now**2 - after**2) / now**2
        z = x0 + (after**2 - variance) ** 0.5 / now * (z - x0)
        if eta > 0:
            z = z + variance**0.5 * draws.randn(*z.shape)
    return denoise(z, levels[-1], labels)


def stochastic_reverse(
    denoise: Denoiser,
    z_net: torch.Tensor,
    sigma_net: float,
    steps: int,
    draws,
    sigma_min: float = 0.002,
    rho: float = 7.0,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Euler-Maruyama on the reverse-time SDE of the variance-exploding process, with sigma^2 as time.

    From level a to b < a: z <- z + (a^2 - b^2) score + sqrt(a^2 - b^2) noise, score = (D(z, a) - z) / a^2.
    The step to 0 is noise-free. NFE = steps; steps - 1 draws of noise.

    Parameters
    ----------
    draws
        Source of standard normals `randn(*shape)`.
    denoise, z_net, sigma_net, steps, sigma_min, rho, labels
        As in `heun_pf_ode`.

    Returns
    -------
    Tensor (B, C, H, W)
        Clean image in network units, not clipped: a draw from p(x0 | z) as steps grows and sigma_min -> 0.

    References
    ----------
    Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", eq. 6 and
    the reverse diffusion sampler of appendix E.
    """
    levels = karras_grid(steps, sigma_min, sigma_net, rho)
    z = z_net
    for now, after in pairwise(levels):
        x0 = denoise(z, now, labels)
        removed = now**2 - after**2
        z = z + removed / now**2 * (x0 - z) + removed**0.5 * draws.randn(*z.shape)
    return denoise(z, levels[-1], labels)
