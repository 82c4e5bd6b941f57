"""`make bench`: draws that early stopping saves, against a fixed number, at which difference in certified accuracy.

Vote shares are those of recorded runs; streams of votes with these shares are simulated, so that budgets of 100,000
draws cost nothing. Each mode sees the same streams. The bars ask for certified accuracy within 0.5 points of all draws,
or within the tolerance.

    drbench's own run folders, or logs of Cohen et al. 2019 (tab separated, with a column `radius`), by path:
    python -m benchmarks.modes [--sigma S] [PATH ...]
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

import numpy as np
from scipy import special
from scipy import stats as reference

from drbench import load_data, load_defense, stats
from drbench.certifiers import kinds
from drbench.records import record
from drbench.stats import noises, sequential, stopping

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


def simulate(shares: np.ndarray, sigma: float, mode: str, radii: list[float], rng: np.random.Generator, **options):
    """Mean draws, and the share of images certified at each radius."""
    tolerance = options.pop("tolerance", None)
    rule = stopping.rule(mode, [radius / sigma for radius in radii], BUDGET, ALPHA, block=BLOCK, **options)
    votes = np.cumsum(rng.binomial(np.diff(rule.points, prepend=0), shares[:, None]), axis=1)
    ends = np.array([next(i for i, k in enumerate(path) if rule.stops(int(k), i)) for path in votes])
    if tolerance is not None:
        ends = np.minimum(ends, last_checkpoint(rule, votes, ends, tolerance))
    used, reached = rule.points[ends], np.empty((len(shares), len(radii)), bool)
    for image, (draws, k) in enumerate(zip(used.tolist(), votes[np.arange(len(votes)), ends].tolist(), strict=True)):
        _, q_upper = stats.vote_share(mode, k, draws, BUDGET, ALPHA, options.get("sequence", "e-process"), BLOCK)
        radius = noises.radius(q_upper, sigma)
        reached[image] = [radius > 0 if target == 0 else radius >= target for target in radii]
    return used.mean(), 100 * reached.mean(0)


def last_checkpoint(rule: stopping.Rule, votes: np.ndarray, ends: np.ndarray, tolerance: float) -> int:
    """Where a table of these images is stopped as a whole."""
    table = stopping.Table(rule, tolerance, (), len(votes))
    for point in range(len(rule.points)):
        drawn = ends >= point  # the others were settled before
        if table.enough([(int(k), point) for k in votes[drawn, point]], int((~drawn).sum())):
            return point
    return len(rule.points) - 1


def compare(title: str, sigma: float, shares: np.ndarray) -> None:
    table = (np.arange(int(4 * stats.ceiling_radius(BUDGET, ALPHA, sigma)) + 1) / 4).tolist()
    shares = np.tile(shares, REPEATS)
    fixed = np.array([100 * np.mean(reference.binom.sf(stats.smallest_votes(BUDGET, ALPHA, r / sigma) - 1, BUDGET,
                                                       shares)) for r in table])  # fmt: skip
    print(f"{title}: sigma {sigma:g}, {len(shares):,} streams, fixed: {BUDGET:,} draws each")

    def show(text: str, mode: str, radii: list[float], bar: float | None = None, **options) -> None:
        draws, certified = simulate(shares, sigma, mode, radii, np.random.default_rng(0), **options)
        gap = np.abs(certified - fixed[[table.index(r) for r in radii]]).max()
        note = f"  (bar {bar:g} x)" if bar else ""
        print(f"  {text:34} {BUDGET / draws:6.1f} x fewer draws, off by {gap:.2f} points{note}")

    for mode, bar in (("curtailed", None), ("sequential", None), ("hybrid", 5)):
        show(f"{mode}, all {len(table)} radii", mode, table, bar)
    show("sequential by union bound", "sequential", table, sequence="union")
    for mode, tolerance, bar in (("hybrid", 0.005, None), ("hybrid", 0.02, 10), ("sequential", 0.02, 10)):
        show(f"{mode}, tolerance {100 * tolerance:g} points", mode, table, bar, tolerance=tolerance)
    for target in (r for r in table if r in (0.25, 0.5, 1.0)):
        show(f"hybrid, r = {target:g} alone", "hybrid", [target], 20)


def boundary(streams: int = 200_000) -> None:
    """False certifications where the true share is exactly that of the target, at all checkpoints of the budget."""
    for mode, sequence in (("sequential", "e-process"), ("sequential", "union"), ("hybrid", "e-process")):
        share, hit = float(special.ndtr(1.0)), np.zeros(streams, bool)
        points = sequential.checkpoints(BUDGET, BLOCK)
        votes = np.cumsum(np.random.default_rng(0).binomial(np.diff(points, prepend=0), share, (streams, len(points))),
                          axis=1)  # fmt: skip
        for place, draws in enumerate(points):
            low, high = 0, draws + 1  # fewest votes whose limit exceeds the true share
            while low < high:
                k = (low + high) // 2
                claims = stats.vote_share(mode, k, draws, BUDGET, ALPHA, sequence, BLOCK)[0] > share
                low, high = (low, k) if claims else (k + 1, high)
            hit |= votes[:, place] >= low
        rate = hit.mean()
        print(f"  {mode} by {sequence}: false certifications {rate:.2g} of {streams:,} (alpha {ALPHA:g})")


def curtailed_decides_as_recorded() -> None:
    """The engine in mode curtailed against the recorded runs with all draws, image by image."""
    for name, checkpoint in (("undefended", "digits/classifier"), ("noise_augmented", "digits/noise_augmented")):
        (folder,) = Path(f"results/digits/full/runs/{name}").glob("sigma0.5-*")
        run = record.read(folder)
        about = run.header["engine"]
        engine = about | stopping.plan("curtailed", about["sigma"], about["n"], about["alpha"])
        images = load_data("digits")
        defense = load_defense(name, images, checkpoint)
        used, differ = 0, 0
        for seen in kinds.observe(engine, defense, images.x, images.ids, images.y.tolist(), batch_rows=2048):
            early = stats.decide_as(engine, seen.evidence)
            late = stats.decide_as(about, run.rows[images.ids[seen.index]].evidence)
            used += seen.evidence.stages[0].n
            same = [(early.radius >= r) == (late.radius >= r) for r in engine["radii"]]
            differ += not (all(same) and early.prediction == late.prediction)
        saved = about["n"] / (used / len(images))
        print(f"  {name}: {differ} of {len(images)} images decided otherwise at some radius, {saved:.2f} x fewer draws")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--sigma", type=float, help="noise level of the logs")
    args = parser.parse_args()
    given = [record.find([path]) if path.is_dir() else [path] for path in args.paths or map(Path, RUNS)]
    for path in chain.from_iterable(given):
        if (path / "run.json").exists():
            compare("/".join(path.parts[-2:]), *shares_of_run(path))
        else:
            compare(str(path), args.sigma, shares_of_log(path, args.sigma))
    if not args.paths:
        print("at the boundary, r = sigma:")
        boundary()
        print("curtailed against the recorded runs of the digits rows:")
        curtailed_decides_as_recorded()


if __name__ == "__main__":
    main()
