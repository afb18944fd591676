"""Images over thin links."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.daemon import Daemon, start_daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot
from tests.support.scripted_worker import expected_chunk

IMAGES = ("observation/image", "observation/wrist_image")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_scripted_daemon() as daemon:
        daemon.wait_ready()
        yield daemon


def _compressed(observation: dict[str, Any], encoding: str, **options: Any) -> dict[str, Any]:
    result = dict(observation)
    for key in IMAGES:
        buffer = io.BytesIO()
        Image.fromarray(observation[key]).save(buffer, encoding, **options)
        result[key] = {"encoding": encoding, "data": buffer.getvalue()}
    return result


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
def test_compressed_images_change_nothing_else_of_a_reply(daemon: Daemon, encoding: str) -> None:
    observation = libero_observation()
    with connect_robot(daemon.port) as robot:
        reply = robot.infer(_compressed(observation, encoding))
        assert set(reply) == {"actions", "policy_timing", "server_timing"}
        np.testing.assert_array_equal(reply["actions"], expected_chunk(observation["observation/state"], 7))


def test_a_broken_image_is_named_and_costs_nobody_else_anything(daemon: Daemon) -> None:
    broken = {**libero_observation(), "observation/image": {"encoding": "jpeg", "data": b"\xff\xd8 no"}}
    with connect_robot(daemon.port) as bystander, connect_robot(daemon.port) as robot:
        robot.send(broken)
        text = robot.receive_error()
        assert text.startswith("invalid observation: key 'observation/image/data': expected a jpeg image")
        assert bystander.infer(libero_observation())["actions"].shape == (10, 7)
        failure = bystander.infer({**broken, "vlad/observation_id": 1})
        assert failure["code"] == "invalid"
        assert bystander.infer(libero_observation())["actions"].shape == (10, 7)


def test_the_daemon_answers_others_while_it_decodes(daemon: Daemon) -> None:
    noise = np.random.default_rng(0).integers(256, size=(3000, 3000, 3), dtype=np.uint8)
    large = _compressed({**libero_observation(), **dict.fromkeys(IMAGES, noise)}, "png", compress_level=1)
    with connect_robot(daemon.port) as photographer, connect_robot(daemon.port) as robot:
        photographer.send(large)
        latencies = []
        for _ in range(20):
            started = time.perf_counter()
            robot.infer(libero_observation())
            latencies.append(time.perf_counter() - started)
        assert photographer.receive()["actions"].shape == (10, 7)
        assert np.median(latencies) < 0.1


def test_a_stream_of_compressed_images_serves_the_newest(daemon: Daemon) -> None:
    observation = _compressed(libero_observation(), "jpeg", quality=90)
    with connect_robot(daemon.port) as robot:
        for number in range(30):
            robot.send({**observation, "vlad/stream": True, "vlad/observation_id": number})
        ended: list[int] = []
        served = []
        while not served or served[-1] != 29:
            reply = robot.receive()
            served.append(reply["observation_id"])
            ended += [reply["observation_id"], *reply["superseded"]]
        assert served == sorted(served)
        assert sorted(ended) == list(range(30))


def test_png_gives_the_very_actions_of_the_raw_image() -> None:
    observation = {**libero_observation(), "vlad/seed": 5}
    with (
        start_daemon("--checkpoint", "demo", "--num-steps", "1") as daemon,
        connect_robot(daemon.port) as robot,
    ):
        raw = robot.infer(observation)["actions"]
        png = robot.infer(_compressed(observation, "png"))["actions"]
        assert raw.tobytes() == png.tobytes()
