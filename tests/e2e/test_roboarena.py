"""RoboArena's clients on the same port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot
from tests.support.scripted_worker import expected_chunk

IMAGE = np.zeros((224, 224, 3), np.uint8)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_scripted_daemon(environment="DROID") as daemon:
        daemon.wait_ready()
        yield daemon


def _observation(endpoint: str = "infer") -> dict[str, Any]:
    """As RoboArena's own check of a policy server makes it."""
    return {
        "observation/wrist_image_left": IMAGE,
        "observation/exterior_image_0_left": IMAGE,
        "session_id": np.zeros(1, np.int32),
        "observation/joint_position": np.arange(7, dtype=np.float32),
        "observation/gripper_position": np.ones(1, np.float32),
        "prompt": "test",
        "endpoint": endpoint,
    }


def test_its_metadata_is_part_of_ours(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        assert robot.metadata["n_external_cameras"] in (0, 1, 2)
        assert robot.metadata["action_space"] in ("joint_position", "joint_velocity")
        assert robot.metadata["image_resolution"] == [224, 224]
        assert robot.metadata["needs_wrist_camera"] is True
        assert robot.metadata["needs_stereo_camera"] is robot.metadata["needs_session_id"] is False


def test_the_reply_is_the_array_alone(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        actions = robot.infer(_observation())
        np.testing.assert_array_equal(actions, expected_chunk(np.array([*range(7), 1.0]), 8))


def test_reset_is_answered_in_text_and_the_connection_goes_on(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        for request in ({"endpoint": "reset"}, _observation("reset")):
            robot.send(request)
            assert robot.receive_error() == "reset successful"
        assert robot.infer(_observation()).shape == (10, 8)


def test_an_unknown_endpoint_is_an_error(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        robot.send(_observation("explode"))
        assert robot.receive_error().startswith(
            "invalid observation: key 'endpoint': expected one of infer, reset"
        )


def test_both_dialects_may_share_a_connection(daemon: Daemon) -> None:
    observation = _observation()
    del observation["endpoint"]
    observation["observation/exterior_image_1_left"] = observation.pop("observation/exterior_image_0_left")
    with connect_robot(daemon.port) as robot:
        assert robot.infer(_observation()).shape == (10, 8)
        assert robot.infer(observation)["actions"].shape == (10, 8)


def test_robots_that_roboarena_does_not_have_keep_their_metadata() -> None:
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as robot:
        assert "action_space" not in robot.metadata
        assert robot.infer({**libero_observation(), "endpoint": "infer"}).shape == (10, 7)
