"""What the parts of consistency purification are worth on digits: `python -m benchmarks.consistency_ablation`.

Each arm is certified on all 500 test images by Cohen's CERTIFY (alpha = 0.001), with the same noise and behind the same
frozen classifier. In brackets: the difference to the base, by default one-shot denoising, paired by image, with its
95 % interval: by the score (Tango 1998), that of the average certified radius by the bootstrap. Arms without shipped
weights are trained first, each from what the shipped rows start from and for as many steps. What was trained or
certified once is kept in .drbench/consistency; test images play no part in any choice.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from drbench import certify, config, load_data, load_defense, stats, weights
from drbench.jobs import fitting

RADII, ALPHA = (0.0, 0.25, 0.5, 0.75), 0.001
KEPT = Path(".drbench/consistency")
RECIPES = Path("benchmarks/digits/train")
ALL, MIDDLE = (0.25, 0.5, 1.0), (0.5,)


class Arm(NamedTuple):
    """A row of the table: a shipped checkpoint, or a recipe and its overrides; arguments; noise levels; defense."""

    checkpoint: str | tuple[str, list[str]]
    args: dict
    sigmas: tuple[float, ...] = MIDDLE
    name: str = "consistency"


def _tuned(metric: str) -> tuple[str, list[str]]:
    return "consistency-tuned.yaml", [f"defense.args.metric={metric}"]


def _control(metric: str) -> tuple[str, list[str]]:
    return "consistency-control.yaml", [f"defense.args.metric={metric}"]


def _settings(file: str, *keys: str) -> dict:
    """Arguments of a recipe that change the answers."""
    return {key: value for key, value in config.load(RECIPES / file)[0].defense.args.items() if key in keys}


GRID = _settings("consistency.yaml", "t_min", "t_max", "points") | {"metric": "l2"}  # at inference no metric is used
DENOISER = GRID | {"function": "denoiser", "objective": "tuning"}
TRAINED = ["defense.args.objective=training", "defense.args.ema=0.9", "train.start=[]"]
BASE = "one-shot denoising"
ARMS = {
    BASE: Arm("digits/denoiser", {}, ALL, "denoised"),
    "one-shot, snapped time": Arm("digits/denoiser", DENOISER),
    "one-shot, tuned (feat_aux): the control": Arm("digits/consistency-control", DENOISER, ALL),
    "one-shot, tuned (feat_ssl)": Arm(_control("feat_ssl"), DENOISER),
    "one-shot, tuned (l2)": Arm(_control("l2"), DENOISER),
    "consistency": Arm("digits/consistency", GRID, ALL),
    "consistency, exact time": Arm("digits/consistency", GRID | {"time": "exact"}),
    "consistency, inflated noise": Arm("digits/consistency", GRID | {"time": "inflate"}),
    "consistency, 40 points": Arm(("consistency.yaml", ["defense.args.points=40"]), GRID | {"points": 40}),
    "consistency training, no teacher": Arm(
        ("consistency.yaml", [*TRAINED, "defense.args.points=151"]), GRID | {"points": 151}
    ),
    "consistency, tuned (feat_aux)": Arm("digits/consistency-tuned", GRID, ALL),
    "consistency, tuned (feat_ssl)": Arm("digits/consistency-tuned-ssl", GRID),
    "consistency, tuned (multiscale_l1)": Arm(_tuned("multiscale_l1"), GRID),
    "consistency, tuned (l1)": Arm(_tuned("l1"), GRID),
    "consistency, tuned (l2)": Arm(_tuned("l2"), GRID),
    **{
        f"PF-ODE, {steps} levels": Arm(
            "digits/denoiser", {"sampler": "pf_ode", "steps": steps, "sigma_min": 0.1}, MIDDLE, "denoised"
        )
        for steps in (2, 3, 7)
    },
    "3 votes of 3 ancestral steps": Arm(
        "digits/denoiser", {"sampler": "densepure", "steps": 3, "votes": 3, "sigma_min": 0.1}, MIDDLE, "denoised"
    ),
}


def defense(label: str, images):
    """The defense of an arm, trained if its weights are neither shipped nor kept, and a key of its weights."""
    arm = ARMS[label]
    checkpoint = arm.checkpoint
    if not isinstance(checkpoint, str):
        file, overrides = checkpoint
        checkpoint = str(KEPT / f"{''.join(c if c.isalnum() else '_' for c in label)}.safetensors")
        (cell,) = config.load(RECIPES / file, [*overrides, f"train.checkpoint={checkpoint}"])
        if not Path(checkpoint).exists():
            fitting.train(cell, "python -m benchmarks.consistency_ablation")
    names = ["digits/classifier", checkpoint]
    key = "".join(weights.resolve(found).sha256[:8] for found in names)
    return load_defense(arm.name, images, names, **arm.args), key


def outcomes(label: str, sigma: float, n0: int, n: int, images) -> pd.DataFrame:
    """One row per image: `reach` (certified radius if the class is right, else -1), seconds, calls per draw."""
    network, key = defense(label, images)
    kept = KEPT / f"{''.join(c if c.isalnum() else '_' for c in label)}-{sigma:g}-{n0}-{n}-{key}.csv"
    if not kept.exists():
        start = time.perf_counter()
        frame = certify(network, images, sigma, n0=n0, n=n, alpha=ALPHA)
        seconds = (time.perf_counter() - start) / len(images)
        reach = frame.radius.where(frame.correct, -1.0)
        found = pd.DataFrame({"reach": reach, "seconds": seconds, "calls": sum(network.nfe(sigma).values())})
        found.to_csv(kept, index=False)
    return pd.read_csv(kept)


def cell(own: pd.Series, base: pd.Series | None, radius: float) -> str:
    """Certified accuracy in % of these reaches, and its difference to the base with a paired interval."""
    own = own >= radius
    text = f"{100 * own.mean():.1f}"
    if base is None:
        return text
    base = base >= radius
    only_own, only_base = int((own & ~base).sum()), int((base & ~own).sum())
    low, high = stats.paired_interval(only_own, only_base, len(own))
    return f"{text} ({100 * (only_own - only_base) / len(own):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"


def acr_cell(own: pd.Series, base: pd.Series | None) -> str:
    """Average certified radius of these reaches, and its difference to the base with a paired interval."""
    text = f"{own.clip(lower=0).mean():.3f}"
    if base is None:
        return text
    gaps = own.clip(lower=0) - base.clip(lower=0)
    low, high = stats.bootstrap_mean(gaps)
    return f"{text} ({gaps.mean():+.4f} [{low:+.4f}, {high:+.4f}])"


def main(arms: list[str], base: str, sigmas: list[float], n0: int, n: int) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    images = load_data("digits", "test")
    print("| sigma | arm |" + "".join(f" r = {r:g} |" for r in RADII) + " ACR | calls | ms per image |")
    print("|---|---|" + "---|" * (len(RADII) + 3))
    for sigma in sigmas:
        first = outcomes(base, sigma, n0, n, images)
        for label in (label for label in [base, *arms] if sigma in ARMS[label].sigmas):
            found, cells = outcomes(label, sigma, n0, n, images), []
            against = None if label == base else first.reach
            for radius in RADII:
                beyond = radius > stats.ceiling_radius(n, ALPHA, sigma)
                cells.append("–" if beyond else cell(found.reach, against, radius))
            cells.append(acr_cell(found.reach, against))
            calls, seconds = found.calls[0], found.seconds[0]
            print(f"| {sigma:g} | {label} | {' | '.join(cells)} | {calls} | {1000 * seconds:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=f"by default all: {', '.join(ARMS)}")
    parser.add_argument("--base", choices=ARMS, default=BASE, metavar="ARM", help="the arm that others meet")
    parser.add_argument("--sigma", type=float, nargs="*", default=list(ALL), help="noise levels")
    parser.add_argument("--n0", type=int, default=50, help="selection draws")
    parser.add_argument("--n", type=int, default=200, help="draws of each estimate")
    options = parser.parse_args()
    arms = [arm for arm in options.arms or ARMS if arm != options.base]
    main(arms, options.base, options.sigma, options.n0, options.n)
