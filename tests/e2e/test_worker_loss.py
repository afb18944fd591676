"""The engine worker may die at any time; robots stay connected and are served again."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from tests.support.daemon import start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import Robot, connect_robot
from tests.support.scripted_worker import expected_chunk


def _served(robot: Robot, seed: int = 0) -> bool:
    observation = libero_observation(seed)
    reply = robot.infer(observation)
    return np.array_equal(reply["actions"], expected_chunk(observation["observation/state"], 7))


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while os.path.exists(f"/proc/{pid}/mem") and _state(pid) not in "ZX":
        time.sleep(0.005)


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def test_an_idle_robot_notices_nothing_when_the_worker_is_killed() -> None:
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as robot:
        assert _served(robot)
        _kill(robot.metadata["pid"])
        assert _served(robot)
        assert daemon.metric("vlad_worker_restarts_total") == 1


def test_a_request_in_flight_is_answered_with_an_error_and_the_connection_lives() -> None:
    with (
        start_scripted_daemon() as daemon,
        connect_robot(daemon.port) as robot,
        connect_robot(daemon.port) as other,
    ):
        robot.send(libero_observation(prompt="die"))
        assert "worker died" in robot.receive_error()
        assert _served(robot)
        assert _served(other)
        assert daemon.metric("vlad_requests_total", outcome="worker_lost") == 1
        assert "Traceback" not in daemon.log()


def test_requests_that_waited_are_served_by_the_successor() -> None:
    with start_scripted_daemon(start_s=0.5) as daemon:
        daemon.wait_ready()
        with connect_robot(daemon.port) as killer, connect_robot(daemon.port) as robot:
            _kill(killer.metadata["pid"])
            daemon.wait_for_log("engine worker lost")
            status, text = daemon.http("/readyz")
            assert (status, text.split(":")[0]) == (503, "restarting")
            assert daemon.http("/livez")[0] == 200
            assert _served(robot)
            assert _served(killer)
            assert daemon.http("/readyz")[0] == 200


def test_a_robot_that_connects_during_the_restart_gets_metadata_of_the_successor() -> None:
    with start_scripted_daemon(start_s=0.5) as daemon:
        with connect_robot(daemon.port) as robot:
            old = robot.metadata["pid"]
        _kill(old)
        daemon.wait_for_log("engine worker lost")
        with connect_robot(daemon.port) as robot:
            assert robot.metadata["pid"] != old
            assert _served(robot)


def test_a_worker_that_cannot_start_ends_the_daemon_with_its_reason() -> None:
    with start_scripted_daemon(fail="the checkpoint is made of cheese", listening=False) as daemon:
        assert daemon.process.wait(20) == 2
        assert "serve_policy: the checkpoint is made of cheese" in daemon.log()
        assert "Traceback" not in daemon.log()


def test_a_reason_of_any_length_is_told() -> None:
    with start_scripted_daemon(fail="no such tensor: æ" * 100, fail_lines=2000, listening=False) as daemon:
        assert daemon.process.wait(20) == 2
        assert daemon.log().count("serve_policy: no such tensor: æ") == 1
        assert daemon.log().endswith("\n[... too long to show in full]\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_worker_never_outlives_the_server(number: signal.Signals) -> None:
    with start_scripted_daemon() as daemon:
        with connect_robot(daemon.port) as robot:
            pid = robot.metadata["pid"]
            robot.send(libero_observation(prompt="sleep 0.2"))
            robot.receive()
        daemon.process.send_signal(number)
        daemon.process.wait(20)
        end = time.monotonic() + 5
        while time.monotonic() < end and _state(pid) not in "ZX":
            time.sleep(0.01)
        assert _state(pid) in "ZX"


def test_a_worker_that_dies_again_and_again_while_starting_is_given_up() -> None:
    with start_scripted_daemon(die=True, listening=False) as daemon:
        assert daemon.process.wait(30) == 2
        assert "died 3 times while starting (killed by signal 9)" in daemon.log()
