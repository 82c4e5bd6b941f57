"""The diffusion classifier and its noised forms. Chen et al. 2024, arXiv 2305.15241 and arXiv 2402.02316."""

import torch
from torch.utils.checkpoint import checkpoint

from drbench import classifiers
from drbench.api import Defense, Draws, DrbenchError
from drbench.classifiers.prepared import resizing
from drbench.diffusion import networks
from drbench.diffusion.exact import ExactDenoiser
from drbench.diffusion.networks.diffusers_unet import make_twice_differentiable
from drbench.diffusion.train import edm_loss, remember_scale
from drbench.training import sample, train
from methods.diffusion_classifier import terms as terms_of
from methods.diffusion_classifier.errors import CHUNK, class_losses
from methods.diffusion_classifier.likelihood import Ascent, maximize
from methods.diffusion_classifier.multihead import MultiHead, distill
from methods.diffusion_classifier.options import check
from methods.diffusion_classifier.pruning import Sift, refine, sift

FEWEST = 16  # rows of a call: fewer are slow, and attacks fill them up


class DiffusionClassifier(Defense):
    """logit_y = -logit_scale * sum over nodes of weight * mean over pixels of (D(x + s e; s, y) - x)^2.

    Parameters
    ----------
    network : {"unet", "multihead", "exact", "classifier"}
        D: a class-conditional denoiser, one call for each class; a distilled network that answers for all classes in
        one call (likelihood maximisation and denoising still ask the denoiser); or the optimal one on `support`
        training images, without any network. "classifier": no sum at all, but a CNN for clean images, behind
        likelihood maximisation alone (the papers' row LM).
    channels, head_channels, width : tuple of int, tuple of int, int
        Widths of the UNet, of the multi-head one, and of the CNN.
    head_network : dict, optional
        Another multi-head network: arguments of `drbench.diffusion.networks.edm_song.SongUNet`.
    levels, nodes, weight, density : pair of float, int, str, pair of float
        The sum: see `terms`. Network units. The official code's 126 points are 125 nodes, its EDM weight "released".
        Weight "vp" is the sum of a VP network: `nodes` timesteps of its schedule, whatever `levels`.
    shared_noise : bool
        The same noise for all classes of an image and node. Never shared over nodes or images.
    randomness : {"fresh", "fixed"}
        New noise in each call, or always the same: a deterministic defense.
    logit_scale : float, optional
        Temperature of the softmax; by default the number of pixel values.
    clip : bool
        Clamp D to the box: what the Lipschitz constant needs.
    likelihood : dict, optional
        Fields of `likelihood.Ascent`: maximise the likelihood of clean images first (RDC). None: DC.
    gradient : {"exact", "bpda"}
        What an attacker differentiates: every step of likelihood maximisation, or the identity in their place.
    noised : {"apndc", "apndc_noisy", "epndc", "denoise"}, optional
        What is done with images under Gaussian noise, see `terms` and the README; None declares clean images only.
    sigmas : tuple of float
        Noise levels for `noised`, pixel units.
    sift : dict, optional
        Fields of `pruning.Sift`: refine the likely classes only.
    training_levels, label_dropout
        Of the denoiser, as in `denoised`; of the multi-head network the first.
    chunk : int
        Rows of a network call; changes no number.
    denoiser, classifier : dict, optional
        Other networks than the small ones, for `drbench.diffusion.networks.build` and `drbench.classifiers.build`.
    purifier : dict, optional
        A second denoiser, for `drbench.diffusion.networks.build`: it is asked wherever no class is told, that is for
        the first denoising of `noised` and by likelihood maximisation. None: `denoiser` without a label.
    resize : dict or int, optional
        The sum is over clean (denoised, likelier) images of this size, for which the denoiser is, see
        `drbench.classifiers.prepared.resizing`. Noise, sigma and the purifier are at the size of the data.
    labels : tuple of int, optional
        Which of its classes the denoiser is told for each class of the data: one for each superclass, for instance.
    """

    citation = "arXiv:2305.15241, arXiv:2402.02316"

    def __init__(
        self,
        input_shape=(1, 8, 8),
        num_classes=10,
        network="unet",
        channels=(16, 32),
        head_channels=(24, 48),
        head_network=None,
        width=16,
        support=0,
        levels=(1e-4, 3.0),
        nodes=125,
        weight="released",
        density=(-1.2, 1.2),
        shared_noise=True,
        randomness="fresh",
        logit_scale=None,
        clip=False,
        likelihood=None,
        gradient="exact",
        noised=None,
        sigmas=(0.25, 0.5, 1.0),
        sift=None,
        training_levels=(-1.2, 1.2),
        label_dropout=0.1,
        chunk=CHUNK,
        denoiser=None,
        classifier=None,
        purifier=None,
        resize=None,
        labels=None,
    ):
        super().__init__()
        named = {"randomness": randomness, "gradient": gradient}
        check(network, weight, noised, likelihood, sift, purifier, resize, labels, **named)
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.sigmas = (0.0, *sigmas) if noised else (0.0,)
        self.network, self.clip, self.chunk, self.noised = network, clip, chunk, noised
        self.levels, self.nodes, self.weight, self.density = tuple(levels), nodes, weight, tuple(density)
        self.shared_noise = shared_noise
        self.resize = None if resize is None else resizing(resize)
        self.summed_shape = self.input_shape if self.resize is None else (self.input_shape[0], *self.resize.size)
        self.randomized = randomness == "fresh" and (network != "classifier" or likelihood is not None)
        self.logit_scale = float(torch.Size(self.summed_shape).numel()) if logit_scale is None else logit_scale
        self.ascent = None if likelihood is None else Ascent(**likelihood)
        self.sift = None if sift is None else Sift(**sift)
        self.nfe_varies = self.sift is not None
        self.bpda = gradient == "bpda"
        self.gradient = "surrogate" if self.sift or (self.bpda and self.ascent) else "exact"
        self.training_levels, self.label_dropout = tuple(training_levels), label_dropout
        if network == "exact":
            self.denoiser = ExactDenoiser(self.summed_shape, support)
        else:
            groups = min(8, channels[0] // 2)  # with one channel a group, labels would be normalised away
            small = {"channels": channels, "groups": groups}
            self.denoiser = networks.build(denoiser, self.summed_shape, num_classes, **small)
            known = getattr(self.denoiser, "num_classes", None) or 0
            if network == "unet" and labels is None and known != num_classes:
                raise DrbenchError(
                    f"a diffusion classifier of {num_classes} classes needs a denoiser that knows them, "
                    f"got one of {known or 'no'} classes"
                )
            if labels is not None and (len(labels) != num_classes or not set(labels) <= set(range(known))):
                raise DrbenchError(
                    f"labels: expected {num_classes}, one for each class, of the {known} that the denoiser knows, "
                    f"got {labels}"
                )
        self.register_buffer("labels", None if labels is None else torch.tensor(labels), persistent=False)
        self.purifier = networks.build(purifier, self.input_shape, num_classes) if purifier else None
        if likelihood is not None:
            make_twice_differentiable(self._unconditional)
        if network == "multihead":
            self.multihead = MultiHead(self.summed_shape, num_classes, tuple(head_channels), head_network)
        if network == "classifier":
            self.classifier = classifiers.build(classifier, self.input_shape, num_classes, width=width)
        self._terms(self.sigmas[-1], self.nodes)  # a mistake in the levels is found now

    @property
    def lipschitz(self):
        """Constant of the expectation over the noise; None where the theorem says nothing. See `terms.lipschitz`."""
        elsewhere = self.ascent or self.sift or self.noised or self.resize or self.network == "classifier"
        if elsewhere or not self.clip or not self.randomized:
            return None
        return self.logit_scale * terms_of.lipschitz(self._terms(0.0, self.nodes), torch.Size(self.input_shape).numel())

    @property
    def logit_span(self):
        """Clean images and a clipped prediction are in [-1, 1]: a square is at most 4."""
        return self.logit_scale * 4 * float(self._terms(0.0, self.nodes).weight.sum()) if self.lipschitz else None

    def logits(self, z, sigma, draws):
        return self._answer(z, sigma, draws)

    def attack_logits(self, z, sigma, draws):
        return self._answer(z, sigma, draws, attacked=True)

    def _answer(self, z, sigma, draws, attacked=False):
        self.require(sigma)
        if not self.randomized:
            draws = Draws(Draws.seeded(0, 1).spans * len(z), z.device)
        x = 2 * z - 1
        if sigma == 0 and self.ascent:
            straight = attacked and self.bpda
            likely = maximize(self._unconditional, x.detach() if straight else x, self.ascent, draws, self.chunk)
            x = x + (likely - x).detach() if straight else likely
        if self.network == "classifier":
            return self.classifier((x + 1) / 2)
        return -self.logit_scale * self._losses(*self._places(x, 2 * sigma), sigma, draws, attacked)

    def _losses(self, base, anchor, sigma, draws, attacked):
        """(B, K). Of pruned classes an attacker sees the loss, with the gradient of the full sum: none may hide."""
        if self.sift:
            coarse = self._terms(sigma, self.sift.nodes)
            coarse_noise = self._noise(draws, coarse)
        terms = self._terms(sigma, self.nodes)
        noise = self._noise(draws, terms)
        classes = None if self.network == "multihead" else self.num_classes
        if self.sift is None or attacked:
            full = class_losses(self._predict, base, anchor, noise, terms, classes, self.chunk)
        if self.sift is None:
            return full
        ends = base.detach(), anchor.detach()
        found = sift(self._predict, *ends, coarse_noise, coarse, self.sift, self.num_classes, self.chunk)
        pruned = refine(self._predict, *ends, noise, terms, found, self.chunk)
        return full + (pruned - full).detach() if attacked else pruned

    def _places(self, x, tau):
        """What noise is added to, and what the prediction is compared with."""
        if tau == 0 or self.noised == "epndc":
            return (self._resized(x),) * 2
        parts = [
            checkpoint(lambda z: self._unconditional(z, tau), part, use_reentrant=False, preserve_rng_state=False)
            for part in x.split(self.chunk)
        ]
        denoised = self._resized(torch.cat(parts))
        return (x if self.noised == "apndc_noisy" else denoised), denoised

    @property
    def _unconditional(self):
        """The network that is told no class."""
        return self.denoiser if self.purifier is None else self.purifier

    def _resized(self, x):
        return x if self.resize is None else self.resize(x)

    def _told(self, labels):
        """What the denoiser is told for these classes."""
        return labels if self.labels is None else self.labels[labels]

    def _terms(self, sigma, nodes):
        if self.weight == "vp":
            return terms_of.vp(nodes)
        clean = sigma == 0
        low = self.levels[0] if clean or self.noised == "denoise" else 2 * sigma
        form = terms_of.plain if clean else terms_of.NOISED[self.noised]
        return form(
            low, self.levels[1], nodes, self.weight, float(getattr(self.denoiser, "sigma_data", 0.5)), self.density
        )

    def _predict(self, z_net, level, labels):
        if labels is None:
            found = self.multihead(z_net, level)
        else:
            found = self.denoiser(z_net, level, self._told(labels))[:, None]
        return found.clamp(-1, 1) if self.clip else found

    def _noise(self, draws, terms):
        copies = 1 if self.shared_noise else self.num_classes
        return draws.randn(draws.rows, len(terms.level), copies, *self.summed_shape)

    def gradient_rows(self, sigma):
        """As many as make `chunk` network rows: above that no graph is kept, and all is computed twice."""
        steps = [self.ascent.steps] if sigma == 0 and self.ascent else []
        nodes = [len(self._terms(sigma, self.nodes).level)] if self.network == "multihead" else []
        return min((self.chunk // each for each in steps + nodes if self.chunk >= FEWEST * each), default=None)

    def nfe(self, sigma):
        unconditional = "denoiser" if self.purifier is None else "purifier"
        full, calls = len(self._terms(sigma, self.nodes).level), {"denoiser": 0, unconditional: 0}
        if self.network == "multihead":
            calls["multihead"] = full
        elif self.network == "classifier":
            calls["classifier"] = 1
        elif self.sift:  # at most
            coarse = len(self._terms(sigma, self.sift.nodes).level)
            calls["denoiser"] = coarse * self.num_classes + full * self.sift.keep
        else:
            calls["denoiser"] = full * self.num_classes
        if sigma == 0 and self.ascent:
            calls[unconditional] += self.ascent.steps
        calls[unconditional] += sigma > 0 and self.noised != "epndc"
        return {name: count for name, count in calls.items() if count}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes, channels=(8,), nodes=1, levels=(0.5, 3.0), noised="apndc", sigmas=(0.25,))

    def trained(self):
        return ("multihead",) if self.network == "multihead" else ("denoiser",)  # classifier and purifier are givens

    def fit(self, x, y, recipe, log):
        x, y = self._resized(x), self._told(y)
        if self.network == "exact":
            self.denoiser.remember(2 * x - 1, y)
        elif self.network == "multihead":
            distill(self.multihead, self.denoiser, x, y, self.training_levels, recipe, log)
        else:
            remember_scale(self.denoiser, 2 * x - 1)

            def loss(rng):
                images, labels = sample(x, y, recipe, rng)
                return edm_loss(self.denoiser, 2 * images - 1, rng, labels, *self.training_levels, self.label_dropout)

            train(self.denoiser, loss, recipe, log)
