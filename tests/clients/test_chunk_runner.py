"""Both chunk runners over real sockets: each test runs with threads and with asyncio."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.clients.blocking_asyncio import BlockingAsyncClient, BlockingAsyncRunner
from tests.clients.streaming_server import CAPABILITIES, RefusedError, StreamingServer, numbered_rows
from tests.support.reference_server import ReferenceServer
from vlad_client import (
    ChunkRunner,
    PolicyConnectionError,
    PolicyServerError,
    RealTimeConfig,
    RtcOptions,
    RunRecorder,
    StreamingClient,
)

GENEROUS_S = 20.0
FAST = RealTimeConfig(control_hz=200, request_timeout_s=1.0)


class Arm:
    """Numbers its observations and writes down what it executes: pairs of observation and row."""

    def __init__(self) -> None:
        self.observed = 0
        self.executed: list[tuple[int, int]] = []
        self.times: list[float] = []

    def observe(self) -> dict[str, Any]:
        self.observed += 1
        return {"observation/state": np.full(8, float(self.observed))}

    def apply(self, action: Any) -> None:
        self.executed.append((int(action[0]), int(action[1])))
        self.times.append(time.monotonic())

    def wait_for(self, steps: int) -> None:
        _wait_for(lambda: len(self.executed) >= steps)


def _wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture(params=["threads", "asyncio"])
def run(request: pytest.FixtureRequest) -> Any:
    make_client: Any = StreamingClient if request.param == "threads" else BlockingAsyncClient
    make_runner: Any = ChunkRunner if request.param == "threads" else BlockingAsyncRunner

    @contextlib.contextmanager
    def run(port: int, arm: Any, config: RealTimeConfig = FAST, **options: Any) -> Iterator[Any]:
        with (
            make_client("127.0.0.1", port, connect_timeout_s=GENEROUS_S) as client,
            make_runner(client, arm.observe, arm.apply, config, **options) as runner,
        ):
            yield runner

    return run


def _check_exactly_once(arm: Arm, recorder: RunRecorder, hz: float) -> int:
    """Every index once, in order, from the row that was computed for it; returns how many there were."""
    record = recorder.record(hz)
    anchors = {int(record.chunk(number)[0, 0]): anchor for number, anchor in enumerate(record.chunk_anchor)}
    executed = [pair for pair, kind in zip(arm.executed, _kinds(record), strict=True) if kind == "action"]
    indices = [anchors[observation] + row for observation, row in executed]
    assert indices == list(range(len(indices)))
    return len(indices)


def _kinds(record: Any) -> list[str]:
    names = {1: "action", 2: "hold"}
    return [names[kind] for kind in record.step_kind if kind]


@pytest.mark.parametrize(("observation_hz", "rtc"), [(None, True), (50.0, True), (50.0, False)])
def test_each_index_is_executed_once_although_the_network_fails(
    run: Any, observation_hz: float | None, rtc: bool
) -> None:
    dice = random.Random(1)

    def policy(observation: dict[str, Any]) -> Any:
        time.sleep(dice.uniform(0.0, 0.08))
        if dice.random() < 0.1:
            raise RefusedError(dice.choice(["busy", "engine", "worker_lost", "expired"]))
        return numbered_rows(observation)

    arm, recorder = Arm(), RunRecorder()
    config = RealTimeConfig(control_hz=200, observation_hz=observation_hz, request_timeout_s=0.5)
    capabilities = CAPABILITIES if rtc else {**CAPABILITIES, "rtc": None}
    with StreamingServer(policy, capabilities=capabilities) as server:
        port = server.port
        with run(port, arm, config, recorder=recorder) as runner:
            runner.start_episode()
            for lap in range(1, 4):
                arm.wait_for(60 * lap)
                server.cut_connections()
            arm.wait_for(240)
            server.stop()
            with StreamingServer(policy, port=port, capabilities=capabilities):
                before = len(arm.executed)
                _wait_for(lambda: runner.status().losses >= 4 and runner.status().remaining)
                arm.wait_for(before + 60)
                runner.end_episode()
            status = runner.status()
    count = _check_exactly_once(arm, recorder, 200)
    assert count == status.actions
    assert len(arm.executed) == status.actions + status.holds
    assert status.chunks > 5


def test_control_steps_keep_their_rate(run: Any) -> None:
    arm = Arm()
    with StreamingServer() as server, run(server.port, arm, RealTimeConfig(control_hz=100)) as runner:
        runner.start_episode()
        arm.wait_for(101)
        runner.end_episode()
    assert arm.times[100] - arm.times[0] > 0.98, "100 steps of 10 ms"
    assert np.median(np.diff(arm.times)) == pytest.approx(0.01, abs=0.003)


def test_real_time_chunking_tells_the_server_where_the_robot_is(run: Any) -> None:
    arm, recorder = Arm(), RunRecorder()
    options = RtcOptions(schedule="linear", beta=5.0)
    config = RealTimeConfig(control_hz=100, rtc=options)
    with StreamingServer() as server:
        with run(server.port, arm, config, recorder=recorder) as runner:
            runner.start_episode()
            _wait_for(lambda: runner.status().chunks >= 4)
            runner.end_episode()
            status = runner.status()
        first, *others = server.observations
    assert status.real_time_chunking
    assert status.continued == status.chunks - 1
    assert "vlad/rtc" not in first
    assert first["vlad/reset"]
    record = recorder.record(100)
    asked = [seen["vlad/rtc"] for seen in others][: len(record.chunk_anchor) - 1]
    assert [keys["prev_chunk_id"] for keys in asked] == list(range(1, len(asked) + 1))
    assert [keys["executed"] for keys in asked] == list(np.diff(record.chunk_anchor))
    assert all(keys["delay"] >= 0 for keys in asked)
    assert {(keys["mode"], keys["schedule"], keys["beta"]) for keys in asked} == {("auto", "linear", 5.0)}
    assert all(seen["vlad/control_hz"] == 100 and "vlad/reset" not in seen for seen in others)


def test_a_server_without_the_capability_gives_plain_chunks_and_the_log_says_so(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    arm, recorder = Arm(), RunRecorder()

    def policy(observation: dict[str, Any]) -> Any:
        return {"actions": numbered_rows(observation)}

    with (
        caplog.at_level(logging.INFO, logger="vlad_client"),
        ReferenceServer(policy) as server,
        run(server.port, arm, recorder=recorder) as runner,
    ):
        runner.start_episode()
        arm.wait_for(50)
        runner.end_episode()
        status = runner.status()
    assert not status.real_time_chunking
    assert status.continued == 0
    assert _check_exactly_once(arm, recorder, 200) == status.actions
    assert "the server offers no real-time chunking: chunks are spliced as they come" in caplog.messages
    assert all(set(seen) == {"observation/state"} for seen in server.observations)


def test_a_late_chunk_lets_the_robot_hold(run: Any) -> None:
    gate = threading.Semaphore(1)

    def policy(observation: dict[str, Any]) -> Any:
        assert gate.acquire(timeout=GENEROUS_S)
        return numbered_rows(observation)

    arm, recorder = Arm(), RunRecorder()
    config = RealTimeConfig(control_hz=200, request_timeout_s=GENEROUS_S)
    with StreamingServer(policy) as server, run(server.port, arm, config, recorder=recorder) as runner:
        runner.start_episode()
        _wait_for(lambda: runner.status().holds >= 5)
        assert arm.executed[:12] == [(1, row) for row in range(12)]
        assert set(arm.executed[12:]) == {(1, 11)}
        gate.release()
        _wait_for(lambda: runner.status().actions > 12)
        gate.release(1000)
        runner.end_episode()
    anchor = recorder.record(200).chunk_anchor[1]
    assert 6 <= anchor <= 12, "half of the first chunk was executed when the second was asked for"
    resumed = next(pair for pair in arm.executed if pair[0] == 2)
    assert resumed == (2, 12 - anchor)


def test_episodes_begin_afresh(run: Any) -> None:
    arm = Arm()
    with StreamingServer() as server, run(server.port, arm) as runner:
        for episode in range(1, 4):
            observed, executed = arm.observed, len(arm.executed)
            runner.start_episode()
            arm.wait_for(executed + 20)
            runner.end_episode()
            after = len(arm.executed)
            assert runner.status().index == 0
            time.sleep(0.03)
            assert len(arm.executed) == after, "executed after the end of the episode"
            assert min(observation for observation, _ in arm.executed[executed:]) > observed
            (session,) = server.sessions.values()
            assert session.resets == episode


def test_a_robot_that_fails_ends_the_run(run: Any) -> None:
    class Broken(Arm):
        def apply(self, action: Any) -> None:
            super().apply(action)
            if len(self.executed) == 5:
                raise OSError("servo 3 does not answer")

    arm = Broken()
    with StreamingServer() as server, run(server.port, arm) as runner:
        runner.start_episode()
        with pytest.raises(OSError, match="servo 3"):
            runner.wait(GENEROUS_S)
    assert len(arm.executed) == 5


def test_a_camera_that_fails_ends_the_run(run: Any) -> None:
    class Blind(Arm):
        def observe(self) -> dict[str, Any]:
            raise OSError("camera 1 is gone")

    with StreamingServer() as server, run(server.port, Blind()) as runner:
        runner.start_episode()
        with pytest.raises(OSError, match="camera 1"):
            runner.wait(GENEROUS_S)


def test_an_observation_that_the_server_will_never_accept_ends_the_run(run: Any) -> None:
    def policy(observation: dict[str, Any]) -> Any:
        raise RefusedError("invalid")

    with StreamingServer(policy) as server, run(server.port, Arm()) as runner:
        runner.start_episode()
        with pytest.raises(PolicyServerError, match="refused: invalid"):
            runner.wait(GENEROUS_S)


def test_a_failure_that_nobody_waited_for_is_raised_in_the_end(run: Any) -> None:
    class Blind(Arm):
        def observe(self) -> dict[str, Any]:
            self.observed += 1
            raise OSError("camera 1 is gone")

    def play() -> None:
        arm = Blind()
        with StreamingServer() as server, run(server.port, arm) as runner:
            runner.start_episode()
            _wait_for(lambda: arm.observed and not runner.status().in_episode)

    with pytest.raises(OSError, match="camera 1"):
        play()


def test_closing_the_client_ends_the_run() -> None:
    with StreamingServer() as server, StreamingClient("127.0.0.1", server.port) as client:
        arm = Arm()
        runner = ChunkRunner(client, arm.observe, arm.apply, FAST)
        runner.start()
        runner.start_episode()
        arm.wait_for(5)
        client.close()
        with pytest.raises(PolicyConnectionError, match="has been closed"):
            runner.wait(GENEROUS_S)
        runner.stop()


def test_the_robot_itself_may_end_the_episode() -> None:
    with StreamingServer() as server, StreamingClient("127.0.0.1", server.port) as client:

        class Goal(Arm):
            def apply(self, action: Any) -> None:
                super().apply(action)
                if len(self.executed) == 7:
                    runner.end_episode()

        arm = Goal()
        with ChunkRunner(client, arm.observe, arm.apply, FAST) as runner:
            runner.start_episode()
            assert runner.wait(GENEROUS_S)
            assert len(arm.executed) == 7


def test_useless_answers_are_survived(run: Any) -> None:
    answers = itertools.cycle([np.full((12, 3), np.nan), np.zeros((0, 3)), None])

    def policy(observation: dict[str, Any]) -> Any:
        if observation["observation/state"][0] % 2:
            answer = next(answers)
            return np.zeros(3) if answer is None else answer
        return numbered_rows(observation)

    arm, recorder = Arm(), RunRecorder()
    with StreamingServer(policy) as server, run(server.port, arm, recorder=recorder) as runner:
        runner.start_episode()
        arm.wait_for(60)
        runner.end_episode()
        assert "unusable chunk" in (runner.status().last_error or "")
    _check_exactly_once(arm, recorder, 200)


def test_warnings_of_the_server_reach_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    arm = Arm()
    capabilities = {**CAPABILITIES, "rtc": None}
    with StreamingServer(capabilities=capabilities) as server:
        server.warnings = ["the wrist image is black"]
        with (
            StreamingClient("127.0.0.1", server.port) as client,
            ChunkRunner(client, arm.observe, arm.apply, FAST) as runner,
        ):
            runner.start_episode()
            _wait_for(lambda: runner.status().chunks >= 3)
    assert caplog.messages.count("the server warns: the wrist image is black") == 1
