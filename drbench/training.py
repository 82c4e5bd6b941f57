"""One training loop: AdamW or RAdam, warm-up and decay, gradient clipping, exponential moving average, resumable.

The randomness of step s comes from generators seeded by (seed, s), so a resumed training ends with the weights of an
undisturbed one without any random state being stored.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from drbench.errors import DrbenchError
from drbench.memory import keep_freed_memory
from drbench.recipe import Recipe

SAVE_EVERY = 500  # steps between saved states


def train(
    network: nn.Module,
    loss: Callable[[Generator], Tensor],
    recipe: Recipe,
    log: Callable[[int, float], None],
    groups: Sequence[dict] | None = None,
) -> None:
    """Minimise `loss(rng)` over the parameters of `network`; in the end `network` holds the averaged weights.

    Parameters
    ----------
    network : Module
        Set to train mode during, to eval mode after.
    loss : callable
        Maps the generator of the step (on the CPU) to a scalar; every random choice must come from it, but for the
        dropout of the network itself, which is seeded for the step as well.
    log : callable
        Called as `log(step, loss)` after each step.
    groups : sequence of dict, optional
        Parameters to train, each group with "params" and "scale", a factor of the learning rate. By default all.
    """
    keep_freed_memory()
    network.train()
    make = {"adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}[recipe.optimizer]
    optimizer = make(groups or network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    chosen = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = [parameter for parameter in network.parameters() if id(parameter) in chosen]
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    step = _resume(network, optimizer, average, recipe)
    while step < recipe.steps:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * group.get("scale", 1.0) * _schedule(step, recipe)
        with _dropout_rng(recipe.seed, step, trained[0].device):
            value = loss(step_rng(recipe.seed, step))
        if not value.isfinite():
            raise DrbenchError(f"training diverged: the loss at step {step} is {value.item()}; lower the learning rate")
        network.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained, recipe.clip)
        optimizer.step()
        step += 1
        _update_average(average, network, recipe, step)
        if recipe.state and step % SAVE_EVERY == 0:
            _save(network, optimizer, average, recipe, step)
        log(step, value.item())
    network.load_state_dict(average)
    network.eval()


def step_rng(seed: int, step: int) -> Generator:
    """CPU generator of one training step."""
    return Generator().manual_seed(_key(f"training {seed} {step}"))


@contextmanager
def _dropout_rng(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, from which dropout draws, for one step; restore them after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_key(f"dropout {seed} {step}"))
        yield


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def sample(x: Tensor, y: Tensor, recipe: Recipe, rng: Generator) -> tuple[Tensor, Tensor]:
    """A random, augmented batch of (x, y), with replacement."""
    chosen = torch.randint(len(x), (recipe.batch,), generator=rng).to(x.device)
    return augment(x[chosen], recipe, rng), y[chosen]


def augment(x: Tensor, recipe: Recipe, rng: Generator) -> Tensor:
    """Random mirroring, translation (up to `shift` pixels) and rotation (up to `rotate` degrees) of each image."""
    if recipe.flip:
        mirrored = torch.rand(len(x), generator=rng).to(x.device) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
    if recipe.shift == 0 and recipe.rotate == 0:
        return x
    angle, right, down = (2 * torch.rand(3, len(x), generator=rng) - 1).to(x.device)
    angle = angle * math.radians(recipe.rotate)
    across, along = 2 * recipe.shift * right / x.shape[3], 2 * recipe.shift * down / x.shape[2]
    rows = (torch.stack((angle.cos(), -angle.sin(), across), 1), torch.stack((angle.sin(), angle.cos(), along), 1))
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False)


def _schedule(step: int, recipe: Recipe) -> float:
    warm = min(1.0, (step + 1) / (recipe.warmup + 1))
    return warm if recipe.decay == "constant" else warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


@torch.no_grad()
def _update_average(average: dict, network: nn.Module, recipe: Recipe, step: int) -> None:
    # The half-life grows with the step at first, so that the initial weights do not linger in the average.
    halflife = min(recipe.ema_halflife, max(1.0, step / 10))
    weight = 1 - 0.5 ** (1 / halflife)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, weight)
        else:
            average[name].copy_(value)


def _resume(network: nn.Module, optimizer: torch.optim.Optimizer, average: dict, recipe: Recipe) -> int:
    if recipe.state is None or not Path(recipe.state).exists():
        return 0
    saved = _read(recipe.state)
    if saved["recipe"] != asdict(recipe):
        raise DrbenchError(
            f"{recipe.state} was saved by a training with another recipe ({saved['recipe']}): "
            "delete it to start anew, or restore the recipe"
        )
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    for name, value in saved["average"].items():
        average[name].copy_(value)
    return saved["step"]


def _read(state: str) -> dict:
    """What `_save` wrote, on the CPU: the training may go on on another device than it began on."""
    try:
        saved = torch.load(state, weights_only=True, map_location="cpu")
        missing = {"network", "optimizer", "average", "recipe", "step"} - saved.keys()
    except (MemoryError, PermissionError):
        raise  # the file may be sound
    except Exception as error:  # torch has many for a damaged file
        raise DrbenchError(f"{state} is not a readable training state: delete it to start anew") from error
    if missing:
        raise DrbenchError(f"{state} lacks {', '.join(sorted(missing))} of a training state: delete it to start anew")
    return saved


def _save(network: nn.Module, optimizer: torch.optim.Optimizer, average: dict, recipe: Recipe, step: int) -> None:
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "recipe": asdict(recipe),
        "step": step,
    }
    partial = f"{recipe.state}.partial"
    torch.save(state, partial)
    os.replace(partial, recipe.state)
