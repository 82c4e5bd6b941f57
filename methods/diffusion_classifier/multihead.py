"""A network that predicts the clean image under every class in one call, and its distillation from one that is asked.

Chen et al. 2024, arXiv 2305.15241: K times fewer evaluations. Its weights and its training objective are not public;
ours is the mean squared distance to the teacher over all classes, in the units of EDM's loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from drbench.diffusion.denoiser import per_row
from drbench.diffusion.networks.edm_song import SongUNet
from drbench.diffusion.networks.unet import small_unet
from drbench.training import sample, train


class MultiHead(nn.Module):
    """(z (B, C, H, W), level (B,)) -> (B, K, C, H, W): the posterior means of the clean image, one for each class.

    EDM preconditioning (Karras et al. 2022, Table 1) around a UNet whose last convolution has K times the channels: a
    small one of these `channels`, or a `SongUNet` of the configuration `song`. `sigma_data` is that of the teacher.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], heads: int, channels: tuple[int, ...], song: Mapping | None = None
    ):
        super().__init__()
        self.heads = heads
        if song is None:
            self.network = small_unet(image_shape, None, channels, groups=min(8, channels[0] // 2), heads=heads)
        else:
            colours, side, _ = image_shape
            self.network = SongUNet(side, colours, out_channels=heads * colours, **song)
        self.register_buffer("sigma_data", torch.tensor(0.5))

    def forward(self, z_net: Tensor, sigma_net: Tensor) -> Tensor:
        sigma = per_row(sigma_net, z_net)
        root = (sigma**2 + self.sigma_data**2).sqrt()
        raw = self.network(z_net / root, sigma.flatten().log() / 4).unflatten(1, (self.heads, -1))
        skip, out = (self.sigma_data / root) ** 2, sigma * self.sigma_data / root
        return (skip * z_net)[:, None] + out[:, None] * raw


def distill(student: MultiHead, teacher: nn.Module, x: Tensor, y: Tensor, levels, recipe, log) -> None:
    """Train `student` to say for every class what `teacher` says when it is told that class.

    Noisy images of all classes, ln sigma_net ~ N(*levels) (mean, std), the same noise for all heads.
    """
    teacher.eval()  # it may have dropout
    student.sigma_data.copy_(teacher.sigma_data)
    mean, std = levels

    def loss(rng: Generator) -> Tensor:
        images, _ = sample(x, y, recipe, rng)
        sigma = (mean + std * torch.randn(len(images), generator=rng)).exp().to(x.device)
        spread = per_row(sigma, images)
        noisy = 2 * images - 1 + spread * torch.randn(images.shape, generator=rng).to(x.device)
        with torch.no_grad():
            labels = torch.arange(student.heads, device=x.device).repeat(len(images))
            told = teacher(
                noisy.repeat_interleave(student.heads, 0), sigma.repeat_interleave(student.heads), labels
            ).unflatten(0, (-1, student.heads))
        weight = (spread**2 + student.sigma_data**2) / (spread * student.sigma_data) ** 2
        return (weight[:, None] * (student(noisy, sigma) - told) ** 2).mean()

    train(student, loss, recipe, log)
