"""What the attacker differentiates: a view turns images and random streams into logits, one row a draw.

A view need not be the defense under attack: gradients of another function are allowed, what they lead to is judged
by the defense itself. A method with a cheaper exact gradient than autograd gives a view with its own `answer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from drbench.api import Defense, Draws, DrbenchError
from drbench.asking import ask
from drbench.attacks.losses import Loss
from drbench.draws import INPUT_NOISE, Span, block_key, normals

# Smaller batches take other paths through the kernels, with other rounding. Padding keeps the numbers of a row the
# same in every batch, which a long attack would otherwise amplify.
SMALLEST = 16


class Answer(NamedTuple):
    """Of B images: mean loss (B,), its gradient (B, C, H, W) or None, and in how many draws the label lost (B,).

    Logits that are not finite lose.
    """

    loss: Tensor
    gradient: Tensor | None
    failures: Tensor


def lost(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) in how many of the draws of (B, draws, K) logits the label lost."""
    return ((logits.argmax(-1) != y[:, None]) | ~logits.isfinite().all(-1)).sum(1)


def joined(parts: Sequence[Answer]) -> Answer:
    """The answers about parts of a batch as one."""
    if len(parts) == 1:
        return parts[0]
    losses, slopes, failures = zip(*parts, strict=True)
    return Answer(torch.cat(losses), None if slopes[0] is None else torch.cat(slopes), torch.cat(failures))


class View(ABC):
    """A differentiable function from images in [0, 1] to logits.

    Attributes
    ----------
    classes : int
    device : torch.device
    randomized : bool
        Whether the streams matter.
    faithful : bool
        Whether its values are those of the defense, so that a failure here is one there.
    """

    classes: int
    device: torch.device
    randomized: bool
    faithful: bool = False

    @abstractmethod
    def logits(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        """(R, C, H, W) -> (R, K); all randomness comes from the R rows of `spans`, row by row."""

    def answer(
        self,
        x: Tensor,
        y: Tensor,
        spans: Sequence[Span],
        draws: int,
        loss: Loss,
        target: Tensor | None = None,
        gradient: bool = True,
    ) -> Answer:
        """Loss over `draws` draws of each of B images, and its gradient, in one call. `spans`: one for each image."""
        with torch.set_grad_enabled(gradient):
            x = x.detach().requires_grad_(gradient)
            logits = self.rows(x.repeat_interleave(draws, 0) if draws > 1 else x, spans)
            logits = logits.view(len(x), draws, -1)
            losses = loss(logits, y, target)
            slope = torch.autograd.grad(losses.sum(), x)[0] if gradient else None
        return Answer(losses.detach(), slope, lost(logits, y))

    def sloped(self, x: Tensor) -> bool:
        """Whether autograd finds a way from the logits of an image to its pixels."""
        with torch.enable_grad():
            spans = [Span(block_key(0, "padding", 0.0, "padding", 0), 0, len(x))]
            return self.rows(x.clone().requires_grad_(), spans).requires_grad

    def rows(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        """`logits`, padded to a batch of at least `SMALLEST` rows."""
        return self.logits(*padded(x, spans))[: len(x)]


class Direct(View):
    """The defense at one noise level, one draw of noise and of its own randomness a row.

    Parameters
    ----------
    sigma : float
        Noise added to the image, pixel units; 0 is the clean image.
    surrogate : bool
        Differentiate `attack_logits`, which may have another gradient than `logits`, but has the same values.
    own : bool
        False for a view of another defense than the one under attack: transfer.
    """

    def __init__(self, defense: Defense, sigma: float = 0.0, surrogate: bool = True, own: bool = True):
        defense.require(sigma)
        self.defense, self.sigma, self.faithful = defense, sigma, own
        self.classes, self.device = defense.num_classes, defense.device
        self.randomized = sigma > 0 or defense.randomized
        self.method = "attack_logits" if surrogate else "logits"

    def answer(self, x, y, spans, draws, loss, target=None, gradient=True):
        """See `View`; in as many calls as the defense likes."""
        most = self.defense.gradient_rows(self.sigma) if gradient else None
        size = len(x) if most is None else max(1, most // draws)
        parts, whole = [], super().answer
        for at in range(0, len(x), size):
            part = slice(at, at + size)
            aims = None if target is None else target[part]
            parts.append(whole(x[part], y[part], spans[part], draws, loss, aims, gradient))
        return joined(parts)

    def logits(self, x, spans):
        return ask(self.defense, self.method, noisy(x, self.sigma, spans), self.sigma, Draws(spans, self.device))


class Identity(Direct):
    """BPDA: the gradient of the classifier at the purified image, as if purification were the identity.

    Athalye et al. 2018, arXiv 1802.00420. For defenses in two parts, see `behind`.
    """

    def __init__(self, defense: Defense, sigma: float):
        super().__init__(defense, sigma)
        require_parts(defense, sigma, "identity")

    def logits(self, x, spans):
        draws = Draws(spans, self.device)
        with torch.no_grad():
            purified = ask(self.defense, "purify", noisy(x, self.sigma, spans), self.sigma, draws)
        return behind(self.defense, x + (purified - x).detach(), self.sigma, draws)


class Bare(Direct):
    """The classifier behind a purifier, at the image itself: what is found there is tried on the whole."""

    def __init__(self, defense: Defense, sigma: float):
        super().__init__(defense, sigma, own=False)
        require_parts(defense, sigma, "bare")

    def logits(self, x, spans):
        return behind(self.defense, x, self.sigma, Draws(spans, self.device))


def has_parts(defense: Defense, sigma: float) -> bool:
    """Whether a defense has `purify(z, sigma, draws)`, and what stands behind it can be asked."""
    return hasattr(defense, "purify") and (hasattr(defense, "classify") or (sigma > 0 and defense.accepts(0.0)))


def require_parts(defense: Defense, sigma: float, name: str) -> None:
    """Raise `DrbenchError` unless the view of this name can be had."""
    if not has_parts(defense, sigma):
        raise DrbenchError(
            f"view {name} needs `purify(z, sigma, draws)`, and `classify(x, sigma, draws)` for the scores of what it "
            f"returns (under noise, level 0 will do), got {type(defense).__name__}"
        )


def behind(defense: Defense, x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Scores of purified images: of `classify(x, sigma, draws)`, or without one the defense's answer at sigma = 0."""
    if hasattr(defense, "classify"):
        return ask(defense, "classify", x, sigma, draws)
    return ask(defense, "attack_logits", x, 0.0, draws)


def padded(x: Tensor, spans: Sequence[Span]) -> tuple[Tensor, list[Span]]:
    """Rows and their streams, with copies of the last row that make them at least `SMALLEST`."""
    short = SMALLEST - len(x)
    if short <= 0:
        return x, list(spans)
    padding = Span(block_key(0, "padding", 0.0, "padding", 0), 0, short)
    return torch.cat([x, x[-1:].detach().expand(short, *x.shape[1:])]), [*spans, padding]


def noisy(x: Tensor, sigma: float, spans: Sequence[Span]) -> Tensor:
    """Images plus sigma times the standard normals of stream 0 of their blocks."""
    if sigma == 0:
        return x
    noise = torch.from_numpy(normals(spans, INPUT_NOISE, x[0].numel())).view(x.shape)
    return x + sigma * noise.to(x.device)
