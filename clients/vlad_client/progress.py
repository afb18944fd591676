"""A progress line on stderr, so that a terminal shows that something happens."""

from __future__ import annotations

import sys
import time
from typing import Iterator, Sequence, TextIO, TypeVar

_WIDTH = 30

Item = TypeVar("Item")


def progress(items: Sequence[Item], label: str, stream: TextIO | None = None) -> Iterator[Item]:
    """Yield `items` and draw how far the loop is; a file instead of a terminal gets the last line only."""
    stream = sys.stderr if stream is None else stream
    started = time.monotonic()
    done = 0
    try:
        for item in items:
            if stream.isatty():
                stream.write("\r" + _line(label, done, len(items), started))
                stream.flush()
            yield item
            done += 1
    finally:
        stream.write("\r" * stream.isatty() + _line(label, done, len(items), started) + "\n")
        stream.flush()


def _line(label: str, done: int, total: int, started: float) -> str:
    filled = _WIDTH * done // total if total else _WIDTH
    rate = done / max(time.monotonic() - started, 1e-9)
    return f"{label} [{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total}, {rate:.1f}/s"
