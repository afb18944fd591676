"""The doctor at work in the daemon: clients that ask are told, everybody is counted."""

from __future__ import annotations

import numpy as np

from tests.support.daemon import start_daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot
from vlad_server.doctor.doctor import SAMPLED


def test_who_asks_is_told_and_everybody_is_counted() -> None:
    black = {**libero_observation(), "observation/image": np.zeros((224, 224, 3), np.uint8)}
    with start_scripted_daemon() as daemon:
        with connect_robot(daemon.port) as robot:
            assert robot.metadata["vlad"]["doctor"] is True
            reply = robot.infer({**black, "vlad/doctor": True})
            (warning,) = reply["observation_warnings"]
            assert (warning["kind"], warning["key"]) == ("image_black", "observation/image")
            assert robot.infer({**libero_observation(1), "vlad/doctor": True})["observation_warnings"] == []
        with connect_robot(daemon.port) as robot:
            for _ in range(SAMPLED + 1):
                assert set(robot.infer(black)) == {"actions", "policy_timing", "server_timing"}
        assert daemon.metric("vlad_observation_warnings_total", kind="image_black") == 3
        assert daemon.metric("vlad_observation_warnings_total", kind="image_flat") == 0
        assert daemon.metric("vlad_observations_examined_total") == 4
        assert daemon.log().count("observation/image: the picture is black") == 2


def test_the_policy_tells_of_its_statistics_and_tokens() -> None:
    odd = libero_observation(prompt="put it there " * 200)
    odd["observation/state"] = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1e3])
    with start_daemon("--env", "LIBERO", "--checkpoint", "demo") as daemon:
        daemon.wait_ready(120)
        with connect_robot(daemon.port) as robot:
            warnings = robot.infer({**odd, "vlad/doctor": True})["observation_warnings"]
        found = {(warning["kind"], warning["key"]) for warning in warnings}
        assert {("prompt_cut", "prompt"), ("state_out_of_range", "observation/state[7]")} <= found
        assert daemon.metric("vlad_observation_warnings_total", kind="prompt_cut") == 1
