"""Our `autoattack` against torchattacks' attacks with 100 steps: robust images and gradient evaluations, side by side.

`python -m benchmarks.autoattack digits` or `... cifar`, which needs the folder that `DRBENCH_SHARED` names. The bar: at
most one image more robust than after the library's attacks, with no more gradient evaluations.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

import drbench
from benchmarks.resnets import SHARED, pretrained
from drbench import data
from drbench.api import Defense
from drbench.attacks.presets import autoattack, member
from drbench.attacks.suite import Suite
from drbench.attacks.threat import threat
from drbench.data import Images

LIBRARY = ("APGD", "APGDT", "FAB", "Square")
DIGITS = {"linf": (0.05, 0.1, 0.15), "l2": (0.25, 0.5, 0.75)}
CIFAR = {"linf": (0.5 / 255, 1 / 255), "l2": (0.05, 0.15)}


class Outcome(NamedTuple):
    """Of one suite: images that stay right, gradient evaluations and other forward passes, all images together."""

    robust: int
    gradients: int
    forwards: int


def both(defense: Defense, images: Images, norm: str, eps: float, queries: int = 5000) -> tuple[Outcome, Outcome]:
    """Ours and the library's; each attack runs on the images that are still right, with 100 steps."""
    ours = [*autoattack(norm)[:-1], member("square", queries=queries)]
    theirs = [member("torchattacks", name=name, steps=100, queries=queries) for name in LIBRARY]
    return _run(defense, images, norm, eps, ours), _run(defense, images, norm, eps, theirs)


def _run(defense: Defense, images: Images, norm: str, eps: float, members) -> Outcome:
    found = Suite(defense, threat(norm, eps), members).run(images.x, images.y, images.ids)
    tried = [each for one in found for each in one.evidence.tried]
    robust = sum(one.evidence.adversarial.wrong(int(label)) == 0 for one, label in zip(found, images.y, strict=True))
    return Outcome(robust, sum(each.gradients for each in tried), sum(each.forwards for each in tried))


def cases(name: str, count: int):
    """Label, defense, images and radii of a data set's cases."""
    if name == "digits":
        images = drbench.load_data("digits", subset=f"first{count}")
        for method, weights in (("undefended", "classifier"), ("adversarial_training", "adversarial_training")):
            yield method, drbench.load_defense(method, images, f"digits/{weights}"), images, DIGITS
    else:
        images = data.load("cifar10-jpeg", "test", f"first{count}", str(SHARED / "cifar10-jpeg"))
        for depth in (20, 56):
            yield f"ResNet-{depth}", pretrained(depth), images, CIFAR


def main(name: str = "digits", count: int = 50) -> None:
    torch.set_num_threads(1)
    print(
        "| model | threat | images | robust: ours | torchattacks | gradients per image: ours | torchattacks "
        "| forwards: ours / torchattacks |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for label, defense, images, radii in cases(name, count):
        for norm, eps in ((norm, eps) for norm, several in radii.items() for eps in several):
            ours, theirs = both(defense, images, norm, eps)
            cells = [label, f"{norm} {eps:.4g}", count, ours.robust, theirs.robust]
            cells += [f"{each / count:,.0f}" for each in (ours.gradients, theirs.gradients)]
            cells += [f"{ours.forwards / count:,.0f} / {theirs.forwards / count:,.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((str, int), sys.argv[1:], strict=False)))
