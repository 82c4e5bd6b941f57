"""What an attack run will cost, measured before it runs: each of its attacks, shortened, on a few images.

The most that it can cost, as if no image broke before the end: attacks then leave it alone on a deterministic defense.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig

from drbench import attack_job, audit_job, cost
from drbench.api import Defense
from drbench.attacks import evaluate
from drbench.attacks.audit import changed, setting
from drbench.attacks.names import ATTACKS
from drbench.attacks.oracle import Keys
from drbench.attacks.outcomes import GRADIENT_FREE
from drbench.attacks.parallel import one_core_each
from drbench.attacks.presets import Member
from drbench.attacks.problem import Problem
from drbench.attacks.suite import Suite
from drbench.data import Images

SHORT = {"steps": 8, "queries": 8, "restarts": 1, "targets": 1}  # of the settings that multiply to the cost
IMAGES = 16  # of each worker: they fill batches as a whole run does
AUDIT = 12  # times that an audit runs the first attack with gradients


class Spent(NamedTuple):
    """Evaluations of the whole defense, of its networks, and seconds."""

    rows: float
    evaluations: float
    seconds: float

    def times(self, factor: float) -> Spent:
        return Spent(*(factor * each for each in self))


def measure(cell: DictConfig, images: Images, count: int, defense: Defense) -> Spent:
    """Of the whole run on `count` images, by attacks on some of `images`."""
    rows = attack_job.ROWS if cell.run.batch_rows == "auto" else cell.run.batch_rows
    suite = attack_job.job(cell, defense, rows, images)
    members = [each for each in suite.members if each.view != "clean" or suite.defense.accepts(0.0)]
    with one_core_each(suite.defense.device) as (pool, workers, stop), cost.Evaluations(defense) as counted:
        own = replace(suite, stop=stop)
        chosen = np.linspace(0, len(images) - 1, min(len(images), workers * IMAGES), dtype=int)
        parts = [part.tolist() for part in np.array_split(chosen, min(workers, len(chosen)))]

        def timed(action: Callable) -> tuple[np.ndarray, Spent]:
            """What `action` says of the rows of each image, and all that it took."""
            before, start = sum(counted.counts.values()), time.perf_counter()
            found = np.concatenate(list(pool.map(action, parts)))
            return found, Spent(found.sum(), sum(counted.counts.values()) - before, time.perf_counter() - start)

        draws = 1 if own.deterministic else own.select
        timed(lambda part: _judged(own, images, part, draws))  # warm
        found, judged = timed(lambda part: _judged(own, images, part, draws))
        one = judged.times(1 / max(1, found.sum()))
        answers = 2 * (1 if own.deterministic else own.evaluations * own.decision.draws)
        attacks, candidates = {}, 1
        for each in members:
            short, factor = shortened(each)
            made: list[int] = []
            found, spent = timed(lambda part, short=short, made=made: _attacked(own, images, part, short, made))
            all_the_way = found.max() / max(1, found.sum())
            attacks[each.label] = spent.times(factor * (all_the_way if found.any() else 1 / len(found)))
            candidates += made[0]
    main = next((attacks[each.label] for each in members if each.attack not in GRADIENT_FREE), Spent(0, 0, 0))
    parts_of = [each.times(count) for each in attacks.values()]
    parts_of += [
        one.times(count * (draws * candidates + answers)),
        main.times(AUDIT * min(count, audit_job.size(cell))),
    ]
    return Spent(*(math.fsum(column) for column in zip(*parts_of, strict=True)))


def shortened(member: Member) -> tuple[Member, float]:
    """The attack with few steps, and how many times as much the whole one costs."""
    full = {key: setting(member, key) for key in SHORT if setting(member, key)}
    if member.attack == "torchattacks":  # takes both, and heeds one
        full.pop("steps" if setting(member, "name") == "Square" else "queries")
    short = {key: min(value, SHORT[key]) for key, value in full.items()}
    return changed(member, **short), math.prod(full.values()) / math.prod(short.values())


def _problem(suite: Suite, images: Images, part: Sequence[int], view, stage: str) -> Problem:
    x, y = (each[part].to(suite.defense.device) for each in (images.x, images.y))
    return Problem.of(view, suite.threat, x, y, [images.ids[i] for i in part], stage, suite.seed, rows=suite.rows)


def _attacked(suite: Suite, images: Images, part: Sequence[int], member: Member, made: list[int]) -> np.ndarray:
    problem = _problem(suite, images, part, suite.view(member.view), "plan")
    problem.cost.stop = suite.stop
    made.append(ATTACKS[member.attack](problem, **member.settings).shape[1])
    return problem.cost.gradients + problem.cost.forwards


def _judged(suite: Suite, images: Images, part: Sequence[int], draws: int) -> np.ndarray:
    problem = _problem(suite, images, part, suite.deployed, "plan")
    keys = Keys(suite.seed, problem.keys.ids, "plan")
    evaluate.judge(suite.deployed, problem.x, problem.y, keys, draws, suite.rows)
    return np.full(len(part), draws)
