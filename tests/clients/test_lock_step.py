"""The measuring robot, as benchmarks start it."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.daemon import start_scripted_daemon
from tests.support.libero import libero_observation
from vlad_client import msgpack_numpy


def test_each_request_is_measured_but_for_the_warm_up() -> None:
    with start_scripted_daemon(infer_s=0.005) as daemon:
        robot = subprocess.run(
            [sys.executable, "-m", "vlad_client.lock_step", str(daemon.port), "2", "3"],
            input=msgpack_numpy.packb(libero_observation()),
            capture_output=True,
            check=True,
        )
    measured = json.loads(robot.stdout)
    assert len(measured["wall"]) == len(measured["timing"]) == 3
    for wall, timing in zip(measured["wall"], measured["timing"], strict=True):
        assert 5.0 <= timing["infer_ms"] < 1e3 * wall
    assert sum(measured["wall"]) <= measured["elapsed"]
