"""Several engine workers behind one port."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import re
import signal
import time

import numpy as np

from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot
from tests.support.scripted_worker import expected_chunk

DEVICES = ("--devices", "first,second")


def _worker_pids(daemon: Daemon) -> list[int]:
    return [int(match) for match in re.findall(r"engine worker \d started \(pid (\d+)\)", daemon.log())]


def _drive(daemon: Daemon, robots: int, seconds: float) -> list[int]:
    def drive(seed: int) -> int:
        observation = libero_observation(seed)
        chunk = expected_chunk(observation["observation/state"], 7)
        served = 0
        with connect_robot(daemon.port) as robot:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                reply = robot.infer({**observation, "vlad/observation_id": served})
                if "error" in reply:
                    assert reply["code"] == "worker_lost"
                    continue
                np.testing.assert_array_equal(reply["actions"], chunk)
                served += 1
        return served

    with concurrent.futures.ThreadPoolExecutor(robots) as pool:
        return list(pool.map(drive, range(robots)))


def _both_ready(daemon: Daemon) -> None:
    daemon.wait_ready()
    while daemon.metric("vlad_workers_ready") < 2:
        time.sleep(0.01)


def test_two_workers_serve_twice_as_many() -> None:
    served = collections.Counter[str]()
    for name, devices in (("one", ()), ("two", DEVICES)):
        with start_scripted_daemon(*devices, infer_s=0.05) as daemon:
            daemon.wait_ready()
            if name == "two":
                _both_ready(daemon)
            each = _drive(daemon, 6, 3.0)
            assert min(each) > 0.7 * max(each)
            served[name] = sum(each)
    assert served["two"] > 1.8 * served["one"]


def test_a_worker_that_dies_leaves_the_others_serving_and_comes_back() -> None:
    with start_scripted_daemon(*DEVICES, infer_s=0.02, start_s=0.3) as daemon:
        _both_ready(daemon)
        victim = _worker_pids(daemon)[0]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            driving = pool.submit(_drive, daemon, 4, 3.0)
            time.sleep(0.7)
            os.kill(victim, signal.SIGKILL)
            daemon.wait_for_log("engine worker 0 lost")
            assert daemon.http("/readyz") == (200, "OK\n")
            served = driving.result()
        assert min(served) > 20
        assert daemon.metric("vlad_requests_total", outcome="worker_lost") <= 1
        assert daemon.metric("vlad_workers_ready") == 2
        assert daemon.metric("vlad_worker_restarts_total") == 1


def test_a_request_that_lay_ready_for_a_dead_worker_is_served_by_another() -> None:
    with start_scripted_daemon(*DEVICES) as daemon:
        _both_ready(daemon)
        contexts = [connect_robot(daemon.port) for _ in range(4)]
        robots = [context.__enter__() for context in contexts]
        for number, robot in enumerate(robots):
            seconds = 1.0 if number < 2 else 0.0
            robot.send({**libero_observation(prompt=f"sleep {seconds}"), "vlad/observation_id": number})
            time.sleep(0.1)
        os.kill(_worker_pids(daemon)[0], signal.SIGKILL)
        codes = [robot.receive().get("code") for robot in robots]
        assert sorted(map(str, codes)) == ["None", "None", "None", "worker_lost"]
        for context in contexts:
            context.__exit__(None, None, None)


def test_a_worker_that_cannot_start_ends_the_daemon_with_its_reason() -> None:
    with start_scripted_daemon(*DEVICES, fail="no such device", listening=False) as daemon:
        assert daemon.process.wait(20) == 2
        assert "serve_policy: no such device" in daemon.log()


def test_a_device_that_cannot_start_leaves_the_others_serving() -> None:
    slow_to_fail = {"second": {"start_s": 1.0, "fail": "its actions are too far from the reference"}}
    with start_scripted_daemon(*DEVICES, infer_s=0.01, on=slow_to_fail) as daemon:
        daemon.wait_ready()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            driving = pool.submit(_drive, daemon, 3, 2.0)
            daemon.wait_for_log(r"engine worker 1 lost \(its actions are too far from the reference\)")
            assert min(driving.result()) > 20
        assert daemon.http("/readyz") == (200, "OK\n")
        assert daemon.metric("vlad_workers_ready") == 1
        assert daemon.process.poll() is None


def test_a_device_that_warms_up_longer_joins_the_others_unnoticed() -> None:
    batches = {"first": {"batch_sizes": [1, 2, 4, 8]}, "second": {"start_s": 3.0}}
    with start_scripted_daemon(*DEVICES, infer_s=0.02, on=batches) as daemon:
        daemon.wait_ready()
        assert daemon.metric("vlad_workers_ready") == 1
        served = _drive(daemon, 6, 5.0)
        assert min(served) > 20
        assert daemon.metric("vlad_workers_ready") == 2
        assert daemon.metric("vlad_requests_total", outcome="ok") == sum(served)
