"""What papers printed, and what our runs measured beside it. No torch.

The numbers lie in benchmarks/published/*.csv with paper, table and provenance; _papers.yaml says which of our rows
stand for which of theirs. A number without provenance is refused; one that could not be verified is absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml
from pandas import DataFrame

from drbench import protocols, stats, summary
from drbench.errors import DrbenchError, did_you_mean
from drbench.record import Run

COLUMNS = [
    "paper", "table", "dataset", "norm", "method", "variant", "sigma", "radius", "metric", "value", "provenance",
    "note",
]  # fmt: skip
PROVENANCE = {
    "published": "printed in the paper or on its page",
    "official_log": "log that the authors released",
    "derived": "read off a figure, or computed from printed numbers",
    "secondary": "quoted by others",
    "review": "stated in the reviews or the authors' replies",
    "aggregator": "leaderboard or collection",
}
MEASURED = ["run", "measured", "ci_low", "ci_high", "images", "difference", "verdict", "differs_in"]
METRICS = ("certified_accuracy", "average_certified_radius")  # that certification runs measure
BEST = ("best", "")  # sigma of rows that print the best level of each radius, or none
VERDICTS = ("agrees", "differs", "protocol differs", "not measured")


def papers(folder: Path) -> dict[str, dict]:
    """_papers.yaml: key -> file, protocol, methods."""
    return yaml.safe_load((folder / "_papers.yaml").read_text(encoding="utf-8"))


def load(folder: Path, key: str) -> DataFrame:
    """The published rows of one paper, all columns as text. Rows without provenance are refused."""
    known = papers(folder)
    if key not in known:
        raise DrbenchError(f"no published numbers of {key!r}{did_you_mean(key, known)}")
    return read(folder / f"{known[key]['file']}.csv")


def read(path: Path) -> DataFrame:
    """One file of published rows; errors name the line."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DrbenchError(f"{path}: expected a file of published numbers: {error}") from error
    if list(frame.columns) != COLUMNS:
        raise DrbenchError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(frame.columns)}")
    for line, row in enumerate(frame.itertuples(), 2):
        if row.provenance not in PROVENANCE:
            raise DrbenchError(
                f"{path} line {line}: expected a provenance ({', '.join(PROVENANCE)}), got {row.provenance!r}; "
                "say where the number stands, or leave it out"
            )
        if not row.paper or not row.metric or _number(row.value) is None:
            raise DrbenchError(f"{path} line {line}: expected paper, metric and a number, got {row.value!r}")
    return frame


def beside(folder: Path, key: str, runs: Sequence[Run]) -> DataFrame:
    """Each published row with each of our runs that stands for it, or "not measured".

    Returns
    -------
    DataFrame
        The columns of the file, and: run, measured (percent; radii in pixel units), ci_low, ci_high (95 % for the
        number of images), images, difference (measured - published), verdict, differs_in.
        "agrees": the published number, as far as it is printed, lies in the interval; "protocol differs" if number
        of draws, level or images are not the paper's, whatever the numbers.
    """
    published, about = load(folder, key), papers(folder)[key]
    known = [
        _Known(run, summary.certified(run, "l2")) for run in runs if run.rows and "certifier" in run.header["engine"]
    ]
    found = [
        {**row, **line}
        for row in published.to_dict("records")
        for line in list(_lines(row, about, known)) or [{"verdict": "not measured", "differs_in": ""}]
    ]
    return DataFrame(found, columns=[*COLUMNS, *MEASURED])


class _Known(NamedTuple):
    """A run, and its certificates in l2."""

    run: Run
    images: DataFrame

    @property
    def method(self) -> tuple[str, str]:
        return self.run.header["defense"]["name"], self.run.header["defense"]["variant"]

    def share(self, radius: float) -> float:
        return float((self.images["correct"] & (self.images["radius"] >= radius)).mean())

    def measure(self, metric: str, radius: float | None) -> tuple[float, float, float]:
        """Value and 95 % interval for the choice of images; shares in percent."""
        if metric == "average_certified_radius":
            radii = self.images["radius"].where(self.images["correct"], 0.0)
            return (float(radii.mean()), *stats.bootstrap_mean(radii))
        share, count = self.share(radius), len(self.images)
        low, high = stats.interval(round(share * count), count)
        return 100 * share, 100 * low, 100 * high


