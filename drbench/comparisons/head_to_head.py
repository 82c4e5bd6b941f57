"""All methods on the same images at the same draws, under the same threats, with what they cost. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
from pandas import DataFrame, Series

from drbench import stats
from drbench.comparisons import paired_stats, per_image, sides, thinning
from drbench.comparisons.cost_factors import factors
from drbench.comparisons.lineage import Lineage
from drbench.comparisons.sides import title, worth
from drbench.errors import DrbenchError
from drbench.records.record import Run
from drbench.tables import summary

COLUMNS = ["dataset", "section", "condition", "images", "draws", "row", "seeds", "quantity", "value", "low", "high",
           "marks", "note"]  # fmt: skip
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
UNKNOWN = {"value": np.nan, "low": np.nan, "high": np.nan}
FAIR = 1000  # draws that a further table asks for: with the fewest draws of all, radii end early


def frame(runs: Sequence[Run]) -> DataFrame:
    """One line per number; the trainings of a row (variants that end in "seed N") are averaged.

    Columns
    -------
    section : "certified" (condition: noise level), "robust" (threat), "budget" or "factor"
    images, draws : on which, and of how many draws, all rows of a table are
    value, low, high : shares in [0, 1] with the 95 % interval over images (and trainings); radii in pixel units;
        seconds; factors with the smallest and largest of the runs; NaN where trainings share no attacked image
    """
    runs = [run for run in runs if any(run.ordered()) and run.header["engine"].get("certifier") != "imported"]
    if not runs:
        raise DrbenchError("expected runs with a recorded image, got none; start or go on with `drbench run`")
    lines: list[dict] = []
    for dataset, own in _grouped(runs, lambda run: run.header["data"]["name"]):
        certified = [run for run in own if run.task == "certify"]
        attacked = [run for run in own if run.task == "attack"]
        parts = (*_budgets(own), *_certified(certified), *_robust(attacked), *factors(_by_row(certified)))
        lines += [{"dataset": dataset} | line for line in parts]
    table = DataFrame(lines, columns=COLUMNS)
    digits = {name: table[name].map(lambda number: float(f"{number:.6g}")) for name in ("value", "low", "high")}
    return table.assign(**digits)  # six digits: the same on every machine


def row_name(run: Run) -> str:
    """Name of the row, without the seed of its training."""
    return re.sub(r" \(seed \d+\)$|, seed \d+(?=\)$)", "", title(run))


def _grouped(runs: Sequence[Run], key) -> list[tuple]:
    """(value, runs) by value; the runs of a group floors first, then by name."""
    return [(value, list(group)) for value, group in groupby(sorted(sorted(runs, key=_position), key=key), key)]


def _position(run: Run) -> tuple:
    name = run.header["defense"]["name"]
    return [*summary.FLOORS, name].index(name), title(run), run.header["engine"]["sigma"], str(run.folder)


def _rows(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Rows in the order of all tables, with a run for each training; of several the best."""
    best = {title(run): run for run in sorted(runs, key=worth)}
    return _by_row(list(best.values()))


