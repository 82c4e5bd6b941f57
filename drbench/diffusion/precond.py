"""Raw networks made into denoisers: EDM preconditioning, and epsilon networks of a discrete VP schedule."""

import torch
from torch import nn

from drbench.diffusion.denoiser import per_row
from drbench.diffusion.schedules import sigma_net_of, timestep_for
from drbench.errors import DrbenchError


class EDMDenoiser(nn.Module):
    """`D(z; sigma) = c_skip z + c_out F(c_in z; c_noise, labels)`; its call is the `Denoiser` contract.

    With s = sigma_data: c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s / sqrt(sigma^2 + s^2),
    c_in = 1 / sqrt(sigma^2 + s^2), c_noise = ln(sigma) / 4. For data N(0, s^2), F = 0 is optimal.

    Parameters
    ----------
    network : nn.Module
        F, called as `network(x, c_noise (B,), labels (B,) or None)`, returns the shape of x.
    sigma_data : float
        Std of the training pixels in [-1, 1] (`train.sigma_data_of`); a buffer, so it travels in the state
        dict.
    num_classes : int, optional
        K if the network is conditional. It then knows K + 1 labels: the last, K, is the null class, and
        calling with `labels=None` means K for every row.

    References
    ----------
    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", eq. 7 and
    Table 1.
    """

    def __init__(self, network: nn.Module, sigma_data: float, num_classes: int | None = None):
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.register_buffer("sigma_data", torch.tensor(float(sigma_data)))

    def forward(
        self, z_net: torch.Tensor, sigma_net: float | torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Estimate the clean image; see `drbench.diffusion.denoiser.Denoiser`."""
        sigma = per_row(sigma_net, z_net)
        total = sigma**2 + self.sigma_data**2
        c_noise = sigma.flatten().log() / 4
        raw = self.network(z_net / total.sqrt(), c_noise, self._labels(labels, z_net))
        c_skip, c_out = self.scalings(sigma)
        return c_skip * z_net + c_out * raw

    def scalings(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """c_skip and c_out at noise levels `sigma`, network units; of its shape."""
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()

    def _labels(self, labels: torch.Tensor | None, z_net: torch.Tensor) -> torch.Tensor | None:
        if self.num_classes is None and labels is not None:
            raise DrbenchError("an unconditional denoiser (num_classes=None) got labels; pass labels=None")
        if self.num_classes is None or labels is not None:
            return labels
        return torch.full((len(z_net),), self.num_classes, dtype=torch.int64, device=z_net.device)


class VPDenoiser(nn.Module):
    """An epsilon-predicting network of a discrete VP schedule; its call is the `Denoiser` contract.

    t = `timestep_for(sigma_net)` is the first timestep at least as noisy; the network sees
    x_t = sqrt(abar_t) z_net, and x0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t) = z_net - sigma_t eps with
    sigma_t = `sigma_net_of(t)`.

    The input carries noise of std exactly `sigma_net`; nothing is added to reach sigma_t. So the network is
    told a level slightly above the true one (by at most one step of the schedule), the estimate is the
    posterior mean *at sigma_t*, and a smoothing radius is that of `sigma_net`. A float level is looked up in
    float64; a float32 tensor as the float32 number it is, which can move t by one when it lies on a level of
    the schedule.

    Parameters
    ----------
    network : nn.Module
        Called as `network(x_t, time (B,) float, labels (B,) or None)`. Returns (B, C, H, W), or (B, 2C, H, W)
        if it also predicts the variance; only the first C channels are used.
    alphas_bar : Tensor (T,) float64
        Signal power of each timestep (`schedules.alphas_bar`).
    time_scale : float
        The network is given t * time_scale: 1, or 1000 / T for a network trained with rescaled timesteps.

    References
    ----------
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 15; Carlini et al. 2023, "(Certified!!)
    Adversarial Robustness for Free!", algorithm 1; Jeong & Shin 2023 keep the noise exact, as here.
    """

    num_classes: int | None = None  # labels that the network knows
    sigma_data = 0.5  # weighs noise levels in training, as for EDM's networks; the answer does not depend on it

    def __init__(self, network: nn.Module, alphas_bar: torch.Tensor, time_scale: float = 1.0):
        super().__init__()
        self.network = network
        # no buffer: Module.half() and .float() would round the schedule
        self.alphas_bar = alphas_bar.double()
        self.time_scale = time_scale

    def forward(
        self, z_net: torch.Tensor, sigma_net: float | torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Estimate the clean image; see `drbench.diffusion.denoiser.Denoiser`."""
        alphas_bar = self.alphas_bar.to(z_net.device)
        t = timestep_for(sigma_net, alphas_bar)
        signal = per_row(alphas_bar[t].sqrt(), z_net)
        time = (t * self.time_scale).to(z_net).expand(len(z_net))
        eps = self.network(signal * z_net, time, labels)[:, : z_net.shape[1]]
        return z_net - per_row(sigma_net_of(t, alphas_bar), z_net) * eps
