"""A daemon checks its backend before it becomes ready, and says what it found."""

from __future__ import annotations

import pathlib

from tests.support.daemon import start_daemon
from tests.support.robot import connect_robot


def test_a_checked_backend_shows_in_metadata_and_metrics(tmp_path: pathlib.Path) -> None:
    arguments = ("--checkpoint", "demo", "--device", "cpu", "--precision", "bf16", "--num-steps", "1")
    with start_daemon(*arguments, env={"VLAD_CACHE_DIR": str(tmp_path)}) as daemon:
        with connect_robot(daemon.port) as robot:
            fidelity = robot.metadata["fidelity"]
        daemon.wait_ready()
        assert "checking the fidelity" in daemon.log()
        assert fidelity["passed"]
        assert not fidelity["override"]
        assert 0.999 < fidelity["action_cosine"] < 1.0
        assert daemon.metric("vlad_fidelity_passed") == 1.0
        assert daemon.metric("vlad_fidelity_action_cosine") == fidelity["action_cosine"]
        assert daemon.metric("vlad_fidelity_action_error_p99") == fidelity["action_error_p99"]
