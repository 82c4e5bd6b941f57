"""Run folders: what a run wrote down, crash-safe, and how it is read back. No torch.

    config.yaml    the resolved config
    run.json       header: identity, code, packages, data, costs, status
    rows-*.jsonl   one line per image with a checksum; one writer per file, one `write` per line: the source of truth

A killed writer can leave one torn line at the end of its file; it is ignored. Nothing is ever repaired in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Attacked, Certificate, Evidence
from drbench.records import shape

SCHEMA = 1
# What reading a row of another shape may raise.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
LOCK_SECONDS = 5.0  # run.json is changed in milliseconds


@dataclass(frozen=True)
class Row:
    """What is known about one image.

    Parameters
    ----------
    id, label
        Image id in the full data set, and its class.
    evidence : Evidence, Attacked or None
        None if `error` says why there is none; such an image counts as not certified.
    certificate : Certificate or None
        A cache of `stats.decide`.
    seconds : float
        Wall time since the writer's previous row: the rows of a run sum to its duration.
    evaluations : dict
        Network name -> rows evaluated since the writer's previous row, counted by hooks.
    """

    id: int | str
    label: int
    evidence: Evidence | Attacked | None
    certificate: Certificate | None
    seconds: float
    evaluations: dict[str, int] = field(default_factory=dict)
    error: str | None = None

    @property
    def correct(self) -> bool:
        """Predicted the label; an abstention or an error did not."""
        return self.certificate is not None and self.certificate.prediction == self.label

    @property
    def radius(self) -> float:
        return self.certificate.radius if self.certificate else 0.0

    def to_json(self) -> dict:
        return {
            "schema": SCHEMA,
            "id": self.id,
            "label": self.label,
            "evidence": self.evidence and self.evidence.to_json(),
            "certificate": self.certificate and self.certificate.to_json(),
            "seconds": self.seconds,
            "evaluations": self.evaluations,
            "error": self.error,
        }

    @classmethod
    def from_json(cls, raw: dict) -> Row:
        if raw["schema"] != SCHEMA:
            raise DrbenchError(f"row of schema {raw['schema']}, this version reads {SCHEMA}")
        if not isinstance(raw["id"], int | str) or not isinstance(raw["label"], int):
            raise TypeError(f"expected an id and a label, got {raw['id']!r} and {raw['label']!r}")
        certificate = raw["certificate"]
        return cls(
            raw["id"],
            raw["label"],
            raw["evidence"] and (Attacked if "tried" in raw["evidence"] else Evidence).from_json(raw["evidence"]),
            certificate and Certificate(certificate["prediction"], certificate["radius"], certificate["detail"]),
            raw["seconds"],
            raw["evaluations"],
            raw["error"],
        )


# ---- lines --------------------------------------------------------------------------------------------------------


def encode(payload: dict) -> bytes:
    """One line of canonical JSON with its own CRC-32; NaN is refused."""
    text = json.dumps(payload, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def decode(line: bytes) -> dict:
    """The payload of a line; `ValueError` if it is torn or was changed."""
    head, separator, tail = line.rpartition(b',"crc":"')
    if not separator or not line.endswith(b'"}\n') or tail != f'{zlib.crc32(head + b"}"):08x}"}}\n'.encode():
        raise ValueError("checksum does not match")
    return json.loads((head + b"}").decode())  # of bytes, it would look for their encoding


class Writer:
    """Appends rows to a file of its own in a run folder.

    Without `fsync` a row is safe from the death of this process, not from that of the machine.
    """

    def __init__(self, folder: Path, fsync: bool = True):
        self._fsync = fsync
        self.path = folder / f"rows-{time.time_ns()}-{os.getpid()}.jsonl"
        self._file: int | None = None

    def write(self, row: Row) -> None:
        """One row, one `write`."""
        line = encode(row.to_json())
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
            written = os.write(self._file, line)
            if self._fsync:
                os.fsync(self._file)
        except OSError as error:
            raise DrbenchError(
                f"cannot write {self.path}: {error.strerror}; rows already written are safe, free the "
                "disk or choose another folder with --out and run the same command again"
            ) from error
        if written < len(line):
            raise DrbenchError(
                f"{self.path}: disk full after {written} of {len(line)} bytes of a row; rows already "
                "written are safe, free some space and run the same command again"
            )

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Tail:
    """Ids of the rows in a folder, as they come: each call reads only what was appended since the last one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[Path, int] = {}
        self._ids: set[int | str] = set()

    def ids(self) -> set[int | str]:
        for path in self.folder.glob("rows-*.jsonl"):
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # torn, or being written
                    self._read[path] = self._read.get(path, 0) + len(line)
                    with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: `read` reports it
                        self._ids.add(decode(line)["id"])
        return self._ids


