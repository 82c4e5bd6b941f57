"""The denoiser that a perfectly trained network would be: the posterior mean over a finite set of images."""

import torch
from torch import nn

from drbench.diffusion.denoiser import per_row


class ExactDenoiser(nn.Module):
    """E[x0 | z] if x0 is one of `images`, all equally likely; its call is the `Denoiser` contract.

    With labels, x0 is one of the images of that class: sum_i w_i x_i, w = softmax_i(-||z - x_i||^2 / (2 sigma^2)). This
    minimises the denoising loss on a training set, at every noise level. Its weights are images: a buffer in the state
    dict, filled by `remember`.

    Parameters
    ----------
    image_shape : tuple
        (C, H, W).
    support : int
        Number of images N.

    References
    ----------
    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", eq. 3 and appendix B.3;
    Chen et al. 2024, arXiv 2305.15241, the optimal diffusion classifier.
    """

    def __init__(self, image_shape: tuple[int, int, int], support: int):
        super().__init__()
        self.register_buffer("images", torch.zeros(support, *image_shape))
        self.register_buffer("labels", torch.zeros(support, dtype=torch.int64))
        self.register_buffer("sigma_data", torch.tensor(0.5))

    def remember(self, x_net: torch.Tensor, labels: torch.Tensor) -> None:
        """Take these images (N, C, H, W) in [-1, 1] and labels (N,) as the support."""
        self.images.copy_(x_net)
        self.labels.copy_(labels)
        self.sigma_data.fill_(x_net.double().std(correction=0))

    def forward(
        self, z_net: torch.Tensor, sigma_net: float | torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Estimate the clean image; see `drbench.diffusion.denoiser.Denoiser`. In float64: sigma may be tiny."""
        images, z = self.images.flatten(1).double(), z_net.flatten(1).double()
        closeness = (z @ images.T - images.square().sum(1) / 2) / per_row(sigma_net, z_net).flatten(1) ** 2
        if labels is not None:
            closeness = closeness.masked_fill(labels[:, None] != self.labels, -torch.inf)
        return (closeness.softmax(1) @ images).to(z_net.dtype).view_as(z_net)
