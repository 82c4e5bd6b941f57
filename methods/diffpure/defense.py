"""Diffuse to time t*, reverse the diffusion, classify. Nie et al. 2022, arXiv 2205.07460."""

from drbench import classifiers
from drbench.api import Defense, DrbenchError
from drbench.diffusion import networks
from drbench.diffusion.vp_sde import U_END, reverse, sigma_net_at, time_of

SAMPLERS = ("sde", "ode")


class DiffPure(Defense):
    """An empirical defense of clean images; under smoothing noise, the reverse diffusion alone.

    Parameters
    ----------
    t_star : float
        Time in (0, 1] of the variance-preserving diffusion to which an image without noise is diffused.
    steps : int
        Steps of the reverse process. The paper's step of 0.001 makes 1000 t_star.
    sampler : {"sde", "ode"}
        Reverse SDE, or the probability-flow ODE.
    channels, width
        Of the UNet, of the classifier.
    denoiser, classifier : dict, optional
        Other networks than the small ones, for `drbench.diffusion.networks.build` and `drbench.classifiers.build`.
    """

    citation = "arXiv:2205.07460"

    def __init__(
        self,
        input_shape=(1, 8, 8),
        num_classes=10,
        sigmas=(0.0, 0.25, 0.5, 1.0),
        t_star=0.1,
        steps=100,
        sampler="sde",
        channels=(16, 32),
        width=16,
        denoiser=None,
        classifier=None,
    ):
        super().__init__()
        if sampler not in SAMPLERS or steps < 1 or not U_END < t_star <= 1:
            raise DrbenchError(
                f"diffpure needs a sampler of {', '.join(SAMPLERS)}, steps >= 1 and 0 < t_star <= 1, "
                f"got {sampler!r}, {steps} and {t_star}"
            )
        self.input_shape, self.num_classes, self.sigmas = tuple(input_shape), num_classes, tuple(sigmas)
        self.t_star, self.steps, self.sampler = t_star, steps, sampler
        self.randomized = sampler == "sde" or 0 in self.sigmas
        self.denoiser = networks.build(denoiser, self.input_shape, num_classes, channels=channels)
        self.classifier = classifiers.build(classifier, self.input_shape, num_classes, width=width)

    def logits(self, z, sigma, draws):
        return self.classify(self.purify(z, sigma, draws), sigma, draws)

    def purify(self, z, sigma, draws):
        """Clean pixels in [0, 1] that the classifier sees, (B, C, H, W).

        At sigma = 0 noise is added up to t*, as in the paper; smoothing noise is taken for the diffusion to the time at
        which it is as strong, and nothing is added.
        """
        self.require(sigma)
        z_net, u = 2 * z - 1, time_of(2 * sigma) if sigma else self.t_star
        if sigma == 0:
            z_net = z_net + sigma_net_at(u) * draws.randn(*z.shape)
        x_net = reverse(self.denoiser, z_net, u, self.steps, draws if self.sampler == "sde" else None)
        return (x_net.clamp(-1, 1) + 1) / 2

    def classify(self, x, sigma, draws):
        """Scores of purified images."""
        return self.classifier(x)

    def nfe(self, sigma):
        return {"denoiser": self.steps, "classifier": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes, steps=4, channels=(8, 16), width=4)

    def trained(self):
        return ()  # denoiser and classifier are givens: those of `denoised`
