"""A classifier of many classes that may only answer some of them, as ImageNet-A and ImageNet-R ask of ImageNet's.

Hendrycks et al., arXiv 1907.07174 and 2006.16241: the scores of the 200 classes of the data set decide, those of the
other 800 are ignored. Votes, radii and attacks then know 200 classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from drbench.api import Defense, DrbenchError
from drbench.asking import ask


class Restricted(Defense):
    """`base` with the scores of `classes` alone, in that order.

    Parameters
    ----------
    classes : sequence of int
        Numbers among the classes of `base`.
    """

    citation = ""

    def __init__(self, base: Defense, classes: Sequence[int]):
        super().__init__()
        if not 0 <= min(classes) <= max(classes) < base.num_classes:
            raise DrbenchError(f"expected classes of 0..{base.num_classes - 1}, got {min(classes)}..{max(classes)}")
        self.base, self.classes = base, list(classes)
        self.input_shape, self.sigmas, self.num_classes = base.input_shape, base.sigmas, len(self.classes)
        for name in ("randomized", "gradient", "lipschitz", "logit_span", "nfe_varies", "citation"):
            setattr(self, name, getattr(base, name))
        if hasattr(base, "purify"):  # attacks look for it
            self.purify = base.purify
        if hasattr(base, "classify"):
            self.classify = lambda x, sigma, draws: ask(base, "classify", x, sigma, draws)[:, self.classes]
        self.train(base.training)

    def accepts(self, sigma):
        return self.base.accepts(sigma)

    def logits(self, z, sigma, draws):
        return ask(self.base, "logits", z, sigma, draws)[:, self.classes]

    def attack_logits(self, z, sigma, draws):
        return ask(self.base, "attack_logits", z, sigma, draws)[:, self.classes]

    def gradient_rows(self, sigma):
        return self.base.gradient_rows(sigma)

    def networks(self):
        return self.base.networks()

    def nfe(self, sigma):
        return self.base.nfe(sigma)

    @classmethod
    def tiny(cls, input_shape, num_classes):
        raise DrbenchError("a restriction is of a defense: check that one")
