"""Writes requests and replies to disk, off the hot path, in openpi's `step_<n>.npy` form."""

from __future__ import annotations

import logging
import pathlib
import queue
import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from prometheus_client import Counter

logger = logging.getLogger("vlad.server")

QUEUE_LIMIT = 64


class Recorder:
    """Records on a thread with a bounded queue; what the disk cannot take is dropped and counted.

    Each file holds one flat dict, keys joined with slashes: `inputs/<request key>` and
    `outputs/<reply key>`; read it with `numpy.load(file, allow_pickle=True).item()`. Numbering goes
    on after the files that are already there.

    Args:
        directory: made where it does not exist.
        dropped: counts what was left out.
    """

    def __init__(self, directory: pathlib.Path, dropped: Counter) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._dropped = dropped
        self._queue: queue.Queue[tuple[Mapping[str, Any], Mapping[str, Any]] | None] = queue.Queue(
            QUEUE_LIMIT
        )
        self._next_step = 1 + max((_step(file) for file in directory.glob("step_*.npy")), default=-1)
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def record(self, observation: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
        """Queue one request and its reply; returns at once."""
        try:
            self._queue.put_nowait((observation, reply))
        except queue.Full:
            self._dropped.inc()

    def close(self) -> None:
        """Write what is queued, then stop."""
        self._queue.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        while (entry := self._queue.get()) is not None:
            observation, reply = entry
            flat = {**_flatten("inputs", observation), **_flatten("outputs", reply)}
            try:
                np.save(self._directory / f"step_{self._next_step}.npy", np.array(flat, dtype=object))
            except OSError as error:
                self._dropped.inc()
                logger.warning("cannot record to %s: %s", self._directory, error)
            else:
                self._next_step += 1


def _step(file: pathlib.Path) -> int:
    match = re.fullmatch(r"step_(\d+)\.npy", file.name)
    return int(match[1]) if match else -1


def _flatten(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}"
        flat.update(_flatten(path, value) if isinstance(value, Mapping) else {path: value})
    return flat
