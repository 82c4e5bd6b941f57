"""Views of diffusion-based defenses with the ideas of attacks on them. With exact gradients none need be stronger.

DiffAttack: Kang et al. 2023, arXiv 2311.16124. DiffHammer: NeurIPS 2024. The authors of DiffBreak report no gain of the
first over plain APGD once gradients are exact; so these are optional members, not defaults.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from drbench.api import Defense, Draws, DrbenchError
from drbench.asking import ask
from drbench.attacks.losses import Loss
from drbench.attacks.views import Answer, Direct, behind, has_parts, lost, noisy, padded, require_parts

TEMPERATURE = 5.0  # lambda of DiffHammer: how sharply a draw counts as breakable along a direction
ROUNDS = 5  # of its fixed-point iteration


class Deviated(Direct):
    """DiffAttack: the loss plus the mean over steps of ||x_t - x'_t||^2, forward and reverse states of the diffusion.

    x'_t are the inputs of the network named "denoiser", called with (state, noise level) in network units; x_t is the
    image at that level with the noise that started the chain. A sampler of one step has no states to deviate.
    """

    def __init__(self, defense: Defense, sigma: float, weight: float = 1.0):
        super().__init__(defense, sigma)
        if "denoiser" not in defense.networks() or not has_parts(defense, sigma):
            raise DrbenchError(
                f"view deviated needs a network 'denoiser' that purifies noise, got {type(defense).__name__}"
            )
        self.denoiser, self.weight = defense.networks()["denoiser"], weight

    def answer(self, x, y, spans, draws, loss: Loss, target=None, gradient=True) -> Answer:
        states: list[tuple[Tensor, float]] = []
        recording, own = True, threading.get_ident()

        def note(_, args) -> None:
            # Neither when a step is computed again for its gradient, nor for an attack in another thread.
            if recording and threading.get_ident() == own:
                states.append((args[0], float(args[1])))

        with torch.set_grad_enabled(gradient), self.denoiser.register_forward_pre_hook(note):
            x = x.detach().requires_grad_(gradient)
            many = x.repeat_interleave(draws, 0)
            logits = self.rows(many, spans).view(len(x), draws, -1)
            recording = False
            losses = loss(logits, y, target)
            if len(states) > 1:
                losses = losses + self.weight * self._gaps(many, states).view(len(x), draws).mean(1)
            slope = torch.autograd.grad(losses.sum(), x)[0] if gradient else None
        return Answer(losses.detach(), slope, lost(logits, y))

    @staticmethod
    def _gaps(x: Tensor, states: list[tuple[Tensor, float]]) -> Tensor:
        """(R,) mean over the states after the first of their squared distance from the forward diffusion."""
        states = [(state[: len(x)], level) for state, level in states]  # without the padding of a small batch
        (start, top), later, x_net = states[0], states[1:], 2 * x - 1
        gaps = [x_net + level / top * (start - x_net) - state for state, level in later]
        return torch.stack([gap.square().flatten(1).sum(1) for gap in gaps]).mean(0)


class Grafted(Direct):
    """DiffHammer: a direction that breaks many draws at once, sent back through one purification of the image.

    For draws i with loss L_i and gradient g_i at the purified image, the direction is the fixed point of
    r = sum w_i g_i / sum w_i, w_i = sigmoid(lambda (L_i + r/|r| . g_i)); the draw whose own direction serves the others
    best stands for all (how far that draw's step would go is left away: a view does not know the radius). Costs a
    purification without gradient a draw and one with gradient.
    """

    def __init__(self, defense: Defense, sigma: float):
        super().__init__(defense, sigma)
        require_parts(defense, sigma, "grafted")

    def answer(self, x, y, spans, draws, loss: Loss, target=None, gradient=True) -> Answer:
        many = x.repeat_interleave(draws, 0)
        with torch.no_grad():
            purified = self._purify(many, spans)
        with torch.set_grad_enabled(gradient):
            purified.requires_grad_(gradient)
            logits = behind(self.defense, purified, self.sigma, Draws(spans, self.device))
            labels, aims = (None if each is None else each.repeat_interleave(draws, 0) for each in (y, target))
            losses = loss(logits[:, None], labels, aims)
        failures = lost(logits.view(len(x), draws, -1), y)
        mean = losses.detach().view(len(x), draws)
        if not gradient:
            return Answer(mean.mean(1), None, failures)
        slopes = torch.autograd.grad(losses.sum(), purified)[0].view(len(x), draws, -1)
        direction, chosen = graft(mean, slopes)
        rows = [span._replace(start=span.start + one, stop=span.start + one + 1)
                for span, one in zip(spans, chosen.tolist(), strict=True)]  # fmt: skip
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = self._purify(x, rows)
            (slope,) = torch.autograd.grad(out, x, direction.view_as(out))
        return Answer(mean.mean(1), slope, failures)

    def _purify(self, x: Tensor, spans) -> Tensor:
        rows, streams = padded(x, spans)
        noised = noisy(rows, self.sigma, streams)
        return ask(self.defense, "purify", noised, self.sigma, Draws(streams, self.device))[: len(x)]


def graft(losses: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """From (B, m) losses and (B, m, d) gradients: (B, d) common directions and (B,) the draws that stand for all."""
    direction = slopes.mean(1)
    for _ in range(ROUNDS):
        along = (slopes * _unit(direction)[:, None]).sum(2)
        weights = torch.sigmoid(TEMPERATURE * (losses + along))
        direction = (weights[..., None] * slopes).sum(1) / weights.sum(1, keepdim=True).clamp_min(1e-12)
    served = torch.nn.functional.elu(losses[:, None] + _unit(slopes) @ slopes.transpose(1, 2))  # (B, candidate, draw)
    return direction, served.sum(2).argmax(1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


class Bypass(Direct):
    """The loss less the denoising error of the image itself: where that is small, nothing is left to purify.

    Against defenses that move an image to where it is likelier first (likelihood maximisation, Chen et al. 2024, arXiv
    2305.15241): an example that is likely already stays where it is. The error is the mean over draws of the summed
    squares at the middle of the levels at which such defenses look, network units: of a network "purifier", else of
    "denoiser".
    """

    LEVEL = 0.5

    def __init__(self, defense: Defense, sigma: float, weight: float = 1.0):
        super().__init__(defense, sigma)
        found = defense.networks()
        if "denoiser" not in found:
            raise DrbenchError(f"view bypass needs a network 'denoiser', got {type(defense).__name__}")
        self.denoiser, self.weight = found.get("purifier", found["denoiser"]), weight

    def answer(self, x, y, spans, draws, loss: Loss, target=None, gradient=True) -> Answer:
        found = super().answer(x, y, spans, draws, loss, target, gradient)
        with torch.set_grad_enabled(gradient):
            x = x.detach().requires_grad_(gradient)
            rows, streams = padded(2 * x.repeat_interleave(draws, 0) - 1, spans)
            other = Draws([span._replace(key=span.key ^ 1) for span in streams], self.device)  # not the defense's noise
            noise = self.LEVEL * other.randn(*rows.shape)
            error = (self.denoiser(rows + noise, self.LEVEL) - rows).square().flatten(1).sum(1)[: len(x) * draws]
            error = error.view(len(x), draws).mean(1)
            slope = found.gradient - self.weight * torch.autograd.grad(error.sum(), x)[0] if gradient else None
        return Answer(found.loss - self.weight * error.detach(), slope, found.failures)
