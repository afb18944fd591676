"""Several requests in one computation: faster, and nobody can tell from the chunk."""

from __future__ import annotations

import concurrent.futures
import time
from typing import Any

import numpy as np
import pytest

from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot
from tests.support.scripted_worker import expected_chunk

SIZES = [1, 2, 4, 8]


def _served(daemon: Daemon, robots: int, seconds: float) -> list[int]:
    def drive(seed: int) -> int:
        observation = libero_observation(seed)
        chunk = expected_chunk(observation["observation/state"], 7)
        served = 0
        with connect_robot(daemon.port) as robot:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                np.testing.assert_array_equal(robot.infer(observation)["actions"], chunk)
                served += 1
        return served

    with concurrent.futures.ThreadPoolExecutor(robots) as pool:
        return list(pool.map(drive, range(robots)))


def test_many_robots_are_served_together_where_that_is_faster() -> None:
    with start_scripted_daemon(infer_s=0.05, batch_s=0.002, batch_sizes=SIZES) as daemon:
        daemon.wait_ready()
        served = _served(daemon, 8, 3.0)
    # One by one there would be 60.
    assert sum(served) > 120
    assert min(served) > 0.7 * max(served)


def test_they_are_served_one_by_one_where_that_is_faster() -> None:
    with start_scripted_daemon(infer_s=0.01, batch_s=0.2, batch_sizes=[1, 4]) as daemon:
        daemon.wait_ready()
        served = _served(daemon, 4, 3.0)
    # In batches of four there would be 20.
    assert sum(served) > 100


def _at_once(daemon: Daemon, observations: list[dict[str, Any]]) -> list[Any]:
    """What a worker answers to observations that all wait when it becomes free."""
    contexts = [connect_robot(daemon.port) for _ in range(len(observations) + 1)]
    first, *robots = [context.__enter__() for context in contexts]
    first.send(libero_observation(prompt="sleep 0.4"))
    time.sleep(0.1)
    for number, (robot, observation) in enumerate(zip(robots, observations, strict=True)):
        robot.send({**observation, "vlad/observation_id": number})
        time.sleep(0.02)
    replies = [robot.receive() for robot in robots]
    first.receive()
    for context in contexts:
        context.__exit__(None, None, None)
    return replies


@pytest.mark.parametrize("overlap", [{}, {"overlap_s": 0.02}])
def test_a_bad_request_fails_alone(overlap: dict[str, float]) -> None:
    prompts = ["do it", "raise", "do it", "refuse"]
    observations = [libero_observation(seed, prompt=prompt) for seed, prompt in enumerate(prompts)]
    with start_scripted_daemon(batch_sizes=[1, 4], **overlap) as daemon:
        daemon.wait_ready()
        replies = _at_once(daemon, observations)
    assert [reply.get("code") for reply in replies] == [None, "engine", None, "invalid"]
    for number in (0, 2):
        chunk = expected_chunk(observations[number]["observation/state"], 7)
        np.testing.assert_array_equal(replies[number]["actions"], chunk)


def test_a_worker_that_dies_over_a_batch_fails_all_of_it_and_nobody_else() -> None:
    observations = [libero_observation(seed, prompt="die" if seed == 0 else "x") for seed in range(5)]
    with start_scripted_daemon(batch_sizes=[1, 4]) as daemon:
        daemon.wait_ready()
        replies = _at_once(daemon, observations)
    assert [reply.get("code") for reply in replies] == ["worker_lost"] * 4 + [None]
