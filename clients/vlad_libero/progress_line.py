"""A progress line on stderr for work that ends in any order."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

_WIDTH = 30
# Where the output is a file, a line this often shows that something happens.
_FILE_INTERVAL_S = 30.0


class ProgressLine:
    """Draws how much is done; a file instead of a terminal gets a line now and then."""

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self._label, self._total = label, total
        self._stream = sys.stderr if stream is None else stream
        self._done, self._note = 0, ""
        self._shown = -1  # What the last line in a file said.
        self._started = self._written = time.monotonic()

    def advance(self, note: str = "") -> None:
        """One more is done; `note` stands behind the numbers."""
        self._done, self._note = self._done + 1, note
        now = time.monotonic()
        if self._stream.isatty():
            self._stream.write("\r" + self._line(now))
            self._stream.flush()
        elif now - self._written >= _FILE_INTERVAL_S:
            self._written, self._shown = now, self._done
            self._stream.write(self._line(now) + "\n")
            self._stream.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._stream.isatty() and self._shown == self._done:
            return
        start = "\r" if self._stream.isatty() else ""
        self._stream.write(start + self._line(time.monotonic()) + "\n")
        self._stream.flush()

    def _line(self, now: float) -> str:
        share = self._done / self._total if self._total else 1.0
        filled = int(_WIDTH * share)
        elapsed = now - self._started
        left = f", {elapsed / self._done * (self._total - self._done):.0f} s left" if self._done else ""
        note = f", {self._note}" if self._note else ""
        bar = "#" * filled + "." * (_WIDTH - filled)
        return f"{self._label} [{bar}] {self._done}/{self._total}, {elapsed:.0f} s{left}{note}"
