"""The small convolutional classifier that several methods use, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from drbench.errors import DrbenchError
from drbench.training import Recipe, sample, train


class SmallCNN(nn.Module):
    """Three 3x3 convolutions (strides 1, 2, 2) and two linear layers; pixels are centred at 0.5 inside.

    Takes (B, C, H, W), any real values, H and W divisible by 4, and returns (B, K) logits. 40,394 parameters for
    8x8 grey images at width 16.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, width: int = 16):
        super().__init__()
        channels, height, columns = input_shape
        if height % 4 or columns % 4:
            raise DrbenchError(
                f"SmallCNN needs a height and width divisible by 4, got {height}x{columns}: pad the images"
            )
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * width * (height // 4) * (columns // 4), 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x - 0.5)


def fit_classifier(
    network: nn.Module, x: Tensor, y: Tensor, sigma: float, recipe: Recipe, log: Callable[[int, float], None]
) -> None:
    """Cross-entropy training on images under Gaussian noise of level `sigma` (0: clean), unclipped.

    Cohen et al. 2019 (arXiv 1902.02918), section 3.3: "train with Gaussian data augmentation at variance sigma^2".
    A share `recipe.mixup` of each batch is mixed before the noise is added: see `mixup`.
    """
    classes = torch.eye(network(x[:1]).shape[1], device=x.device)

    def loss(rng: Generator) -> Tensor:
        images, labels = sample(x, y, recipe, rng)
        images, targets = mixup(images, classes[labels], recipe.mixup, rng)
        noisy = images + sigma * torch.randn(images.shape, generator=rng).to(images.device)
        return nn.functional.cross_entropy(network(noisy), targets)

    train(network, loss, recipe, log)


def mixup(x: Tensor, targets: Tensor, share: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """Replace the first `share` of the rows by w a + (1 - w) b, w uniform in [0, 1], b another row; targets likewise.

    What a denoiser makes of very noisy images are such mixtures: a mean over the images that are still possible.
    Zhang et al. 2018, "mixup: beyond empirical risk minimization", arXiv 1710.09412, with alpha = 1.
    """
    mixed = round(share * len(x))
    if mixed == 0:
        return x, targets
    weight = torch.rand(mixed, generator=rng).to(x.device)
    partner = torch.randperm(len(x), generator=rng)[:mixed].to(x.device)

    def mix(values: Tensor) -> Tensor:
        return torch.cat(
            (values[partner].lerp(values[:mixed], weight.view(-1, *[1] * (values.ndim - 1))), values[mixed:])
        )

    return mix(x), mix(targets)
