"""Runs the daemon as its users do: a process of its own, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]

_LISTENING = re.compile(r"listening on wss?://[^ ]*:(\d+) \(policy\) and http://[^ ]*:(\d+)/metrics")


class Daemon:
    """A running daemon. `port` and `metrics_port` are known once it listens."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: pathlib.Path) -> None:
        self.process = process
        self._log_file = log_file
        self.port = 0
        self.metrics_port = 0

    def log(self) -> str:
        """What the daemon and its worker have written to stderr so far."""
        return self._log_file.read_text(errors="replace")

    def wait_for_log(self, pattern: str, timeout_s: float = 30.0) -> re.Match[str]:
        """Wait until `pattern` occurs in the log; fails with the log where it never does."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if match := re.search(pattern, self.log()):
                return match
            if self.process.poll() is not None:
                break
            time.sleep(0.005)
        if match := re.search(pattern, self.log()):
            return match
        raise AssertionError(f"{pattern!r} never came; exit code {self.process.poll()}; log:\n{self.log()}")

    def http(self, path: str, *, metrics: bool = False, method: str = "GET") -> tuple[int, str]:
        """Status and body of a plain HTTP request to the policy port, or to the metrics port."""
        port = self.metrics_port if metrics else self.port
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the policy is ready."""
        self.wait_for_log(r"ready after [\d.]+ s", timeout_s)

    def metric(self, name: str, **labels: str) -> float:
        """Present value of one sample of `/metrics`."""
        from prometheus_client.parser import text_string_to_metric_families

        _, text = self.http("/metrics", metrics=True)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        raise AssertionError(f"no sample {name} {labels}")

    def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM and wait; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def start_daemon(
    *args: str, module: str = "vlad_server.cli", env: Mapping[str, str] | None = None, listening: bool = True
) -> Iterator[Daemon]:
    """Start `serve_policy` with `args` on free ports; it is killed when the block ends.

    Args:
        module: what to run instead of the real command.
        env: variables to add to the environment.
        listening: wait until the ports are bound.
    """
    paths = [str(ROOT / folder) for folder in ("server", "engines", "configs", "clients", ".")]
    # Where the packages that vlad needs are not installed but brought along.
    paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})}
    with tempfile.TemporaryDirectory() as folder:
        log_file = pathlib.Path(folder) / "log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, "--port", "0", "--metrics-port", "0", *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=folder,
            )
        daemon = Daemon(process, log_file)
        try:
            if listening:
                match = daemon.wait_for_log(_LISTENING.pattern)
                daemon.port, daemon.metrics_port = int(match[1]), int(match[2])
            yield daemon
        finally:
            process.kill()
            process.wait()


def start_scripted_daemon(
    *args: str, environment: str = "LIBERO", listening: bool = True, **script: Any
) -> contextlib.AbstractContextManager[Daemon]:
    """The real daemon with a worker that follows `script`; see `scripted_worker.py`."""
    return start_daemon(
        "--env",
        environment,
        "--checkpoint",
        json.dumps(script),
        *args,
        module="tests.support.scripted_daemon",
        listening=listening,
    )
