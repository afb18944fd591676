"""Clients with deadlines and streams vanish at any moment; nothing of theirs is left, and nobody notices."""

from __future__ import annotations

import random
import time

from tests.support.daemon import start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot, pack


def test_deadlines_of_vanished_clients_are_forgotten() -> None:
    chance = random.Random(0)
    with start_scripted_daemon(infer_s=0.03) as daemon, connect_robot(daemon.port) as bystander:
        for number in range(30):
            with connect_robot(daemon.port) as robot:
                for index in range(3):
                    options = {"vlad/deadline_ms": chance.uniform(1, 80), "vlad/observation_id": index}
                    stream = {"vlad/stream": number % 2 == 0}
                    robot.connection.send(pack({**libero_observation(), **options, **stream}))
                time.sleep(chance.uniform(0, 0.08))
                robot.connection.close_socket()
            assert bystander.infer(libero_observation())["actions"].shape == (10, 7)
        time.sleep(0.3)
        for phase in ("queued", "running"):
            assert daemon.metric("vlad_requests_in_flight", phase=phase) == 0
        assert "Traceback" not in daemon.log()
        assert "Exception" not in daemon.log()
