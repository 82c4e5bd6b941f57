"""What run folders say: a tidy frame, one row per run and radius, and its envelope over sigma. No torch.

Certificates are recomputed from the stored evidence, never taken from the rows. All recorded images are in every
denominator: an abstention, a wrong class and an error are not certified, at radius 0 neither.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import wraps

import numpy as np
import pandas as pd
from pandas import DataFrame

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Certificate
from drbench.records.record import Run
from drbench.stats import noises
from drbench.tables import quantities
from drbench.tables.quantities import QUANTILES

DATA, METHOD = ["dataset", "subset"], ["defense", "variant"]
SHARES = [f"p_{100 * q:.0f}" for q in QUANTILES]
COLUMNS = [
    *DATA, *METHOD, "certifier", "mode", "protocol", "preset", "noise", "norm", "sigma", "sigmas", "n0", "n", "draws",
    "alpha", "ceiling", "images", "radius", "certified_accuracy", "ci_low", "ci_high", "wilson_low", "wilson_high",
    "certified_accuracy_high_probability", "certified_accuracy_multiclass", "acr", "acr_low", "acr_high",
    "acr_constant", "acr_easiest", "radius_median", *SHARES, "abstention", "errors", "nfe", "nfe_detail",
    "seconds_per_image", "weights", "partial", "marks", "run",
]  # fmt: skip
DIMENSIONS = {"digits": 64, "cifar10": 3072, "cifar10-jpeg": 3072}  # of runs that do not say their images' shape
# how the programs of some protocols print radii -> format; a table then counts an image where its printed radius is
ROUNDINGS = {"significant3": ".3", "decimal4": ".4f"}
FLOORS = ("constant", "undefended")  # listed first: what every other row has to beat


def _once(compute: Callable) -> Callable:
    """Computed once for each run, protocol and further argument: tables, figures and claims ask again and again."""

    @wraps(compute)
    def found(run: Run, *rest):
        key = compute.__name__, *rest, repr(run.header["engine"])
        if key not in run.memory:
            run.memory[key] = compute(run, *rest)
        return run.memory[key]

    return found


def certified(run: Run, norm: str | None = None) -> DataFrame:
    """Certificates recomputed from the evidence: one row per recorded image, in the order of the subset.

    Columns: correct, radius (in `norm`, by default that of the noise; pixel units; as the protocol prints it),
    abstained, error (no evidence: neither correct nor an abstention), radius_multiclass (of the right class; NaN if
    another class was selected or nothing can be certified, and for certifiers that have none). Computed once for each
    run, protocol and norm.
    """
    return _certified(run, norm or stats.norm(run.header["engine"])).copy()


@_once
def conclusions(run: Run) -> list[Certificate | None]:
    """`stats.conclusion` of each recorded image, in the order of the subset; found once for a run."""
    return [stats.conclusion(run.header["engine"], row) for row in run.ordered()]


@_once
def _certified(run: Run, norm: str) -> DataFrame:
    engine, rows = run.header["engine"], []
    plain = norm == stats.norm(engine) and "rounding" not in engine  # radii are shown as they are
    for row, found in zip(run.ordered(), conclusions(run), strict=True):
        prediction, radius = (found.prediction, found.radius) if found else (None, 0.0)
        second = found.detail.get("radius_multiclass", 0.0) if found and found.detail.get("class") == row.label else 0.0
        if not plain:
            radius, second = (_printed(engine, in_norm(run, value, norm)) for value in (radius, second))
        rows.append((prediction == row.label, radius, prediction == ABSTAIN, found is None, second or math.nan))
    return DataFrame(rows, columns=["correct", "radius", "abstained", "error", "radius_multiclass"])


def _printed(engine: Mapping, radius: float) -> float:
    form = ROUNDINGS.get(engine.get("rounding", "none"))
    return float(format(radius, form)) if form else radius


def in_norm(run: Run, radius: float, norm: str | None) -> float:
    """A radius of a run in another norm; None: as it is."""
    own = stats.norm(run.header["engine"])
    if norm in (None, own):
        return radius
    data, engine = run.header["data"], run.header["engine"]
    dimension = math.prod(data.get("shape", [DIMENSIONS.get(data["name"], 0)]))
    if not dimension:
        raise DrbenchError(f"{run.folder} does not say the shape of its images: radii in {norm} need it")
    return noises.in_norm(radius, norm, dimension, engine["sigma"], stats.noise(engine))


def reach(run: Run, norm: str | None = None) -> float:
    """The largest radius that the run can certify."""
    return in_norm(run, stats.reach(run.header["engine"]), norm)


def common_norm(runs: Sequence[Run], norm: str | None = None) -> str:
    """`norm`, or that in which all these runs certify."""
    own = sorted({stats.norm(run.header["engine"]) for run in runs})
    if norm is None and len(own) > 1:
        raise DrbenchError(f"these runs certify in different norms, {' and '.join(own)}: choose one with --norm")
    return norm or own[0]


def label_shares(run: Run) -> list[float]:
    """For each image with evidence of one noise level, the share of the estimation votes that went to its label."""
    seen = [(row.label, row.evidence.stages) for row in run.ordered() if row.evidence]
    return [stages[0].votes.get(label, 0) / stages[0].n for label, stages in seen if len(stages) == 1]


def frame(runs: Sequence[Run], radii: Sequence[float] | None = None, norm: str | None = None) -> DataFrame:
    """One row per run and radius, in a stable order: data, floors first, then by name, sigma and draws.

    Parameters
    ----------
    runs : sequence of Run
        Runs without any recorded image are left out.
    radii : sequence of float, optional
        In pixel units; compared as float64, never rounded. By default 0, 0.25, ... up to the largest ceiling radius of
        the runs, at least to 1; in l-infinity a tenth of the largest ceiling apart, in multiples of 1/255.
    norm : {"l1", "l2", "linf"}, optional
        Of the radii; by default that in which the runs certify, which must be the same for all.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`. Accuracies and abstention are shares in [0, 1] of the recorded images; `ci_*` is the
        pointwise 95 % Clopper-Pearson interval, `acr_*` the 95 % bootstrap interval of the average certified radius.
        `certified_accuracy_multiclass` uses the multi-class radius instead of the binary one, at the same alpha; NaN
        for cascades, logs, and modes that stop early. `sigmas` lists the noise levels in the order in which they are
        tried; `sigma` is the first: the only one, or the largest scale of a cascade. `wilson_*` is Wilson's interval
        beside the exact one. `certified_accuracy_high_probability` takes off the false certificates that there may be,
        with probability 0.999 over the draws, at all radii at once (NaN where the protocol is not sound or rounds
        radii, for logs, and for Lipschitz radii).
        `acr_constant`, `acr_easiest`, `radius_median` say what the ACR is worth (`tables.quantities`), `p_*` are
        quantiles over the images of the label's share of the votes (NaN without votes, and for cascades). `draws` is
        the mean number of estimation draws per image, over all scales, below `n` in modes that stop early (NaN for
        logs, as are costs); `ceiling` the largest certifiable radius; `weights` the start of the sha256 of each
        checkpoint.
    """
    runs = sorted((run for run in runs if any(run.ordered())), key=position)
    if not runs:
        raise DrbenchError("expected a run with a recorded image, got none; start or go on with `drbench run`")
    places = [place(run) for run in runs]
    if len(set(places)) < len(places):
        raise DrbenchError(f"expected each run once, {max(places, key=places.count)} came twice; leave one out")
    norm = common_norm(runs, norm)
    if radii is None:
        radii = _grid(max(reach(run, norm) for run in runs), norm)
    grid = np.unique(np.asarray(radii, float))
    if not len(grid) or not np.all((grid >= 0) & np.isfinite(grid)):
        raise DrbenchError(f"expected finite radii >= 0 in pixel units, got {grid.tolist()}")
    alike = Counter(map(_alike, runs))
    return pd.concat([_frame_of(run, grid, norm, alike[_alike(run)] > 1) for run in runs], ignore_index=True)


def _alike(run: Run) -> tuple:
    """What is the same in runs that repeat each other: all but seed, weights, arguments and targets."""
    data, engine, defense = run.header["data"], run.header["engine"], run.header["defense"]
    drawn = engine["certifier"], engine.get("mode", "fixed"), engine["n0"], engine["n"], engine["alpha"]
    named = data["name"], data["subset"], defense["name"], defense["variant"]
    return *named, *drawn, protocol(engine), noise(engine), scales(engine)


def groups(table: DataFrame, columns: Sequence[str]) -> list[tuple[tuple, DataFrame]]:
    """Groups by `columns`, which begin with the data set; of its subsets those with most images first."""
    return sorted(table.groupby(list(columns)), key=lambda group: (group[0][0], -group[1]["images"].max()))


def _grid(largest: float, norm: str) -> np.ndarray:
    if norm != "linf":
        return np.arange(math.floor(4 * max(1.0, largest)) + 1) / 4  # quarters are exact in binary
    step = max(1, math.ceil(25.5 * largest))
    return np.arange(0, math.floor(255 * largest) + 1, step) / 255


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


def preset(header: Mapping) -> str:
    """Protocol of a paper that the config names, with what differs from it."""
    found = header.get("protocol", {})
    return found.get("name", "") + (f", except {'; '.join(found['differs'])}" if found.get("differs") else "")


def noise(engine: Mapping) -> str:
    """Distribution of the noise, and its sampler unless it is the usual one: "gaussian", "gaussian, sound"."""
    return ", ".join([stats.noise(engine), *([engine["sampling"]["sampler"]] if "sampling" in engine else [])])


def place(run: Run) -> str:
    """Folder below `runs/` or `attacks/`, else its own name: an absolute path names a machine or a user."""
    if "place" not in run.memory:  # looked for again and again, and the file system must be asked
        parts = run.folder.resolve().parts
        run.memory["place"] = "/".join(parts[-2:]) if parts[-3:-2] in (("runs",), ("attacks",)) else parts[-1]
    return run.memory["place"]


def _frame_of(run: Run, radii: np.ndarray, norm: str, repeated: bool) -> DataFrame:
    data, engine, defense = run.header["data"], run.header["engine"], run.header["defense"]
    found, mode, imported = certified(run, norm), engine.get("mode", "fixed"), engine["certifier"] == "imported"
    curve, images = stats.certified_accuracy(found.correct, found.radius, radii), len(found)
    wilson = np.array([stats.interval(round(share * images), images, method="wilson") for share in curve.accuracy])
    multiclass = stats.certified_accuracy(found.radius_multiclass.notna(), found.radius_multiclass, radii).accuracy
    votes = engine["certifier"] == "gaussian" and mode == "fixed" and not engine.get("options")
    false = quantities.false_certificates(images, engine["alpha"]) / images
    proven = engine["certifier"] in ("gaussian", "cascade") and "rounding" not in engine
    sound = proven and engine.get("options", {}).get("split") != "paper_code"
    facts = {key: engine[key] for key in ("certifier", "sigma", "n0", "n", "alpha")} | {
        "mode": mode,
        "dataset": data["name"], "subset": data["subset"], "defense": defense["name"], "variant": defense["variant"],
        "protocol": protocol(engine), "preset": preset(run.header), "noise": noise(engine), "norm": norm,
        "sigmas": scales(engine), "ceiling": reach(run, norm),
        "weights": " ".join(sorted(sha256[:8] for sha256 in defense.get("checkpoints", {}).values())),
        "radius": curve.radii, "certified_accuracy": curve.accuracy, "ci_low": curve.low, "ci_high": curve.high,
        "wilson_low": wilson[:, 0], "wilson_high": wilson[:, 1],
        "certified_accuracy_high_probability": np.maximum(0, curve.accuracy - false) if sound else math.nan,
        "certified_accuracy_multiclass": multiclass if votes else math.nan,
        **_averages(run, norm), "images": images, "nfe": math.nan if imported else float(sum(defense["nfe"].values())),
        "nfe_detail": " + ".join(f"{name} {calls:g}" for name, calls in defense["nfe"].items()),
        "partial": not run.complete, "marks": ", ".join([*marks(run, radii, norm), *["repeat"] * repeated]),
        "run": place(run),
    }  # fmt: skip
    return DataFrame({name: facts[name] for name in COLUMNS})


@_once
def _averages(run: Run, norm: str) -> dict:
    """What `frame` says of all images at once, whatever the radii."""
    engine, found, rows = run.header["engine"], certified(run, norm), list(run.ordered())
    held = found.radius.where(found.correct, 0.0)
    shares = label_shares(run) if engine["certifier"] == "gaussian" else []
    drawn = [sum(stage.n for stage in row.evidence.stages) for row in rows if row.evidence]
    acr_low, acr_high = stats.bootstrap_mean(held)
    seconds = math.nan if engine["certifier"] == "imported" else sum(row.seconds for row in rows) / len(rows)
    return {
        "acr": stats.average_certified_radius(found.correct, found.radius), "acr_low": acr_low, "acr_high": acr_high,
        "acr_constant": quantities.constant_acr([row.label for row in rows], reach(run, norm)),
        "acr_easiest": quantities.easiest_share(found.correct, found.radius), "radius_median": float(np.median(held)),
        **dict(zip(SHARES, np.quantile(shares, QUANTILES) if shares else [math.nan] * len(SHARES), strict=True)),
        "draws": sum(drawn) / len(drawn) if drawn else math.nan,
        "abstention": float(found.abstained.mean()), "errors": int(found.error.sum()), "seconds_per_image": seconds,
    }  # fmt: skip


def marks(run: Run, radii: Sequence[float] = (), norm: str | None = None) -> list[str]:
    """What a reader has to know of the numbers of a run, of either task."""
    engine = run.header["engine"]
    damaged = any("torn last line" not in problem for problem in run.problems)
    found = [*run.marks, *(flag.partition(":")[0] for flag in run.header["flags"]), *["damaged"] * damaged]
    found += [engine["mode"]] if engine.get("mode", "fixed") != "fixed" else []
    if "radii" in engine:
        settled = {in_norm(run, radius, norm) for radius in engine["radii"]}
        found += [] if {radius for radius in radii if radius <= reach(run, norm)} <= settled else ["few targets"]
    own = {"tolerance": "tolerance" in engine, "label": engine.get("select") == "label",
           "randomized": engine.get("options", {}).get("bound") == "randomized",
           "rounded": "rounding" in engine}  # fmt: skip
    return found + [mark for mark, given in own.items() if given]


def envelope(table: DataFrame) -> DataFrame:
    """Upper envelope over sigma: for each method and radius, the numbers of the run that certifies most.

    An oracle that looks at the test set, not one classifier: the interval is that of the winner, pointwise, and ignores
    the selection. Ties go to the smaller sigma; where nothing is certified `sigma` is NaN. Not for cascades, which are
    one classifier each.
    """
    kept = "noise radius certified_accuracy ci_low ci_high sigma n images partial marks run"
    table = table[[*DATA, *METHOD, *kept.split()]]
    best = table.assign(place=table.groupby([*DATA, *METHOD], sort=False).ngroup())  # keeps the order of methods
    best = best.sort_values(["certified_accuracy", "sigma"], ascending=[False, True], kind="stable")
    best = best.drop_duplicates(["place", "radius"]).sort_values(["place", "radius"])
    best["sigma"] = best["sigma"].where(best["certified_accuracy"] > 0)
    return best.drop(columns="place").reset_index(drop=True)


def method_name(row) -> str:
    """`name` or `name (variant)` of a row of `frame`."""
    return f"{row.defense} ({row.variant})" if row.variant else row.defense


def where(row) -> str:
    """Noise of a row of `frame`: "at σ = 0.5", "over σ = 1, 0.5, 0.25"; with any protocol but the sound one."""
    if row.certifier != "cascade":
        return f"at σ = {row.sigma:g}" + (f", {row.noise} noise" if row.noise != "gaussian" else "")
    return f"over σ = {row.sigmas}" + (f", protocol {row.protocol}" if row.protocol != "sound" else "")


def split(table: DataFrame) -> tuple[DataFrame, DataFrame]:
    """The rows of one noise level, and those of cascades."""
    cascade = table["certifier"] == "cascade"
    return table[~cascade], table[cascade]
