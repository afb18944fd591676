"""The measuring robot, as benchmarks start it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np

from tests.support.daemon import start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.reference_server import ReferenceServer
from vlad_client import msgpack_numpy


def run_robot(port: int) -> dict[str, Any]:
    robot = subprocess.run(
        [sys.executable, "-m", "vlad_client.lock_step", str(port), "2", "3"],
        input=msgpack_numpy.packb(libero_observation()),
        capture_output=True,
        check=True,
    )
    measured: dict[str, Any] = json.loads(robot.stdout)
    return measured


def test_each_request_is_measured_but_for_the_warm_up() -> None:
    with start_scripted_daemon(infer_s=0.005) as daemon:
        measured = run_robot(daemon.port)
    assert len(measured["wall"]) == len(measured["timing"]) == len(measured["server_timing"]) == 3
    for wall, timing, server_timing in zip(
        measured["wall"], measured["timing"], measured["server_timing"], strict=True
    ):
        assert 5.0 <= timing["infer_ms"] <= server_timing["infer_ms"] < server_timing["total_ms"] < 1e3 * wall
    assert sum(measured["wall"]) <= measured["elapsed"]


def test_a_server_without_times_of_its_own_is_measured_too() -> None:
    def policy(observation: dict[str, Any]) -> dict[str, Any]:
        return {"actions": np.zeros((10, 7)), "policy_timing": {"infer_ms": 1.5}}

    with ReferenceServer(policy) as server:
        measured = run_robot(server.port)
    assert measured["timing"] == [{"infer_ms": 1.5}] * 3
    assert measured["server_timing"] == [{}] * 3
    assert len(measured["wall"]) == 3