def _by_row(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    runs = sorted(runs, key=_position)
    return [(name, [run for run in runs if row_name(run) == name]) for name in dict.fromkeys(map(row_name, runs))]


def _certified(runs: Sequence[Run]) -> Iterator[dict]:
    """For each noise level, and each set of images of some row, all rows that have these images, at equal draws."""
    for condition, group in _grouped([run for run in runs if thinning.can_thin(run)], _condition):
        for place, images in enumerate(sorted({frozenset(run.rows) for run in group}, key=_size, reverse=True)):
            rows = [run for run in group if images <= run.rows.keys()]
            fewest = min(run.header["engine"]["n"] for run in rows)
            many = [run for run in rows if run.header["engine"]["n"] >= FAIR > fewest and place == 0]
            for part in filter(None, (rows, many)):
                yield from _table(condition, part, images)
    cascades = [run for run in runs if run.header["engine"]["certifier"] == "cascade"]
    # Their votes cannot be thinned: which level an image comes to depends on how many there are.
    for (condition, _), group in _grouped(cascades, lambda run: (_condition(run), run.header["engine"]["n"])):
        images = frozenset.intersection(*(frozenset(run.rows) for run in group))
        if images:
            yield from _table(f"cascade over {condition}", group, images)


def _condition(run: Run) -> str:
    engine = run.header["engine"]
    noise = "" if stats.noise(engine) == "gaussian" else f", {stats.noise(engine)} noise"
    return f"σ = {summary.scales(engine)}{noise}, alpha = {engine['alpha']:g}"


def _size(images: frozenset) -> tuple:
    return len(images), sorted(map(str, images))


def _table(condition: str, runs: Sequence[Run], images: frozenset) -> Iterator[dict]:
    draws = min(run.header["engine"]["n"] for run in runs)
    for name, trained in _rows(runs):
        part = [_part(run, images) for run in trained]
        facts = {"section": "certified", "condition": condition, "images": len(images), "draws": draws, "row": name,
                 "seeds": len(trained), "marks": _marks(trained), "note": _noise(trained)}  # fmt: skip
        reach = min(thinning.reach(run, draws) for run in trained)
        for radius in RADII:
            if radius <= reach:
                hits = [per_image.values(run, "certified", radii=[radius], draws=draws) for run in part]
                yield facts | {"quantity": f"r = {radius:g}"} | _estimate(hits)
        yield (
            facts
            | {"quantity": "ACR"}
            | _estimate([per_image.values(run, "radius", draws=draws) for run in part], share=False)
        )


def _part(run: Run, images: frozenset) -> Run:
    """The run on these images."""
    if images == run.rows.keys():
        return run
    return replace(run, rows={image_id: run.rows[image_id] for image_id in run.wanted if image_id in images})


def _estimate(numbers: list[Series], share: bool = True) -> dict:
    """Mean over images and trainings; the interval of one training is that of other tables."""
    values = np.array([each.to_numpy() for each in numbers])
    if (values == values[0]).all():
        low, high = (stats.share_interval if share else stats.bootstrap_mean)(values[0])
    else:
        low, high = paired_stats.interval(values)
    return {"value": float(values.mean()), "low": low, "high": high}


def _robust(runs: Sequence[Run]) -> Iterator[dict]:
    """For each threat all rows, each on the images of all its trainings: an attack is too dear to be run on all."""
    names = _deployed(runs)
    for (norm, _), group in _grouped(runs, lambda run: (run.header["engine"]["norm"], run.header["engine"]["eps"])):
        condition = f"{norm} {group[0].header['engine']['eps_text']}"
        group.sort(key=sides.several)  # cascades last
        for name in dict.fromkeys(names[run.folder] for run in group):
            ((_, trained),) = _rows([run for run in group if names[run.folder] == name])
            images = frozenset.intersection(*(frozenset(run.rows) for run in trained))
            found = [_part(run, images) for run in trained]
            facts = {"section": "robust", "condition": condition, "row": name, "images": len(images),
                     "seeds": len(trained), "marks": _marks(trained),
                     "note": " ".join(sorted({run.header["engine"]["preset"] for run in trained}))}  # fmt: skip
            for quantity in ("clean", "robust"):
                values = [per_image.values(run, quantity) for run in found] if images else []
                yield facts | {"quantity": quantity} | (_estimate(values) if values else UNKNOWN)


def _deployed(runs: Sequence[Run]) -> dict:
    """Folder -> name of its row under attack; where a row was attacked at several noise levels each has its own."""
    levels = {(row_name(run), run.header["engine"]["sigma"]) for run in runs if not sides.several(run)}
    many = Counter(name for name, _ in levels)

    def how(run: Run) -> str:
        if sides.several(run):
            return ", cascade"
        return f", σ = {run.header['engine']['sigma']:g}" if many[row_name(run)] > 1 else ""

    return {run.folder: row_name(run) + how(run) for run in runs}


def _budgets(runs: Sequence[Run]) -> Iterator[dict]:
    """For each row: parameters, calls and time of a draw, and the training of all its weights."""
    known = Lineage()
    for name, group in _by_row(runs):
        certified = [run for run in group if run.task == "certify"]
        defense = group[0].header["defense"]
        trained = [known.seconds(run.header["defense"].get("checkpoints", {})) for run in group]
        times = [sum(found.values()) for found in trained if None not in found.values()]
        chain = " + ".join(part.rpartition("/")[2] for part in trained[0])
        facts = {"section": "budget", "row": name, "seeds": len({title(run) for run in group}), "note": chain}
        yield facts | {"quantity": "parameters", "value": defense.get("parameters", np.nan)}
        yield facts | {"quantity": "training seconds", "value": np.mean(times) if times else np.nan}
        for measure in ("calls", "seconds") if certified else ("calls",):
            costs = [per_image.cost(run, measure) for run in certified or group]
            yield facts | {"quantity": measure, "value": np.mean(costs), "low": min(costs), "high": max(costs)}


def _noise(runs: Sequence[Run]) -> str:
    """Key of the stream that the noise of these runs comes from."""
    return ", ".join(sorted({f"seed {r.header['engine']['seed']}, block {r.header['engine']['block']}" for r in runs}))


def _marks(runs: Sequence[Run]) -> str:
    return ", ".join(sides.all_marks(runs))
