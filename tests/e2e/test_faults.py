"""What goes wrong around a daemon: hung engines, full memory, vanishing clients, ports, clocks, files."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.checkpoints import write_libero
from tests.support.daemon import Daemon, start_daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import Robot, connect_robot, pack
from tests.support.scripted_worker import expected_chunk
from tests.support.small_disk import run_on_small_disk

HANG_S = 1.5


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_scripted_daemon("--hang-seconds", str(HANG_S)) as daemon:
        daemon.wait_ready()
        yield daemon


def _served(robot: Robot, seed: int = 0) -> bool:
    observation = libero_observation(seed)
    reply = robot.infer(observation)
    return np.array_equal(reply["actions"], expected_chunk(observation["observation/state"], 7))


@pytest.mark.parametrize("prompt", ["sleep 600", "stop"], ids=["in a call", "stopped"])
def test_a_worker_that_hangs_is_replaced_and_the_connection_lives(daemon: Daemon, prompt: str) -> None:
    before = daemon.metric("vlad_worker_hangs_total")
    with connect_robot(daemon.port) as robot, connect_robot(daemon.port) as other:
        robot.send(libero_observation(prompt=prompt))
        time.sleep(0.2)
        other.send(libero_observation(1))
        sent = time.monotonic()
        assert "died while computing this request" in robot.receive_error()
        assert time.monotonic() - sent > HANG_S - 0.5
        assert other.receive()["actions"].shape == (10, 7)
        assert _served(robot)
    assert daemon.metric("vlad_worker_hangs_total") == before + 1
    assert daemon.http("/readyz")[0] == 200
    if prompt != "stop":  # who is stopped cannot write where it hangs
        daemon.wait_for_log(
            r'Fatal Python error: Aborted(?s:.*)File ".*scripted_worker.py", line \d+ in infer'
        )


def test_an_idle_worker_is_never_taken_for_stuck(daemon: Daemon) -> None:
    before = daemon.metric("vlad_worker_restarts_total")
    with connect_robot(daemon.port) as robot:
        assert _served(robot)
        time.sleep(HANG_S + 0.5)
        assert _served(robot)
    assert daemon.metric("vlad_worker_restarts_total") == before


def test_a_request_without_memory_fails_alone_and_a_series_gets_a_new_worker(daemon: Daemon) -> None:
    restarts = daemon.metric("vlad_worker_restarts_total")
    for _ in range(2):
        with connect_robot(daemon.port) as robot:
            robot.send(libero_observation(prompt="oom"))
            assert "MemoryError" in robot.receive_error()
    with connect_robot(daemon.port) as robot:
        assert _served(robot)
        assert daemon.metric("vlad_worker_restarts_total") == restarts
        robot.send(libero_observation(prompt="oom"))
        assert "died while computing" in robot.receive_error()
        assert _served(robot)
    assert daemon.metric("vlad_worker_restarts_total") == restarts + 1


def test_a_lost_device_gets_a_new_worker_and_the_robot_stays(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        robot.send(libero_observation(prompt="lost"))
        assert "died while computing" in robot.receive_error()
        assert _served(robot)
    assert "the device is lost to this process" in daemon.log()
    assert "exit code 70" in daemon.log()


def test_no_memory_at_the_start_ends_in_plain_words() -> None:
    with start_scripted_daemon(oom=True, listening=False) as daemon:
        assert daemon.process.wait(60) == 2
        assert "MemoryError" in daemon.log().splitlines()[-1]


def _frame_header(size: int) -> bytes:
    """Of a masked binary websocket frame."""
    return struct.pack(">BBQ", 0x82, 0x80 | 127, size) + b"mask"


def test_clients_that_vanish_in_the_middle_of_a_frame_leave_nothing(daemon: Daemon) -> None:
    connections, lost = (
        daemon.metric("vlad_connections"),
        daemon.metric("vlad_disconnects_total", code="1006"),
    )
    message = pack(libero_observation())
    beginnings = [
        *(_frame_header(len(message))[:3], _frame_header(len(message))),
        *(_frame_header(len(message)) + bytes(100_000), struct.pack(">BBQ", 0x02, 0xFF, 1000) + bytes(1004)),
    ]
    for number, beginning in enumerate(2 * beginnings):
        with connect_robot(daemon.port) as robot:
            raw = robot.connection.socket
            raw.sendall(beginning)
            if number % 2:  # a reset instead of a farewell
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            robot.connection.close_socket()
    end = time.monotonic() + 20
    while daemon.metric("vlad_connections") != connections and time.monotonic() < end:
        time.sleep(0.02)
    assert daemon.metric("vlad_connections") == connections
    assert daemon.metric("vlad_disconnects_total", code="1006") == lost + 2 * len(beginnings)
    assert "Traceback" not in daemon.log().partition("Fatal Python error")[0]
    with connect_robot(daemon.port) as robot:
        assert _served(robot)


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use_is_told_in_one_line(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with start_scripted_daemon(option, port, listening=False) as daemon:
            assert daemon.process.wait(60) == 2
            last = daemon.log().splitlines()[-1]
            assert last.startswith("serve_policy: cannot ")
            assert f"127.0.0.1:{port}: Address already in use" in last


def _ask_until_sent_away(port: int, seed: int) -> tuple[int, int, int]:
    """Requests sent, requests answered rightly, close code."""
    observation = libero_observation(seed)
    expected = expected_chunk(observation["observation/state"], 7)
    sent = answered = 0
    with connect_robot(port) as robot:
        with contextlib.suppress(ConnectionClosed):
            while True:
                robot.send(observation)
                sent += 1
                answered += np.array_equal(robot.receive()["actions"], expected)
        return sent, answered, robot.connection.close_code or 0


def test_sigterm_under_load_answers_what_it_has_begun_to_read() -> None:
    robots = 6
    with start_scripted_daemon(infer_s=0.01) as daemon:
        daemon.wait_ready()
        with concurrent.futures.ThreadPoolExecutor(robots) as pool:
            driving = [pool.submit(_ask_until_sent_away, daemon.port, seed) for seed in range(robots)]
            end = time.monotonic() + 30
            while daemon.metric("vlad_requests_total", outcome="ok") < 60 and time.monotonic() < end:
                time.sleep(0.02)
            assert daemon.stop() == 0
            results = [future.result(30) for future in driving]
        assert "Traceback" not in daemon.log()
    for sent, answered, code in results:
        # One may have been on its way when the daemon closed; it is the robot's to send again elsewhere.
        assert answered in (sent, sent - 1)
        assert answered >= 1
        assert code == 1001


CLOCK_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    char text[32] = {0};
    int file = open(getenv("CLOCK_OFFSET_FILE"), O_RDONLY);
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) < 0) text[0] = 0;
    close(file);
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += offset();
    return result;
}
"""


