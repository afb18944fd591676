"""`serve_policy --record`: the daemon's files hold what went over the wire, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import signal
import time
from collections.abc import Iterator

import numpy as np

from tests.support.daemon import Daemon, start_daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot, pack
from vlad_configs.environments import ENVIRONMENTS
from vlad_engines.fidelity.observations import synthetic_observations
from vlad_server.recordings.reader import open_recording, recorded_requests
from vlad_server.recordings.run_file import load_run


def _recorder_pid(daemon: Daemon) -> int:
    for task in pathlib.Path(f"/proc/{daemon.process.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"vlad_server.recordings.process" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError("the daemon has no recorder")


def _wait_until_handed_over(daemon: Daemon) -> None:
    end = time.monotonic() + 30
    while daemon.metric("vlad_recorder_queued_bytes"):
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def _recorder_outlives(pid: int) -> Iterator[None]:
    """Wait for the end of a process that is not a child of ours."""
    handle = os.pidfd_open(pid)
    try:
        yield
        import select

        assert select.select([handle], [], [], 30)[0], "the recorder did not end"
    finally:
        os.close(handle)


def test_what_went_over_the_wire_is_in_the_file(tmp_path: pathlib.Path) -> None:
    requests = [{**libero_observation(number), "vlad/session": "left"} for number in range(3)]
    with start_scripted_daemon("--record", str(tmp_path / "runs"), continues=True) as daemon:
        with connect_robot(daemon.port) as robot:
            replies = [robot.infer(request) for request in requests]
            rtc = {"prev_chunk_id": 2, "executed": 4, "delay": 1}
            robot.infer({**requests[0], "vlad/rtc": rtc, "vlad/seed": 11})
            robot.send({**requests[0], "prompt": "raise", "vlad/observation_id": 1})
            robot.receive()
        assert daemon.metric("vlad_recorder_active") == 1
        assert daemon.stop() == 0
    (path,) = (tmp_path / "runs").iterdir()
    recording = open_recording(path)
    assert recording.policy["family"] == "scripted"
    first, second, third, continued, failed = recording.exchanges()
    for request, reply, came in zip(requests, replies, (first, second, third), strict=True):
        assert came.request == pack(request)
        assert came.session == "left"
        recorded = recording.reply(came)
        assert recorded is not None
        assert recorded["actions"].tobytes() == reply["actions"].tobytes()
        assert recorded["server_timing"] == reply["server_timing"]
    assert len({came.seed for came in (first, second, third)}) == 3
    assert continued.seed == 11
    assert continued.continuation is not None
    np.testing.assert_array_equal(
        continued.continuation["model_actions"][:, :7], replies[2]["actions"][4:].astype(np.float32)
    )
    assert failed.error == "the script says so"


def test_a_killed_daemon_leaves_a_complete_file(tmp_path: pathlib.Path) -> None:
    with start_scripted_daemon("--record", str(tmp_path)) as daemon, connect_robot(daemon.port) as robot:
        for number in range(4):
            robot.infer(libero_observation(number))
        _wait_until_handed_over(daemon)
        with _recorder_outlives(_recorder_pid(daemon)):
            daemon.process.send_signal(signal.SIGKILL)
    (path,) = tmp_path.iterdir()
    assert len(list(open_recording(path).exchanges())) == 4
    assert path.read_bytes().endswith(b"\x89MCAP0\r\n")


def test_a_killed_recorder_costs_the_recording_and_nothing_else(tmp_path: pathlib.Path) -> None:
    with start_scripted_daemon("--record", str(tmp_path)) as daemon, connect_robot(daemon.port) as robot:
        robot.infer(libero_observation())
        os.kill(_recorder_pid(daemon), signal.SIGKILL)
        for number in range(5):
            assert robot.infer(libero_observation(number))["actions"].shape == (10, 7)
        daemon.wait_for_log("recording to .* has stopped: killed by signal 9; requests are served on")
        assert robot.infer(libero_observation())["actions"].shape == (10, 7)
        assert daemon.metric("vlad_recorder_stops_total") == 1
        assert daemon.metric("vlad_recorder_active") == 0
        assert daemon.metric("vlad_recorder_dropped_total") >= 1
        assert daemon.http("/readyz")[0] == 200


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: pathlib.Path) -> None:
    with start_scripted_daemon("--record", str(tmp_path)) as daemon, connect_robot(daemon.port) as robot:
        robot.infer(libero_observation())
        resource.prlimit(_recorder_pid(daemon), resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
        for number in range(8):
            robot.infer(libero_observation(number))
        daemon.wait_for_log("recording to .* has stopped: File too large; requests are served on")
        assert robot.infer(libero_observation())["actions"].shape == (10, 7)
        assert daemon.metric("vlad_recorder_stops_total") == 1
        assert daemon.stop() == 0
    (path,) = tmp_path.iterdir()
    assert list(open_recording(path).exchanges())


def test_a_directory_that_cannot_be_made_is_an_error_before_any_work(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with start_daemon("--checkpoint", "demo", "--record", str(tmp_path / "file"), listening=False) as daemon:
        assert daemon.process.wait(20) == 2
        assert daemon.log().strip().splitlines()[-1].startswith("serve_policy: cannot record to ")


def test_roboarenas_dialect_is_recorded_and_read_like_any_other(tmp_path: pathlib.Path) -> None:
    robot = ENVIRONMENTS["DROID"]
    (observation,) = synthetic_observations(robot, 1)
    request = {key: value for key, value in observation.items() if key != "observation/exterior_image_1_left"}
    request["observation/exterior_image_0_left"] = observation["observation/exterior_image_1_left"]
    with start_scripted_daemon("--record", str(tmp_path), environment="DROID") as daemon:
        with connect_robot(daemon.port) as connection:
            actions = connection.infer({**request, "endpoint": "infer"})
        assert daemon.stop() == 0
    (path,) = tmp_path.iterdir()
    np.testing.assert_equal(recorded_requests(path, robot, 64), (observation,))
    assert load_run(path).actions.tobytes() == actions.tobytes()


def test_a_stream_is_recorded_under_its_robots_name(tmp_path: pathlib.Path) -> None:
    with start_scripted_daemon("--record", str(tmp_path), infer_s=0.02) as daemon:
        with connect_robot(daemon.port) as robot:
            base = {"vlad/stream": True, "vlad/session": "left"}
            for number in range(6):
                robot.send({**libero_observation(number), **base, "vlad/observation_id": number})
            answered = [robot.receive()["observation_id"]]
            while answered[-1] != 5:
                answered.append(robot.receive()["observation_id"])
        assert daemon.stop() == 0
    (path,) = tmp_path.iterdir()
    recording = open_recording(path)
    exchanges = list(recording.exchanges())
    assert {came.session for came in exchanges} == {"left"}
    ids = [recording.observation(came)["vlad/observation_id"] for came in exchanges]
    assert ids == answered
