"""Clients that answer no ping are let go, idle ones that do stay; with a keepalive a hundred times faster."""

from __future__ import annotations

import socket
import time

from tests.support.daemon import start_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
INTERVAL_S, TIMEOUT_S = 0.2, 0.6


def test_who_answers_no_ping_is_let_go_and_idle_robots_stay() -> None:
    env = {"KEEPALIVE_S": f"{INTERVAL_S} {TIMEOUT_S}"}
    options = ["--env", "LIBERO", "--checkpoint", "{}"]
    with start_daemon(*options, module="tests.support.scripted_daemon", env=env) as daemon:
        daemon.wait_ready()
        with connect_robot(daemon.port) as idle, socket.create_connection(("127.0.0.1", daemon.port)) as mute:
            mute.sendall(UPGRADE)
            mute.settimeout(20)
            began = time.monotonic()
            received = b"".join(iter(lambda: mute.recv(65536), b""))
            assert time.monotonic() - began > TIMEOUT_S
            assert b"\x89\x04" in received  # a ping with four bytes
            assert b"\x03\xf3keepalive ping timeout" in received  # 1011 and its reason
            assert idle.infer(libero_observation())["actions"].shape == (10, 7)
            end = time.monotonic() + 20
            # The loop's clock counts milliseconds: a round trip within one of them is not noted.
            while not daemon.metric("vlad_client_rtt_seconds_count") and time.monotonic() < end:
                time.sleep(INTERVAL_S)
            assert daemon.metric("vlad_client_rtt_seconds_count") > 0
            mute.close()
            end = time.monotonic() + 20
            while daemon.metric("vlad_connections") != 1 and time.monotonic() < end:
                time.sleep(0.02)
            assert daemon.metric("vlad_connections") == 1
            assert daemon.metric("vlad_disconnects_total", code="1011") == 1
            assert "Traceback" not in daemon.log()