# ---- folders ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run folder as read: header, one row per image id, and what is wrong with it."""

    folder: Path
    header: dict
    rows: dict[int | str, Row]
    problems: tuple[str, ...]
    memory: dict = field(default_factory=dict, init=False, repr=False, compare=False)  # what was computed from it

    @property
    def task(self) -> str:
        """ "certify" or "attack"."""
        return self.header.get("task", "certify")

    @property
    def wanted(self) -> list[int | str]:
        return self.header["data"]["ids"]

    @cached_property
    def complete(self) -> bool:
        return all(map(self.rows.__contains__, self.wanted))

    @property
    def marks(self) -> list[str]:
        """Why a table must not show this run without a mark; empty if nothing is to be said."""
        own = {"partial": not self.complete, "dirty": self.header["code"]["dirty"], "not finite": self._silent}
        return [mark for mark, given in own.items() if given]

    @cached_property
    def _silent(self) -> bool:
        """Whether a defense under attack gave no finite scores to some image: that counts as broken."""
        attacked = [row.evidence for row in self.rows.values() if isinstance(row.evidence, Attacked)]
        return any(ABSTAIN in each.votes for seen in attacked for each in (seen.clean, seen.adversarial))

    def ordered(self) -> Iterator[Row]:
        """Rows in the order of the subset."""
        return (self.rows[image_id] for image_id in self.wanted if image_id in self.rows)


def read(folder: str | Path) -> Run:
    """Read a run folder. A torn last line is reported in `problems`, as is every damaged line and contradiction."""
    folder = Path(folder)
    header = read_header(folder)
    rows: dict[int | str, Row] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("rows-*.jsonl")):
        for row in _rows_of(path, problems):
            kept = rows.setdefault(row.id, row)
            if kept.error and kept.label == row.label:
                rows[row.id] = row  # an image that failed was done again
            elif (kept.evidence, kept.label, kept.error) != (row.evidence, row.label, row.error):
                problems.append(
                    f"image {row.id}: two rows with different evidence (not deterministic); the first is kept"
                )
    return Run(folder, header, rows, tuple(problems))


def read_header(folder: Path) -> dict:
    """run.json."""
    try:
        header = json.loads((folder / "run.json").read_text())
        schema = header["schema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DrbenchError(f"{folder}: expected a run folder with a readable run.json: {error!r}") from error
    if schema != SCHEMA:
        raise DrbenchError(f"{folder}: run.json has schema {schema}, this version of drbench reads {SCHEMA}")
    try:
        shape.check(header)
    except DrbenchError as error:
        raise DrbenchError(f"{folder}: {error}") from error
    return header


def _rows_of(path: Path, problems: list[str]) -> Iterator[Row]:
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            yield Row.from_json(decode(line))
        except (*MALFORMED, DrbenchError) as error:
            torn = number == len(lines) and not line.endswith(b"\n")
            what = "torn last line, ignored (the writer was killed)" if torn else f"damaged line, ignored: {error}"
            problems.append(f"{path.name} line {number}: {what}")


def rate(folder: Path, writer: str) -> float:
    """Rows per second of the processes with this number, from their files alone."""
    found = 0.0
    for path in folder.glob(f"rows-*-{writer}.jsonl"):
        seconds = path.stat().st_mtime - int(path.stem.split("-")[1]) / 1e9
        found += path.read_bytes().count(b"\n") / seconds if seconds > 0 else 0.0
    return found


def find(paths: Iterable[str | Path]) -> list[Path]:
    """Run folders at or below the given paths, sorted."""
    found: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise DrbenchError(f"no such folder: {path}; `drbench run` prints the folder that it writes")
        found.update(
            header.parent
            for header in ([path / "run.json"] if (path / "run.json").exists() else path.rglob("run.json"))
        )
    if not found:
        raise DrbenchError(
            f"no run folders at or below {', '.join(map(str, paths))}; make one with `drbench run CONFIG`"
        )
    return sorted(found)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing run.json meanwhile. A lock that a killed one left is broken after a while."""
    lock = folder / "run.lock"
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            with contextlib.suppress(OSError):
                if time.time() - lock.stat().st_mtime > LOCK_SECONDS:
                    lock.unlink(missing_ok=True)
            time.sleep(0.02)
        except OSError as error:
            raise DrbenchError(f"cannot write to {folder}: {error.strerror}; choose a writable --out") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def write_header(folder: Path, header: dict) -> None:
    """Replace run.json atomically."""
    partial = folder / f"run.json.{os.getpid()}.partial"
    try:
        partial.write_text(json.dumps(header, indent=1, allow_nan=False) + "\n")
        os.replace(partial, folder / "run.json")
    except OSError as error:
        raise DrbenchError(f"cannot write {folder / 'run.json'}: {error.strerror}") from error


def evidence_sha256(run: Run) -> str:
    """Hash of ids, labels and evidence alone: equal for two runs that counted the same votes."""
    digest = hashlib.sha256()
    for row in sorted(run.rows.values(), key=lambda row: str(row.id)):
        payload = (row.id, row.label, row.evidence and row.evidence.to_json(), row.error)
        digest.update(json.dumps(payload, sort_keys=True).encode())
    return digest.hexdigest()
