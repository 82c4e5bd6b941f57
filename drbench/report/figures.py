"""What the interactive figures draw: panels of lines with intervals, as plain data. No plotting library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from pandas import DataFrame

from drbench.plots import looks
from drbench.plots.curves import NORMS, Panel, curve_frame, panels_of, thinned
from drbench.plots.looks import Look
from drbench.records.record import Run
from drbench.report.book import Book, by_norm
from drbench.report.marks import signs
from drbench.tables import pareto, robust_tables, summary
from drbench.tables.frames import first_row, named_rows
from drbench.tables.robust_tables import LINE, PANEL
from drbench.tables.summary import method_name

SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross",
           "X": "x", "*": "star", "<": "triangle-left", ">": "triangle-right", "h": "hexagon", "p": "pentagon",
           "d": "diamond-tall"}  # fmt: skip
COSTS = {"network evaluations per image": "evaluations", "seconds per image": "seconds_per_image"}


def all_figures(book: Book) -> list[dict]:
    """Each with `key`, `choices` (names of what chooses a panel), and `panels` that can be drawn."""
    made = (("curves", ["panel"], curves(book)), ("cost", ["rows", "radius", "cost"], cost(book)),
            ("robust", ["threat", "robust accuracy"], robust(book)))  # fmt: skip
    return [{"key": key, "choices": choices, "panels": panels, "start": _first(panels)}
            for key, choices, panels in made if panels]  # fmt: skip


def _first(panels: Sequence[dict]) -> int:
    """The panel that is shown first: that of the highest rank, which is taken out."""
    ranks = [panel.pop("rank") for panel in panels]
    return ranks.index(max(ranks))


def _panel(at: Sequence[str], x: str, y: str, lines: list[dict], **rest) -> dict:
    return {"at": list(at), "x": x, "y": y, "lines": [line for line in lines if line["x"]], "log": False} | rest


def _line(book: Book, label: str, runs: Sequence[int], style: dict, points: dict) -> dict:
    """A line of a panel; `points` has x, y, low, high of equal length, and a text for each or none."""
    found = list(dict.fromkeys(badge for run in dict.fromkeys(runs) for badge in book.badges[run]))
    marks = [badge._asdict() for badge in found]
    rounded = {key: [_short(value) for value in values] for key, values in points.items()}
    return {"label": label, "runs": list(runs), "badges": marks, "signs": signs(found)} | style | rounded


def _short(value):
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _percent(column) -> list[float]:
    return (100 * column).tolist()


# ---- certified accuracy against radius ----------------------------------------------------------------------------


def curves(book: Book) -> list[dict]:
    """A panel for each panel of `drbench plot`, exact steps at the certified radii."""
    return [panel for runs in by_norm(book.runs) for panel in _curves(book, runs)]


def _curves(book: Book, runs: Sequence[Run]) -> Iterator[dict]:
    frame = curve_frame(runs)
    styles = looks.of(book.runs)
    for panel in panels_of(frame):
        lines = [_curve(book, line, styles, panel.oracle) for line in panel.curves]
        lines += [_beside(_curve(book, line, styles, False), line) for line in panel.beside]
        limits, right = sorted(panel.ceilings.items()), _right(panel)
        beyond = ", ".join(f"{radius:.2f}" for radius, _ in limits if radius > right)
        title = panel.title + ("" if panel.norm == "l2" else f", {NORMS[panel.norm]}")
        more = {"shape": "vh", "right": right, "rank": -1 if panel.oracle else len(panel.curves)}
        more |= {"note": f"Ceiling radii beyond the axis: {beyond}."} if beyond else {}
        x = f"{NORMS[panel.norm]} radius (pixel units)"
        limits = [[_short(radius), label] for radius, label in limits if radius <= right]
        yield _panel([title], x, "certified accuracy (%)", lines, limits=limits, **more)


def _curve(book: Book, line: DataFrame, styles: dict, oracle: bool) -> dict:
    line = line[line.index.isin(thinned(line).index) | (line["radius"] % 0.25 == 0)]
    first = first_row(line)
    style = _dashed(styles[first.defense, first.variant])
    points = {"x": line["radius"].tolist(), "y": _percent(line["certified_accuracy"]),
              "low": _percent(line["ci_low"]), "high": _percent(line["ci_high"])}  # fmt: skip
    label = method_name(first) + (f", {first.noise} noise" if first.noise != "gaussian" else "")
    runs = [book.number("certify", place) for place in (line["run"] if oracle else [first.run])]
    made = _line(book, label, runs, style, points)
    winner = {"text": [f"best at σ = {s:g}" if s == s else "" for s in line["sigma"]]} if oracle else {}
    return made | {"images": int(first.images), "n": int(first.n)} | winner


def _beside(drawn: dict, line: DataFrame) -> dict:
    """A thin line for comparison, beside cascades."""
    return drawn | {"thin": True, "label": f"{drawn['label']} at σ = {line['sigma'].iat[0]:g} alone"}


def _dashed(look: Look) -> dict:
    dash = "" if look.dash == "-" else ",".join(f"{2 * part:g}px" for part in look.dash[1])
    return {"colour": look.colour, "dash": dash}


def _marked(look: Look) -> dict:
    return {"colour": look.colour, "symbol": SYMBOLS[look.marker]}


def _right(panel: Panel) -> float:
    """Right end of the axis: where the last line but the constant one has fallen to 0, or the ceiling before it."""
    reached = [line["radius"][line["certified_accuracy"] > 0].max() for line in (*panel.curves, *panel.beside)
               if line["defense"].iat[0] != "constant" or len(panel.curves) == 1]  # fmt: skip
    return 1.1 * max([0.25, *(radius for radius in reached if radius == radius)])


# ---- certified accuracy against cost ------------------------------------------------------------------------------


def cost(book: Book) -> list[dict]:
    """A panel for each group of comparable rows, radius and kind of cost; the cost of imported logs is unknown."""
    return [panel for frame in book.certified for panel in _costs(book, frame)]


def _costs(book: Book, frame: DataFrame) -> Iterator[dict]:
    frame = frame[frame["nfe"].notna() & frame["radius"].isin(pareto.DRAWN)]
    if not len(frame):
        return
    frame = pareto.priced(frame, [book.runs[book.number("certify", place)] for place in frame["run"].unique()])
    styles = looks.of(book.runs)
    for (*_, radius), part in frame.groupby([*pareto.GROUP, "radius"], sort=False):
        rows = list(named_rows(part))
        about = f"{rows[0].dataset} {rows[0].subset}, {summary.where(rows[0])}", f"r = {radius:g}"
        for label, column in COSTS.items():
            shown = sorted((row for row in rows if getattr(row, column) > 0), key=lambda row: getattr(row, column))
            lines = [_point(book, row, getattr(row, column), styles) for row in shown]
            best = list(accumulate((line["y"][0] for line in lines), max))
            more = {"front": {"x": [line["x"][0] for line in lines], "y": best}, "log": True}
            more |= {"rank": len(rows) + radius if column == "evaluations" else -1}
            if lines:
                yield _panel([*about, label], label, f"certified accuracy at r = {radius:g} (%)", lines, **more)


def _point(book: Book, row, cost: float, styles: dict) -> dict:
    points = {"x": [cost], "y": [100 * row.certified_accuracy], "low": [100 * row.ci_low],
              "high": [100 * row.ci_high], "text": ["no cheaper row is as good" if row.front else ""]}  # fmt: skip
    run = book.number("certify", row.run)
    style = _marked(styles[row.defense, row.variant])
    return _line(book, method_name(row), [run], style, points) | {"images": row.images}


# ---- robust accuracy against eps ----------------------------------------------------------------------------------


def robust(book: Book) -> list[dict]:
    """A panel for each norm and kind of robust accuracy; the clean accuracy stands at eps = 0."""
    if not len(book.attacked):
        return []
    rows = list(named_rows(book.attacked))  # sorted by eps
    keys = list(dict.fromkeys(_values(row, LINE) for row in rows))
    styles = looks.of_lines(keys, book.runs)
    found = []
    for panel in dict.fromkeys(_values(row, PANEL) for row in rows):
        dataset, subset, norm = panel
        here = [row for row in rows if _values(row, PANEL) == panel]
        lines = [[row for row in here if _values(row, LINE) == key] for key in keys]
        unit = robust_tables.NORMS.get(norm, norm)
        x = "eps (pixels)" if norm == "stadv" else f"{unit} radius eps (pixel units)"
        for kind in robust_tables.KINDS:
            shown = [_attacked(book, line, kind, styles[key]) for key, line in zip(keys, lines, strict=True) if line]
            at = [f"{dataset} {subset}, {unit}", kind.replace("_", "-")]
            rank = len(shown) if kind == "average" else -1
            found.append(_panel(at, x, f"robust accuracy, {at[1]} (%)", shown, shape="linear", rank=rank))
    return found


def _values(row, columns: Sequence[str]) -> tuple:
    return tuple(getattr(row, column) for column in columns)


def _attacked(book: Book, line: list, kind: str, look: Look) -> dict:
    first, names = line[0], {key: f"{kind}{end}" for key, end in (("y", ""), ("low", "_low"), ("high", "_high"))}
    points = {key: [100 * getattr(first, f"clean_{name}"), *(100 * getattr(row, name) for row in line)]
              for key, name in names.items()}  # fmt: skip
    points |= {"x": [0.0, *(row.eps for row in line)], "text": ["clean", *(f"eps = {row.eps_text}" for row in line)]}
    numbers = [book.number("attack", row.run) for row in line]
    label = method_name(first) + (f" at σ = {first.sigma:g}" if first.sigma else "") + f", {first.preset}"
    return _line(book, label, [numbers[0], *numbers], _dashed(look) | _marked(look), points) | {"images": first.images}
