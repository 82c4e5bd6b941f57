"""What an attack run will cost, measured before it runs: each of its attacks, shortened, on a few images.

The most that it can cost, as if no image broke before the end: attacks then leave it alone on a deterministic defense.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig

from drbench.api import Defense
from drbench.attacks import audit, evaluate
from drbench.attacks.names import ATTACKS
from drbench.attacks.parallel import Threads, side_by_side
from drbench.attacks.presets import BUDGET, Member
from drbench.attacks.problem import Problem
from drbench.attacks.suite import GRADIENT_FREE
from drbench.attacks.views import View
from drbench.cost import Evaluations
from drbench.data import Images
from drbench.jobs import attack_job, audit_job

SHORT = {"steps": 8, "queries": 8, "restarts": 1, "targets": 1}  # of the settings that multiply to the cost
IMAGES = 16  # of each worker: they fill batches as a whole run does


class Spent(NamedTuple):
    """Evaluations of the whole defense, of its networks, and seconds."""

    rows: float
    evaluations: float
    seconds: float

    def times(self, factor: float) -> Spent:
        return Spent(*(factor * each for each in self))


def measure(cell: DictConfig, images: Images, count: int, defense: Defense) -> Spent:
    """Of the whole run on `count` images, by attacks on some of `images`."""
    suite = attack_job.job(cell, defense, images)
    with side_by_side(suite) as threads, Evaluations(defense) as counted:
        pilot = _Pilot(threads, counted, images)
        pilot.answer()  # warm
        answer = pilot.answer()
        attacks, candidates = zip(*map(pilot.attack, suite.usable), strict=True)
    answers = suite.draws * (1 + sum(candidates))  # the clean image is one of those among which is chosen
    answers += 2 * (1 if suite.deterministic else suite.evaluations * suite.decision.draws)
    terms = [each.times(count) for each in (*attacks, answer.times(answers))]
    if suite.main:
        varied = attacks[suite.usable.index(suite.main)]
        terms.append(varied.times(audit.RUNS * min(count, audit_job.size(cell))))
    return Spent(*(math.fsum(column) for column in zip(*terms, strict=True)))


def counted(cell: DictConfig, images: Images, count: int, defense: Defense) -> tuple[float, float]:
    """Evaluations of the whole defense with and without a gradient, by the settings of its attacks: none is made."""
    suite = attack_job.job(cell, defense, images)
    costs = [math.prod(audit.setting(each, key) or 1 for key in BUDGET) for each in suite.usable]
    gradients = sum(c for each, c in zip(suite.usable, costs, strict=True) if each.attack not in GRADIENT_FREE)
    answers = sum(costs) - gradients + suite.draws * (1 + len(costs))
    answers += 2 * (1 if suite.deterministic else suite.evaluations * suite.decision.draws)
    main = costs[suite.usable.index(suite.main)] if suite.main else 0
    audited = audit.RUNS * main * min(count, audit_job.size(cell))
    return count * gradients + audited, count * answers


class _Pilot:
    """Some images, a part for each thread, and what work on them takes."""

    def __init__(self, threads: Threads, counted: Evaluations, images: Images):
        self.suite, self.pool, self.counted, self.images = threads.suite, threads.pool, counted, images
        chosen = np.linspace(0, len(images) - 1, min(len(images), threads.workers * IMAGES), dtype=int)
        self.parts = [part.tolist() for part in np.array_split(chosen, min(threads.workers, len(chosen)))]

    def answer(self) -> Spent:
        """One answer about one image, without a gradient."""

        def judged(part: Sequence[int]) -> int:
            problem = self._problem(part, suite.deployed)
            evaluate.judge(problem.view, problem.x, problem.y, problem.keys, suite.draws, suite.rows)
            return len(part) * suite.draws

        suite = self.suite
        found, spent = self._timed(judged)
        return Spent(sum(found), *spent).times(1 / sum(found))

    def attack(self, member: Member) -> tuple[Spent, int]:
        """The whole attack on one image, and how many candidates it puts up."""
        short, factor = shortened(member)

        def attacked(part: Sequence[int]) -> tuple[np.ndarray, int]:
            problem = self._problem(part, self.suite.view(short.view))
            found = ATTACKS[short.attack](problem, **short.settings)
            return problem.cost.gradients + problem.cost.forwards, found.shape[1]

        found, spent = self._timed(attacked)
        rows = np.concatenate([each for each, _ in found])
        most = rows.max() / rows.sum() if rows.any() else 1 / len(rows)  # share of the image that took longest
        return Spent(rows.sum(), *spent).times(factor * most), found[0][1]

    def _timed(self, action: Callable) -> tuple[list, tuple[float, float]]:
        """What `action` gives for each part; network evaluations and seconds."""
        before, start = sum(self.counted.counts.values()), time.perf_counter()
        found = list(self.pool.map(action, self.parts))
        return found, (sum(self.counted.counts.values()) - before, time.perf_counter() - start)

    def _problem(self, part: Sequence[int], view: View) -> Problem:
        suite, ids = self.suite, [self.images.ids[i] for i in part]
        x, y = (each[part].to(suite.defense.device) for each in (self.images.x, self.images.y))
        problem = Problem.of(view, suite.threat, x, y, ids, "plan", suite.seed, rows=suite.rows)
        problem.cost.stop = suite.stop
        return problem


def shortened(member: Member) -> tuple[Member, float]:
    """The attack with few steps, and how many times as much the whole one costs."""
    full = {key: value for key in SHORT if (value := audit.setting(member, key))}
    if member.attack == "torchattacks":  # takes both, and heeds one
        full.pop("steps" if audit.setting(member, "name") == "Square" else "queries")
    short = {key: min(value, SHORT[key]) for key, value in full.items()}
    return audit.changed(member, **short), math.prod(full.values()) / math.prod(short.values())
