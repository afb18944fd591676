"""Replays: the same policy gives the recorded chunks bit for bit, another one gives its own."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.support.daemon import start_daemon
from tests.support.libero import libero_observation
from tests.support.recordings import exchange, write_recording
from tests.support.robot import connect_robot
from vlad_configs.errors import ConfigError
from vlad_engines.replay.cli import Args, run
from vlad_server.recordings.comparison import compare
from vlad_server.recordings.run_file import load_run


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Of the demo policy: free, seeded, with its own noise, and continuing a chunk."""
    folder = tmp_path_factory.mktemp("recording")
    with start_daemon("--env", "LIBERO", "--checkpoint", "demo", "--record", str(folder)) as daemon:
        daemon.wait_ready(120)
        with connect_robot(daemon.port) as robot:
            noise = np.random.default_rng(0).standard_normal(robot.metadata["noise_shape"], dtype=np.float32)
            robot.infer(libero_observation(0))
            robot.infer({**libero_observation(1), "vlad/seed": 5})
            robot.infer({**libero_observation(2), "vlad/noise": noise})
            first = robot.infer({**libero_observation(3), "vlad/observation_id": 1})
            rtc = {"prev_chunk_id": first["chunk_id"], "executed": 2, "delay": 3}
            robot.infer({**libero_observation(4), "vlad/rtc": rtc})
        assert daemon.stop() == 0
    (path,) = folder.iterdir()
    return path


def test_the_same_policy_gives_the_same_chunks(
    recording: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Args(recording, checkpoint="demo", out=tmp_path / "again.npz"))
    assert "every action is the same, bit for bit" in capsys.readouterr().out
    comparison = compare(load_run(recording), load_run(tmp_path / "again.npz"))
    assert len(comparison.first.numbers) == 5


def test_another_precision_gives_other_chunks_nearby(recording: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run(Args(recording, checkpoint="demo", precision="bf16", limit=3, out=tmp_path / "bf16.npz"))
    comparison = compare(load_run(recording), load_run(tmp_path / "bf16.npz"))
    assert len(comparison.first.numbers) == 3
    assert comparison.difference.any()
    *arm, gripper = (row["max_over_span"] for row in comparison.per_joint())
    assert max(arm) < 0.1
    # Nearly a yes or no: where the policy hesitates, little makes much of a difference.
    assert gripper < 0.5
    assert comparison.second.name == "pytorch bf16 10 steps"


def test_a_recording_for_another_shape_of_noise_is_refused(tmp_path: pathlib.Path) -> None:
    (path,) = write_recording(tmp_path, [exchange(0)], policy={"noise_shape": [3, 3]})
    with pytest.raises(ConfigError, match="cannot start from the recorded noise"):
        run(Args(path, checkpoint="demo", out=tmp_path / "out.npz"))