def test_a_wall_clock_that_jumps_changes_nothing(tmp_path: pathlib.Path) -> None:
    """Sessions, deadlines, watchdogs and queues go by the monotonic clock; NTP may do what it likes."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler to make a clock that jumps")
    (tmp_path / "shim.c").write_text(CLOCK_SHIM)
    shim, offset = tmp_path / "shim.so", tmp_path / "offset"
    build = ["cc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(tmp_path / "shim.c"), "-ldl"]
    subprocess.run(build, check=True)
    offset.write_text("0")
    env = {"LD_PRELOAD": str(shim), "CLOCK_OFFSET_FILE": str(offset)}
    options = ["--env", "LIBERO", "--checkpoint", '{"infer_s": 0.005}', "--hang-seconds", "5"]
    with start_daemon(*options, module="tests.support.scripted_daemon", env=env) as daemon:
        daemon.wait_ready()
        with connect_robot(daemon.port) as robot:
            observation = {**libero_observation(), "vlad/session": "arm", "vlad/deadline_ms": 5000.0}
            chunks = []
            for seconds in (0, 10 * 365 * 86400, -10 * 365 * 86400, 3600):
                offset.write_text(str(seconds))
                for _ in range(3):
                    reply = robot.infer(observation)
                    assert not reply["deadline_missed"]
                    assert 0 <= reply["server_timing"]["total_ms"] < 5000
                    chunks.append(reply["chunk_id"])
                shown = daemon.metric("vlad_last_progress_timestamp_seconds")
                assert abs(shown - (time.time() + seconds)) < 60  # the jump was real
                assert daemon.http("/livez")[0] == daemon.http("/readyz")[0] == 200
            assert chunks == list(range(12))
        assert daemon.metric("vlad_worker_restarts_total") == 0
        assert daemon.stop() == 0


def test_a_half_written_checkpoint_ends_in_plain_words(tmp_path: pathlib.Path) -> None:
    directory = write_libero(tmp_path / "half")
    weights = directory / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with start_daemon("--env", "LIBERO", "--checkpoint", str(directory), listening=False) as daemon:
        assert daemon.process.wait(120) == 2
        assert "serve_policy: " in daemon.log()
        assert "model.safetensors" in daemon.log()
        assert "Traceback" not in daemon.log()


def test_a_full_disk_under_the_engine_cache_is_told_and_leaves_no_half_engine(tmp_path: pathlib.Path) -> None:
    program = (
        "from tests.engines.backends.tensorrt.test_cache import make_identity, refuse_to_build\n"
        "from vlad_configs.errors import ConfigError\n"
        "from vlad_engines.backends.tensorrt.cache import EngineCache\n"
        "cache, identity = EngineCache(folder), make_identity()\n"
        "try: cache.obtain(identity, lambda: bytes(1 << 20))\n"
        "except ConfigError as error: print(error)\n"
        "print(sorted({path.suffix for path in folder.iterdir()}))\n"
        "print(len(cache.obtain(identity, lambda: bytes(1000)).content))\n"
        "print(len(cache.obtain(identity, refuse_to_build).content))\n"
    )
    error, suffixes, built, found = run_on_small_disk(tmp_path, "64k", program)
    assert error.startswith("engines cannot be kept in")
    assert "No space left on device" in error
    assert suffixes == "['.lock']"
    assert (built, found) == ("1000", "1000")


@pytest.mark.gpu
def test_a_gpu_that_is_full_at_the_start_is_told_in_plain_words() -> None:
    """Needs any NVIDIA GPU; takes all of its memory for the time of the test."""
    if not pathlib.Path("/dev/nvidiactl").exists():
        pytest.skip("needs an NVIDIA GPU")
    import torch

    hog = []
    with contextlib.suppress(torch.OutOfMemoryError):
        for size in (1 << 30, 64 << 20, 4 << 20):
            with contextlib.suppress(torch.OutOfMemoryError):
                while True:
                    hog.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    try:
        with start_daemon("--checkpoint", "demo", "--device", "cuda", listening=False) as daemon:
            assert daemon.process.wait(180) == 2
            assert "out of memory" in daemon.log().lower()
            assert "serve_policy: " in daemon.log()
    finally:
        hog.clear()
        torch.cuda.empty_cache()
