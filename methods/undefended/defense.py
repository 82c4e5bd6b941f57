"""A small CNN trained on clean images only; cf. Cohen et al. 2019, arXiv 1902.02918, section 3.3."""

from drbench import classifiers
from drbench.api import Defense
from drbench.classifiers import fit_classifier


class Undefended(Defense):
    """One classifier call at every noise level.

    Parameters
    ----------
    width : int
        Of the small CNN.
    classifier : dict, optional
        Another network: what `drbench.classifiers.build` takes.
    """

    citation = "arXiv:1902.02918"

    def __init__(
        self, input_shape=(1, 8, 8), num_classes=10, width=16, sigmas=(0.0, 0.125, 0.25, 0.5, 1.0), classifier=None
    ):
        super().__init__()
        self.input_shape, self.num_classes, self.sigmas = tuple(input_shape), num_classes, tuple(sigmas)
        self.classifier = classifiers.build(classifier, self.input_shape, num_classes, width=width)

    def logits(self, z, sigma, draws):
        self.require(sigma)
        return self.classifier(z)

    def nfe(self, sigma):
        return {"classifier": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes, width=8)

    def fit(self, x, y, recipe, log):
        fit_classifier(self.classifier, x, y, 0.0, recipe, log)
