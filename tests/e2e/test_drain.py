"""SIGTERM: what is in flight is answered, then everybody is sent away."""

from __future__ import annotations

import signal
import socket
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.daemon import start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot, open_connection
from tests.support.scripted_worker import expected_chunk


def test_a_request_in_flight_is_answered_before_1001() -> None:
    observation = libero_observation(prompt="sleep 1")
    with start_scripted_daemon() as daemon:
        with connect_robot(daemon.port) as robot, connect_robot(daemon.port) as idle:
            robot.send(observation)
            time.sleep(0.2)
            daemon.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as caught:
                idle.receive()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1001
            status, text = daemon.http("/readyz")
            assert (status, text.split(":")[0]) == (503, "draining")
            assert daemon.http("/livez", metrics=True)[0] == 200
            np.testing.assert_array_equal(
                robot.receive()["actions"], expected_chunk(observation["observation/state"], 7)
            )
            with pytest.raises(ConnectionClosed) as caught:
                robot.receive()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1001
        assert daemon.process.wait(10) == 0
        for port in (daemon.port, daemon.metrics_port):
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_waiting_requests_are_answered_too() -> None:
    with start_scripted_daemon() as daemon:
        daemon.wait_ready()
        robots = [connect_robot(daemon.port) for _ in range(5)]
        opened = [robot.__enter__() for robot in robots]
        for robot in opened:
            robot.send(libero_observation(prompt="sleep 0.3"))
        time.sleep(0.1)
        daemon.process.send_signal(signal.SIGTERM)
        for robot in opened:
            assert robot.receive()["actions"].shape == (10, 7)
        for robot_context in robots:
            robot_context.__exit__(None, None, None)
        assert daemon.process.wait(10) == 0


def test_nobody_may_connect_while_it_drains() -> None:
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as robot:
        robot.send(libero_observation(prompt="sleep 1"))
        time.sleep(0.2)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for_log("draining")
        with pytest.raises(Exception, match="503"):
            connect_robot(daemon.port).__enter__()
        robot.receive()


def test_a_second_signal_ends_it_at_once() -> None:
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as robot:
        robot.send(libero_observation(prompt="sleep 30"))
        time.sleep(0.2)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for_log("draining")
        started = time.monotonic()
        assert daemon.stop() == 1
        assert time.monotonic() - started < 3


def test_the_drain_limit_is_kept() -> None:
    with start_scripted_daemon("--drain-seconds", "0.5") as daemon, connect_robot(daemon.port) as robot:
        robot.send(libero_observation(prompt="sleep 30"))
        time.sleep(0.2)
        started = time.monotonic()
        assert daemon.stop() == 1
        assert time.monotonic() - started < 3.5


def test_it_stops_while_the_worker_still_loads() -> None:
    with start_scripted_daemon(start_s=60) as daemon:
        daemon.wait_for_log("engine worker: reading")
        started = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - started < 3


def test_who_is_cut_off_is_told_why() -> None:
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as robot:
        robot.send(libero_observation(prompt="sleep 30"))
        time.sleep(0.2)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for_log("draining")
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as caught:
            robot.receive()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "server is going away")
        assert daemon.process.wait(10) == 1
        assert "cutting 1 connections with code 1001" in daemon.log()


def test_robots_that_wait_for_a_policy_that_never_loads_are_told_why() -> None:
    script = {"start_s": 1.0, "fail": "the weights are gone"}
    with start_scripted_daemon(**script) as daemon, open_connection(daemon.port) as connection:
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(20)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1011
        assert caught.value.rcvd.reason == "the server failed; its log says why"
        assert daemon.process.wait(10) == 2
        assert "serve_policy: the weights are gone" in daemon.log()
