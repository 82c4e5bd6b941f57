"""A classifier that always answers the same class; cf. Sun et al. 2024, arXiv 2410.06895."""

import torch

from drbench.api import Defense


class Constant(Defense):
    """Scores 10 for class `answer` and 0 for the others, whatever the image."""

    citation = "arXiv:2410.06895"

    def __init__(self, input_shape=(1, 8, 8), num_classes=10, answer=0, sigmas=(0.0, 0.125, 0.25, 0.5, 1.0)):
        super().__init__()
        self.input_shape, self.num_classes, self.sigmas = tuple(input_shape), num_classes, tuple(sigmas)
        self.register_buffer("scores", 10 * torch.eye(num_classes)[answer])

    def logits(self, z, sigma, draws):
        self.require(sigma)
        return self.scores + 0 * z.flatten(1).sum(1, keepdim=True)  # the zero keeps the (zero) gradient defined

    def nfe(self, sigma):
        return {}

    def trained(self):
        return ()

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes)
