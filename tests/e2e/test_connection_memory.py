"""What one client can make the daemon hold is bounded, however much it sends."""

from __future__ import annotations

import contextlib
import time

from websockets.exceptions import ConnectionClosed

from tests.support.daemon import start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot, open_connection, pack

MESSAGE_BYTES = 8 << 20
MESSAGES = 24
HELD = 8
"""Messages at most: one that is served, three that wait, one on its way in, and what the allocator keeps."""


def test_a_client_that_sends_without_reading_costs_a_few_messages_of_memory() -> None:
    large = pack({**libero_observation(), "ignored": bytes(MESSAGE_BYTES - (1 << 20))})
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as bystander:
        # The engine is busy with somebody else for longer than the flood takes.
        bystander.send(libero_observation(prompt="sleep 4"))
        before = daemon.metric("process_resident_memory_bytes")
        flood = open_connection(daemon.port)
        flood.socket.settimeout(0.5)
        sent = 0
        with contextlib.suppress(OSError, ConnectionClosed):
            for _ in range(MESSAGES):
                flood.send(large)
                sent += 1
        time.sleep(0.3)
        assert sent < MESSAGES  # the network had to hold the rest
        assert daemon.metric("process_resident_memory_bytes") - before < HELD * MESSAGE_BYTES
        flood.close_socket()
        assert bystander.receive()["actions"].shape == (10, 7)
        assert daemon.http("/readyz")[0] == 200
