"""Tables of methods/diffusion_classifier/README.md: python -m benchmarks.diffusion_classifier_claims

What clean images tell: accuracy and counted network evaluations of each form, shared noise, weights and levels,
randomness. All 500 test images, differences paired by image; thresholds are calibrated on validation images. Claims on
recorded runs are judged by `drbench claims`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from drbench import load_data, load_defense, stats
from drbench.api import Defense, Draws, DrbenchError
from drbench.cost import Evaluations
from methods.diffusion_classifier import pruning
from methods.diffusion_classifier import terms as terms_of
from methods.diffusion_classifier.errors import all_pairs, denoising_errors

ROWS = 100  # images of one call
NODES, LEVELS, MISS = 16, [0.5, 3.0], 0.005
ASCENT = {"form": "linf_momentum", "eta": 0.125, "rate": 0.1}
ADAM = {"form": "adam_free", "rate": 0.1}
MULTIHEAD = ["digits/denoiser", "digits/rdc-multihead"]
OURS, OTHER = "diffusion_classifier", "adversarial_training"


def make(images, checkpoint="digits/denoiser", **args) -> Defense:
    return load_defense("diffusion_classifier", images, checkpoint, **{"levels": LEVELS, "nodes": NODES, **args})


@torch.inference_mode()
def classes(defense: Defense, images, seed: int = 0, first: int | None = None) -> tuple[Tensor, float]:
    """Predicted classes of the first images (default: all), and network evaluations per image."""
    draws, parts = Draws.seeded(seed, len(images)), []
    with Evaluations(defense) as evaluations:
        for at in range(0, first or len(images), ROWS):
            parts.append(defense.logits(images.x[at : at + ROWS], 0.0, draws[at : at + ROWS]).argmax(1))
    found = torch.cat(parts)
    return found, sum(evaluations.counts.values()) / len(found)


def interval(hits: np.ndarray) -> str:
    low, high = stats.interval(int(hits.sum()), len(hits))
    return f"{100 * hits.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def paired(hits: np.ndarray, base: np.ndarray) -> str:
    low, high = stats.paired_interval(int((hits & ~base).sum()), int((base & ~hits).sum()), len(hits))
    return f"{100 * (hits.mean() - base.mean()):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


@torch.inference_mode()
def losses(defense: Defense, images, terms, seed: int = 0) -> Tensor:
    """(N, T, K) errors of every node, with noise shared over classes."""
    draws, parts = Draws.seeded(seed, len(images)), []
    for at in range(0, len(images), ROWS):
        u, noise = 2 * images.x[at : at + ROWS] - 1, defense._noise(draws[at : at + ROWS], terms)
        pairs = all_pairs(len(u), defense.num_classes, u.device)
        found = denoising_errors(defense._predict, u, u, noise, terms, pairs)[..., 0]
        parts.append(found.unflatten(0, (len(u), -1)).transpose(1, 2))
    return torch.cat(parts)


def sifting(nodes: int = 4, keep: int = 4) -> dict:
    """Sift settings with a threshold from validation images, four noises each."""
    images = load_data("digits", "validation")
    defense = make(images)
    terms = defense._terms(0.0, nodes)
    found = (
        torch.cat([losses(defense, images, terms, seed) for seed in range(100, 104)]) * terms.weight[:, None].float()
    )
    return {"nodes": nodes, "keep": keep, "threshold": pruning.calibrate(found, images.y.repeat(4), MISS)}


def clean(images) -> Iterator[str]:
    y = images.y
    optimal = make(images, (), network="exact", support=1097)
    training = load_data("digits", "train")
    optimal.fit(training.x, training.y, None, None)
    sift = sifting()
    rows = {
        "DC": make(images),
        "DC, 8 nodes": make(images, nodes=8),
        "RDC, linf_momentum": make(images, likelihood=ASCENT),
        "RDC, adam_free": make(images, likelihood=ADAM),
        "LM + CNN": make(images, ["digits/denoiser", "digits/classifier"], network="classifier", likelihood=ASCENT),
        f"DC, sifted (threshold {sift['threshold']:.4f})": make(images, sift=sift),
        "DC, multi-head": make(images, MULTIHEAD, network="multihead"),
        "DC, multi-head, 8 nodes": make(images, MULTIHEAD, network="multihead", nodes=8),
        "RDC, multi-head": make(images, MULTIHEAD, network="multihead", likelihood=ASCENT),
        "DC, optimal on the training images": optimal,
    }
    yield "| form | clean accuracy, % | difference to DC | evaluations per image | change with the noise, % |"
    yield "|---|---|---|---|---|"
    base = None
    for name, defense in rows.items():
        answers, calls = classes(defense, images)
        other = classes(defense, images, seed=1, first=ROWS)[0]
        hits = answers.eq(y).numpy()
        base = hits if base is None else base
        change = float((answers[:ROWS] != other).float().mean())
        yield f"| {name} | {interval(hits)} | {paired(hits, base)} | {calls:.0f} | {100 * change:.1f} |"
        sys.stdout.flush()


def sharing(images) -> Iterator[str]:
    yield "| nodes | shared noise | own noise for each class | difference |"
    yield "|---|---|---|---|"
    for nodes in (2, 4, 8):
        shared, own = (
            classes(make(images, nodes=nodes, shared_noise=each), images)[0].eq(images.y).numpy()
            for each in (True, False)
        )
        yield f"| {nodes} | {interval(shared)} | {interval(own)} | {paired(shared, own)} |"


def weighting(images) -> Iterator[str]:
    yield "| weight | nodes in [1e-4, 3] | nodes in [0.5, 3] | difference |"
    yield "|---|---|---|---|"
    found = []
    for low in (1e-4, 0.5):
        defense = make(images, levels=[low, 3.0])
        found.append((low, float(defense.denoiser.sigma_data), losses(defense, images, defense._terms(0.0, NODES))))
    kinds = {"released": ("released", (-1.2, 1.2)), "true": ("true", (-1.2, 1.2)),
             "true, this denoiser's training levels": ("true", (-0.3, 1.0)), "elbo": ("elbo", (-1.2, 1.2)),
             "uniform": ("uniform", (-1.2, 1.2))}  # fmt: skip
    for name, (kind, density) in kinds.items():
        hits = []
        for low, sigma_data, errors in found:
            weight = terms_of.plain(low, 3.0, NODES, kind, sigma_data, density).weight
            hits.append((errors.double() * weight[:, None]).sum(1).argmin(1).eq(images.y).numpy())
        yield f"| {name} | {interval(hits[0])} | {interval(hits[1])} | {paired(hits[1], hits[0])} |"


def gradients(images) -> Iterator[str]:
    """Mean cosine of the gradients of the margin under different noises, over pairs of ten and 20 images."""
    x, y = images.x[:20], images.y[:20]
    for name, args in (("DC", {}), ("RDC", {"likelihood": ASCENT})):
        defense, slopes = make(images, MULTIHEAD, network="multihead", **args), []
        for seed in range(10):
            z = x.clone().requires_grad_()
            logits = defense.attack_logits(z, 0.0, Draws.seeded(seed, len(x)))
            right = logits.gather(1, y[:, None])[:, 0]
            others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
            slopes.append(torch.autograd.grad((others - right).sum(), z)[0].flatten(1))
        pairs = itertools.combinations(slopes, 2)
        cosine = torch.stack([torch.nn.functional.cosine_similarity(a, b) for a, b in pairs]).mean()
        yield f"{name}, multi-head: cosine of gradients under different noises {cosine:.3f}"


def main() -> int:
    images = load_data("digits", "test")
    try:
        for part in (clean(images), sharing(images), weighting(images), gradients(images)):
            for line in part:
                print(line, flush=True)
            print()
    except DrbenchError as error:
        print(f"diffusion_classifier_claims: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
