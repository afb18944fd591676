"""The chunk runner and the daemon, each as it is; only the policy follows a script."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.clients.tcp_relay import TcpRelay
from tests.support.daemon import start_scripted_daemon
from tests.support.libero import libero_observation
from vlad_client import ChunkRunner, RealTimeConfig, RunRecorder, StreamingClient

HORIZON = 20
SCALE = 1000
GENEROUS_S = 60.0


class Arm:
    """Writes the number of the observation into the state: the script adds the row to it."""

    def __init__(self) -> None:
        self.observed = 0
        self.executed: list[tuple[int, int]] = []

    def observe(self) -> dict[str, Any]:
        self.observed += 1
        state = np.zeros(8)
        state[0] = SCALE * self.observed
        return {**libero_observation(), "observation/state": state, "prompt": "go"}

    def apply(self, action: Any) -> None:
        self.executed.append(divmod(round(float(action[0])), SCALE))


def _wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("observation_hz", [None, 30.0])
def test_each_index_is_executed_once_across_cuts_and_a_dying_worker(observation_hz: float | None) -> None:
    arm, recorder = Arm(), RunRecorder()
    config = RealTimeConfig(control_hz=100, observation_hz=observation_hz, request_timeout_s=10.0)
    with (
        start_scripted_daemon(infer_s=0.03, horizon=HORIZON, continues=True) as daemon,
        TcpRelay(daemon.port) as relay,
        StreamingClient("127.0.0.1", relay.port, connect_timeout_s=GENEROUS_S) as client,
        ChunkRunner(client, arm.observe, arm.apply, config, recorder=recorder) as runner,
    ):
        runner.start_episode()
        _wait_for(lambda: runner.status().actions >= 60)
        before_cut = runner.status()
        relay.cut()
        _wait_for(lambda: runner.status().losses and runner.status().continued > before_cut.continued + 2)
        os.kill(client.get_server_metadata()["pid"], signal.SIGKILL)
        _wait_for(lambda: runner.status().holds > before_cut.holds + 5)
        before_worker = runner.status().continued
        _wait_for(lambda: runner.status().continued > before_worker + 2)
        runner.end_episode()
        status = runner.status()
    assert status.real_time_chunking
    assert status.losses == 1
    record = recorder.record(100)
    anchors = {
        round(record.chunk(number)[0, 0]) // SCALE: anchor
        for number, anchor in enumerate(record.chunk_anchor)
    }
    kinds = record.step_kind[record.step_kind > 0]
    indices = [
        anchors[observation] + row
        for (observation, row), kind in zip(arm.executed, kinds, strict=True)
        if kind == 1
    ]
    assert indices == list(range(status.actions))
