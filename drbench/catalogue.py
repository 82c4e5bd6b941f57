"""What there is, in words: defenses, benchmark files, runs and their progress, the plan of a run. No torch."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from drbench import config, record, registry, robustness, weights
from drbench.attacks import presets


def defenses() -> str:
    """Names of defenses with the first line of their module's documentation."""
    rows = [(name, _first_line(target.partition(":")[0])) for name, target in sorted(registry.available().items())]
    return _columns([("DEFENSE", ""), *rows])


def _first_line(module: str) -> str:
    """First line of a module's docstring, read from its source: importing it (not its package) could load torch."""
    try:
        spec = find_spec(module)
        return (ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or "").partition("\n")[0]
    except Exception as error:  # another package may fail in any way, and must not hide the other names
        return f"(cannot be imported: {error})"


def configs() -> str:
    """Benchmark files of the project with their titles."""
    root = weights.home() / "benchmarks"
    files = [path for path in sorted(root.glob("*/**/*.yaml")) if not path.name.startswith("_")]
    rows = [(str(path.relative_to(root.parent)), config.load(path)[0].title) for path in files]
    return _columns([("CONFIG", ""), *rows])


def runs(paths: Sequence[str | Path]) -> str:
    """Run folders with their progress, cost and marks, from the records alone."""
    rows = [("RUN", "IMAGES", "ACCURACY", "SECONDS", "STATE")]
    for folder in record.find(paths):
        run = record.read(folder)
        count, done = len(run.wanted), list(run.rows.values())
        errors = sum(row.error is not None for row in done)
        state = "complete" if run.complete else "partial"
        marks = [mark for mark in run.marks if mark != "partial"] + ([f"{errors} errors"] if errors else [])
        seconds = f"{sum(row.seconds for row in done):.1f}"
        rows.append((str(folder), f"{len(done)}/{count}", _accuracy(run, done), seconds, ", ".join([state, *marks])))
    return _columns(rows)


def _accuracy(run: record.Run, done: list[record.Row]) -> str:
    """Share certified at radius 0, or right on average under attack."""
    if not done:
        return "-"
    if run.task == "attack":
        answers = [row.evidence.adversarial for row in done]
        return f"{robustness.robustness(answers, [row.label for row in done], 1).average.value:.3f} robust"
    return f"{sum(row.correct for row in done) / len(done):.3f} certified"


def plan(cell: DictConfig) -> str:
    """The resolved config and the work it asks for."""
    draws = cell.certify.n0 + cell.certify.n
    lines = [OmegaConf.to_yaml(cell).rstrip()]
    if cell.task == "certify":
        scales, where = config.levels(cell), f"images: {cell.data.name}/{cell.data.split}/{cell.data.subset}"
        tried = "" if len(scales) == 1 else f" at each of at most {len(scales)} scales: {', '.join(map(str, scales))}"
        most = "" if cell.certify.mode == "fixed" else "at most "
        lines.append(f"# {most}{draws:,} noisy draws per image{tried} ({where})")
    if cell.task == "attack" and cell.attack.attacks is None:
        for deterministic in (True, False)[cell.attack.sigma > 0 :]:
            if deterministic or cell.attack.preset != "autoattack":
                members = presets.preset(cell.attack.preset, cell.attack.norm, deterministic)
                kind = "deterministic" if deterministic else "randomised"
                lines.append(f"# attacks if the defense is {kind}: {'; '.join(each.label for each in members)}")
    return "\n".join([*lines, "---"])


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
