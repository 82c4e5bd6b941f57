"""What run folders say: a tidy frame, one row per run and radius, and its envelope over sigma. No torch.

Certificates are recomputed from the stored evidence, never taken from the rows. All recorded images are in every
denominator: an abstention, a wrong class and an error are not certified, at radius 0 neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pandas import DataFrame

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN
from drbench.record import Run

DATA, METHOD = ["dataset", "subset"], ["defense", "variant"]
COLUMNS = [
    *DATA, *METHOD, "certifier", "mode", "protocol", "sigma", "sigmas", "n0", "n", "draws", "alpha", "ceiling",
    "images", "radius", "certified_accuracy", "ci_low", "ci_high", "certified_accuracy_multiclass", "acr",
    "acr_low", "acr_high", "abstention", "errors", "nfe", "nfe_detail", "seconds_per_image", "weights", "partial",
    "marks", "run",
]  # fmt: skip
FLOORS = ("constant", "undefended")  # listed first: what every other row has to beat


def certified(run: Run) -> DataFrame:
    """Certificates recomputed from the evidence: one row per recorded image, in the order of the subset.

    Columns: correct, radius (l2, pixel units), abstained, error (no evidence: neither correct nor an abstention),
    radius_multiclass (of the right class; NaN if another class was selected or nothing can be certified, and for
    certifiers that have none).
    """
    engine, rows = run.header["engine"], []
    for row in run.ordered():
        found = stats.conclusion(engine, row)
        prediction, radius = (found.prediction, found.radius) if found else (None, 0.0)
        second = found.detail.get("radius_multiclass", 0.0) if found and found.detail.get("class") == row.label else 0.0
        rows.append((prediction == row.label, radius, prediction == ABSTAIN, found is None, second or math.nan))
    return DataFrame(rows, columns=["correct", "radius", "abstained", "error", "radius_multiclass"])


def frame(runs: Sequence[Run], radii: Sequence[float] | None = None) -> DataFrame:
    """One row per run and radius, in a stable order: data, floors first, then by name, sigma and draws.

    Parameters
    ----------
    runs : sequence of Run
        Runs without any recorded image are left out.
    radii : sequence of float, optional
        l2 radii in pixel units; compared as float64, never rounded. By default 0, 0.25, ... up to the largest ceiling
        radius of the runs, at least to 1.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`. Accuracies and abstention are shares in [0, 1] of the recorded images; `ci_*` is the
        pointwise 95 % Clopper-Pearson interval, `acr_*` the 95 % bootstrap interval of the average certified radius.
        `certified_accuracy_multiclass` uses the multi-class radius instead of the binary one, at the same alpha; NaN
        for cascades, logs, and modes that stop early. `sigmas` lists the noise levels in the order in which they are
        tried; `sigma` is the first: the only one, or the largest scale of a cascade. `draws` is the mean number of
        estimation draws per image, over all scales, below `n` in modes that stop early (NaN for logs, as are costs);
        `ceiling` the largest certifiable radius; `weights` the start of the sha256 of each checkpoint.
    """
    runs = sorted((run for run in runs if any(run.ordered())), key=position)
    if not runs:
        raise DrbenchError("expected a run with a recorded image, got none; start or go on with `drbench run`")
    places = [place(run) for run in runs]
    if len(set(places)) < len(places):
        raise DrbenchError(f"expected each run once, {max(places, key=places.count)} came twice; leave one out")
    if radii is None:
        reach = max(1.0, *(stats.reach(run.header["engine"]) for run in runs))
        radii = np.arange(math.floor(4 * reach) + 1) / 4  # quarters are exact in binary
    grid = np.unique(np.asarray(radii, float))
    if not len(grid) or not np.all((grid >= 0) & np.isfinite(grid)):
        raise DrbenchError(f"expected finite radii >= 0 in pixel units, got {grid.tolist()}")
    table = pd.concat([_frame_of(run, grid) for run in runs], ignore_index=True)
    alike = [*DATA, *METHOD, "certifier", "mode", "protocol", "sigmas", "n0", "n", "alpha"]
    same = table.groupby(alike)["run"].transform("nunique") > 1
    table["marks"] = table["marks"].where(~same, table["marks"].map(lambda marks: f"{marks}, repeat".strip(", ")))
    return table


def position(run: Run) -> tuple:
    """Sort key of runs: data, floors first, then by name, certifier, sigma and draws."""
    data, engine, defense = run.header["data"], run.header["engine"], run.header["defense"]
    rank = FLOORS.index(defense["name"]) if defense["name"] in FLOORS else len(FLOORS)
    name = data["name"], data["subset"], rank, defense["name"], defense["variant"]
    return *name, engine["certifier"] == "cascade", engine["sigma"], scales(engine), engine["n"], place(run)


def scales(engine: Mapping) -> str:
    """Noise levels in the order in which they are tried: "1, 0.5, 0.25"."""
    return ", ".join(f"{sigma:g}" for sigma in stats.levels(engine))


def protocol(engine: Mapping) -> str:
    """Protocol of a cascade, with p0 where it is not 1/2; empty for other certifiers."""
    p0 = engine.get("options", {}).get("p0", 0.5)
    return engine.get("protocol", "") + (f", p0 = {p0:g}" if p0 != 0.5 else "")


def place(run: Run) -> str:
    """Folder below `runs/` or `attacks/`, else its own name: an absolute path names a machine or a user."""
    parts = run.folder.resolve().parts
    return "/".join(parts[-2:]) if parts[-3:-2] in (("runs",), ("attacks",)) else parts[-1]


def _frame_of(run: Run, radii: np.ndarray) -> DataFrame:
    data, engine, defense = run.header["data"], run.header["engine"], run.header["defense"]
    found, rows = certified(run), list(run.ordered())
    damaged = any("torn last line" not in problem for problem in run.problems)
    marks = [*run.marks, *(flag.partition(":")[0] for flag in run.header["flags"]), *["damaged"] * damaged]
    marks += [engine["mode"]] if engine.get("mode", "fixed") != "fixed" else []
    if not {r for r in radii if r <= stats.reach(engine)} <= set(engine.get("radii", radii)):
        marks.append("few targets")
    curve = stats.certified_accuracy(found.correct, found.radius, radii)
    multiclass = stats.certified_accuracy(found.radius_multiclass.notna(), found.radius_multiclass, radii).accuracy
    mode, imported = engine.get("mode", "fixed"), engine["certifier"] == "imported"
    multiclass = multiclass if engine["certifier"] == "gaussian" and mode == "fixed" else math.nan
    drawn = [sum(stage.n for stage in row.evidence.stages) for row in rows if row.evidence]
    acr_low, acr_high = stats.bootstrap_mean(found.radius.where(found.correct, 0.0))
    facts = {key: engine[key] for key in ("certifier", "sigma", "n0", "n", "alpha")} | {
        "mode": mode,
        "dataset": data["name"], "subset": data["subset"], "defense": defense["name"], "variant": defense["variant"],
        "protocol": protocol(engine), "sigmas": scales(engine), "ceiling": stats.reach(engine),
        "weights": " ".join(sorted(sha256[:8] for sha256 in defense.get("checkpoints", {}).values())),
        "radius": curve.radii, "certified_accuracy": curve.accuracy, "ci_low": curve.low, "ci_high": curve.high,
        "certified_accuracy_multiclass": multiclass,
        "acr": stats.average_certified_radius(found.correct, found.radius), "acr_low": acr_low, "acr_high": acr_high,
        "draws": sum(drawn) / len(drawn) if drawn else math.nan,
        "abstention": float(found.abstained.mean()), "errors": int(found.error.sum()),
        "images": len(rows), "nfe": math.nan if imported else float(sum(defense["nfe"].values())),
        "nfe_detail": " + ".join(f"{name} {calls:g}" for name, calls in defense["nfe"].items()),
        "seconds_per_image": math.nan if imported else sum(row.seconds for row in rows) / len(rows),
        "partial": not run.complete, "marks": ", ".join(marks), "run": place(run),
    }  # fmt: skip
    return DataFrame(facts)[COLUMNS]


def envelope(table: DataFrame) -> DataFrame:
    """Upper envelope over sigma: for each method and radius, the numbers of the run that certifies most.

    An oracle that looks at the test set, not one classifier: the interval is that of the winner, pointwise, and ignores
    the selection. Ties go to the smaller sigma; where nothing is certified `sigma` is NaN. Not for cascades, which are
    one classifier each.
    """
    table = table.assign(place=table.groupby([*DATA, *METHOD], sort=False).ngroup())  # keeps the order of methods
    best = table.sort_values(["certified_accuracy", "sigma"], ascending=[False, True], kind="stable")
    best = best.drop_duplicates(["place", "radius"]).sort_values(["place", "radius"])
    best["sigma"] = best["sigma"].where(best["certified_accuracy"] > 0)
    kept = ["radius", "certified_accuracy", "ci_low", "ci_high", "sigma", "n", "images", "partial", "marks", "run"]
    return best[[*DATA, *METHOD, *kept]].reset_index(drop=True)


def method_name(row) -> str:
    """`name` or `name (variant)` of a row of `frame`."""
    return f"{row.defense} ({row.variant})" if row.variant else row.defense


def where(row) -> str:
    """Noise of a row of `frame`: "at σ = 0.5", "over σ = 1, 0.5, 0.25"; with any protocol but the sound one."""
    if row.certifier != "cascade":
        return f"at σ = {row.sigma:g}"
    return f"over σ = {row.sigmas}" + (f", protocol {row.protocol}" if row.protocol != "sound" else "")


def split(table: DataFrame) -> tuple[DataFrame, DataFrame]:
    """The rows of one noise level, and those of cascades."""
    cascade = table["certifier"] == "cascade"
    return table[~cascade], table[cascade]
