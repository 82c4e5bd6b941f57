"""The two engines against each other: attacks find nothing inside the certified radii of the tracked digits runs.

A certificate fails with probability alpha, and so does the test that contradicts it, so of n attacked images at most
the 99 % quantile of Binomial(n, both) may be contradicted. The same attack beyond the radii must find a lot.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import pytest
from scipy.stats import binom

from drbench import config, norms, stats, weights
from drbench.attacks.evaluate import Decision, evaluate
from drbench.attacks.lockstep import Lockstep
from drbench.attacks.oracle import Keys
from drbench.attacks.problem import Problem
from drbench.attacks.smoothadv import smoothadv
from drbench.attacks.threat import threat
from drbench.attacks.views import Direct
from drbench.jobs import build
from drbench.records import record

ROOT = Path(__file__).parents[1]
# Lipschitz radii of estimated logits are no certificates.
RUNS = sorted(path.parent for path in (ROOT / "results" / "digits" / "full" / "runs").rglob("run.json")
              if "lipschitz" not in path.parent.name)  # fmt: skip
DEAR = ("densepure", "diffusion_classifier", "diffpure")  # many network calls a gradient
ALPHA = 0.001  # of the test that contradicts a certificate
INSIDE = 0.999  # of the radius: rounding must not decide
ROWS = 512  # of a call, which the attacks on several images share


@cache
def images():
    (cell,) = config.load(RUNS[0] / "config.yaml")
    return build.images(cell)


@cache
def defense_of(folder: Path):
    (cell,) = config.load(folder / "config.yaml")
    checkpoints = [weights.resolve(name) for name in cell.defense.checkpoint]
    return build.defense(cell.defense, images(), checkpoints, cell.run.seed)


def contradicted(shares: Sequence[dict[int, int]], votes: int, answer: int, p0: float) -> bool:
    """Whether votes at each level, from the first to the one that answered, show that the cascade says something else.

    Another class is surely above p0 somewhere before `answer` may be; or `answer` is surely not above p0 anywhere.
    """
    for counts in shares:
        if any(stats.cp_lower(k, votes, ALPHA / len(shares)) > p0 for c, k in counts.items() if c != answer):
            return True
        if stats.cp_upper(counts.get(answer, 0), votes, ALPHA / len(shares)) >= p0:
            return False
    return True


def attacked(folder: Path, count: int, scale: float, steps: int, draws: int, votes: int) -> tuple[int, int]:
    """(contradicted, attacked): the first certified images, each attacked within `scale` times its own radius."""
    run, defense = record.read(folder), defense_of(folder)
    rows = [row for row in run.ordered() if row.certificate and row.radius > 0][:count]
    levels = stats.levels(run.header["engine"])

    def search(row, lockstep):
        """The clean image, and the best that the attack finds near it."""
        asked = levels[: len(row.evidence.stages)]
        place = images().ids.index(row.id)
        x, y = images().x[place : place + 1], images().y[place : place + 1] * 0 + row.certificate.prediction
        # A cascade is limited by the level that answers, or by one before it at which another class may win.
        level = asked[0] if row.certificate.detail.get("limit") == "earlier scale" else asked[-1]
        view = lockstep.shared(f"sigma {level}", Direct(defense, level))
        problem = Problem.of(view, threat("l2", scale * row.radius), x, y, [row.id], "agree")
        return x, smoothadv(problem, steps=steps, draws=draws)[:, -1]

    with ThreadPoolExecutor(1) as pool:
        lockstep = Lockstep(pool, 1, ROWS)
        pairs = lockstep.play([partial(search, row, lockstep) for row in rows], images().x.device)
    hits = 0
    for row, (x, candidate) in zip(rows, pairs, strict=True):
        found, refused = threat("l2", scale * row.radius).repair(candidate, x)
        assert not refused.any() and norms.feasible("l2", scale * row.radius, found.numpy(), x.numpy()).all()
        shares = []
        for level in levels[: len(row.evidence.stages)]:
            answers = evaluate(Direct(defense, level, surrogate=False), Decision(), found,
                               Keys(1, (row.id,), "agree/votes"), votes)[0].tolist()  # fmt: skip
            shares.append({c: answers.count(c) for c in set(answers)})
        hits += contradicted(shares, votes, row.certificate.prediction, 0.5)
    return hits, len(rows)


def most(alphas: Sequence[float]) -> int:
    """99 % quantile of the number of certificates that may be contradicted by bad luck."""
    return int(binom.ppf(0.99, len(alphas), max(alphas) + ALPHA))


def inside(runs: Sequence[Path], count: int, **budget) -> None:
    hits, alphas = 0, []
    for folder in runs:
        here, total = attacked(folder, count, INSIDE, **budget)
        hits, alphas = hits + here, alphas + [record.read(folder).header["engine"]["alpha"]] * total
    assert len(alphas) >= count * len(runs) / 2 and hits <= most(alphas)


@pytest.mark.slow
def test_no_example_inside_a_certified_radius_of_any_row():
    inside(RUNS, 1, steps=4, draws=16, votes=60)


@pytest.mark.slow
def test_no_example_inside_a_certified_radius_with_more_images_and_a_stronger_attack():
    cheap = [folder for folder in RUNS if not any(name in folder.parent.name for name in DEAR)]
    inside(cheap, 4, steps=20, draws=32, votes=200)


@pytest.mark.parametrize("name", ["noise_augmented/sigma0.25-*", "multiscale-tuned-denoiser/*"])
def test_the_attack_has_power(name):
    """Far beyond the radius most certificates are contradicted, so that the tests above could fail."""
    (folder,) = (ROOT / "results" / "digits" / "full" / "runs").glob(name)
    hits, total = attacked(folder, 6, 6.0, steps=10, draws=32, votes=200)
    assert total == 6 and hits >= 4


def test_contradictions_by_hand():
    assert contradicted([{0: 5, 1: 95}], 100, 0, 0.5) and not contradicted([{0: 95, 1: 5}], 100, 0, 0.5)
    assert not contradicted([{0: 45, 1: 55}], 100, 0, 0.5)  # within chance
    # A first level that stays silent leaves the second to answer; one at which the answer may win settles it.
    assert contradicted([{0: 30, 1: 35, 2: 35}, {0: 2, 1: 98}], 100, 0, 0.5)
    assert not contradicted([{0: 50, 1: 50}, {0: 2, 1: 98}], 100, 0, 0.5)
    assert contradicted([{0: 40, 1: 30, 2: 130}, {0: 200}], 200, 0, 0.5)  # class 2 wins before the answer may
