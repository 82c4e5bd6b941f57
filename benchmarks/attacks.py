"""`make bench`: gradient evaluations per second of the attack engine against bare forward and backward passes.

Both take the same number of gradients of the same defense on one thread, in turns; the ratio is the median over the
rounds of a quotient of two neighbouring measurements, so that slow drifts of the machine cancel.

    bare     `logits`, margin, `autograd.grad` on one ready-made noisy batch: no noise drawn, no steps, no bookkeeping
    engine   EOT-PGD through the oracle: noise, padding, steps, projections, candidates
"""

from __future__ import annotations

import statistics

import numpy as np
import torch

from benchmarks.engine import seconds
from drbench import load_data, load_defense
from drbench.api import Defense, Draws
from drbench.attacks import pgd, views
from drbench.attacks.losses import margin
from drbench.attacks.oracle import ROWS
from drbench.attacks.problem import Problem
from drbench.attacks.threat import Threat
from drbench.data import Images

SIGMA, STEPS, DRAWS, ROUNDS = 0.25, 10, 16, 7
CASES = (
    # title, defense, checkpoints, images, limit of engine / bare
    ("tiny CNN", "noise_augmented", ["digits/noise_augmented"], 64, None),
    ("UNet + tiny CNN", "denoised", ["digits/classifier", "digits/denoiser"], 32, 1.10),
)


def bare(defense: Defense, images: Images, batch: int) -> None:
    x = images.x.repeat_interleave(DRAWS, 0)[:batch]
    y = images.y.repeat_interleave(DRAWS)[:batch]
    draws = Draws.seeded(0, batch)
    z = x + SIGMA * draws.randn(*x.shape)
    for _ in range(len(images) * DRAWS * STEPS // batch):
        z = z.detach().requires_grad_(True)
        torch.autograd.grad(margin(defense.logits(z, SIGMA, draws), y).sum(), z)


def engine(defense: Defense, images: Images) -> Problem:
    view = views.Direct(defense, SIGMA)
    problem = Problem.of(view, Threat("linf", 0.125), images.x, images.y, images.ids, "bench")
    pgd.pgd(problem, steps=STEPS, draws=DRAWS)
    return problem


def measure(title: str, name: str, checkpoints: list[str], count: int, limit: float | None) -> None:
    images = load_data("digits", subset=f"first{count}")
    defense = load_defense(name, images, checkpoints)
    made = int(np.sum(engine(defense, images).cost.gradients))
    forward_only = 1 / 3 / STEPS  # the last iterate is looked at without a gradient: about a third of one
    pairs = [(seconds(engine, defense, images), seconds(bare, defense, images, ROWS)) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{title}: {made:,} gradient evaluations, batches of {ROWS}, one thread")
    print(f"  engine {made / ours:10,.0f} per second")
    print(f"  bare   {made / theirs:10,.0f} per second")
    limited = f"  (limit {limit})" if limit else ""
    print(f"  engine / bare {ratio:.3f}, of which {forward_only:.3f} is the last look without gradient{limited}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        measure(*case)
