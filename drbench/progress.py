"""Progress of long work: a bar on a terminal, one line every 30 seconds elsewhere. Imports nothing heavy."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

LINE_EVERY = 30.0  # seconds, when the output is a file or a pipe
line = 0  # of the terminal: processes that run side by side have one each


class Progress:
    """Counts `total` items to standard error, with rate, ETA and a note such as the running certified accuracy."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0):
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self._first, self._start = done, time.monotonic()
        self._bar = None
        self._next_line = self._start + LINE_EVERY
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=title, unit=f" {unit}", dynamic_ncols=True, position=line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal's line."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, note: Callable[[], str]) -> None:
        """Count one more; `note` is asked only when something may be printed."""
        self.done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(note(), refresh=False)
            self._bar.update()
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            rate = (self.done - self._first) / (time.monotonic() - self._start)
            left = f"{(self.total - self.done) / rate:.0f} s left" if rate and self.done <= self.total else "?"
            print(
                f"{self.title}: {self.done}/{self.total} {self.unit}, {rate:.3g} {self.unit}/s, {left}, {note()}",
                file=sys.stderr,
                flush=True,
            )
