"""`drbench train`: fit a defense on the training split, measure it on the validation split, write its weights."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from drbench import weights
from drbench.api import Defense, Draws, DrbenchError
from drbench.data import Images
from drbench.files import foreign
from drbench.jobs import build, needs
from drbench.jobs.listeners import Audience
from drbench.progress import Progress
from drbench.recipe import Recipe

VALIDATION_ROWS = 4000  # noisy copies of validation images at each level, at least one of each image


def train(config: DictConfig, command: str) -> weights.Weights:
    """Train the defense of a config, from scratch or from `train.start`, and write the weights of its trained networks.

    Test images are never read. Interrupted, the same command goes on from the last saved state.
    """
    needs.require_settings([config])
    recipe = Recipe(**OmegaConf.to_container(config.train.recipe))
    name = config.train.checkpoint
    images, validation = build.images(config, "train"), build.images(config, "validation")
    start = [weights.resolve(found) for found in config.train.start]
    recipe.state = recipe.state or _state_file(config, images, [found.sha256 for found in start])
    try:
        Path(recipe.state).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DrbenchError(f"cannot write the training state {recipe.state}: {error.strerror}") from error
    # The file that this training writes may stand in the same config, for the runs that come after.
    checkpoints = [weights.resolve(found) for found in config.defense.checkpoint if found != name]
    defense = build.defense(config.defense, images, [], recipe.seed)
    _load_given(defense, weights.read(checkpoints))
    if start:
        _load_start(defense, weights.read(start))
    device = build.device(config.run.device)
    defense.to(device)
    begun = time.perf_counter()
    audience = Audience(config.run.listeners, f"train {name}", OmegaConf.to_container(config))
    try:
        _fit(defense, images, recipe, config.title or name, device, audience)
    except BaseException:
        audience.close("failed")
        raise
    audience.close("complete")
    facts = {
        "defense": config.defense.name,
        "command": command,
        "data": f"{images.dataset}/{images.subset}, {len(images)} images",
        "seed": recipe.seed,
        "seconds": round(time.perf_counter() - begun),
        "validation": figures(defense.cpu(), validation),
        "licence": _licence([*config.train.start, *config.defense.checkpoint]),
    }
    parts = [f"{child}." for child in defense.trained()]
    state = {key: value for key, value in defense.state_dict().items() if key.startswith(tuple(parts))}
    written = weights.write(name, state, facts)
    # A fit may keep one state per network, with a suffix; all are needed until the weights are written.
    for saved in Path(recipe.state).parent.glob(f"{Path(recipe.state).name}*"):
        saved.unlink()
    return written


def _licence(given: Sequence[str]) -> str:
    """Ours, unless weights of others were started from or distilled."""
    others = foreign.manifest()
    theirs = sorted({name for name, _ in map(weights.parted, given)} & others.keys())
    return "; ".join(f"made with {name}: {others[name].get('licence', 'see there')}" for name in theirs) or "MIT"


def _state_file(config: DictConfig, images: Images, start: Sequence[str] = ()) -> str:
    """A name that no other training has: a state must never be resumed under another objective or other data."""
    text = OmegaConf.to_yaml(config.defense) + OmegaConf.to_yaml(config.train) + images.sha256 + "".join(start)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return str(Path(".drbench") / f"{Path(config.train.checkpoint).stem}-{digest[:16]}.state")


def _fit(
    defense: Defense, images: Images, recipe: Recipe, title: str, device: torch.device, audience: Audience
) -> None:
    bar, smooth = None, 0.0

    def log(step: int, loss: float) -> None:
        nonlocal bar, smooth
        if bar is None or step <= bar.done:  # the first step, or that of the next network of the same fit
            if bar is not None:
                bar.close()
            bar, smooth = Progress(title, recipe.steps, "steps", done=step - 1), loss
        smooth = 0.98 * smooth + 0.02 * loss
        bar.advance(lambda: f"loss {smooth:.4f}")
        audience.log(step, loss=loss)

    defense.fit(images.x.to(device), images.y.to(device), recipe, log)
    if bar is not None:
        bar.close()
    defense.eval()


def _load_given(defense: Defense, given: dict) -> None:
    """Load the weights of networks that are not trained here; each must be given, and no other."""
    trained = tuple(f"{child}." for child in defense.trained())
    if not trained:
        raise DrbenchError(f"{type(defense).__name__} has nothing to train (`trained()` is empty); see its README")
    needed = {key for key in defense.state_dict() if not key.startswith(trained)}
    if given.keys() != needed:
        odd = sorted(given.keys() ^ needed)
        raise DrbenchError(
            f"defense.checkpoint must give the weights of the networks that are not trained here, "
            f"and no others; {len(odd)} tensors are missing or superfluous, first: {odd[0]}"
        )
    defense.load_state_dict(given, strict=False)


def _load_start(defense: Defense, given: dict) -> None:
    """Load the weights from which the training starts: those of all trained networks, and no others."""
    parts = tuple(f"{child}." for child in defense.trained())
    needed = {key: value for key, value in defense.state_dict().items() if key.startswith(parts)}
    odd = sorted(given.keys() ^ needed.keys()) or [key for key in needed if given[key].shape != needed[key].shape]
    if odd:
        raise DrbenchError(
            f"train.start must give the weights of what is trained here ({', '.join(defense.trained())}), "
            f"and no others; {len(odd)} tensors are missing, superfluous or of another shape, first: {odd[0]}"
        )
    defense.load_state_dict(given, strict=False)


@torch.inference_mode()
def figures(defense: Defense, images: Images) -> dict[str, float]:
    """Accuracy of single noisy copies at each declared level, in percent: "sigma 0.25" -> 95.1."""
    found = {}
    for sigma in defense.sigmas:
        copies, hits = 1 if sigma == 0 else max(1, VALIDATION_ROWS // len(images)), 0
        x, y = images.x.repeat(copies, 1, 1, 1), images.y.repeat(copies)
        draws = Draws.seeded(0, len(x))
        for first in range(0, len(x), VALIDATION_ROWS):
            rows = slice(first, min(first + VALIDATION_ROWS, len(x)))
            part = draws[rows]
            logits = defense.logits(x[rows] + sigma * part.randn(*x[rows].shape), sigma, part)
            hits += int(logits.argmax(1).eq(y[rows]).sum())
        found[f"sigma {sigma:g}"] = round(100 * hits / len(x), 2)
    return found
