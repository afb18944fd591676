"""The replay example, run as its users run it, against a server with openpi's manners."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.reference_server import ReferenceServer

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "libero_replay.py"
DEMO = {
    "environment": "LIBERO",
    "action_horizon": 10,
    "action_dim": 7,
    "backend": "pytorch",
    "checkpoint": "demo",
    "family": "pi05",
    "weights": "random",
}

Policy = Callable[[dict[str, Any]], Any]


def _policy(actions: np.ndarray[Any, Any]) -> Policy:
    return lambda observation: {"actions": actions, "policy_timing": {"infer_ms": 1.5}, "server_timing": {}}


def _replay(server: ReferenceServer, out: pathlib.Path, *python: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--host", "127.0.0.1", "--port", str(server.port), "--out", str(out)]
    return subprocess.run(
        [sys.executable, *(python or [str(EXAMPLE)]), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "clients")},
    )


def test_all_recorded_observations_are_sent_and_the_first_chunk_is_drawn(tmp_path: pathlib.Path) -> None:
    chunk = np.random.default_rng(0).normal(size=(10, 7))
    with ReferenceServer(_policy(chunk), metadata=DEMO) as server:
        done = _replay(server, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "28/28" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Timing statistics of 28 calls"
    assert lines[-3] == f"server: 127.0.0.1:{server.port}, LIBERO, pytorch"
    assert lines[-2] == "policy: demo (pi05), random weights: the actions mean nothing"
    assert (tmp_path / "out" / "first_chunk.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "out" / "latency.json").read_text())["calls"]) == 28

    with np.load(ROOT / "examples" / "data" / "libero_observations.npz") as recorded:
        assert [observation["prompt"] for observation in server.observations] == recorded["prompt"].tolist()
        for key in ("image", "wrist_image", "state"):
            sent = [observation[f"observation/{key}"] for observation in server.observations]
            np.testing.assert_array_equal(sent, recorded[key])


def test_a_server_that_says_nothing_about_itself_is_good_enough(tmp_path: pathlib.Path) -> None:
    with ReferenceServer(_policy(np.zeros((50, 7)))) as server:
        done = _replay(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "says nothing about itself" in done.stdout
    assert "does not say where its weights come from" in done.stdout


def _fail(observation: dict[str, Any]) -> Any:
    raise KeyError("observation/image")


@pytest.mark.parametrize(
    ("policy", "metadata", "complaint"),
    [
        (_policy(np.zeros((9, 7))), DEMO, "reply 1 has a chunk of shape (9, 7), expected (10, 7)"),
        (_policy(np.zeros((10, 8))), {}, "reply 1 has a chunk of shape (10, 8), expected (*, 7)"),
        (_policy(np.full((10, 7), np.nan)), DEMO, "reply 1 has actions that are not finite"),
        (lambda observation: {"state": 1}, DEMO, "reply 1 holds no action chunk, only state"),
        (_fail, DEMO, "the server answered: KeyError: 'observation/image'"),
        (
            _policy(np.zeros((10, 8))),
            {"environment": "DROID", "action_dim": 8},
            "the server serves DROID with 8 action columns",
        ),
    ],
)
def test_what_a_robot_could_not_use_ends_the_replay_with_one_line(
    policy: Policy, metadata: dict[str, Any], complaint: str, tmp_path: pathlib.Path
) -> None:
    with ReferenceServer(policy, metadata=metadata) as server:
        done = _replay(server, tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("libero_replay: ")
    assert complaint in last
    assert "Traceback" not in done.stderr


def test_without_matplotlib_the_replay_says_that_it_draws_nothing(tmp_path: pathlib.Path) -> None:
    hide = (
        "import runpy, sys; sys.modules['matplotlib.figure'] = None; "
        f"sys.path.insert(0, {str(EXAMPLE.parent)!r}); runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    )
    with ReferenceServer(_policy(np.zeros((10, 7))), metadata=DEMO) as server:
        done = _replay(server, tmp_path, "-c", hide)
    assert done.returncode == 0, done.stderr
    assert "pip install 'vlad-client[plot]'" in done.stdout
    assert not (tmp_path / "first_chunk.png").exists()
