"""Denoise, then classify. Carlini et al. 2023, arXiv 2206.10550; K-vote: Xiao et al. 2022, arXiv 2211.00322."""

import torch

from drbench import classifiers
from drbench.api import Defense, DrbenchError
from drbench.diffusion import networks
from drbench.diffusion.denoiser import clipped
from drbench.diffusion.samplers import ddim, heun_pf_ode, one_shot
from drbench.diffusion.stepwise import recomputed
from drbench.diffusion.train import edm_loss, remember_scale
from drbench.training import sample, train

SAMPLERS = ("one_shot", "pf_ode", "densepure")


class Denoised(Defense):
    """A denoiser for every noise level, a classifier that has only seen clean images.

    Parameters
    ----------
    sampler : {"one_shot", "pf_ode", "densepure"}
        "one_shot": the posterior mean, one call. "pf_ode": `steps` levels of Heun's method, 2 * steps - 1 calls.
        "densepure": `votes` independent ancestral samples of `steps` calls each, classified by majority.
    steps, votes : int
        Used by the samplers that have them.
    sigma_min : float
        Last noise level before 0, network units, for the samplers that have steps.
    training_levels : pair of float
        Mean and standard deviation of ln sigma_net in training.
    label_dropout : float
        Share of training images without their label: what the unconditional denoiser, used here, learns from.
    channels : tuple of int
        Widths of the UNet; `width` is that of the classifier.
    denoiser, classifier : dict, optional
        Other networks than the small ones, for `drbench.diffusion.networks.build` and `drbench.classifiers.build`.
    """

    citation = "arXiv:2206.10550"

    def __init__(
        self,
        input_shape=(1, 8, 8),
        num_classes=10,
        sampler="one_shot",
        steps=1,
        votes=1,
        sigmas=(0.0, 0.125, 0.25, 0.5, 1.0),
        sigma_min=0.002,
        channels=(16, 32),
        width=16,
        training_levels=(-1.2, 1.2),
        label_dropout=0.5,
        denoiser=None,
        classifier=None,
    ):
        super().__init__()
        if sampler not in SAMPLERS:
            raise DrbenchError(f"unknown sampler {sampler!r}; available: {', '.join(SAMPLERS)}")
        if steps < 1 or votes < 1:
            raise DrbenchError(f"denoised needs steps >= 1 and votes >= 1, got steps={steps}, votes={votes}")
        self.input_shape, self.num_classes, self.sigmas = tuple(input_shape), num_classes, tuple(sigmas)
        self.sampler, self.steps, self.votes, self.sigma_min = sampler, steps, votes, sigma_min
        self.training_levels, self.label_dropout = tuple(training_levels), label_dropout
        self.randomized = sampler == "densepure" and steps > 1  # the last step, to noise level 0, is noise-free
        self.gradient = "surrogate" if sampler == "densepure" else "exact"  # a majority has no useful gradient
        self.denoiser = networks.build(denoiser, self.input_shape, num_classes, channels=channels)
        self.classifier = classifiers.build(classifier, self.input_shape, num_classes, width=width)

    def logits(self, z, sigma, draws):
        return self._scores(z, sigma, draws, self.denoiser)

    def attack_logits(self, z, sigma, draws):
        """The same, with exact gradients through all steps in the memory of one; of a majority, see `_majority`."""
        return self._scores(z, sigma, draws, self._recomputed)

    def purify(self, z, sigma, draws):
        """One denoised image, pixels in [0, 1]; what one vote of "densepure" classifies."""
        self.require(sigma)
        return z if sigma == 0 else self._denoised(2 * z - 1, 2 * sigma, draws, self._recomputed)

    @property
    def _recomputed(self):
        """The denoiser in the memory of one call, which a single call needs anyway."""
        return self.denoiser if self.sampler == "one_shot" else recomputed(self.denoiser)

    def _scores(self, z, sigma, draws, denoise):
        self.require(sigma)
        if sigma == 0:
            return self.classifier(z)
        if self.sampler == "densepure":
            return self._majority(2 * z - 1, 2 * sigma, draws, denoise)
        return self.classifier(self._denoised(2 * z - 1, 2 * sigma, draws, denoise))

    def _denoised(self, z_net, sigma_net, draws, denoise):
        if self.sampler == "one_shot":
            x_net = one_shot(denoise, z_net, sigma_net)
        elif self.sampler == "pf_ode":
            x_net = heun_pf_ode(denoise, z_net, sigma_net, self.steps, self.sigma_min)
        else:
            x_net = ddim(clipped(denoise), z_net, sigma_net, self.steps, 1.0, draws, self.sigma_min)
        return (x_net.clamp(-1, 1) + 1) / 2

    def _majority(self, z_net, sigma_net, draws, denoise):
        """Votes per class plus their mean probability (< 1), which breaks ties and carries a surrogate gradient."""
        votes, probability = 0, 0
        for _ in range(self.votes):
            logits = self.classifier(self._denoised(z_net, sigma_net, draws, denoise))
            votes = votes + torch.nn.functional.one_hot(logits.argmax(1), self.num_classes)
            probability = probability + logits.softmax(1) / self.votes
        return votes + 0.999 * probability

    def nfe(self, sigma):
        if sigma == 0:
            return {"classifier": 1}
        calls = {"one_shot": 1, "pf_ode": 2 * self.steps - 1, "densepure": self.steps * self.votes}[self.sampler]
        return {"denoiser": calls, "classifier": self.votes if self.sampler == "densepure" else 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes, channels=(8, 16), width=4)

    def trained(self):
        return ("denoiser",)  # the classifier is a given: any network trained on clean images

    def fit(self, x, y, recipe, log):
        remember_scale(self.denoiser, 2 * x - 1)

        def loss(rng):
            images, labels = sample(x, y, recipe, rng)
            return edm_loss(self.denoiser, 2 * images - 1, rng, labels, *self.training_levels, self.label_dropout)

        train(self.denoiser, loss, recipe, log)
