"""Measures the daemon as a robot sees it: a process of its own, and a websocket on this host."""

from __future__ import annotations

import contextlib
import inspect
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from vlad_configs.errors import EngineError
from vlad_engines.bench.row import STAGES, Samples

_LISTENING = re.compile(r"listening on ws://[^ ]*:(\d+) \(policy\)")
_START_TIMEOUT_S = 900.0
_REPLY_TIMEOUT_S = 60.0


@contextlib.contextmanager
def running_daemon(options: list[str]) -> Iterator[tuple[ClientConnection, float]]:
    """Start `serve_policy` on a free port and connect to it; it is stopped when the block ends.

    Args:
        options: of its command line, without ports.

    Yields:
        The connection, after the daemon became ready, and the seconds from starting the process to that.

    Raises:
        EngineError: where the daemon ends before it is ready, with the end of its log.
    """
    command = [sys.executable, "-m", "vlad_server.cli", "--port", "0", "--metrics-port", "0", *options]
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log"
        started = time.perf_counter()
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            port = _wait_for_port(process, log)
            # The daemon holds its first frame, the metadata, back until the policy is ready.
            with _connect(port) as connection:
                _wait_for_metadata(connection, log)
                yield connection, time.perf_counter() - started
        except Exception:
            if process.poll() is not None:
                print(f"the daemon ended with code {process.returncode}; its log ends:\n{_end_of(log)}")  # noqa: T201
            raise
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def measure_loopback(
    connection: ClientConnection, observation: Mapping[str, Any], *, warm_up: int, repetitions: int
) -> Samples:
    """Send the same request again and again, each after the reply to the one before.

    The wall time is that of the client: encoding, both ways over the socket, decoding. The stages are
    those that the daemon reports in each reply.

    Raises:
        EngineError: where the daemon answers with an error.
    """
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
    wall: list[float] = []
    begin = 0.0
    for repetition in range(-warm_up, repetitions):
        if repetition == 0:
            begin = time.perf_counter()
        started = time.perf_counter()
        connection.send(pack(observation))
        reply = unpack(connection.recv(_REPLY_TIMEOUT_S))
        seconds = time.perf_counter() - started
        if repetition >= 0:
            wall.append(seconds)
            for stage, values in stages.items():
                values.append(reply["policy_timing"][f"{stage}_ms"] / 1e3)
    return Samples(stages, wall, time.perf_counter() - begin, repetitions)


def pack(value: Any) -> bytes:
    """Encode in openpi's wire format, as its client does."""

    def default(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": item.tobytes(),
                b"dtype": item.dtype.str,
                b"shape": item.shape,
            }
        raise TypeError(f"cannot send {type(item).__name__}")

    packed: bytes = msgpack.packb(value, default=default)
    return packed


def unpack(message: str | bytes) -> Any:
    """Decode a reply.

    Raises:
        EngineError: for a text frame, which is how the daemon reports an error.
    """
    if isinstance(message, str):
        raise EngineError(f"the daemon answered: {message.strip().splitlines()[-1]}")

    def object_hook(item: dict[Any, Any]) -> Any:
        if b"__ndarray__" in item:
            return np.ndarray(item[b"shape"], np.dtype(item[b"dtype"]), item[b"data"])
        return item

    return msgpack.unpackb(message, object_hook=object_hook)


def _connect(port: int) -> ClientConnection:
    address = f"ws://127.0.0.1:{port}"
    options: dict[str, Any] = {"compression": None, "max_size": None, "proxy": None, "ping_interval": None}
    # websockets 17.1 and newer warn of connect() outside a with-block unless told; 16 knows no such option.
    if "legacy" in inspect.signature(connect).parameters:
        options["legacy"] = True
    connection: ClientConnection = connect(address, **options)
    return connection


def _wait_for_port(process: subprocess.Popen[bytes], log: pathlib.Path) -> int:
    end = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        if match := _LISTENING.search(log.read_text(errors="replace")):
            return int(match[1])
        time.sleep(0.005)
    raise EngineError(_never_ready(log))


def _wait_for_metadata(connection: ClientConnection, log: pathlib.Path) -> None:
    try:
        unpack(connection.recv(_START_TIMEOUT_S))
    except (OSError, TimeoutError, ConnectionClosed) as error:
        raise EngineError(_never_ready(log)) from error


def _never_ready(log: pathlib.Path) -> str:
    return f"the daemon did not become ready; its log ends:\n{_end_of(log)}"


def _end_of(log: pathlib.Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
