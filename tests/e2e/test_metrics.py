"""What robots do to a real daemon shows in its metrics."""

from __future__ import annotations

import pytest

from tests.support.daemon import Daemon, start_daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import Robot, connect_robot

STAGES_OF_ANY_POLICY = ("decode", "denoise", "encode", "send")


def _ask(robot: Robot, **options: object) -> None:
    keys = {f"vlad/{name}": option for name, option in options.items()}
    assert "actions" in robot.infer({**libero_observation(), **keys})


def test_a_reply_is_counted_in_every_stage_that_it_passed() -> None:
    with start_scripted_daemon(infer_s=0.01) as daemon, connect_robot(daemon.port) as robot:
        for _ in range(3):
            _ask(robot)
        for stage in STAGES_OF_ANY_POLICY:
            assert daemon.metric("vlad_stage_duration_seconds_count", stage=stage) == 3
        for name in ("request_duration", "request_queue_duration", "observation_age"):
            assert daemon.metric(f"vlad_{name}_seconds_count") == 3
        assert daemon.metric("vlad_request_duration_seconds_sum") >= 0.03
        assert daemon.metric("vlad_requests_total", outcome="ok") == 3
        assert daemon.metric("vlad_stream_busy_seconds_total", stream="action") >= 0.03
        assert daemon.metric("vlad_batch_size_count") == 3
        assert daemon.metric("vlad_batch_size_sum") == 3


def test_a_chunk_that_comes_late_is_a_missed_deadline() -> None:
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as robot:
        _ask(robot, deadline_ms=10_000.0)
        assert daemon.metric("vlad_deadline_misses_total") == 0
        # Begun in time, because nobody knows how long it takes; sent too late.
        assert robot.infer({**libero_observation(), "prompt": "sleep 0.2", "vlad/deadline_ms": 100.0})[
            "deadline_missed"
        ]
        assert daemon.metric("vlad_deadline_misses_total") == 1


def test_age_in_control_steps_and_delay_are_recorded_where_the_client_gives_them() -> None:
    with start_scripted_daemon(continues=True, infer_s=0.1) as daemon, connect_robot(daemon.port) as robot:
        _ask(robot)
        assert daemon.metric("vlad_chunk_elapsed_steps_count") == 0
        _ask(robot, control_hz=50.0, session="a")
        assert daemon.metric("vlad_chunk_elapsed_steps_count") == 1
        assert 5 <= daemon.metric("vlad_chunk_elapsed_steps_sum") < 500
        assert daemon.metric("vlad_rtc_delay_steps_count") == 0
        _ask(robot, control_hz=50.0, session="a", rtc={"prev_chunk_id": 0, "executed": 0, "delay": 4})
        assert daemon.metric("vlad_rtc_delay_steps_sum") == 4


def test_a_batch_counts_once_as_an_execution() -> None:
    script = {"batch_sizes": [1, 2], "infer_s": 0.2}
    with start_scripted_daemon("--batch-sizes", "1,2", **script) as daemon:
        daemon.wait_ready()
        robots = [connect_robot(daemon.port) for _ in range(3)]
        entered = [robot.__enter__() for robot in robots]
        for robot in entered:
            robot.send(libero_observation())
        for robot in entered:
            robot.receive()
        for robot in robots:
            robot.__exit__(None, None, None)
        executions, requests = daemon.metric("vlad_batch_size_count"), daemon.metric("vlad_batch_size_sum")
        assert requests == 3
        assert executions <= requests
        assert daemon.metric("vlad_stream_busy_seconds_total", stream="action") < 0.2 * executions + 0.15


def test_memory_and_engines_of_a_worker_are_published_and_are_no_progress() -> None:
    engine = {"lookup": "stale", "build_s": 12.5, "load_s": 0.5, "plan_bytes": 1000}
    memory = {"device": "cuda:0", "used_bytes": 5, "total_bytes": 8, "reserved_bytes": 3}
    with start_scripted_daemon(engines={"vision": engine}, memory=memory, start_s=0.1) as daemon:
        daemon.wait_ready()
        with connect_robot(daemon.port) as robot:
            _ask(robot)
        assert daemon.metric("vlad_engine_cache_lookups_total", component="vision", result="stale") == 1
        assert daemon.metric("vlad_engine_cache_lookups_total", component="prefix", result="hit") == 0
        assert daemon.metric("vlad_engine_build_duration_seconds", component="vision") == 12.5
        assert daemon.metric("vlad_engine_load_duration_seconds", component="vision") == 0.5
        assert daemon.metric("vlad_engine_size_bytes", component="vision") == 1000
        assert daemon.metric("vlad_worker_start_duration_seconds", phase="load") == pytest.approx(0.1)
        _wait_for_memory(daemon)
        assert daemon.metric("vlad_gpu_memory_used_bytes", gpu="cuda:0") == 5
        assert daemon.metric("vlad_gpu_memory_total_bytes", gpu="cuda:0") == 8
        assert daemon.metric("vlad_torch_memory_reserved_bytes", gpu="cuda:0") == 3


def _wait_for_memory(daemon: Daemon) -> None:
    # Told when the worker begins to wait for requests, which was before it answered one.
    assert 'gpu="cuda:0"' in daemon.http("/metrics", metrics=True)[1]


@pytest.mark.slow
def test_the_stages_of_a_real_policy_are_all_there() -> None:
    with start_daemon("--env", "LIBERO", "--checkpoint", "demo") as daemon:
        daemon.wait_ready(120)
        with connect_robot(daemon.port) as robot:
            _ask(robot)
        for stage in ("decode", "preprocess", "vision", "prefix", "denoise", "postprocess", "encode", "send"):
            assert daemon.metric("vlad_stage_duration_seconds_count", stage=stage) == 1, stage
        for phase in ("load", "warm_up", "fidelity"):
            assert daemon.metric("vlad_worker_start_duration_seconds", phase=phase) > 0, phase
        assert daemon.metric("vlad_stream_busy_seconds_total", stream="vision") > 0
