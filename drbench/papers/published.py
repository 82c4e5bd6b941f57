"""What papers printed, and what our runs measured beside it. No torch.

The numbers lie in benchmarks/published/*.csv with paper, table and provenance; _papers.yaml says which of our rows
stand for which of theirs. A number without provenance is refused; one that could not be verified is absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml
from pandas import DataFrame

from drbench import stats
from drbench.config import protocols
from drbench.errors import DrbenchError, did_you_mean
from drbench.papers import measured
from drbench.papers.measured import Known, Measured
from drbench.records.record import Run
from drbench.tables import summary
from drbench.tables.saving import TEX, save

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
        of draws, level, images, mode, rounding, bounds of a cascade or attacks are not the paper's, whatever the
        numbers.
    """
    published, about = load(folder, key), papers(folder)[key]
    known = [found for run in runs if (found := measured.known(run))]
    found = [
        {**row, **line}
        for row in published.to_dict("records")
        for line in list(_lines(row, about, known)) or [{"verdict": "not measured", "differs_in": ""}]
    ]
    return DataFrame(found, columns=[*COLUMNS, *MEASURED])


def _lines(row: Mapping, about: Mapping, known: Sequence[Known]) -> Iterator[dict]:
    """What our runs say about one published row."""
    radius = _number(row["radius"])
    dataset = about.get("data", {}).get(row["dataset"], row["dataset"])
    methods = about["methods"]
    names = methods.get(f"{row['method']}, {row['variant']}", methods.get(row["method"], []))
    stands_for = {name.partition(" ")[::2] for name in names}
    ours = [
        (each, value)
        for each in known
        if each.run.header["data"]["name"] == dataset
        and (each.method in stands_for or (each.method[0], "") in stands_for)
        and (value := each.measure(row, radius))
    ]
    if row["sigma"] not in BEST or row["metric"] in measured.COSTS or any(each.images is None for each, _ in ours):
        ours = [
            each for each in ours if row["sigma"] in BEST or _same_levels(row["sigma"], each[0].run.header["engine"])
        ]
        timed = ["on another device"] if row["metric"] in measured.SECONDS else []
        yield from (_line(row, about, each, value, timed) for each, value in ours)
        return
    for method in sorted({each.method for each, _ in ours}):  # of each method the run with the largest number
        levels = [one for one in ours if one[0].method == method]
        each, value = max(levels, key=lambda one: one[1][0])
        yield _line(row, about, each, value, _missing_levels(about.get("protocol"), [one for one, _ in levels]))


def _missing_levels(protocol: str | None, ours: Sequence[Known]) -> list[str]:
    """Noise levels of the protocol among which the paper chose the best, and which were not run."""
    if protocol is None:
        return []
    wanted = protocols.preset(protocol, ours[0].run.header["data"]["name"])["sweep"].get("certify.sigma", [])
    missing = set(wanted) - {level for each in ours for level in stats.levels(each.run.header["engine"])}
    return [f"best without sigma = {', '.join(f'{level:g}' for level in sorted(missing))}"] if missing else []


def _line(row: Mapping, about: Mapping, ours: Known, found: Measured, differs: list[str]) -> dict:
    measured, low, high = found
    value, digits = float(row["value"]), len(row["value"].partition(".")[2])
    printed, differs = 0.5 * 10**-digits, differs + differences(about, ours.run)
    if row["metric"].startswith("robust_accuracy"):
        differs.append(_attacks(ours.run, row["note"]))
    inside = low - printed <= value <= high + printed
    verdict = "protocol differs" if differs else "agrees" if inside else "differs"
    return {
        "run": summary.place(ours.run), "measured": measured, "ci_low": low, "ci_high": high,
        "images": ours.count, "difference": measured - value, "verdict": verdict,
        "differs_in": "; ".join(differs),
    }  # fmt: skip


def differences(about: Mapping, run: Run) -> list[str]:
    """In what a run was made otherwise than a paper of _papers.yaml says, e.g. "n = 1000, not 100000"."""
    found = [] if run.complete else [f"{len(run.rows)} of {len(run.wanted)} images"]
    engine, data = run.header["engine"], run.header["data"]
    preset = protocols.preset(about["protocol"], data["name"]) if "protocol" in about else {"certify": {}}
    imported = engine.get("certifier") == "imported"
    if "protocol" in about and run.task != "attack":
        usual = {"mode": "fixed"} if imported else {"mode": "fixed", "rounding": "none"}  # logs hold what was printed
        ours, theirs = usual | engine, {"mode": "fixed", "rounding": "none"} | preset["certify"]
        for key in ("n0", "n", "alpha", "mode", "protocol", "rounding"):
            if key in ours and key in theirs and ours[key] != theirs[key]:
                found.append(f"{key} = {ours[key]}, not {theirs[key]}")
    subset = about.get("images", preset.get("data", {}).get("subset"))
    if subset and not imported and data["subset"].rpartition("/")[2] != subset:
        found.append(f"images {data['subset']}, not {subset}")
    return found


def _attacks(run: Run, note: str) -> str:
    """Robust accuracy is an upper bound, as good as its attacks: those of a paper are never quite ours."""
    theirs = note.partition("attack=")[2].partition(";")[0] or note or "unknown"
    return f"attacks {', '.join(run.header['engine']['attacks'])}; theirs: {theirs}"


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


def render_latex(frame: DataFrame) -> str:
    """The measured rows as a LaTeX table (package booktabs)."""
    lines = [r"\begin{tabular}{lllrrr}", r"\toprule", r"method & $\sigma$ & radius & published & measured & 95\,\% \\",
             r"\midrule"]  # fmt: skip
    for row in frame[frame["verdict"] != "not measured"].to_dict("records"):
        cells = (f"{row['method']} {row['variant']}".strip(), row["sigma"], row["radius"], row["value"],
                 f"{row['measured']:.4g}", f"[{row['ci_low']:.4g}, {row['ci_high']:.4g}]")  # fmt: skip
        lines.append(" & ".join(str(cell).translate(TEX) for cell in cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def write(frame: DataFrame, stem: Path, further: str = "") -> list[Path]:
    """`stem`.md, with `further` at its end, `stem`.csv and `stem`.tex."""
    return save(stem, frame, render(frame) + further, render_latex(frame))
