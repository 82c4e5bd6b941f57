"""Classifiers trained under Gaussian noise. Cohen et al. 2019, arXiv 1902.02918, section 3.3."""

from dataclasses import replace

from torch import nn

from drbench.api import Defense
from drbench.classifiers import SmallCNN, fit_classifier


class NoiseAugmented(Defense):
    """One small CNN for each declared noise level; a level is answered by its own network."""

    citation = "arXiv:1902.02918"

    def __init__(self, input_shape=(1, 8, 8), num_classes=10, width=16, sigmas=(0.25, 0.5, 1.0)):
        super().__init__()
        self.input_shape, self.num_classes, self.sigmas = tuple(input_shape), num_classes, tuple(sigmas)
        self.classifiers = nn.ModuleList(SmallCNN(self.input_shape, num_classes, width) for _ in self.sigmas)

    def networks(self):
        return {f"classifier_{sigma:g}": network for sigma, network in zip(self.sigmas, self.classifiers, strict=True)}

    def logits(self, z, sigma, draws):
        self.require(sigma)
        return self.classifiers[self.sigmas.index(sigma)](z)

    def nfe(self, sigma):
        return {f"classifier_{sigma:g}": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes, width=4)

    def fit(self, x, y, recipe, log):
        for sigma, network in zip(self.sigmas, self.classifiers, strict=True):
            state = recipe.state and f"{recipe.state}-{sigma:g}"
            fit_classifier(network, x, y, sigma, replace(recipe, state=state), log)
