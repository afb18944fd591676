"""More requests than the engine can take: refusals come at once, and who asks seldom notices nothing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import statistics
import threading
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.support.daemon import start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import Robot, connect_robot, open_connection, pack

WAITING = 4
STAGE_S = 0.02


def test_a_full_queue_says_so_at_once_and_does_not_grow() -> None:
    with start_scripted_daemon("--max-waiting", str(WAITING)) as daemon, contextlib.ExitStack() as stack:
        daemon.wait_ready()
        crowd: list[Robot] = [stack.enter_context(connect_robot(daemon.port)) for _ in range(WAITING + 2)]
        for robot in crowd:
            robot.send(libero_observation(prompt="sleep 1.5"))
            time.sleep(0.02)
        late = stack.enter_context(connect_robot(daemon.port))
        seconds = []
        for number in range(40):
            began = time.perf_counter()
            reply = late.infer({**libero_observation(), "vlad/observation_id": number})
            seconds.append(time.perf_counter() - began)
            assert reply["code"] == "busy"
        assert daemon.metric("vlad_requests_in_flight", phase="queued") == WAITING
        assert statistics.median(seconds) < 0.02
        for robot in crowd:
            assert robot.receive()["actions"].shape == (10, 7)
        assert daemon.metric("vlad_requests_total", outcome="busy") == len(seconds)


def _flood(connection: ClientConnection, stop: threading.Event) -> int:
    message, sent = pack(libero_observation()), 0
    with contextlib.suppress(ConnectionClosed, OSError):
        while not stop.is_set():
            connection.send(message)
            sent += 1
    return sent


def test_a_robot_at_ten_hertz_loses_nothing_beside_floods() -> None:
    with start_scripted_daemon(infer_s=STAGE_S) as daemon, connect_robot(daemon.port) as robot:
        stop, floods = threading.Event(), [open_connection(daemon.port) for _ in range(3)]
        with concurrent.futures.ThreadPoolExecutor(len(floods)) as pool:
            flooding = [pool.submit(_flood, connection, stop) for connection in floods]
            seconds = []
            for _ in range(20):
                began = time.perf_counter()
                assert robot.infer(libero_observation())["actions"].shape == (10, 7)
                seconds.append(time.perf_counter() - began)
                time.sleep(max(0.0, 0.1 - seconds[-1]))
            stop.set()
            for connection in floods:
                connection.close_socket()
            sent = sum(future.result(30) for future in flooding)
        assert sent > 2 * len(seconds)
        # At worst each flood has one running or ready before it; the rest is the machine's.
        assert statistics.median(seconds) < (len(floods) + 2) * STAGE_S + 0.05
