"""Certification without config files, for notebooks and scripts."""

from __future__ import annotations

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from drbench import build, stats, weights
from drbench.api import Defense
from drbench.certifiers import gaussian
from drbench.certifiers.batching import find_batch_rows
from drbench.data import Images
from drbench.progress import Progress

COLUMNS = ("id", "label", "prediction", "radius", "correct", "p_lower", "radius_multiclass", "error")


def load_defense(name: str, images: Images, checkpoint=(), seed: int = 0, **args) -> Defense:
    """A registered defense for these images, with weights by manifest name or path, in eval mode."""
    names = [checkpoint] if isinstance(checkpoint, str) else list(checkpoint)
    spec = DictConfig({"name": name, "args": args})
    return build.defense(spec, images, [weights.resolve(found) for found in names], seed)


def certify(
    defense: Defense,
    images: Images | tuple[Tensor, Tensor],
    sigma: float,
    *,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    block: int = 100,
    batch_rows: int | None = None,
) -> pd.DataFrame:
    """Certify images with Cohen's CERTIFY and return one row per image.

    Parameters
    ----------
    defense : Defense
    images : Images, or a pair (x, y)
        Tensors or arrays: x (M, C, H, W) in [0, 1], y (M,) labels; ids are then positions.
    sigma : float
        Noise level, pixel units.
    n0, n, alpha : int, int, float
        Selection draws, estimation draws, failure probability of each certificate.
    seed, block : int
        Key of the random streams.
    batch_rows : int, optional
        Rows per network call; found by a short search if not given. Does not change the counts.

    Returns
    -------
    DataFrame
        Columns id, label, prediction (-1: abstained), radius (l2, pixel units), correct, p_lower,
        radius_multiclass, error.

    Examples
    --------
    >>> import drbench
    >>> images = drbench.load_data("digits", subset="first20")
    >>> defense = drbench.load_defense("undefended", images, checkpoint="digits/classifier")
    >>> frame = drbench.certify(defense, images, sigma=0.25)
    """
    stats.check_budget(n, alpha)
    if not isinstance(images, Images):
        x, y = (torch.as_tensor(part).detach().cpu() for part in images)
        images = Images(x.float(), y.long(), tuple(range(len(x))), "given", "all", defense.num_classes)
    defense.eval()
    defense.require(sigma)
    gaussian.check_images(defense, images.x)
    gaussian.check_draws(n0, n, block)
    rows = find_batch_rows(defense, sigma, len(images) * (n0 + n)) if batch_rows is None else batch_rows
    observations = gaussian.observe(
        defense, images.x, images.ids, sigma=sigma, n0=n0, n=n, seed=seed, block=block, batch_rows=rows
    )
    found: list[dict] = []
    with Progress(f"{type(defense).__name__} sigma {sigma:g}", len(images), "images") as bar:
        for seen in observations:
            found.append(_tidy(images.ids[seen.index], int(images.y[seen.index]), seen, alpha))
            bar.advance(lambda: f"certified {sum(row['correct'] for row in found) / len(found):.3f} at r=0")
    return pd.DataFrame(found, columns=COLUMNS)


def _tidy(image_id, label: int, seen: gaussian.Observation, alpha: float) -> dict:
    if seen.evidence is None:
        return {
            "id": image_id,
            "label": label,
            "prediction": stats.ABSTAIN,
            "radius": 0.0,
            "correct": False,
            "p_lower": float("nan"),
            "radius_multiclass": 0.0,
            "error": seen.error,
        }
    certificate = stats.decide("gaussian", seen.evidence, alpha)
    return {
        "id": image_id,
        "label": label,
        "prediction": certificate.prediction,
        "radius": certificate.radius,
        "correct": certificate.prediction == label,
        "p_lower": certificate.detail["p_lower"],
        "radius_multiclass": certificate.detail["radius_multiclass"],
        "error": None,
    }
