"""Logging of the daemon: lines for people, written off the event loop."""

from __future__ import annotations

import atexit
import logging
import logging.handlers
import queue
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(level: int = logging.INFO) -> None:
    """Send the log to stderr through a thread, so that a full pipe never stops the event loop."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter(FORMAT))
    listener = logging.handlers.QueueListener(records, stream)
    listener.start()
    atexit.register(listener.stop)
    queued = logging.handlers.QueueHandler(records)
    # basicConfig would give it a formatter of its own, whose prefix would then stand in every line.
    queued.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[queued], force=True)
