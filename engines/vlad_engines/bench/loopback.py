"""Measures the daemon as a robot sees it: processes of their own, with a websocket on this host between."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
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

from vlad_configs.errors import ConfigError, EngineError
from vlad_engines.bench.request_path import split
from vlad_engines.bench.row import STAGES, Samples

_LISTENING = re.compile(r"listening on ws://[^ ]*:(\d+) \(policy\)")
_START_TIMEOUT_S = 900.0


@contextlib.contextmanager
def running_daemon(options: list[str]) -> Iterator[tuple[int, float]]:
    """Start `serve_policy` on a free port and wait until it is ready; it is stopped when the block ends.

    Args:
        options: of its command line, without ports.

    Yields:
        Its port, and the seconds from starting the process to being ready.

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
            yield port, time.perf_counter() - started
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


def measure_loopback(port: int, observation: Mapping[str, Any], *, warm_up: int, repetitions: int) -> Samples:
    """Have a robot send the same request again and again, each after the reply to the one before.

    The wall time is that of the robot: encoding, both ways over the socket, decoding. The stages, and
    most parts of the path, are what the daemon reports in each reply.

    Raises:
        ConfigError: without the package vlad-client.
        EngineError: where the daemon answers with an error.
    """
    if importlib.util.find_spec("vlad_client") is None:
        raise ConfigError("--mode loopback measures with the robot's client: pip install vlad-client")
    counts = [str(count) for count in (port, warm_up, repetitions)]
    command = [sys.executable, "-m", "vlad_client.lock_step", *counts]
    robot = subprocess.run(command, input=_pack(observation), capture_output=True)
    if robot.returncode:
        lines = robot.stderr.decode(errors="replace").strip().splitlines()
        raise EngineError(f"the robot got no answer: {lines[-1] if lines else robot.returncode}")
    measured = json.loads(robot.stdout)
    stages = {stage: [1e-3 * timing[f"{stage}_ms"] for timing in measured["timing"]] for stage in STAGES}
    path = split(measured["wall"], measured["timing"], measured["server_timing"])
    return Samples(stages, measured["wall"], measured["elapsed"], repetitions, path)


def _pack(observation: Mapping[str, Any]) -> bytes:
    """Encode in openpi's wire format."""

    def default(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": item.tobytes(),
                b"dtype": item.dtype.str,
                b"shape": item.shape,
            }
        raise TypeError(f"cannot send {type(item).__name__}")

    packed: bytes = msgpack.packb(observation, default=default)
    return packed


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
        connection.recv(_START_TIMEOUT_S)
    except (OSError, TimeoutError, ConnectionClosed) as error:
        raise EngineError(_never_ready(log)) from error


def _never_ready(log: pathlib.Path) -> str:
    return f"the daemon did not become ready; its log ends:\n{_end_of(log)}"


def _end_of(log: pathlib.Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
