"""Noise levels: discrete variance-preserving (VP) schedules, level <-> timestep, and the Karras grid.

Everything is float64, because one rounding error in a lookup moves a timestep. A VP model sees
`x_t = sqrt(abar_t) * (x0 + sigma_t * noise)` with `sigma_t = sqrt(1 - abar_t) / sqrt(abar_t)`: timestep t is
noise level `sigma_net_of(t)`. Timesteps count from 0; index t holds the noise after t + 1 diffusion steps.
"""

import math

import torch

from drbench.errors import DrbenchError


def linear_betas(T: int) -> torch.Tensor:
    """Linear schedule, rescaled so that every T ends at about the same total noise.

    Parameters
    ----------
    T : int
        Number of diffusion steps, > 20 (below, the last beta reaches 1).

    Returns
    -------
    Tensor (T,) float64
        From 1e-4 * 1000/T to 0.02 * 1000/T.

    References
    ----------
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", section 4 (T = 1000); Nichol & Dhariwal 2021,
    "Improved DDPM" (official code, other T).
    """
    if T <= 20:
        raise DrbenchError(f"the linear schedule needs more than 20 steps (last beta: 20/T); got {T}")
    return torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * (1000 / T)


def cosine_betas(T: int) -> torch.Tensor:
    """Cosine schedule: beta_i = min(0.999, 1 - g((i+1)/T) / g(i/T)), g(r) = cos^2((r + 0.008)/1.008 * pi/2).

    Parameters
    ----------
    T : int
        Number of diffusion steps, >= 1.

    Returns
    -------
    Tensor (T,) float64

    References
    ----------
    Nichol & Dhariwal 2021, "Improved DDPM", eq. 17.
    """
    ratio = torch.arange(T + 1, dtype=torch.float64) / T
    g = torch.cos((ratio + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - g[1:] / g[:-1]).clamp(max=0.999)


def alphas_bar(betas: torch.Tensor) -> torch.Tensor:
    """Signal power after each step, prod(1 - beta): (T,) float64, decreasing (Ho et al. 2020, eq. 4)."""
    return torch.cumprod(1 - betas.double(), dim=0)


def sigma_net_of(t: int | torch.Tensor, alphas_bar: torch.Tensor) -> torch.Tensor:
    """Noise level of timestep `t`, network units: sqrt(1 - abar_t) / sqrt(abar_t), float64, shape of `t`."""
    return torch.sqrt(1 - alphas_bar[t]) / torch.sqrt(alphas_bar[t])


def timestep_for(sigma_net: float | torch.Tensor, alphas_bar: torch.Tensor) -> torch.Tensor:
    """First timestep whose noise level is at least `sigma_net`.

    Parameters
    ----------
    sigma_net : float or Tensor (B,)
        Noise std in network units. A float is looked up in float64.
    alphas_bar : Tensor (T,) float64

    Returns
    -------
    Tensor () or (B,) int64
        t with sigma_net_of(t - 1) < sigma_net <= sigma_net_of(t).

    Raises
    ------
    DrbenchError
        If even the last timestep carries less noise.

    References
    ----------
    Carlini et al. 2023, "(Certified!!) Adversarial Robustness for Free!", section 3; Jeong & Shin 2023,
    "Multi-scale Diffusion Denoised Smoothing", use the same search.
    """
    levels = sigma_net_of(slice(None), alphas_bar)
    wanted = torch.as_tensor(sigma_net, dtype=torch.float64, device=levels.device)
    t = torch.searchsorted(levels, wanted)
    if bool((t == len(levels)).any()):
        raise DrbenchError(
            f"this schedule of {len(levels)} steps holds noise up to sigma_net = {levels[-1]:.4g} (network "
            f"units, twice the pixel sigma); got {wanted.max():.4g}. Lower sigma, or use a noisier schedule"
        )
    return t


def karras_grid(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> list[float]:
    """Noise levels from `sigma_max` down to `sigma_min`, both exact, evenly spaced in sigma^(1/rho).

    Parameters
    ----------
    steps : int
        Number of levels, >= 1; with one level the grid is `[sigma_max]`.
    sigma_min, sigma_max : float
        Network units, 0 < sigma_min < sigma_max.
    rho : float
        1 is even spacing in sigma; larger puts more levels at little noise.

    Returns
    -------
    list of float
        `steps` strictly descending levels. The final 0 of a sampler is not part of it.

    References
    ----------
    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", eq. 5.
    """
    if steps < 1:
        raise DrbenchError(f"a noise grid needs at least 1 step, got {steps}")
    if not 0 < sigma_min < sigma_max:
        raise DrbenchError(
            f"a noise grid needs 0 < sigma_min < sigma_max (network units), got sigma_min = {sigma_min:g} "
            f"and sigma_max = {sigma_max:g}. Lower sigma_min, or use a noise level above it"
        )
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    inner = [(top + i / (steps - 1) * (bottom - top)) ** rho for i in range(1, steps - 1)]
    return [float(sigma_max), *inner, float(sigma_min)][:steps]
