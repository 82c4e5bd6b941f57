"""What there is, in words: defenses, benchmark files, runs and their progress, the plan of a run. No torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from drbench import config, data, registry, weights
from drbench.attacks import presets
from drbench.config import protocols
from drbench.errors import DrbenchError
from drbench.jobs import needs
from drbench.records import leases, record
from drbench.stats import robustness


def defenses() -> str:
    """Names of defenses with the first line of their module's documentation."""
    rows = [(name, _first_line(target.partition(":")[0])) for name, target in sorted(registry.available().items())]
    return _columns([("DEFENSE", ""), *rows])


def published_protocols() -> str:
    """Protocols of published evaluations, for `protocol: NAME` in a config."""
    return _columns([("PROTOCOL", "DATA", "N0", "N", "ALPHA", "SOURCE"), *protocols.table()])


def attack_presets() -> str:
    """Presets of attacks, for `attack.preset: NAME` in a config, with what they hold under l_inf."""
    rows = [("PRESET", "DEFENSE", "ATTACKS UNDER LINF")]
    for name in presets.PRESETS:
        for kind in ("deterministic", "randomised")[: 1 if name == "autoattack" else 2]:
            members = presets.preset(name, "linf", kind == "deterministic")
            rows.append((name, kind, "; ".join(each.label for each in members)))
    return _columns(rows)


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
    rows = [(str(path.relative_to(root.parent)), config.title(path)) for path in files]
    return _columns([("CONFIG", ""), *rows])


def runs(paths: Sequence[str | Path]) -> str:
    """Run folders with their progress, cost and marks, from the records alone.

    Of those that processes are working on, anywhere: how many processes, their images per second, and the time left.
    """
    rows = [("RUN", "IMAGES", "ACCURACY", "SECONDS", "STATE")]
    for folder in record.find(paths):
        run = record.read(folder)
        count, done = len(run.wanted), list(run.rows.values())
        errors = sum(row.error is not None for row in done)
        alive = leases.living(folder)
        state = "complete" if run.complete else _running(folder, alive, count - len(done)) if alive else "partial"
        marks = [mark for mark in run.marks if mark != "partial"] + ([f"{errors} errors"] if errors else [])
        seconds = f"{sum(row.seconds for row in done):.1f}"
        rows.append((str(folder), f"{len(done)}/{count}", _accuracy(run, done), seconds, ", ".join([state, *marks])))
    return _columns(rows)


def _accuracy(run: record.Run, done: list[record.Row]) -> str:
    """Share certified at radius 0, or right on average under attack."""
    if run.task == "attack":
        seen = [(row.evidence.adversarial, row.label) for row in done if row.evidence]
        return f"{robustness.robustness(*zip(*seen, strict=True), 1).average.value:.3f} robust" if seen else "-"
    return f"{sum(row.correct for row in done) / len(done):.3f} certified" if done else "-"


def _running(folder: Path, alive: Iterable[Path], left: int) -> str:
    """Such as "running: 2 processes, 3.1 images/s, 0:01:20 left"; the rate is of the processes that are at work."""
    rate = sum(record.rate(folder, writer=path.stem.split("-")[-1]) for path in alive)
    eta = f"{timedelta(seconds=round(left / rate))} left" if rate else "time left unknown"
    processes = sum(1 for _ in alive)
    return f"running: {processes} process{'es' * (processes > 1)}, {rate:.3g} images/s, {eta}"


def plan(cell: DictConfig) -> str:
    """The resolved config and the work it asks for."""
    lines = [OmegaConf.to_yaml(cell).rstrip()]
    if cell.task == "certify":
        scales = config.levels(cell)
        tried = "" if len(scales) == 1 else f" at each of at most {len(scales)} scales: {', '.join(map(str, scales))}"
        most = "" if cell.certify.mode == "fixed" else "at most "
        lines.append(f"# {most}{config.draws(cell):,} noisy draws per image{tried}")
    lines.append(f"# images: {_images(cell.data)}")
    if cell.task == "attack" and cell.attack.attacks is None:
        for deterministic in (True, False)[cell.attack.sigma > 0 or bool(cell.attack.cascade) :]:
            if deterministic or cell.attack.preset != "autoattack":
                members = presets.preset(
                    cell.attack.preset, cell.attack.norm, deterministic, len(cell.attack.cascade or [])
                )
                kind = "deterministic" if deterministic else "randomised"
                lines.append(f"# attacks if the defense is {kind}: {'; '.join(each.label for each in members)}")
    lines += [f"# not here: {line.strip()}" for line in needs.render(needs.missing([cell])).splitlines()]
    return "\n".join([*lines, "---"])


def _images(spec: DictConfig) -> str:
    """Such as "cifar10/test/first500: 500 images, 10 of 10 classes", of the files if they are at hand."""
    name = f"{spec.name}/{spec.split}/{spec.subset}"
    try:
        found = data.overview(spec.name, spec.split, spec.subset, spec.root)
    except DrbenchError as error:
        facts = data.subsets.known(spec.name, spec.split).get(spec.subset, {})
        expected = [f"{facts['images']:,} images"] if facts else []
        expected += [f"{facts['classes']:,} classes"] if "classes" in facts else []
        return f"{name}{': ' * bool(expected)}{', '.join(expected)} (not at hand: {str(error).partition(chr(10))[0]})"
    return (
        f"{name}: {found}{' (FEW CLASSES)' if found.few_classes else ''}, sha256 of their ids {found.ids_sha256[:12]}"
    )


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
