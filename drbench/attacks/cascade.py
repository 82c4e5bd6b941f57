"""Multi-scale smoothing under attack: the cascade as it is deployed, and its two weak spots as views.

Jeong and Shin 2023, arXiv 2310.16779: from the largest noise level down, the first level at which a class has more than
p0 of the votes answers; if none has, the classifier of clean images does, without any protection. So an attacker can
make a wrong class win the votes of a level while those before it stay silent (views halt1, halt2, ...), or keep all
levels from answering and fool the clean classifier (view pass).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drbench.api import Defense, Draws, DrbenchError
from drbench.asking import ask
from drbench.attacks.losses import Loss
from drbench.attacks.oracle import ROWS
from drbench.attacks.views import Answer, View, padded

SLACK = 0.1  # how far below p0 the largest probability of a level is pushed: votes are noisy
ENOUGH = 3.0  # margin of log-probabilities that surely decides
WEIGHT = 5.0  # of the logarithm of an excess of probability


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
    rows : int
        Of a network call that takes votes, at most; changes no number.
    """

    citation = "arXiv:2310.16779"
    randomized = True
    gradient = "surrogate"

    def __init__(self, base: Defense, levels: Sequence[float], votes: int = 100, p0: float = 0.5, rows: int = ROWS):
        super().__init__()
        if len(levels) < 1 or min(levels) <= 0 or votes < 1 or not 0.5 <= p0 < 1:
            raise DrbenchError(
                f"a cascade needs levels > 0, votes >= 1 and p0 in [1/2, 1), got {levels}, {votes}, {p0}"
            )
        for sigma in (0.0, *levels):
            base.require(sigma)
        self.base, self.levels, self.votes, self.p0, self.rows = base, sorted(levels, reverse=True), votes, p0, rows
        self.input_shape, self.num_classes, self.sigmas = base.input_shape, base.num_classes, (0.0,)
        if base.gradient == "none":
            self.gradient = "none"
        self.train(base.training)

    def logits(self, z, sigma, draws):
        self.require(sigma)
        scores = ask(self.base, "logits", z, 0.0, draws)
        answered = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        for level in self.levels:
            if answered.all():
                break
            shares = self._shares(z, level, draws, ~answered | self.base.randomized)
            halts = ~answered & (shares.amax(1) > self.p0)
            scores = torch.where(halts[:, None], (shares + 0.1 / self.votes).log(), scores)
            answered |= halts
        return scores

    def attack_logits(self, z, sigma, draws):
        """The same values with the gradient of the mean of log-probabilities over all levels and the clean image."""
        value = self.logits(z, sigma, draws[:]).detach()  # both from the start of the streams
        soft = ask(self.base, "attack_logits", z, 0.0, draws).log_softmax(1)
        for level in self.levels:
            noisy = z + level * draws.randn(*z.shape)
            soft = soft + ask(self.base, "attack_logits", noisy, level, draws).log_softmax(1)
        soft = soft / (1 + len(self.levels))
        return value + soft - soft.detach()

    def _shares(self, z, level, draws, asked):
        """Shares of the votes at a level; 0 in rows that are not asked. Noise is drawn for all rows, in order.

        One network call takes the votes that fill it; of a randomised base one of each row, because it draws as well.
        """
        counts = torch.zeros(len(z), self.num_classes, device=z.device)
        most = 1 if self.base.randomized else max(1, self.rows // int(asked.sum()))
        for first in range(0, self.votes, most):
            votes = min(most, self.votes - first)
            noisy = torch.cat([(z + level * draws.randn(*z.shape))[asked] for _ in range(votes)])
            answers = ask(self.base, "logits", noisy, level, draws).argmax(1)
            counts[asked] += nn.functional.one_hot(answers, self.num_classes).view(votes, -1, self.num_classes).sum(0)
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


class Route(View):
    """The loss at the place where the cascade is to go wrong, less the excess over p0 of each level before it.

    Parameters
    ----------
    stop : int or None
        Number of the level, from 1, whose votes a wrong class is to win; None: the classifier of clean images.
    """

    randomized = True

    def __init__(self, cascade: Defense, stop: int | None):
        if not isinstance(cascade, Cascade):
            raise DrbenchError(
                f"views halt1, halt2, ... and pass are of a deployed cascade (attack.cascade), got "
                f"{type(cascade).__name__}"
            )
        if stop is not None and stop > len(cascade.levels):
            raise DrbenchError(f"view halt{stop}: the cascade has {len(cascade.levels)} levels")
        self.base, self.p0, self.classes, self.device = cascade.base, cascade.p0, cascade.num_classes, cascade.device
        self.before = cascade.levels if stop is None else cascade.levels[: stop - 1]
        self.last = 0.0 if stop is None else cascade.levels[stop - 1]

    def logits(self, x, spans):
        stream = Draws(spans, self.device)
        return ask(self.base, "attack_logits", x + self.last * stream.randn(*x.shape), self.last, stream)

    def answer(self, x, y, spans, draws, loss: Loss, target=None, gradient=True) -> Answer:
        with torch.set_grad_enabled(gradient):
            x = x.detach().requires_grad_(gradient)
            rows = len(x) * draws
            many, streams = padded(x.repeat_interleave(draws, 0), spans)
            stream = Draws(streams, self.device)

            def scores(level: float) -> Tensor:
                noisy = many + level * stream.randn(*many.shape)
                return ask(self.base, "attack_logits", noisy, level, stream)[:rows].view(len(x), draws, -1)

            excess: Tensor | float = 0.0
            for level in self.before:
                share = scores(level).softmax(-1).mean(1).amax(1)
                excess = excess + (share.log() - math.log(self.p0 - SLACK)).clamp_min(0)
            # Votes are counted, so the mean probability is what matters; without noise there is one row to ask.
            clean = (
                scores(self.last)
                if self.last > 0
                else self.rows(x, [span._replace(stop=span.start + 1) for span in spans])[:, None]
            )
            # An answer that is surely wrong is worth no more than levels that stay silent.
            objective = Loss(loss.name, "probability")(clean, y, target).clamp_max(ENOUGH) - WEIGHT * excess
            slope = torch.autograd.grad(objective.sum(), x)[0] if gradient else None
        wrong = (clean.softmax(-1).mean(1).argmax(1) != y) & (excess <= 0)
        return Answer(objective.detach(), slope, wrong * draws)
