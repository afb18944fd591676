"""Whatever clients do to a daemon, in whatever order: others are served, and nothing is left over."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.fuzz.test_requests import CORPUS, EXAMPLES
from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot, open_connection, pack
from tests.support.scripted_worker import expected_chunk

OBSERVATION = libero_observation()
EXPECTED = expected_chunk(OBSERVATION["observation/state"], 7)
HOSTILE = [file.read_bytes() for file in sorted(CORPUS.glob("*.bin"))]


def assert_nothing_is_left(daemon: Daemon) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        left = [daemon.metric("vlad_connections")]
        left += [daemon.metric("vlad_requests_in_flight", phase=phase) for phase in ("queued", "running")]
        if not any(left):
            break
        time.sleep(0.02)
    assert left == [0, 0, 0]
    log = daemon.log()
    # The worker's, where a prompt commanded one, and none of the server's own.
    assert log.count("Traceback") == log.count("a defect\nTraceback")
    assert daemon.http("/readyz") == (200, "OK\n")


def assert_served(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        np.testing.assert_array_equal(robot.infer(OBSERVATION)["actions"], EXPECTED)


class Clients(RuleBasedStateMachine):
    """Up to four connections that send sense and nonsense, read or do not, and leave or vanish."""

    daemon: Daemon

    @initialize()
    def begin(self) -> None:
        self.open: list[ClientConnection] = []
        self.count = 0

    @precondition(lambda self: len(self.open) < 4)
    @rule()
    def connect(self) -> None:
        self.open.append(open_connection(self.daemon.port))

    def _send(self, which: int, message: bytes) -> None:
        if self.open:
            with contextlib.suppress(ConnectionClosed):
                self.open[which % len(self.open)].send(message)

    @rule(
        which=strategies.integers(0, 3),
        session=strategies.sampled_from([None, "left", "right"]),
        options=strategies.fixed_dictionaries(
            {},
            optional={
                "vlad/stream": strategies.booleans(),
                "vlad/reset": strategies.booleans(),
                "vlad/deadline_ms": strategies.sampled_from([1.0, 20.0, 1000.0]),
                "prompt": strategies.sampled_from(["x", "sleep 0.02", "raise", "bug", "nan", "refuse"]),
            },
        ),
        times=strategies.integers(1, 4),
    )
    def ask(self, which: int, session: str | None, options: dict[str, Any], times: int) -> None:
        named = {} if session is None else {"vlad/session": session}
        for _ in range(times):
            self.count += 1
            self._send(which, pack({**OBSERVATION, **options, **named, "vlad/observation_id": self.count}))

    @rule(which=strategies.integers(0, 3), message=strategies.sampled_from(HOSTILE))
    def send_nonsense(self, which: int, message: bytes) -> None:
        self._send(which, message)

    @precondition(lambda self: self.open)
    @rule(which=strategies.integers(0, 3))
    def read(self, which: int) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            for _ in range(3):
                self.open[which % len(self.open)].recv(0.02)

    @precondition(lambda self: self.open)
    @rule(which=strategies.integers(0, 3), politely=strategies.booleans())
    def leave(self, which: int, politely: bool) -> None:
        connection = self.open.pop(which % len(self.open))
        if politely:
            connection.close()
        else:
            connection.close_socket()

    @precondition(lambda self: len(self.open) > 2)
    @rule()
    def serve_somebody_else(self) -> None:
        assert_served(self.daemon)

    def teardown(self) -> None:
        for connection in self.open:
            connection.close_socket()
        assert_nothing_is_left(self.daemon)
        assert_served(self.daemon)


def test_any_order_of_events_leaves_a_daemon_that_serves() -> None:
    settings = hypothesis.settings(
        max_examples=max(10, EXAMPLES // 150),
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    with start_scripted_daemon() as daemon:
        daemon.wait_ready()
        machine = type("ClientsOfThisDaemon", (Clients,), {"daemon": daemon})
        run_state_machine_as_test(machine, settings=settings)


def test_broken_http_and_broken_frames_cost_their_own_connection_only() -> None:
    chance = random.Random(0)
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    page = b"GET /status/data?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with start_scripted_daemon() as daemon:
        daemon.wait_ready()
        for number in range(120):
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as raw:
                beginning = bytearray(
                    chance.choice([upgrade, page, b"POST / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"])
                )
                if number % 2:
                    raw.sendall(upgrade)
                    beginning = bytearray(pack(OBSERVATION)[:200])
                    beginning[:2] = bytes([chance.randrange(256), chance.randrange(256)])
                for _ in range(chance.randrange(4)):
                    beginning[chance.randrange(len(beginning))] = chance.randrange(256)
                with contextlib.suppress(OSError):
                    raw.sendall(beginning[: chance.randrange(1, len(beginning) + 1)])
        assert_served(daemon)
        assert_nothing_is_left(daemon)
