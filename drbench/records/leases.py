"""Which images the processes that share a run folder are working on, so that none is done twice. No torch.

Each process lists what it has taken in a claim file of its own and keeps the file's time fresh; it removes the file at
its end. A file that was not refreshed for `LEASE` seconds, or whose process is known to be dead, counts for nothing.
Claims only save work: rows are keyed by image, so what is done twice is counted once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Hashable, Sequence
from pathlib import Path

LEASE = 60.0  # seconds; against the clock of the file system, so the clocks of machines need not agree


class Claims:
    """The claim file of this process in a run folder, and those of the others."""

    def __init__(self, folder: Path):
        self.path = folder / f"claims-{time.time_ns()}-{os.getpid()}.jsonl"
        self._ended = threading.Event()

    def __enter__(self) -> Claims:
        self._append({"host": _host(), "pid": os.getpid()})
        threading.Thread(target=self._refresh, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def take(self, ids: Sequence[Hashable], count: int) -> list[Hashable]:
        """Claim at most `count` of `ids`, the first ones that nobody has.

        Of two processes that claim the same image at the same moment the one with the older file keeps it.
        """
        others = set().union(*self._others().values())
        chosen = [each for each in ids if each not in others][:count]
        if chosen:
            self._append(chosen)
            older = set().union(*(taken for path, taken in self._others().items() if path < self.path))
            chosen = [each for each in chosen if each not in older]
        return chosen

    def _others(self) -> dict[Path, set]:
        return {path: taken for path, taken in living(self.path.parent).items() if path != self.path}

    def _append(self, line) -> None:
        with contextlib.suppress(OSError), open(self.path, "ab") as file:  # a full disk is the rows' business
            file.write(json.dumps(line).encode() + b"\n")

    def _refresh(self) -> None:
        while not self._ended.wait(LEASE / 6):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def living(folder: Path) -> dict[Path, set]:
    """Claim files of processes that are at work, with the ids that they have taken."""
    files = {path: entry for path in folder.glob("claims-*.jsonl") if (entry := _read(path))}
    latest = max((written for _, written, _ in files.values()), default=0.0)
    return {
        path: taken for path, (owner, written, taken) in files.items() if latest - written < LEASE and not _dead(owner)
    }


def sweep(folder: Path) -> None:
    """Remove claim files that count for nothing."""
    alive = living(folder)
    for path in folder.glob("claims-*.jsonl"):
        if path not in alive:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict, float, set] | None:
    """Owner, time of the last refresh, and ids; None if there is no telling. A torn last line claims nothing."""
    try:
        written = path.stat().st_mtime
        first, *lines = path.read_bytes().split(b"\n")[:-1]
        return json.loads(first), written, {each for line in lines for each in json.loads(line)}
    except (OSError, ValueError):
        return None


def _host() -> str:
    return hashlib.blake2b(platform.node().encode(), digest_size=6).hexdigest()


def _dead(owner: dict) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    if owner.get("host") != _host():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError):
        pass
    return False
