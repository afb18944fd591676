"""The very scripts that run in the image, against a real daemon on the demo policy."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from scripts.dockerfile import exec_form
from tests.support.promql import ROOT

CONTAINER = ROOT / "deploy" / "container"
PATHS = os.pathsep.join(str(ROOT / folder) for folder in ("server", "engines", "configs"))


def _words(keyword: str) -> list[str]:
    """The image's command, with the files of this checkout and this interpreter."""
    words = [
        word.replace("/container/", f"{CONTAINER}/")
        for word in exec_form(ROOT / "Dockerfile", "server", keyword)
    ]
    return [sys.executable if word == "python" else word for word in words]


def _environment(arguments: str, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": PATHS, "SERVER_ARGS": arguments, **more}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _probe(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _words("HEALTHCHECK"), env=environment, capture_output=True, text=True, timeout=20, check=False
    )


def test_command_serves_server_args_and_turns_healthy_then_stops_cleanly(tmp_path: pathlib.Path) -> None:
    environment = _environment(
        f"--checkpoint demo --env LIBERO --port 0 --metrics-port={_free_port()} "
        "--default_prompt='take the toast out of the toaster'",
        http_proxy="http://127.0.0.1:9",
    )
    assert _probe(environment).returncode == 1
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(_words("CMD"), env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while (probe := _probe(environment)).returncode:
            assert daemon.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, probe.stdout
            time.sleep(0.3)
        assert probe.stdout == "OK\n"
        assert "ws://0.0.0.0:" in (tmp_path / "log").read_text()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(40) == 0
        assert "take the toast out of the toaster" in (tmp_path / "log").read_text()
    finally:
        daemon.kill()
        daemon.wait()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("--env LIBERO", ["--env", "LIBERO"]),
        ("--default_prompt='two words' --port 1", ["--default_prompt=two words", "--port", "1"]),
        (
            "$(touch made) `touch made` ; touch made",
            ["$(touch", "made)", "`touch", "made`", ";", "touch", "made"],
        ),
        ("", []),
    ],
)
def test_arguments_are_split_like_a_shell_and_never_executed(
    tmp_path: pathlib.Path, value: str, words: list[str]
) -> None:
    show = "import sys; print(sys.argv[1:])"
    result = subprocess.run(
        [sys.executable, CONTAINER / "entrypoint.py", "CLIENT_ARGS", sys.executable, "-c", show, "first"],
        env={**os.environ, "CLIENT_ARGS": value},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"{['first', *words]}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_open_quote_is_named() -> None:
    result = subprocess.run(
        [*_words("CMD")],
        env=_environment("--default-prompt='open"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "SERVER_ARGS cannot be split into arguments: No closing quotation\n"
