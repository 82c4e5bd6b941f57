"""What trains an EDM denoiser: the loss of one batch, and the data scale. The loop is `drbench.training`."""

import torch

from drbench.diffusion.denoiser import per_row
from drbench.diffusion.precond import EDMDenoiser
from drbench.errors import DrbenchError


def sigma_data_of(x_net: torch.Tensor) -> float:
    """Std over all values of the training images `x_net`, (N, C, H, W) in [-1, 1]: the sigma_data of EDM."""
    return float(x_net.double().std(correction=0))


def remember_scale(denoiser: torch.nn.Module, x_net: torch.Tensor) -> None:
    """Set the data scale of an EDM denoiser that is about to be trained on `x_net`."""
    if not isinstance(denoiser, EDMDenoiser):
        raise DrbenchError(
            f"only denoisers with EDM preconditioning are trained here, got {type(denoiser).__name__}: use it with "
            "its weights as they are"
        )
    denoiser.sigma_data.fill_(sigma_data_of(x_net))


def edm_loss(
    denoiser: EDMDenoiser,
    x_net: torch.Tensor,
    rng: torch.Generator,
    labels: torch.Tensor | None = None,
    p_mean: float = -1.2,
    p_std: float = 1.2,
    label_dropout: float = 0.1,
) -> torch.Tensor:
    """Weighted denoising error at random noise levels, mean over rows and pixels.

    sigma_net = exp(N(p_mean, p_std^2)) for each row, weight (sigma^2 + s^2) / (sigma s)^2 where
    s = sigma_data, so that every level starts at about the same loss.

    Parameters
    ----------
    denoiser : EDMDenoiser
    x_net : Tensor (B, C, H, W) float32
        Clean images in [-1, 1].
    rng : torch.Generator
        On the CPU, so that every device trains on the same noise; the only source of randomness.
    labels : Tensor (B,) int64, optional
        Only for a conditional denoiser. None trains the null class alone.
    p_mean, p_std : float
        Mean and std of ln sigma_net.
    label_dropout : float
        Probability in [0, 1] that a row is trained as the null class, so that the denoiser is also
        an unconditional one.

    Returns
    -------
    Tensor ()
        The published loss is a sum over pixels; the mean differs by the constant factor C * H * W.

    References
    ----------
    Karras et al. 2022, eq. 2 and 8, Table 1 (training); Ho & Salimans 2022, "Classifier-Free Diffusion
    Guidance", algorithm 1 (label dropout).
    """
    log_sigma = p_mean + p_std * torch.randn(len(x_net), generator=rng).to(x_net.device)
    sigma = per_row(log_sigma.exp(), x_net)
    noise = torch.randn(x_net.shape, generator=rng).to(x_net.device)
    if labels is not None and denoiser.num_classes is not None:
        dropped = torch.rand(len(x_net), generator=rng).to(x_net.device) < label_dropout
        labels = torch.where(dropped, denoiser.num_classes, labels)
    x0 = denoiser(x_net + sigma * noise, sigma.flatten(), labels)
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return (weight * (x0 - x_net) ** 2).mean()
