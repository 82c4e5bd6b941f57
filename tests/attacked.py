"""Small defenses with known answers, for tests of attacks."""

import torch
from torch import nn

from drbench.api import Defense


class Linear(Defense):
    """Two or more classes, logits w x + b: its worst case has a closed form."""

    citation = "none"

    def __init__(self, weight, bias, shape, sigmas=(0.0, 0.25), jitter=0.0):
        super().__init__()
        self.input_shape, self.num_classes, self.sigmas = tuple(shape), len(bias), tuple(sigmas)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.jitter, self.randomized = jitter, jitter > 0

    def logits(self, z, sigma, draws):
        self.require(sigma)
        z = z + self.jitter * draws.randn(*z.shape) if self.jitter else z
        return z.flatten(1) @ self.weight.T + self.bias

    def nfe(self, sigma):
        return {}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        raise NotImplementedError


def two_classes(count=200, shape=(1, 4, 4), reach=0.3, **args):
    """A linear defense of two classes and images inside the box, all right, at signed distances up to `reach` (l2).

    Pixels are in [0.45, 0.55], so that balls of radius 0.4 or less meet the box nowhere.
    Returns the defense, x, y, and the margins |w x + b| of the difference of logits, with that w.
    """
    rng = torch.Generator().manual_seed(3)
    w = torch.randn(shape[0] * shape[1] * shape[2], generator=rng)
    x = 0.45 + 0.1 * torch.rand(count, *shape, generator=rng)
    bias = -(x.flatten(1) @ w).sort().values[count // 2 - 1 : count // 2 + 1].mean()
    defense = Linear(torch.stack([torch.zeros_like(w), w]), torch.stack([torch.tensor(0.0), bias]), shape, **args)
    signed = x.flatten(1) @ w + bias
    return defense.eval(), x, (signed > 0).long(), signed.abs().detach(), w
