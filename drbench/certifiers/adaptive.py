"""Cohen's CERTIFY with votes that are looked at before the budget ends: modes curtailed, sequential and hybrid.

Undecided images are drawn on side by side, so that batches stay full although each image stops when it is decided.
Decisions are taken at predefined numbers of draws only (`drbench.stopping`), so they depend on the votes alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from drbench import stats, stopping
from drbench.api import Defense, Evidence
from drbench.certifiers.batching import Forward, largest_useful, workers
from drbench.certifiers.engine import Request, count_votes
from drbench.certifiers.gaussian import Observation, check_draws, check_images
from drbench.evidence import Stage

BATCHES_A_ROUND = 4  # per worker, as long as undecided images last: a kill loses their draws, a few dozen batches


@dataclass
class _Open:
    """An image that is being drawn on."""

    select: dict[int, int] | None = None
    votes: Counter[int] = field(default_factory=Counter)
    nonfinite: int = 0
    point: int = -1  # number of the last checkpoint that was reached


def observe(
    defense: Defense,
    x: Tensor,
    ids: Sequence[int | str],
    *,
    sigma: float,
    mode: str,
    radii: Sequence[float],
    alpha: float,
    give_up: float = 0.01,
    n0: int = 100,
    n: int = 100_000,
    seed: int = 0,
    block: int = 100,
    batch_rows: int = 1000,
    rows: Iterable[int] | None = None,
    backed_off: Callable[[int], None] = lambda rows: None,
) -> Iterator[Observation]:
    """Draw votes for each image until its targets are settled, at most n; images come in the order of their ends.

    The draws of an image are the first ones of those that `gaussian.observe` makes.

    Parameters
    ----------
    mode, radii, alpha, give_up
        See `stopping.rule`; `radii` are target radii, pixel units.
    n : int
        Budget of estimation draws per image.
    defense, x, ids, sigma, n0, seed, block, batch_rows, rows, backed_off
        As in `gaussian.observe`.
    """
    defense.require(sigma)
    check_images(defense, x)
    check_draws(n0, n, block, batch_rows)
    rule = stopping.rule(mode, [radius / sigma for radius in radii], n, alpha, give_up=give_up, block=block)
    points = rule.points.tolist()
    forward = Forward(defense, sigma, largest_useful(batch_rows, len(x) * (n0 + n), defense.device), backed_off)
    width = max(1, BATCHES_A_ROUND * workers(defense.device) * forward.rows // block)
    waiting, open_ = iter(range(len(x)) if rows is None else rows), dict[int, _Open]()
    while True:
        open_ |= {row: _Open() for row in islice(waiting, width - len(open_))}
        if not open_:
            return
        for votes in count_votes(forward, x, list(_round(open_, ids, points, n0)), seed=seed, block=block):
            image = open_[votes.request.row]
            image.nonfinite += votes.nonfinite
            if votes.request.stage == "select":
                image.select = votes.counts
            else:
                image.votes.update(votes.counts)
                image.point += 1
        for row, image in list(open_.items()):
            drawn = points[image.point]
            if image.nonfinite:
                error = f"{image.nonfinite} of {n0 + drawn} draws gave non-finite logits"
                yield Observation(row, None, error)
            elif rule.stops(image.votes[stats.top_class(image.select)], image.point):
                yield Observation(row, Evidence((Stage(sigma, image.select, n0, dict(image.votes), drawn),)), None)
            else:
                continue
            del open_[row]


def _round(open_: dict[int, _Open], ids: Sequence[int | str], points: list[int], n0: int) -> Iterator[Request]:
    """What each open image needs to come to its next checkpoint."""
    for row, image in open_.items():
        if image.select is None:
            yield Request(row, ids[row], "select", n0)
        drawn = points[image.point] if image.point >= 0 else 0
        yield Request(row, ids[row], "estimate", points[image.point + 1] - drawn, drawn)
