"""Cohen's CERTIFY with votes that are looked at before the budget ends: modes curtailed, sequential and hybrid.

Undecided images are drawn on side by side, so that batches stay full although each image stops when it is decided.
Decisions are taken at predefined numbers of draws only (`drbench.stats.stopping`), so they depend on the votes alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from drbench import stats
from drbench.api import Defense, Evidence
from drbench.certifiers.batching import Forward, even, largest_useful, workers
from drbench.certifiers.engine import Request, count_votes
from drbench.certifiers.gaussian import Observation, check_draws, check_images
from drbench.certifiers.noise import PLAIN, Smoothing
from drbench.evidence import Stage
from drbench.stats import stopping

BATCHES_A_ROUND = 2  # per worker, as long as images last; no more, since a kill loses the draws of open images


@dataclass
class _Open:
    """An image that is being drawn on."""

    select: dict[int, int] | None = None
    votes: Counter[int] = field(default_factory=Counter)
    nonfinite: int = 0
    point: int = -1  # number of the last checkpoint that was reached

    def leading(self) -> int:
        """Votes for the class that is tested."""
        return self.votes[stats.top_class(self.select)]


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
    sequence: str = "e-process",
    tolerance: float | None = None,
    done: Sequence[Evidence | None] = (),
    n0: int = 100,
    n: int = 100_000,
    seed: int = 0,
    block: int = 100,
    smoothing: Smoothing = PLAIN,
    labels: Sequence[int] | None = None,
    at_once: int | None = None,
    batch_rows: int = 1000,
    rows: Iterable[int] | None = None,
    backed_off: Callable[[int], None] = lambda rows: None,
) -> Iterator[Observation]:
    """Draw votes for each image until its targets are settled, at most n; images come in the order of their ends.

    The draws of an image are the first ones of those that `gaussian.observe` makes.

    Parameters
    ----------
    mode, radii, alpha, give_up, sequence
        See `stopping.rule`; `radii` are target radii, pixel units, in the norm of the noise.
    tolerance : float, optional
        Stop all images at the first checkpoint at which no column of the table, with the whole budget, is forecast to
        rise by more than this share of its images (`stopping.Table`).
    done : sequence of Evidence or None
        Of those of the M images that are not among `rows` (None: failed); `tolerance` counts them too.
    n : int
        Budget of estimation draws per image.
    at_once : int, optional
        Images that are drawn on side by side at most, unless a tolerance needs all of them.
    defense, x, ids, sigma, n0, seed, block, smoothing, labels, batch_rows, rows, backed_off
        As in `gaussian.observe`.
    """
    defense.require(sigma)
    check_images(defense, x)
    n0 = n0 if labels is None else 0
    check_draws(n0 or 1, n, block, batch_rows)
    targets = [radius / sigma for radius in radii]
    rule = stopping.rule(mode, targets, n, alpha, give_up=give_up, block=block, sequence=sequence, noise=smoothing.kind)
    points, table = rule.points.tolist(), stopping.Table(rule, tolerance, done, len(x))
    most = largest_useful(batch_rows, len(x) * (n0 + n), defense.device)
    at_once = at_once or len(x)
    waiting, open_, ended = iter(range(len(x)) if rows is None else rows), dict[int, _Open](), 0
    while True:
        requests = list(_round(open_, ids, points, n0))
        lacking = BATCHES_A_ROUND * workers(defense.device) * most - sum(request.draws for request in requests)
        more = max(not open_, min(at_once - len(open_), lacking // (n0 + points[0])))
        # A table is stopped as a whole: all its images go on in step.
        for row in islice(waiting, max(0, more) if tolerance is None else len(x)):
            open_[row] = _Open(None if labels is None else {int(labels[row]): 0})
            requests += _round({row: open_[row]}, ids, points, n0)
        if not open_:
            return
        total = sum(request.draws for request in requests)
        # Late rounds hold few draws: their batches are smaller, not padded.
        forward = Forward(defense, sigma, even(total, largest_useful(most, total, defense.device)), backed_off)
        asked = forward.rows
        for votes in count_votes(forward, x, requests, seed=seed, block=block, smoothing=smoothing):
            image = open_[votes.request.row]
            image.nonfinite += votes.nonfinite
            if votes.request.stage == "select":
                image.select = votes.counts
            else:
                image.votes.update(votes.counts)
                image.point += 1
        most = forward.rows if forward.rows < asked else most  # memory ran out
        failed = {row for row, image in open_.items() if image.nonfinite}
        drawn_on = [(image.leading(), image.point) for row, image in open_.items() if row not in failed]
        enough = table.enough(drawn_on, ended + len(failed))
        for row, image in list(open_.items()):
            drawn = points[image.point]
            if row in failed:
                yield Observation(row, None, f"{image.nonfinite} of {n0 + drawn} draws gave non-finite logits")
            elif enough or rule.stops(image.leading(), image.point):
                yield Observation(row, Evidence((Stage(sigma, image.select, n0, dict(image.votes), drawn),)), None)
            else:
                continue
            del open_[row]
            ended += 1


def _round(open_: dict[int, _Open], ids: Sequence[int | str], points: list[int], n0: int) -> Iterator[Request]:
    """What each open image needs to come to its next checkpoint."""
    for row, image in open_.items():
        if image.select is None:
            yield Request(row, ids[row], "select", n0)
        drawn = points[image.point] if image.point >= 0 else 0
        yield Request(row, ids[row], "estimate", points[image.point + 1] - drawn, drawn)
