"""The robot examples, run as their users run them, against the daemon on the embedded policy."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.daemon import Daemon, start_daemon
from tests.support.reference_server import ReferenceServer
from vlad_client import RunRecord

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo_daemon() -> Iterator[Daemon]:
    with start_daemon("--env", "LIBERO", "--checkpoint", "demo") as daemon:
        daemon.wait_ready(120)
        yield daemon


def _run(example: str, port: int, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), "--port", str(port), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "clients")},
    )


def test_the_lockstep_robot_says_how_long_it_stood_still(demo_daemon: Daemon) -> None:
    done = _run("lockstep_robot.py", demo_daemon.port, "--seconds", "1.5")
    assert done.returncode == 0, done.stderr
    match = re.fullmatch(
        r"(\d+) actions in 1.5 s; stood still for (\d+) ms, longest step \d+ ms of 50 ms\n", done.stdout
    )
    assert match is not None, done.stdout
    assert int(match[1]) >= 5


@pytest.mark.parametrize("options", [[], ["--camera-hz", "15", "--image-encoding", "jpeg"]])
def test_the_streaming_robot_continues_its_chunks(
    demo_daemon: Daemon, options: list[str], tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out"
    done = _run(
        "streaming_robot.py",
        demo_daemon.port,
        "--seconds",
        "2",
        "--episodes",
        "2",
        "--out",
        str(out),
        *options,
    )
    assert done.returncode == 0, done.stderr
    assert (out / "run.png").read_bytes().startswith(b"\x89PNG")
    match = re.search(r"chunks: tied by the server; (\d+) of (\d+) continue the one before", done.stdout)
    assert match is not None, done.stdout
    assert int(match[1]) > 0
    record = RunRecord.load(out / "run.npz")
    first_of_second = int(np.flatnonzero(np.diff(record.step_index) < 0)[-1]) + 1
    for episode in (slice(0, first_of_second), slice(first_of_second, None)):
        indices = record.step_index[episode][record.step_kind[episode] == 1]
        assert indices.tolist() == list(range(len(indices)))
        assert len(indices) > 10


def test_the_streaming_robot_works_with_an_openpi_server(tmp_path: pathlib.Path) -> None:
    with ReferenceServer() as server:
        done = _run("streaming_robot.py", server.port, "--seconds", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "chunks: plain; 0 of" in done.stdout
    assert "the server offers no real-time chunking" in done.stderr
    sent = server.observations[0]
    assert set(sent) == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    assert all(sent[key].shape == (224, 224, 3) for key in sent if key.endswith("image"))


@pytest.mark.parametrize("example", ["lockstep_robot.py", "streaming_robot.py"])
def test_what_goes_wrong_is_told_in_one_line(example: str, tmp_path: pathlib.Path) -> None:
    with ReferenceServer() as server:
        done = _run(example, server.port, "--seconds", "1", "--image-encoding", "jpeg")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("takes no jpeg images, but plain arrays only")
    assert "Traceback" not in done.stderr
