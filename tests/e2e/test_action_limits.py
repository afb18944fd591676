"""Limits on actions, from the file on the command line to the robot."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from tests.support.daemon import start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot
from tests.support.scripted_worker import expected_chunk


def _limits(folder: pathlib.Path, **changes: Any) -> list[str]:
    file = folder / "limits.json"
    file.write_text(json.dumps({"environment": "LIBERO", "reaction": "clip", "high": [6] * 7, **changes}))
    return ["--action-limits", str(file)]


def test_a_clipped_chunk_says_so_to_those_who_read_warnings(tmp_path: pathlib.Path) -> None:
    observation = libero_observation()
    observation["observation/state"] = np.zeros(8)
    with start_scripted_daemon(*_limits(tmp_path)) as daemon, connect_robot(daemon.port) as robot:
        plain = robot.infer(observation)
        told = robot.infer({**observation, "vlad/observation_id": 1})
        chunk = expected_chunk(np.zeros(8), 7)
        np.testing.assert_array_equal(plain["actions"], np.minimum(chunk, 6))
        assert set(plain) == {"actions", "policy_timing", "server_timing"}
        assert told["warnings"] == [
            "the chunk breaks an action limit: action 6 of step 1 is 7, above 6; it was clipped"
        ]
        count = daemon.metric("vlad_action_limit_violations_total", limit="high")
        assert count == 2 * np.count_nonzero(chunk > 6)


def test_a_refused_chunk_never_reaches_the_robot(tmp_path: pathlib.Path) -> None:
    limits = _limits(tmp_path, reaction="refuse")
    with start_scripted_daemon(*limits) as daemon, connect_robot(daemon.port) as robot:
        reply = robot.infer({**libero_observation(), "vlad/observation_id": 1})
        assert reply["code"] == "engine"
        assert "above 6; it is not sent" in reply["error"]
        assert "actions" not in reply
        assert daemon.metric("vlad_requests_total", outcome="engine_error") == 1


def test_limits_of_another_robot_end_the_start_in_one_line(tmp_path: pathlib.Path) -> None:
    options = [*_limits(tmp_path), "--env", "DROID"]
    with start_scripted_daemon(*options, environment="DROID", listening=False) as daemon:
        assert daemon.process.wait(60) == 2
        assert "are for LIBERO, and --env is DROID" in daemon.log().splitlines()[-1]
