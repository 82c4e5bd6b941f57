"""Multi-scale smoothing under attack: the cascade as it is deployed, and its two weak spots as views.

Jeong and Shin 2023, arXiv 2310.16779: from the largest noise level down, the first level at which a class has more than
p0 of the votes answers; if none has, the classifier of clean images does, without any protection. So an attacker can
make a wrong class win the votes of a level (route "halt"), or keep all levels from answering and fool the clean
classifier (route "pass").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drbench.api import Defense, Draws, DrbenchError
from drbench.attacks.losses import Loss
from drbench.attacks.views import Answer, Direct, View

SLACK = 0.1  # how far below p0 the pass route pushes the largest probability: votes are noisy


class Cascade(Defense):
    """A defense and its noise levels as one randomised classifier of clean images, with `votes` draws at each level.

    Its scores are log-shares of the votes of the level that answers, or the scores of the clean image; so the class
    with the largest score is what the cascade says.

    Parameters
    ----------
    base : Defense
        Declares all `levels`, and 0 for the fallback.
    levels : sequence of float
        Noise levels, pixel units, > 0.
    votes : int
        Draws at each level.
    p0 : float
        Share of the votes above which a class answers.
    """

    citation = "arXiv:2310.16779"
    randomized = True
    gradient = "surrogate"

    def __init__(self, base: Defense, levels: Sequence[float], votes: int = 100, p0: float = 0.5):
        super().__init__()
        if len(levels) < 1 or min(levels) <= 0 or votes < 1 or not 0.5 <= p0 < 1:
            raise DrbenchError(
                f"a cascade needs levels > 0, votes >= 1 and p0 in [1/2, 1), got {levels}, {votes}, {p0}"
            )
        for sigma in (0.0, *levels):
            base.require(sigma)
        self.base, self.levels, self.votes, self.p0 = base, sorted(levels, reverse=True), votes, p0
        self.input_shape, self.num_classes, self.sigmas = base.input_shape, base.num_classes, (0.0,)

    def logits(self, z, sigma, draws):
        self.require(sigma)
        scores = self.base.logits(z, 0.0, draws)
        answered = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        for level in self.levels:
            shares = self._shares(z, level, draws)
            halts = ~answered & (shares.amax(1) > self.p0)
            scores = torch.where(halts[:, None], (shares + 0.1 / self.votes).log(), scores)
            answered |= halts
        return scores

    def attack_logits(self, z, sigma, draws):
        """The same values with the gradient of the mean of log-probabilities over all levels and the clean image."""
        value = self.logits(z, sigma, draws[:]).detach()  # both from the start of the streams
        soft = self.base.attack_logits(z, 0.0, draws).log_softmax(1)
        for level in self.levels:
            soft = soft + self.base.attack_logits(z + level * draws.randn(*z.shape), level, draws).log_softmax(1)
        soft = soft / (1 + len(self.levels))
        return value + soft - soft.detach()

    def _shares(self, z, level, draws):
        counts = 0
        for _ in range(self.votes):
            noisy = z + level * draws.randn(*z.shape)
            counts = counts + nn.functional.one_hot(self.base.logits(noisy, level, draws).argmax(1), self.num_classes)
        return counts / self.votes

    def nfe(self, sigma):
        total = dict(self.base.nfe(0.0))
        for level in self.levels:
            for name, calls in self.base.nfe(level).items():
                total[name] = total.get(name, 0) + self.votes * calls
        return total

    def networks(self):
        return self.base.networks()

    @classmethod
    def tiny(cls, input_shape, num_classes):
        raise DrbenchError("a cascade is built around another defense: check that one")


def halt(cascade: Cascade, sigma: float = 0.0) -> View:
    """Route "halt": draws of the first level, whose votes come first. To be attacked with pool "probability"."""
    return Direct(_checked(cascade).base, cascade.levels[0], own=False)


def _checked(defense: Defense) -> Cascade:
    if not isinstance(defense, Cascade):
        raise DrbenchError(
            f"views halt and pass are of a deployed cascade (attack.cascade), got {type(defense).__name__}"
        )
    return defense


class Pass(View):
    """Route "pass": loss of the clean classifier, less the excess over p0 of each level's largest probability."""

    def __init__(self, cascade: Cascade, sigma: float = 0.0):
        cascade = _checked(cascade)
        self.cascade, self.classes, self.device = cascade, cascade.num_classes, cascade.base.device
        self.randomized = True

    def logits(self, x, spans):
        return self.cascade.base.attack_logits(x, 0.0, Draws(spans, self.device))

    def answer(self, x, y, spans, draws, loss: Loss, target=None, gradient=True) -> Answer:
        base, p0 = self.cascade.base, self.cascade.p0
        with torch.set_grad_enabled(gradient):
            x = x.detach().requires_grad_(gradient)
            clean = self.logits(x, [span._replace(stop=span.start + 1) for span in spans])
            many, stream = x.repeat_interleave(draws, 0), Draws(spans, self.device)
            excess: Tensor | float = 0.0
            for level in self.cascade.levels:
                scores = base.attack_logits(many + level * stream.randn(*many.shape), level, stream)
                shares = scores.softmax(1).view(len(x), draws, -1).mean(1)
                excess = excess + (shares.amax(1).log() - torch.tensor(p0 - SLACK).log()).clamp_min(0)
            # A clean answer that is wrong already is worth no more than levels that stay silent.
            objective = loss(clean[:, None], y, target).clamp_max(5.0) - 5 * excess
            slope = torch.autograd.grad(objective.sum(), x)[0] if gradient else None
        wrong = (clean.argmax(1) != y) & (excess <= 0)
        return Answer(objective.detach(), slope, wrong * draws)
