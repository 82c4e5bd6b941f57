"""What purifiers do to images: `python -m benchmarks.purification CONFIG ... [--images N]`, a table per noise level.

For the defense of each benchmark file, at every noise level of any file, on the test images with the noise of its seed:

- pixel: mean squared error of the purified image, pixels in [0, 1]. The posterior mean is best here by definition.
- transport: E ||phi(purified) - phi(clean)||, an upper bound of the Wasserstein-1 distance between the two sets in the
  same metric; phi are the features of a label-free encoder (`feat_ssl`), trained here under a seed that no purifier was
  tuned with.
- fd_small: Frechet distance of the two sets in the same features. It is not the FID, whose features are Inception's.
- accuracy: share of purified images that the classifier gets right.

In brackets: the difference to the first file, paired by image, with its 95 % bootstrap interval over images; for
fd_small, a property of the set, the smallest and largest of the copies. Nothing is chosen here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from drbench import config, draws, stats, weights
from drbench.jobs import build
from drbench.recipe import Recipe
from methods.consistency.features import Encoder, fit_encoder

COPIES = 4
ENCODER = Recipe(steps=1500, batch=128, lr=2e-3, shift=0.2, rotate=4, seed=2000)  # the shipped rows have seed 1000
COLUMNS = {"pixel": 1e3, "transport": 1.0, "fd_small": 1.0, "accuracy": 100.0}  # measure -> factor in the table
HEAD = ("pixel MSE × 1000", "transport", "fd_small", "accuracy, %")


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^1/2) of the Gaussians fitted to the rows of a and b, (n, d) each.

    Dowson and Landau 1982. With n < d + 1 rows a covariance is singular, which biases the distance upwards.
    """
    means = a.mean(0) - b.mean(0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.clip(np.linalg.eigvals(first @ second).real, 0, None)).sum()
    return float(means @ means + np.trace(first) + np.trace(second) - 2 * roots)


@torch.inference_mode()
def measure(defense, x: Tensor, y: Tensor, ids, sigma: float, encoder: Encoder, seed: int = 0) -> dict[str, np.ndarray]:
    """(COPIES,) of fd_small and (M,) means over the copies of the others, for clean images x (M, C, H, W) in [0, 1]."""
    clean, found = encoder.features(2 * x - 1), {name: [] for name in COLUMNS}
    for copy in range(COPIES):
        spans = [draws.Span(draws.block_key(seed, i, sigma, "purification", 0), copy, copy + 1) for i in ids]
        own = draws.Draws(spans)
        purified = defense.purify(x + sigma * own.randn(*x.shape), sigma, own)
        features = encoder.features(2 * purified - 1)
        found["pixel"].append((purified - x).square().flatten(1).mean(1))
        found["transport"].append((features - clean).norm(dim=1))
        found["accuracy"].append(defense.classifier(purified).argmax(1).eq(y).float())
        found["fd_small"].append(frechet(clean.double().numpy(), features.double().numpy()))
    fd = np.array(found.pop("fd_small"))
    return {name: torch.stack(copies).mean(0).numpy() for name, copies in found.items()} | {"fd_small": fd}


def row(found: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> Iterator[str]:
    """Cells of one defense: mean of each measure, and its difference to the first one's."""
    for name, factor in COLUMNS.items():
        values = factor * found[name]
        text = f"{values.mean():.3g}"
        if name == "fd_small":
            text += f" [{values.min():.3g}, {values.max():.3g}]"
        elif found is not base:
            gaps = values - factor * base[name]
            low, high = stats.bootstrap_mean(gaps)
            text += f" ({gaps.mean():+.2g} [{low:+.2g}, {high:+.2g}])"
        yield text


def main(files: list[str], limit: int | None) -> None:
    swept = [config.load(file) for file in files]
    rows, levels = [cells[0] for cells in swept], {cell.certify.sigma for cells in swept for cell in cells}
    images, train = build.images(rows[0], "test"), build.images(rows[0], "train")
    x, y, ids = images.x[:limit], images.y[:limit], images.ids[:limit]
    encoder = fit_encoder("feat_ssl", train.x, train.y, train.num_classes, ENCODER)
    for sigma in sorted(levels):
        print(f"\nσ = {sigma:g}, {len(x)} images, {COPIES} noisy copies\n\n| defense | {' | '.join(HEAD)} |")
        print("|---|" + "---:|" * len(HEAD))
        base = None
        for cell in rows:
            checkpoints = [weights.resolve(name) for name in cell.defense.checkpoint]
            defense = build.defense(cell.defense, images, checkpoints, cell.run.seed)
            found = measure(defense, x, y, ids, sigma, encoder, cell.run.seed)
            base = base or found
            name = f"{cell.defense.name} ({cell.defense.variant})" if cell.defense.variant else cell.defense.name
            print(f"| {name} | {' | '.join(row(found, base))} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="CONFIG", help="benchmark files; the first is what others meet")
    parser.add_argument("--images", type=int, help="only the first of the test images")
    options = parser.parse_args()
    main(options.files, options.images)
