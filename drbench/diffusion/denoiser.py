"""The one contract between networks and everything that uses them: a denoiser."""

from typing import Protocol

import torch

from drbench.errors import DrbenchError


class Denoiser(Protocol):
    """`denoise(z_net, sigma_net, labels=None) -> x0_net`, the estimate of E[x0 | z, labels].

    Parameters
    ----------
    z_net : Tensor (B, C, H, W) float32
        Image in [-1, 1] plus `sigma_net` times a standard normal; unscaled (variance-exploding), never
        clipped.
    sigma_net : float or Tensor (B,)
        Noise std in network units, > 0: twice the std in pixel units.
    labels : Tensor (B,) int64, optional
        Classes to condition on; None is the unconditional estimate.

    Returns
    -------
    Tensor (B, C, H, W) float32
        Not clipped: it may leave [-1, 1]. Row i depends on row i of the inputs only, and is differentiable in
        `z_net`. One call costs one network evaluation (NFE) a row.
    """

    def __call__(
        self, z_net: torch.Tensor, sigma_net: float | torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor: ...


def per_row(sigma_net: float | torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Spread a noise level over a batch.

    Parameters
    ----------
    sigma_net : float or Tensor () or (B,)
        Noise std, any one unit.
    z : Tensor (B, C, H, W)

    Returns
    -------
    Tensor (B, 1, 1, 1)
        With the dtype and device of `z`.
    """
    if not isinstance(sigma_net, torch.Tensor):
        return z.new_full((len(z), 1, 1, 1), sigma_net)
    if sigma_net.shape not in ((), (len(z),)):
        raise DrbenchError(
            f"a noise level is a float or one number a row, shape ({len(z)},); "
            f"got shape {tuple(sigma_net.shape)}. Flatten it, or pass a float"
        )
    return sigma_net.to(z).expand(len(z)).reshape(-1, 1, 1, 1)


def clipped(denoise: Denoiser) -> Denoiser:
    """The same denoiser with every estimate clamped to the image range [-1, 1].

    Give this to a sampler to clamp x0 at each step, as the official code of DDPM (Ho et al. 2020),
    Carlini et al. 2023 and DensePure (Xiao et al. 2022) does.
    """
    return lambda z_net, sigma_net, labels=None: denoise(z_net, sigma_net, labels).clamp(-1, 1)
