"""Two daemons behind nginx, and one of them dies: robots go on with the other one."""

from __future__ import annotations

import json
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.nginx import needs_nginx, start_nginx
from tests.support.robot import Robot, connect_robot
from vlad_client import ChunkRunner, RealTimeConfig, RunRecorder, StreamingClient

pytestmark = needs_nginx

GENEROUS_S = 60.0


def _wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def _kill(daemons: list[Daemon], worker: int) -> Daemon:
    """Kill the daemon whose worker has this pid, as a machine that loses power would; returns the other."""
    (victim,) = (daemon for daemon in daemons if f"(pid {worker})" in daemon.log())
    (other,) = (daemon for daemon in daemons if daemon is not victim)
    victim.process.send_signal(signal.SIGKILL)
    victim.process.wait()
    return other


def _ask(robot: Robot, **options: Any) -> Any:
    keys = {f"vlad/{name}": option for name, option in options.items()}
    return robot.infer({**libero_observation(), "vlad/session": "arm", **keys})


def test_a_session_goes_on_elsewhere_by_what_its_robot_carries(tmp_path: pathlib.Path) -> None:
    with start_scripted_daemon(continues=True) as one, start_scripted_daemon(continues=True) as two:
        for daemon in (one, two):
            daemon.wait_ready()
        with start_nginx(tmp_path, [one.port, two.port]) as port:
            with connect_robot(port) as robot:
                worker, chunk = robot.metadata["pid"], _ask(robot)
                continued = _ask(robot, rtc={"prev_chunk_id": chunk["chunk_id"], "executed": 3, "delay": 2})
                assert continued["rtc"]["mode"] == "guided_identity"
                other = _kill([one, two], worker)
            with connect_robot(port) as robot:
                assert robot.metadata["pid"] != worker
                # The other daemon does not know the chunk, and says so; the robot's copy is as good.
                by_id = _ask(robot, rtc={"prev_chunk_id": chunk["chunk_id"], "executed": 3, "delay": 2})
                assert by_id["rtc"]["mode"] == "off"
                assert "not kept" in by_id["rtc"]["note"]
                left = np.asarray(continued["actions"])[3:]
                carried = _ask(robot, rtc={"action_prefix": left, "delay": 2})
                assert (carried["rtc"]["mode"], carried["rtc"]["delay"]) == ("guided_identity", 2)
                leftover = json.loads(carried["rtc"]["note"])["leftover"]
                np.testing.assert_array_equal(leftover, left)
            assert other.metric("vlad_rtc_delay_steps_sum") == 2


def test_a_runner_continues_its_chunk_on_the_other_daemon(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    executed: list[float] = []
    config, recorder = RealTimeConfig(control_hz=50, request_timeout_s=10.0), RunRecorder()
    script: dict[str, Any] = {"continues": True, "infer_s": 0.02, "horizon": 100}
    with start_scripted_daemon(**script) as one, start_scripted_daemon(**script) as two:
        for daemon in (one, two):
            daemon.wait_ready()
        with (
            start_nginx(tmp_path, [one.port, two.port]) as port,
            StreamingClient("127.0.0.1", port, connect_timeout_s=GENEROUS_S) as client,
            ChunkRunner(
                client,
                lambda: {**libero_observation(), "prompt": "go"},
                lambda action: executed.append(float(action[0])),
                config,
                recorder=recorder,
            ) as runner,
        ):
            runner.start_episode()
            _wait_for(lambda: runner.status().continued >= 2)
            before = runner.status()
            other = _kill([one, two], client.get_server_metadata()["pid"])
            _wait_for(lambda: runner.status().losses and runner.status().continued >= before.continued + 2)
            runner.end_episode()
            after = runner.status()
        # Every chunk from the other daemon continues: the first one by the actions that the robot sent along.
        chunks = other.metric("vlad_requests_total", outcome="ok")
        assert chunks >= 2
        assert other.metric("vlad_rtc_delay_steps_count") == chunks
    assert after.holds == before.holds, "a hundred actions are enough to find another daemon"
    assert "not kept" not in caplog.text
