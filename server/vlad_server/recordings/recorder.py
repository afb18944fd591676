"""The server's side of recording: a bounded queue and a thread that feeds the recorder's process."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import pathlib
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from vlad_configs.errors import ConfigError
from vlad_server.metrics import ServerMetrics
from vlad_server.recordings.exchange import pipe_parts

logger = logging.getLogger("vlad.server")

QUEUED_EXCHANGES = 256
QUEUED_BYTES = 64 << 20
"""Of requests and replies that wait for the disk; a request with two raw images has 0.3 MB."""

PIPE_BYTES = 1 << 20
"""Takes a request with two raw images at once; the most that Linux gives to everybody."""

CLOSE_S = 5.0
"""What the recorder gets to write what is queued when the daemon ends."""

PROCESS_COMMAND = (sys.executable, "-m", "vlad_server.recordings.process")


class Recorder:
    """Hands exchanges to a process that writes them; never waits for it.

    What does not fit the queue is dropped and counted. Where the disk is full or the process dies,
    recording stops with a warning, and whatever comes is counted as dropped; the daemon serves on.

    Args:
        directory: made where it does not exist.
        environment: whose requests come.
        file_bytes: size at which the next file begins.
        command: starts the process.

    Raises:
        ConfigError: where nothing could be recorded.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        environment: str,
        file_bytes: int,
        metrics: ServerMetrics,
        *,
        command: Sequence[str] = PROCESS_COMMAND,
    ) -> None:
        if importlib.util.find_spec("mcap") is None:
            raise ConfigError("--record needs the package mcap: pip install 'vlad[record]'")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(0, "no permission to write there")
        except OSError as error:
            raise ConfigError(f"cannot record to {directory}: {error.strerror}") from error
        self._directory = directory
        self._metrics = metrics
        self._queue: queue.SimpleQueue[list[bytes | bytearray | memoryview] | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._done_bytes = 0
        """Each of the two sums is written by one thread only; their difference is what is queued."""
        self._policy: Mapping[str, Any] | None = None
        self._is_stopped = False
        self._number = 0
        self._connections = 0
        self._process = subprocess.Popen(
            [*command, str(directory), environment, str(file_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        metrics.recorder_active.set(1)
        metrics.recorder_queued_bytes.set_function(lambda: self._queued_bytes - self._done_bytes)
        self._thread = threading.Thread(target=self._feed, name="recorder", daemon=True)
        self._thread.start()
        logger.info("recording requests and replies to %s", directory)

    def count_connection(self) -> int:
        """The number of one more connection, from 0."""
        self._connections += 1
        return self._connections - 1

    def record(
        self,
        header: Mapping[str, Any],
        request: bytes | bytearray | memoryview,
        reply: bytes,
        policy: Mapping[str, Any],
    ) -> None:
        """Queue one exchange; returns at once.

        Args:
            header: the fields of a `RecordedExchange` but for `number`, `request`, `reply` and `noise`.
            policy: the metadata of the policy that answered.
        """
        number = self._number
        self._number += 1
        waiting = self._queued_bytes - self._done_bytes
        size = len(request) + len(reply)
        if self._is_stopped or self._queue.qsize() >= QUEUED_EXCHANGES or waiting + size > QUEUED_BYTES:
            self._metrics.recorder_dropped.inc()
            return
        if policy is not self._policy:
            self._put(pipe_parts({"policy": dict(policy)}, b"", b""))
            self._policy = policy
        self._put(pipe_parts({"number": number, **header}, request, reply))

    def close(self) -> None:
        """Let the process write what is queued, and end it."""
        self._queue.put(None)
        self._thread.join(CLOSE_S)
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            logger.warning(
                "the recorder did not end in time; the last file in %s is cut off", self._directory
            )
            self._process.kill()
            self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _put(self, parts: list[bytes | bytearray | memoryview]) -> None:
        self._queued_bytes += sum(map(len, parts))
        self._queue.put(parts)

    def _feed(self) -> None:
        assert self._process.stdin is not None
        pipe = self._process.stdin.fileno()
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            while (parts := self._queue.get()) is not None:
                _write_all(pipe, parts)
                self._done_bytes += sum(map(len, parts))
        except OSError:
            self._stop()
        finally:
            self._process.stdin.close()
        if not self._is_stopped and self._process.wait() != 0:
            self._stop()
        self._metrics.recorder_active.set(0)

    def _stop(self) -> None:
        """The process is gone: nothing is recorded from here on."""
        self._is_stopped = True
        code = self._process.wait()
        assert self._process.stdout is not None
        said = self._process.stdout.read().decode(errors="replace").strip().rpartition("\n")[2]
        reason = said or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
        logger.warning("recording to %s has stopped: %s; requests are served on", self._directory, reason)
        self._metrics.recorder_stops.inc()
        while not self._queue.empty():
            if self._queue.get() is not None:
                self._metrics.recorder_dropped.inc()


def _write_all(pipe: int, parts: Sequence[bytes | bytearray | memoryview]) -> None:
    """Write buffers without joining them first; the interpreter is free while the pipe is full."""
    views = [memoryview(part) for part in parts if part]
    while views:
        written = os.writev(pipe, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
