"""A policy that computes one request beside the other: faster, and nobody can tell from the chunk."""

from __future__ import annotations

import concurrent.futures
import time

import numpy as np

from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot
from tests.support.scripted_worker import expected_chunk


def _served(daemon: Daemon, robots: int, seconds: float) -> int:
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
        return sum(pool.map(drive, range(robots)))


def test_two_requests_are_computed_side_by_side() -> None:
    with start_scripted_daemon(overlap_s=0.05, infer_s=0.05) as daemon:
        daemon.wait_ready()
        # One after the other there would be 30 in three seconds, side by side 60.
        assert _served(daemon, 4, 3.0) > 45


def test_batches_are_computed_side_by_side_too() -> None:
    # Vision and prefix take 20 ms for each request of a batch, denoising 50 ms for all of them together.
    with start_scripted_daemon(overlap_s=0.02, infer_s=0.05, batch_sizes=[1, 2, 4]) as daemon:
        daemon.wait_ready()
        # In three seconds there would be 60 one beside the other, 92 in batches of four one after the other.
        assert _served(daemon, 12, 3.0) > 105


def test_they_are_computed_alone_where_batches_bring_less() -> None:
    with start_scripted_daemon(overlap_s=0.01, infer_s=0.01, batch_s=0.2, batch_sizes=[1, 4]) as daemon:
        daemon.wait_ready()
        # In batches of four there would be 20.
        assert _served(daemon, 4, 3.0) > 100


def test_failures_of_either_half_reach_their_own_robot() -> None:
    with (
        start_scripted_daemon(overlap_s=0.01) as daemon,
        connect_robot(daemon.port) as robot,
        connect_robot(daemon.port) as bystander,
    ):
        for number, (prompt, code) in enumerate(
            [("refuse", "invalid"), ("raise", "engine"), ("bug", "engine"), ("die", "worker_lost")]
        ):
            failure = robot.infer({**libero_observation(prompt=prompt), "vlad/observation_id": number})
            assert (failure["code"], failure["observation_id"]) == (code, number)
            assert bystander.infer(libero_observation())["actions"].shape == (10, 7)


def test_a_vanished_client_costs_no_computation_that_has_not_begun() -> None:
    with start_scripted_daemon(overlap_s=0.3, infer_s=0.3) as daemon, connect_robot(daemon.port) as robot:
        robot.send(libero_observation())
        time.sleep(0.1)
        with connect_robot(daemon.port) as quitter:
            quitter.send(libero_observation())
            time.sleep(0.05)
            quitter.connection.close_socket()
        robot.receive()
        started = time.monotonic()
        robot.infer(libero_observation())
        assert time.monotonic() - started < 0.85
