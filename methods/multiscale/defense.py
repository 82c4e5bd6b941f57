"""One-shot denoising before a classifier, and its tuning for a cascade. Jeong and Shin 2023, arXiv 2310.16779."""

from contextlib import contextmanager

import torch

from drbench import classifiers
from drbench.api import Defense, DrbenchError
from drbench.diffusion import networks
from drbench.diffusion.samplers import one_shot
from drbench.diffusion.train import edm_loss
from drbench.training import sample, train
from methods.multiscale.losses import calibration_losses

TUNED = ("denoiser", "classifier")


class MultiScale(Defense):
    """One denoiser for all scales, one classifier behind it; the cascade over scales is the certifier's.

    Parameters
    ----------
    tuned : {"denoiser", "classifier"}
        What `fit` trains, starting from given weights; the other network stays as it is. "denoiser": denoising loss
        plus Brier and anti-consistency losses (our variant, see `losses`). "classifier": cross-entropy on denoised
        images. Does not change the answers.
    brier, anti_consistency : float
        Weights of the two losses.
    copies : int
        Noisy copies of an image in one step of the first kind of tuning, >= 2.
    p0 : float
        Threshold of the cascade that the tuning is for.
    training_levels, label_dropout
        Of the denoising loss: those that the denoiser was trained with.
    channels, width
        Of the UNet, of the classifier.
    denoiser, classifier : dict, optional
        Other networks than the small ones, for `drbench.diffusion.networks.build` and `drbench.classifiers.build`.
    """

    citation = "arXiv:2310.16779"

    def __init__(
        self,
        input_shape=(1, 8, 8),
        num_classes=10,
        sigmas=(0.0, 0.25, 0.5, 1.0),
        channels=(16, 32),
        width=16,
        tuned="denoiser",
        brier=1.0,
        anti_consistency=1.0,
        copies=4,
        p0=0.5,
        training_levels=(-0.3, 1.0),
        label_dropout=0.75,
        denoiser=None,
        classifier=None,
    ):
        super().__init__()
        if tuned not in TUNED:
            raise DrbenchError(f"multiscale can tune {' or '.join(TUNED)}, got {tuned!r}")
        if copies < 2:
            raise DrbenchError(f"multiscale compares at least 2 noisy copies of an image, got copies={copies}")
        self.input_shape, self.num_classes, self.sigmas = tuple(input_shape), num_classes, tuple(sigmas)
        self.tuned, self.brier, self.anti_consistency, self.copies, self.p0 = tuned, brier, anti_consistency, copies, p0
        self.training_levels, self.label_dropout = tuple(training_levels), label_dropout
        self.denoiser = networks.build(denoiser, self.input_shape, num_classes, channels=channels)
        self.classifier = classifiers.build(classifier, self.input_shape, num_classes, width=width)

    def logits(self, z, sigma, draws):
        self.require(sigma)
        return self.classifier(z) if sigma == 0 else self._denoised(z, sigma)

    def purify(self, z, sigma, draws):
        """The one-shot denoised images, pixels in [0, 1]."""
        self.require(sigma)
        return z if sigma == 0 else self._clean(z, sigma)

    def _clean(self, z, sigma):
        return (one_shot(self.denoiser, 2 * z - 1, 2 * sigma).clamp(-1, 1) + 1) / 2

    def _denoised(self, z, sigma):
        """Logits of the one-shot denoised images; `sigma` a number or one for each row."""
        return self.classifier(self._clean(z, sigma))

    def nfe(self, sigma):
        return {"classifier": 1} if sigma == 0 else {"denoiser": 1, "classifier": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes, channels=(8, 16), width=4, copies=2)

    def trained(self):
        return (self.tuned,)

    def fit(self, x, y, recipe, log):
        frozen = self.classifier if self.tuned == "denoiser" else self.denoiser
        loss = self._calibration_loss if self.tuned == "denoiser" else self._classifier_loss
        with _frozen(frozen):
            train(getattr(self, self.tuned), lambda rng: loss(*sample(x, y, recipe, rng), rng), recipe, log)

    def _calibration_loss(self, images, labels, rng):
        plain = edm_loss(self.denoiser, 2 * images - 1, rng, labels, *self.training_levels, self.label_dropout)
        many = images.repeat(self.copies, 1, 1, 1)
        noise = torch.randn(many.shape, generator=rng).to(many.device)
        sigma = _random_levels([level for level in self.sigmas if level > 0], images, rng).repeat(self.copies)
        scores = self._denoised(many + sigma.view(-1, 1, 1, 1) * noise, sigma)
        brier, agreement = calibration_losses(scores.softmax(1).view(self.copies, len(images), -1), labels, self.p0)
        return plain + self.brier * brier + self.anti_consistency * agreement

    def _classifier_loss(self, images, labels, rng):
        """Cross-entropy at all declared levels in equal shares; level 0, if declared, means the clean image."""
        sigma = _random_levels(self.sigmas, images, rng)
        noise = torch.randn(images.shape, generator=rng).to(images.device)
        with torch.no_grad():
            z_net = 2 * (images + sigma.view(-1, 1, 1, 1) * noise) - 1
            x = (one_shot(self.denoiser, z_net, 2 * sigma.clamp_min(1e-3)).clamp(-1, 1) + 1) / 2
        x = x.where(sigma.view(-1, 1, 1, 1) > 0, images)
        return torch.nn.functional.cross_entropy(self.classifier(x), labels)


def _random_levels(levels, images, rng):
    """One of the levels for each image."""
    return torch.tensor(levels)[torch.randint(len(levels), (len(images),), generator=rng)].to(images.device)


@contextmanager
def _frozen(network):
    """In eval mode and without parameter gradients inside the block."""
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
