"""Label-free pre-training: contrast between views at the clean end, consistency along the noising path.

Lei et al. 2025, arXiv 2501.13094 (eq. 7, algorithm 1). Where the official code differs from the paper, the code is
followed; see the README.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Generator, Tensor, nn

from drbench.errors import DrbenchError
from drbench.training import Recipe, step_rng, train
from methods.rcm import views
from methods.rcm.network import ViT, projection_head
from methods.rcm.path import T_MIN, ema_decay, grid, grid_size

KINDS = ("none", "contrastive", "consistency", "both")
TEMPERATURE = 0.2


def info_nce(queries: Tensor, keys: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean over rows of -log softmax_j(cos(q_i, k_j) / temperature) at j = i; the other rows are the negatives."""
    queries, keys = nn.functional.normalize(queries), nn.functional.normalize(keys)
    return nn.functional.cross_entropy(queries @ keys.T / temperature, torch.arange(len(keys), device=keys.device))


class Pretraining(nn.Module):
    """The online encoder with its projector, the EMA target, and the loss of one step.

    Parameters
    ----------
    encoder : ViT
        Trained in place; it has a projection head.
    kind : {"contrastive", "consistency", "both"}
    steps : int
        Length of the training, which the two curricula are scaled to.
    ema : triple of float
        First and last decay of the target, sharpness of the ramp between them.
    """

    def __init__(self, encoder: ViT, kind: str, steps: int, ema: tuple[float, float, float]):
        super().__init__()
        self.online, self.target = encoder, deepcopy(encoder).requires_grad_(False)
        self.kind, self.steps, self.ema = kind, steps, ema
        self.register_buffer("step", torch.tensor(0))  # stored with the weights, so that a resumed run knows it

    def loss(self, x: Tensor, rng: Generator) -> Tensor:
        """L_ct + L_cs of a batch of clean images (B, C, H, W) in [0, 1]."""
        step = int(self.step)
        if step:
            self._move_target(ema_decay(step, self.steps, *self.ema))
        self.step += 1
        first, second = (2 * views.strong(x, rng) - 1 for _ in range(2))
        path, noise = 2 * views.light(x, rng) - 1, torch.randn(x.shape, generator=rng).to(x.device)
        points = grid_size(step, self.steps)
        n = int(torch.randint(points - 1, (), generator=rng))  # one for the whole batch
        terms = []
        if self.kind != "consistency":
            terms.append(self.contrastive(first + T_MIN * noise, second + T_MIN * noise))
        if self.kind != "contrastive":
            terms.append(self.consistency(path, noise, *grid(points)[n : n + 2]))
        return sum(terms)

    def contrastive(self, first: Tensor, second: Tensor) -> Tensor:
        """Symmetric InfoNCE of two views at the clean end: projector outputs, keys of the EMA target."""
        with torch.no_grad():
            keys = [_project(self.target, view) for view in (second, first)]
        return sum(info_nce(_project(self.online, view), key) for view, key in zip((first, second), keys, strict=True))

    def consistency(self, x: Tensor, noise: Tensor, noisier: float, cleaner: float) -> Tensor:
        """InfoNCE of two neighbours on the path x + t * noise: encoder outputs, the cleaner one is the fixed key."""
        with torch.no_grad():
            key = self.online(x + cleaner * noise, cleaner)
        return info_nce(self.online(x + noisier * noise, noisier), key)

    @torch.no_grad()
    def _move_target(self, decay: float) -> None:
        # Parameters only: the target's BatchNorm works on its own batches.
        for old, new in zip(self.target.parameters(), self.online.parameters(), strict=True):
            old.lerp_(new, 1 - decay)


def _project(network: ViT, x: Tensor) -> Tensor:
    return network.projection_head(network(x, T_MIN))


def pretrain(
    encoder: ViT,
    x: Tensor,
    recipe: Recipe,
    log: Callable[[int, float], None],
    *,
    kind: str = "both",
    ema: tuple[float, float, float] = (0.99, 0.999, 10.0),
    projector: tuple[int, int] = (128, 64),
) -> None:
    """Pre-train `encoder` in place on unlabelled images `x`, (N, C, H, W) in [0, 1]; the projector is thrown away.

    `projector` gives the widths of its hidden layers and of its output.
    """
    if kind not in KINDS[1:]:
        raise DrbenchError(f"unknown pre-training {kind!r}; available: {', '.join(KINDS)}")
    # Layers draw their first weights from the global generator: it is seeded for them alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(step_rng(recipe.seed, -1).initial_seed())
        encoder.projection_head = projection_head(encoder.norm.normalized_shape[0], *projector).to(x.device)
    stage = Pretraining(encoder, kind, recipe.steps, tuple(ema)).to(x.device)

    def loss(rng: Generator) -> Tensor:
        chosen = torch.randint(len(x), (recipe.batch,), generator=rng).to(x.device)
        return stage.loss(x[chosen], rng)

    train(stage, loss, recipe, log)
    del encoder.projection_head
