"""`make bench`: draws that early stopping saves, against a fixed number, at which difference in certified accuracy.

Vote shares are those of recorded runs; streams of votes with these shares are simulated, so that budgets of 100,000
draws cost nothing. Each mode sees the same streams.

    drbench's own run folders, or logs of Cohen et al. 2019 (tab separated, with a column `radius`), by path:
    python -m benchmarks.modes [--sigma S] [PATH ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import special
from scipy import stats as reference

from drbench import record, stats, stopping

BUDGET, ALPHA, BLOCK, REPEATS = 100_000, 0.001, 100, 4
RUNS = ("results/digits/full/runs/undefended", "results/digits/full/runs/noise_augmented")


def shares_of_run(folder: Path) -> tuple[float, np.ndarray]:
    """Sigma of a run, and for each image the share of the estimation votes that went to the selected class."""
    run = record.read(folder)
    stages = [row.evidence.stages[0] for row in run.ordered() if row.evidence]
    # The mean of Beta(1/2 + votes, 1/2 + rest): a unanimous vote is no certainty.
    shares = [(s.votes.get(stats.top_class(s.select), 0) + 0.5) / (s.n + 1) for s in stages]
    return run.header["engine"]["sigma"], np.array(shares)


def shares_of_log(path: Path, sigma: float) -> np.ndarray:
    """Shares behind the radii of a log; abstentions get shares spread evenly over (0, 1/2)."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    column = {name: place for place, name in enumerate(lines[0])}
    radii = np.array([float(line[column["radius"]]) for line in lines[1:]])
    shares = special.ndtr(radii / sigma)
    abstained = radii <= 0
    shares[abstained] = (np.arange(abstained.sum()) + 0.5) / max(1, abstained.sum()) / 2
    return shares


def simulate(shares: np.ndarray, sigma: float, mode: str, radii: list[float], rng: np.random.Generator) -> tuple:
    """Mean draws, and the share of images certified at each radius."""
    rule = stopping.rule(mode, [radius / sigma for radius in radii], BUDGET, ALPHA, block=BLOCK)
    used, reached = np.empty(len(shares)), np.empty((len(shares), len(radii)), bool)
    increments = np.diff(rule.points, prepend=0)
    for image, share in enumerate(shares):
        votes = np.cumsum(rng.binomial(increments, share))
        point = next(i for i in range(len(votes)) if rule.stops(int(votes[i]), i))
        used[image], k = rule.points[point], int(votes[point])
        _, q_upper = stats.vote_share(mode, k, int(used[image]), BUDGET, ALPHA)
        radius = max(0.0, -sigma * float(special.ndtri(q_upper)))
        reached[image] = [radius > 0 if target == 0 else radius >= target for target in radii]
    return used.mean(), 100 * reached.mean(0)


def compare(title: str, sigma: float, shares: np.ndarray) -> None:
    table = np.arange(int(4 * stats.ceiling_radius(BUDGET, ALPHA, sigma)) + 1) / 4
    shares = np.tile(shares, REPEATS)
    fixed = [100 * np.mean(reference.binom.sf(stats.smallest_votes(BUDGET, ALPHA, r / sigma) - 1, BUDGET, shares))
             for r in table]  # fmt: skip
    print(f"{title}: sigma {sigma:g}, {len(shares):,} streams, fixed: {BUDGET:,} draws each")
    for mode in ("curtailed", "sequential", "hybrid"):
        draws, certified = simulate(shares, sigma, mode, table.tolist(), np.random.default_rng(0))
        gap = np.abs(certified - fixed).max()
        print(f"  {mode:10} all {len(table):2} radii  {BUDGET / draws:6.1f} x fewer draws, off by {gap:.2f} points")
    for target in (r for r in table if r in (0.25, 0.5, 1.0)):
        draws, certified = simulate(shares, sigma, "sequential", [target], np.random.default_rng(0))
        gap = abs(certified[0] - fixed[list(table).index(target)])
        print(f"  sequential r = {target:<4g}    {BUDGET / draws:6.1f} x fewer draws, off by {gap:.2f} points")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--sigma", type=float, help="noise level of the logs")
    args = parser.parse_args()
    for path in args.paths or record.find(RUNS):
        if (path / "run.json").exists():
            compare("/".join(path.parts[-2:]), *shares_of_run(path))
        else:
            compare(str(path), args.sigma, shares_of_log(path, args.sigma))


if __name__ == "__main__":
    main()
