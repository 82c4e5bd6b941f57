"""`drbench reproduce KEY`: the table of a paper, from the benchmark files that _papers.yaml names for it.

What is missing is listed with the lines that bring it; what can run runs, or goes on; the table comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from drbench import config
from drbench.errors import DrbenchError, did_you_mean
from drbench.files import places
from drbench.jobs import needs
from drbench.papers import published
from drbench.planning import effort
from drbench.records import record
from drbench.tables import certified_tables, robust_tables, summary


def keys() -> dict[str, list[str]]:
    """Key -> benchmark files, of the tables that can be reproduced."""
    index = published.papers(_folder())
    return {key: files for key, about in index.items() if (files := _files(about))}


def cells(key: str, overrides: Sequence[str] = ()) -> list[DictConfig]:
    """Resolved configs of all rows of a table."""
    known = keys()
    if key not in known:
        raise DrbenchError(f"no table {key!r} can be reproduced{did_you_mean(key, known)}")
    files = [places.home() / file for file in known[key]]
    left_open = [{name for cell in config.load(file) for name in needs.unpublished(cell)} for file in files]
    # What one file leaves open another may have, or not even know: such an override is for the former alone.
    return [
        cell
        for file, own in zip(files, left_open, strict=True)
        for cell in config.load(file, [each for each in overrides if _is(each, own) or not _is(each, *left_open)])
    ]


def _is(override: str, *keys: set[str]) -> bool:
    """Whether it gives one of the keys, or a part of it."""
    return f"{override.partition('=')[0]}.".startswith(tuple(f"{key}." for each in keys for key in each))


def reproduce(key: str, overrides: Sequence[str] = (), out: Path | None = None, options=None) -> Iterator[str]:
    """Lines of text: what is asked, what is missing, the runs, and the files of the table.

    Parameters
    ----------
    out : path, optional
        Parent of runs/ and of the table; by default results/<data set>.
    options : runner.Options, optional
        For instance a limit of images.
    """
    rows = cells(key, overrides)
    out = out or Path("results") / rows[0].data.name
    ready = [cell for cell in rows if not needs.missing([cell])]
    yield f"{key}: {len(rows)} runs, {_hours(rows)}; {len(ready)} of them can run"
    absent = needs.missing(rows)
    if absent:
        sizes = [need.bytes for need in absent]
        least = f", {sum(filter(None, sizes)):,} bytes{' or more' if None in sizes else ''}" if any(sizes) else ""
        yield f"not here{least}:\n{needs.render(absent)}"
    folders = []
    if ready:
        from drbench.jobs import runner

        yield f"running: {_hours(ready)}; `drbench status {out}` looks on"
        folders = runner.run(ready, out, options=options)
    yield from _tables(key, out, folders)


def _tables(key: str, out: Path, folders: Sequence[Path]) -> Iterator[str]:
    """The paper's numbers beside those of all runs below `out`, and the runs' own table."""
    known = [record.read(folder) for folder in record.find([out])] if any(out.rglob("run.json")) else []
    frame = published.beside(_folder(), key, known)
    measured = int((frame["verdict"] != "not measured").sum())
    yield f"{measured} of {len(frame)} published numbers have a measured one beside them"
    if measured or folders:
        written = published.write(frame, out / key, _own([record.read(folder) for folder in folders]))
        yield " ".join(map(str, written))
    else:
        yield "no table is written: it would be empty"


def _own(runs: Sequence[record.Run]) -> str:
    """Tables of these runs in Markdown: not all that is measured has a published number beside it."""
    certified = [run for run in runs if run.task == "certify" and run.rows]
    attacked = [run for run in runs if run.task == "attack" and any(row.evidence for row in run.rows.values())]
    parts = [certified_tables.render_markdown(summary.frame(certified))] if certified else []
    parts += [robust_tables.render_markdown(robust_tables.frame(attacked))] if attacked else []
    return "".join(f"\n{part}" for part in parts)


def _hours(rows: Sequence[DictConfig]) -> str:
    closed = [cell for cell in rows if not needs.unpublished(cell)]
    hours, more = effort.hours(closed), len(rows) - len(closed)
    if hours is None:
        return "cost not counted"
    left_out = f" ({more} with unpublished settings left out)" if more else ""
    return f"about {hours:,.3g} GPU hours at {effort.RATE / 1e12:g} TFLOP/s{left_out}"


def _folder() -> Path:
    return places.home() / "benchmarks" / "published"


def _files(about: dict) -> list[str]:
    return list(dict.fromkeys(file for files in about.get("configs", {}).values() for file in files))
