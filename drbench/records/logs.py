"""Certification logs of other projects: read into run folders, and our runs written as Cohen's TSV. No torch.

A log holds conclusions, not votes, so an imported certificate can be counted but not recomputed. What can be checked:
every line has the columns of its format, the column `correct` follows from label and prediction, ids are regular, and
the largest radius belongs to the stated N and alpha. What is odd is reported, stored and marked in tables; a line that
cannot be read is never skipped.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from scipy import special

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Certificate
from drbench.records import record
from drbench.records.record import Row, Run

SIZES = {"cifar10": 10_000, "cifar100": 10_000, "mnist": 10_000, "fmnist": 10_000, "imagenet": 50_000}  # test images
BAD_LINES_SHOWN = 5


@dataclass(frozen=True)
class Settings:
    """What a log does not say about itself; radii and sigma in pixel units."""

    dataset: str = "unknown"
    defense: str = ""
    variant: str = ""
    sigma: float | None = None
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    dimension: int | None = None  # pixels x channels: turns l-infinity radii into l2 radii
    target: float | None = None  # radius of logs that only say whether it was reached


class Line(NamedTuple):
    """One image: prediction -1 is an abstention, `right` what the log says about it (None: nothing)."""

    id: int
    label: int
    prediction: int
    radius: float
    right: int | None
    detail: dict


@dataclass(frozen=True)
class Format:
    """Columns of a log (None: no header line), further ones that may follow, and how a line becomes a `Line`."""

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, str], Settings, int], Line]
    header: bool = True
    optional: tuple[str, ...] = ()
    epilogue: bool = False  # text may follow the last image
    wants: tuple[str, ...] = ()  # settings without which it cannot be read
    ceiling: bool = True  # whether the largest possible radius is that of n unanimous votes at sigma and alpha


def _plain(cells: Mapping[str, str], settings: Settings, number: int, radius: str = "radius", **detail) -> Line:
    right = int(cells["correct"]) if cells["correct"] in ("0", "1", "-1") else _never(cells["correct"], "correct")
    found = float(cells[radius])
    return Line(int(cells.get("idx", number)), int(cells["label"]), int(cells["predict"]), found, right, detail)


def _never(text: str, column: str):
    raise ValueError(f"{column} is {text!r}")


def _multiscale(cells, settings, number) -> Line:
    line = _plain(cells, settings, number, stage=int(cells["stage"]), r_neg=float(cells["r_neg"]))
    return line._replace(prediction=ABSTAIN if line.prediction < 0 else line.prediction)  # -2: undecided


def _iss(cells, settings, number) -> Line:
    return _plain(cells, settings, number, p_lower=float(cells["pA"]), draws=int(cells["samplesize"]))


def _ars(cells, settings, number) -> Line:
    name = next(column for column in cells if column.endswith("_radius"))
    scale = math.sqrt(settings.dimension) if name == "linf_radius" else 1.0
    line = _plain(cells, settings, number, radius=name, p_lower=float(cells["prob_lb"]))
    # An abstention carries the negative radius of a bound below 1/2.
    return line._replace(radius=0.0 if line.prediction == ABSTAIN else line.radius * scale)


def _ensembles(cells, settings, number) -> Line:
    proved = {"1": True, "1.0": True, "-1": False, "-1.0": False}
    reached = proved[cells["radius"]] if cells["radius"] in proved else _never(cells["radius"], "radius (1 or -1)")
    line = _plain(cells, settings, number, levels=int(cells["levels_needed"]))
    prediction = line.prediction if reached else ABSTAIN
    return line._replace(prediction=prediction, radius=settings.target if reached else 0.0, right=None)


COHEN = ("idx", "label", "predict", "radius", "correct", "time")
FORMATS = {
    "cohen": Format(COHEN, _plain),
    "densepure": Format(COHEN[:-1], _plain),
    "rrcm": Format(COHEN[1:], _plain, header=False),
    "multiscale": Format(
        (*COHEN[:4], "r_neg", "correct", "pred_uc", "corr_uc", "stage", "time"), _multiscale, ceiling=False
    ),
    "iss": Format(
        (*COHEN[:3], "pA", "samplesize", "radius", "correct", "time_forward"), _iss, epilogue=True, ceiling=False
    ),
    "ars": Format((*COHEN[:3], "linf_radius", "prob_lb", "correct", "time"), _ars, wants=("dimension",)),
    "ensembles": Format(
        (*COHEN[:4], "proved", "correct", "levels_needed", "estimated_pr", "time"), _ensembles, wants=("target",),
        optional=("samples_needed", "early_stoppings", "additional_batches_needed"), ceiling=False,
    ),
}  # fmt: skip


# ---- reading ------------------------------------------------------------------------------------------------------


def parse(path: Path, form: str, settings: Settings) -> list[Line]:
    """All lines of a log. Raises `DrbenchError` that names the first lines that cannot be read, if there are any."""
    if form not in FORMATS:
        raise DrbenchError(f"unknown log format {form!r}; available: {', '.join(FORMATS)}")
    layout = FORMATS[form]
    missing = [f"--{name}" for name in layout.wants if getattr(settings, name) is None]
    if missing:
        raise DrbenchError(f"format {form!r} needs {', '.join(missing)}: its logs do not hold l2 radii in pixel units")
    rows = [[cell.strip() for cell in line.split("\t")] for line in _text(path).splitlines()]
    columns = layout.columns
    if layout.header:
        columns = tuple(rows.pop(0)) if rows else ()
        extra = columns[len(layout.columns) :]
        if columns[: len(layout.columns)] != layout.columns or any(name not in layout.optional for name in extra):
            raise DrbenchError(
                f"{path}: expected the header {' '.join(layout.columns)} of format {form!r} (tab separated), "
                f"got {' '.join(columns)[:120]!r}; choose another format"
            )
    first, lines, bad = 1 + layout.header, [], []
    if layout.epilogue:
        while rows and not rows[-1][0].isdigit():
            rows.pop()
    for number, cells in enumerate(rows):
        try:
            lines.append(_line(cells, columns, layout, settings, number))
        except ValueError as error:
            bad.append(f"line {number + first}: {error}")
    if bad or not lines:
        shown = "; ".join(bad[:BAD_LINES_SHOWN]) or "it has none"
        raise DrbenchError(f"{path}: {len(bad)} of {len(rows)} lines cannot be read as {form!r}: {shown}")
    return lines


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if b"\0" in content or content[:1] == b"\x80":
            raise DrbenchError(f"{path}: expected a text file, got a binary one (pickles are never read)")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DrbenchError(f"cannot read {path} as text: {error}") from error


def _line(cells: list[str], columns: Sequence[str], layout: Format, settings: Settings, number: int) -> Line:
    if len(cells) != len(columns):
        raise ValueError(f"expected {len(columns)} columns, got {len(cells)}")
    line = layout.read(dict(zip(columns, cells, strict=True)), settings, number)
    if not (math.isfinite(line.radius) and line.radius >= 0):
        raise ValueError(f"expected a radius >= 0, got {line.radius:g}")
    if line.prediction < ABSTAIN or line.label < 0 or line.id < 0:
        raise ValueError(f"expected an id and a label >= 0 and a class or -1, got {line[:3]}")
    if line.prediction == ABSTAIN and line.radius > 0:
        raise ValueError(f"an abstention with radius {line.radius:g}")
    return line


# ---- what is odd ----------------------------------------------------------------------------------------------------


def oddities(lines: Sequence[Line], settings: Settings, form: str = "cohen") -> list[str]:
    """What a reader of the numbers should know, one sentence each."""
    found = []
    wrong = [
        line.id for line in lines if line.right is not None and (line.right == 1) != (line.prediction == line.label)
    ]
    if wrong:
        found.append(
            f"column correct contradicts label and prediction in {len(wrong)} lines (recomputed), first: {wrong[0]}"
        )
    missing = sorted(set(expected_ids(lines, settings.dataset)) - {line.id for line in lines})
    if missing:
        found.append(
            f"{len(missing)} images of the regular subset are missing, ids {missing[0]} to {missing[-1]}: "
            f"{len(lines)} of {len(lines) + len(missing)}; accuracies are over those that are there"
        )
    told = FORMATS[form].wants != ("target",)  # radii of the log itself
    # Cascades split alpha over their scales, ISS draws another number for each image: no ceiling of n and alpha.
    implied = implied_alpha(lines, settings) if FORMATS[form].ceiling else None
    if implied and not implied[0] <= settings.alpha <= implied[1]:
        found.append(
            f"the largest radius {max(line.radius for line in lines):g} is that of n = {settings.n:,} unanimous votes "
            f"at alpha between {implied[0]:.2g} and {implied[1]:.2g}, not {settings.alpha:g}: n or alpha is another one"
        )
    edge = told and sum(line.radius > 0 and (4 * line.radius).is_integer() for line in lines)
    if edge:
        found.append(
            f"{edge} radii are printed as a multiple of 0.25 and count as certified there, although printing may have "
            "rounded them up"
        )
    return found


def expected_ids(lines: Sequence[Line], dataset: str) -> list[int]:
    """Ids 0, k, 2k, ..., as far as nine in ten of the steps are k; else, or for fewer than three, those of the log.

    To the end of the data set, if its size is known and k > 1 (consecutive ids may be its first ones), else of the log.
    """
    ids = sorted(line.id for line in lines)
    if len(ids) < 3:
        return ids
    (step, often), *_ = Counter(b - a for a, b in pairwise(ids)).most_common(1)
    if often < 0.9 * (len(ids) - 1):
        return ids
    end = max(SIZES.get(dataset, 0) if step > 1 else 0, ids[-1] + 1)
    return sorted({*range(ids[0] % step, end, step), *ids})


def implied_alpha(lines: Sequence[Line], settings: Settings) -> tuple[float, float] | None:
    """Smallest and largest alpha at which n unanimous votes give the log's largest radius, within its rounding.

    None unless several images share that radius, and nearly reach it with n draws: only then is it a ceiling.
    """
    top = max(line.radius for line in lines)
    ceiling = stats.ceiling_radius(settings.n, settings.alpha, settings.sigma)
    if sum(line.radius == top for line in lines) < 3 or top < 0.7 * ceiling:
        return None
    half = 0.5 * 10 ** (math.floor(math.log10(top)) - 2)  # three significant digits
    ends = (top + half, top - half)
    return tuple(math.exp(settings.n * float(special.log_ndtr(end / settings.sigma))) for end in sorted(ends))


# ---- run folders ----------------------------------------------------------------------------------------------------


def import_log(path: Path, form: str, settings: Settings, out: Path) -> tuple[Path, list[str]]:
    """Write a log as a run folder; returns it with the list of oddities."""
    lines, content = parse(path, form, settings), path.read_bytes()
    settings = _complete(path, settings)
    repeated = [image_id for image_id, count in Counter(line.id for line in lines).items() if count > 1]
    if repeated:
        raise DrbenchError(f"{path}: {len(repeated)} images occur more than once, first: {repeated[0]}")
    odd, digest = oddities(lines, settings, form), hashlib.sha256(content).hexdigest()
    name = "-".join(part for part in (settings.defense, settings.variant) if part)
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    folder = out / "runs" / safe / f"imported-sigma{settings.sigma:g}-{digest[:8]}"
    rows = [
        Row(line.id, line.label, None, Certificate(line.prediction, line.radius, line.detail), 0.0) for line in lines
    ]
    header = _header(path, form, settings, lines, digest, odd)
    try:
        folder.mkdir(parents=True)
        with (folder / "rows-imported.jsonl").open("wb") as file:
            file.write(b"".join(record.encode(row.to_json()) for row in rows))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise DrbenchError(
            f"{path} was imported before, into {folder}; delete that folder to import it anew"
        ) from error
    except OSError as error:
        raise DrbenchError(f"cannot write to {folder}: {error.strerror}; choose a writable --out") from error
    record.write_header(folder, header)
    return folder, odd


def _complete(path: Path, settings: Settings) -> Settings:
    """Sigma from a path part `sigma_S` if it is not given, and a name for the defense."""
    sigma = settings.sigma
    if sigma is None:
        named = re.findall(r"sigma_(\d+(?:\.\d+)?)", str(path))
        if len(set(named)) != 1:
            raise DrbenchError(f"{path}: expected one part sigma_S in the path, found {named or 'none'}; give --sigma")
        sigma = float(named[0])
    if not sigma > 0:
        raise DrbenchError(f"expected --sigma > 0, got {sigma:g}")
    return Settings(**{**vars(settings), "sigma": sigma, "defense": settings.defense or path.stem})


def _header(path: Path, form: str, settings: Settings, lines: Sequence[Line], digest: str, odd: list[str]) -> dict:
    reach = max(stats.ceiling_radius(settings.n, settings.alpha, settings.sigma), *(line.radius for line in lines))
    flags = ["imported: conclusions of another program, which cannot be recomputed"]
    flags += [f"log: {text}" for text in odd]
    ids = expected_ids(lines, settings.dataset)
    return {
        "schema": record.SCHEMA,
        "status": "complete" if len(ids) == len(lines) else "partial",
        "identity": digest,
        "title": f"imported from a log in the format {form}",
        "data": {"name": settings.dataset, "subset": "imported", "images": len(ids), "sha256": None, "ids": ids},
        "code": {"version": None, "commit": None, "dirty": False},
        "engine": {
            "certifier": "imported", "version": stats.VERSIONS["imported"], "mode": "fixed", "format": form,
            "sigma": settings.sigma, "n0": settings.n0, "n": settings.n, "alpha": settings.alpha, "reach": reach,
        },
        "log": {"name": path.name, "sha256": digest, "oddities": odd},
        "defense": {"name": settings.defense, "variant": settings.variant, "nfe": {}},
        "flags": flags,
    }  # fmt: skip


def cohen_tsv(run: Run, compat: bool = False) -> str:
    """A run as a log of Cohen et al. 2019: idx label predict radius correct time, tab separated.

    Radii are rounded down to six decimals, so that no image counts as certified beyond its certificate; with `compat`
    they have three significant digits, rounded to nearest, as in the original.
    """
    if stats.norm(run.header["engine"]) != "l2":
        raise DrbenchError(f"{run.folder} certifies in {stats.norm(run.header['engine'])}; this log is of l2 radii")
    lines = ["\t".join(COHEN)]
    for row in run.ordered():
        found = stats.conclusion(run.header["engine"], row)
        prediction, radius = (found.prediction, found.radius) if found else (ABSTAIN, 0.0)
        text = f"{radius:.3}" if compat else f"{math.floor(radius * 1e6) / 1e6:.6f}"
        cells = (row.id, row.label, prediction, text, int(prediction == row.label), f"{row.seconds:.3f}")
        lines.append("\t".join(map(str, cells)))
    return "\n".join(lines) + "\n"
