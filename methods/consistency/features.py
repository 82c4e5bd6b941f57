"""Small encoders whose feature maps stand in for those of LPIPS, trained on the training images alone.

`feat_aux` learns the labels, so a purifier that is tuned with it learns something about them too; `feat_ssl` learns
without labels, by telling how an image was rotated (Gidaris et al. 2018, arXiv 1803.07728).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from drbench.recipe import Recipe
from drbench.training import sample, step_rng, train

PRETEXTS = ("feat_aux", "feat_ssl")


class Encoder(nn.Module):
    """Three 3x3 convolutions (strides 1, 2, 2) with GELU, and a linear head on the mean of the last map.

    Takes (B, C, H, W) in network units. Another architecture than the classifiers that are evaluated.
    """

    def __init__(self, channels: int, outputs: int, width: int = 16):
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1)
            for before, after, stride in zip(widths[:-1], widths[1:], (1, 2, 2), strict=True)
        )
        self.head = nn.Linear(widths[-1], outputs)

    def maps(self, x_net: Tensor) -> list[Tensor]:
        """Feature maps of the three layers, (B, C_l, H_l, W_l) each."""
        found = []
        for layer in self.layers:
            x_net = nn.functional.gelu(layer(x_net))
            found.append(x_net)
        return found

    def features(self, x_net: Tensor) -> Tensor:
        """(B, 4 * width): the mean of the last map, which the head sees."""
        return self.maps(x_net)[-1].mean((2, 3))

    def forward(self, x_net: Tensor) -> Tensor:
        return self.head(self.features(x_net))


def fit_encoder(kind: str, x: Tensor, y: Tensor, num_classes: int, recipe: Recipe, width: int = 16) -> Encoder:
    """Train an encoder on images `x` (N, C, H, W) in [0, 1]; `y` (N,) is used by "feat_aux" alone.

    The seed of the recipe sets its first weights too.
    """
    # Layers draw their first weights from the global generator: it is seeded for them alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(step_rng(recipe.seed, -1).initial_seed())
        encoder = Encoder(x.shape[1], num_classes if kind == "feat_aux" else 4, width).to(x.device)

    def loss(rng: Generator) -> Tensor:
        images, targets = sample(x, y, recipe, rng)
        if kind == "feat_ssl":
            images, targets = rotated(images, rng)
        return nn.functional.cross_entropy(encoder(2 * images - 1), targets)

    train(encoder, loss, recipe, lambda step, value: None)
    return encoder


def rotated(x: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Each square image turned by 0 to 3 quarters, and the number of quarters (B,)."""
    quarters = torch.randint(4, (len(x),), generator=rng).to(x.device)
    turned = torch.stack([x.rot90(k, (2, 3)) for k in range(4)])
    return turned[quarters, torch.arange(len(x), device=x.device)], quarters