def _lines(row: Mapping, about: Mapping, known: Sequence[_Known]) -> Iterator[dict]:
    """What our runs say about one published row."""
    radius = _number(row["radius"])
    if row["metric"] not in METRICS or row["norm"] != "l2" or (row["metric"] == METRICS[0] and radius is None):
        return
    stands_for = {name.partition(" ")[::2] for name in about["methods"].get(row["method"], [])}
    ours = [
        each
        for each in known
        if each.run.header["data"]["name"] == row["dataset"]
        and (each.method in stands_for or (each.method[0], "") in stands_for)
    ]
    if row["sigma"] not in BEST:
        ours = [each for each in ours if _same_levels(row["sigma"], each.run.header["engine"])]
        yield from (_line(row, about, each, radius, []) for each in ours)
        return
    for method in sorted({each.method for each in ours}):  # of each method the run that certifies most there
        levels = [each for each in ours if each.method == method]
        best = max(levels, key=lambda each: each.share(radius or 0.0))
        yield _line(row, about, best, radius, _missing_levels(about.get("protocol"), levels))


def _missing_levels(protocol: str | None, ours: Sequence[_Known]) -> list[str]:
    """Noise levels of the protocol among which the paper chose the best, and which were not run."""
    if protocol is None:
        return []
    wanted = protocols.preset(protocol, ours[0].run.header["data"]["name"])["sweep"].get("certify.sigma", [])
    missing = set(wanted) - {level for each in ours for level in stats.levels(each.run.header["engine"])}
    return [f"best without sigma = {', '.join(f'{level:g}' for level in sorted(missing))}"] if missing else []


def _line(row: Mapping, about: Mapping, ours: _Known, radius: float | None, differs: list[str]) -> dict:
    measured, low, high = ours.measure(row["metric"], radius)
    value, digits = float(row["value"]), len(row["value"].partition(".")[2])
    printed, differs = 0.5 * 10**-digits, differs + differences(about.get("protocol"), ours.run)
    inside = low - printed <= value <= high + printed
    verdict = "protocol differs" if differs else "agrees" if inside else "differs"
    return {
        "run": summary.place(ours.run), "measured": measured, "ci_low": low, "ci_high": high,
        "images": len(ours.images), "difference": measured - value, "verdict": verdict,
        "differs_in": "; ".join(differs),
    }  # fmt: skip


def differences(protocol: str | None, run: Run) -> list[str]:
    """In what a run was made otherwise than the protocol, e.g. "n = 1000, not 100000"."""
    found = [] if run.complete else [f"{len(run.rows)} of {len(run.wanted)} images"]
    if protocol is None:
        return found
    engine, data = run.header["engine"], run.header["data"]
    preset = protocols.preset(protocol, data["name"])
    for key in ("n0", "n", "alpha"):
        wanted = preset["certify"].get(key)
        if wanted is not None and engine[key] != wanted:
            found.append(f"{key} = {engine[key]:g}, not {wanted:g}")
    subset = preset.get("data", {}).get("subset")
    if subset and engine["certifier"] != "imported" and data["subset"].rpartition("/")[2] != subset:
        found.append(f"images {data['subset']}, not {subset}")
    return found


def _same_levels(printed: str, engine: Mapping) -> bool:
    """Whether "0.25|1.0" of a paper are the noise levels of a run."""
    theirs = [_number(part) for part in printed.split("|")]
    return None not in theirs and sorted(theirs) == sorted(stats.levels(engine))


def _number(text: str) -> float | None:
    """A number; a fraction as in 8/255. None if it is none."""
    try:
        above, _, below = text.partition("/")
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def render(frame: DataFrame) -> str:
    """The comparison in Markdown: measured rows first, then how many were not measured."""
    measured = frame[frame["verdict"] != "not measured"]
    lines = [
        "| paper, table | method | sigma | radius | published | measured | 95 % interval | difference | verdict |",
        "|---|---|--:|--:|--:|--:|---|--:|---|",
    ]
    for row in measured.to_dict("records"):
        cells = (
            f"{row['paper']}, {row['table']}", f"{row['method']} {row['variant']}".strip(), row["sigma"], row["radius"],
            row["value"], f"{row['measured']:.4g}",
            f"[{row['ci_low']:.4g}, {row['ci_high']:.4g}], {row['images']:.0f} images",
            f"{row['difference']:+.2g}", row["verdict"] + (f": {row['differs_in']}" if row["differs_in"] else ""),
        )  # fmt: skip
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    counts = frame["verdict"].value_counts()
    missing = frame[frame["verdict"] == "not measured"]
    lines += ["", ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS) + "."]
    if len(missing):
        metrics = ", ".join(f"{count} {metric}" for metric, count in missing["metric"].value_counts().items())
        lines.append(f"Not measured by the runs given: {metrics}.")
    return "\n".join(lines) + "\n"


def write(frame: DataFrame, stem: Path) -> list[Path]:
    """`stem`.md and `stem`.csv."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    markdown, csv = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.csv")
    markdown.write_text(render(frame), encoding="utf-8")
    frame.to_csv(csv, index=False)
    return [markdown, csv]
