"""What the parts of RCM are worth on digits: `python -m benchmarks.rcm_ablation [--n N] [ARM ...]` prints a table.

Each arm is certified on all 500 test images by Cohen's CERTIFY (alpha = 0.001), for three training seeds where it is
ours. In brackets: the difference to RCM, paired by image and seed, with its 95 % bootstrap interval over images and
seeds. Arms without shipped weights are trained first, by the recipe of benchmarks/digits/train/rcm.yaml, for one noise
level. What was trained or certified once is kept in .drbench/rcm; test images play no part in any choice.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from drbench import certify, config, load_data, load_defense, stats, weights
from drbench.jobs import fitting

SEEDS, RADII, ALPHA, RESAMPLES = (0, 1, 2), (0.0, 0.25, 0.5, 0.75), 0.001, 10_000
KEPT = Path(".drbench/rcm")
RECIPE = "benchmarks/digits/train/rcm.yaml"
FULL = (0.25, 0.5)
# arm -> noise levels, overrides of its training
ARMS = {
    "rcm": (FULL, []),
    "no pre-training": (FULL, ["defense.args.pretraining=none"]),
    "contrastive only": (FULL[1:], ["defense.args.pretraining=contrastive"]),
    "consistency only": (FULL[1:], ["defense.args.pretraining=consistency"]),
    "frozen head": (FULL[1:], ["defense.args.head=frozen"]),
    "denoised one_shot": (FULL, None),  # a row of another method: one training, which meets each of ours
    "noise_augmented": (FULL, None),
}
SHIPPED = {"rcm": "digits/rcm", "no pre-training": "digits/rcm-none"}
OTHERS = {
    "denoised one_shot": ("denoised", ["digits/classifier", "digits/denoiser"]),
    "noise_augmented": ("noise_augmented", ["digits/noise_augmented"]),
}


def defense(arm: str, seed: int, images):
    """The network(s) of an arm, trained if they are neither shipped nor kept, and a key of their weights."""
    name, args = "rcm", {}
    if arm in OTHERS:
        name, checkpoints = OTHERS[arm]
    elif arm in SHIPPED:
        checkpoints = [SHIPPED[arm] + (f"-{seed}" if seed else "")]
    else:
        sigmas, overrides = ARMS[arm]
        (cell,) = config.load(RECIPE, [*overrides, f"train.recipe.seed={seed}"])
        weight_of = dict(zip(FULL, cell.defense.args.kl_weights, strict=True))
        args = {"sigmas": list(sigmas), "kl_weights": [weight_of[sigma] for sigma in sigmas]}
        cell.defense.args.update(args)
        cell.train.checkpoint = str(KEPT / f"{arm.replace(' ', '-')}-{seed}.safetensors")
        checkpoints = [cell.train.checkpoint]
        if not Path(cell.train.checkpoint).exists():
            fitting.train(cell, "python -m benchmarks.rcm_ablation")
    key = "".join(weights.resolve(found).sha256[:8] for found in checkpoints)
    return load_defense(name, images, checkpoints, **args), key


def outcomes(arm: str, seed: int, sigma: float, n: int, images) -> pd.DataFrame:
    """One row per image: `reach` (certified radius if the class is right, else -1), seconds, calls per draw."""
    network, key = defense(arm, seed, images)
    kept = KEPT / f"{arm.replace(' ', '-')}-{seed}-{sigma:g}-{n}-{key}.csv"
    if not kept.exists():
        start = time.perf_counter()
        frame = certify(network, images, sigma, n=n, alpha=ALPHA)
        seconds = (time.perf_counter() - start) / len(images)
        reach = frame.radius.where(frame.correct, -1.0)
        found = pd.DataFrame({"reach": reach, "seconds": seconds, "calls": sum(network.nfe(sigma).values())})
        found.to_csv(kept, index=False)
    return pd.read_csv(kept)


def difference(arm: np.ndarray, rcm: np.ndarray) -> str:
    """Mean of arm - rcm, both (seeds, images) of 0 and 1, with its paired interval, in points."""
    gaps, rng = 100 * (arm.astype(float) - rcm), np.random.default_rng(0)
    seeds = rng.multinomial(len(gaps), np.full(len(gaps), 1 / len(gaps)), RESAMPLES) / len(gaps)
    images = rng.multinomial(gaps.shape[1], np.full(gaps.shape[1], 1 / gaps.shape[1]), RESAMPLES) / gaps.shape[1]
    low, high = np.percentile(np.einsum("rs,si,ri->r", seeds, gaps, images, optimize=True), (2.5, 97.5))
    return f"{gaps.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def main(arms: list[str], n: int) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    images = load_data("digits", "test")
    found = {
        (arm, sigma): [outcomes(arm, seed, sigma, n, images) for seed in (SEEDS[:1] if arm in OTHERS else SEEDS)]
        for arm in arms
        for sigma in ARMS[arm][0]
    }
    print("| sigma | arm |" + "".join(f" r = {r:g} |" for r in RADII) + " calls | ms per image |")
    print("|---|---|" + "---|" * (len(RADII) + 2))
    for sigma in FULL:
        for arm in (arm for arm in arms if (arm, sigma) in found):
            frames = found[arm, sigma]
            cells = []
            for radius in RADII:
                if radius > stats.ceiling_radius(n, ALPHA, sigma):  # out of reach of n draws
                    cells.append("–")
                    continue
                own, rcm = (np.stack([f.reach >= radius for f in found[name, sigma]]) for name in (arm, "rcm"))
                gap = "" if arm == "rcm" else f" ({difference(own, rcm)})"
                cells.append(f"{100 * own.mean():.1f}{gap}")
            calls, seconds = frames[0].calls[0], np.mean([frame.seconds[0] for frame in frames])
            print(f"| {sigma:g} | {arm} | {' | '.join(cells)} | {calls} | {1000 * seconds:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=f"by default all: {', '.join(ARMS)}")
    parser.add_argument("--n", type=int, default=1000, help="draws of each estimate")
    options = parser.parse_args()
    main(["rcm", *(arm for arm in options.arms or ARMS if arm != "rcm")], options.n)
