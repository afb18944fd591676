"""The daemon among robots that behave and clients that do not, for as long as you like.

Run from the repository root: `python -m benchmarks.soak [--minutes M] [--out FILE]`. Honest robots, in
lock-step and streaming, check every reply: that it belongs to their observation, that it comes once, that
chunk ids of their session go on across reconnects. Around them, clients vanish, send garbage, flood, do not
read, and the engine worker is killed now and then. The policy is scripted, so that each chunk is known.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import pathlib
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection

from benchmarks.run_facts import run_facts
from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import Robot, connect_robot, open_connection, pack
from tests.support.scripted_worker import expected_chunk
from vlad_server.worker_link import HEALTHY_AFTER_S

SERVICE_S = 0.005
STREAM_HZ = 30.0
SAMPLE_S = 1.0
MAX_MESSAGE_BYTES = 4 << 20

_OBSERVATION = libero_observation()


class SoakError(Exception):
    """The daemon did what it must never do; the text says what."""


@dataclasses.dataclass
class Soak:
    """A run: what was counted, and whether it goes on."""

    daemon: Daemon
    seed: int
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failures: list[str] = dataclasses.field(default_factory=list)
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def run(
        self, behaviours: Sequence[Callable[[Soak, random.Random, int], None]], seconds: float
    ) -> list[float]:
        """Let everybody behave as they do; returns the server's resident bytes, sampled each second."""
        threads = [
            threading.Thread(target=self._guarded, args=(behaviour, number))
            for number, behaviour in enumerate(behaviours)
        ]
        for thread in threads:
            thread.start()
        resident = []
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.failures:
            time.sleep(SAMPLE_S)
            resident.append(self.daemon.metric("process_resident_memory_bytes"))
        self.stop.set()
        for thread in threads:
            thread.join(60)
        if any(thread.is_alive() for thread in threads):
            self.failures.append("a client never got its reply")
        return resident

    def _guarded(self, behaviour: Callable[[Soak, random.Random, int], None], number: int) -> None:
        try:
            behaviour(self, random.Random(self.seed + number), number)
        except Exception as error:
            self.failures.append(f"{behaviour.__name__} {number}: {type(error).__name__}: {error}")


def _frame(value: float, **options: Any) -> dict[str, Any]:
    keys = {f"vlad/{name}": option for name, option in options.items()}
    return {**_OBSERVATION, "observation/state": np.arange(8.0) + value, **keys}


def _check(reply: dict[str, Any], value: float, session: str) -> None:
    if reply["session"] != session:
        raise SoakError(f"a reply for session {reply['session']} reached {session}")
    if not np.array_equal(reply["actions"], expected_chunk(np.arange(8.0) + value, 7)):
        raise SoakError(f"session {session} got the chunk of another observation than {value}")


def lock_step_robot(soak: Soak, chance: random.Random, number: int) -> None:
    """Asks, checks, reconnects now and then; its session goes on."""
    session, ids = f"lock-step {number}", itertools.count()
    latest_chunk = -1
    while not soak.stop.is_set():
        with connect_robot(soak.daemon.port) as robot:
            for _ in range(chance.randrange(1, 200)):
                if soak.stop.is_set():
                    break
                observation_id = next(ids)
                value = 1000.0 * number + observation_id
                reply = robot.infer(_frame(value, session=session, observation_id=observation_id), 30)
                if reply["observation_id"] != observation_id:
                    raise SoakError(f"{session}: reply {reply['observation_id']} to {observation_id}")
                if "error" in reply:
                    if reply["code"] not in ("worker_lost", "busy"):
                        raise SoakError(f"{session}: {reply}")
                    soak.counts[reply["code"]] += 1
                    continue
                _check(reply, value, session)
                if reply["chunk_id"] <= latest_chunk:
                    raise SoakError(f"{session}: chunk {reply['chunk_id']} after {latest_chunk}")
                latest_chunk = reply["chunk_id"]
                soak.counts["lock-step replies"] += 1
        soak.counts["reconnects"] += 1


def streaming_robot(soak: Soak, chance: random.Random, number: int) -> None:
    """Sends at camera rate; each observation must end once, as a reply, an error, or superseded."""
    session, base = f"stream {number}", 0
    while not soak.stop.is_set():
        with connect_robot(soak.daemon.port) as robot:
            base += _stream(soak, robot, session, base, chance.randrange(30, 300))
        soak.counts["reconnects"] += 1


def _stream(soak: Soak, robot: Robot, session: str, base: int, count: int) -> int:
    def send() -> None:
        for number in range(base, base + count):
            robot.send(_frame(float(number), session=session, observation_id=number, stream=True))
            time.sleep(1 / STREAM_HZ)

    # What the connection before left unanswered is not this one's.
    robot.send(_frame(-1.0, session=session, observation_id="first", reset=True))
    while robot.receive(30)["observation_id"] != "first":
        soak.counts["late resets"] += 1
    sender = threading.Thread(target=send)
    sender.start()
    ended: collections.Counter[int] = collections.Counter()
    while len(ended) < count:
        reply = robot.receive(30)
        if "error" in reply:
            soak.counts[reply["code"]] += 1
            ended[reply["observation_id"]] += 1
            continue
        _check(reply, float(reply["observation_id"]), session)
        soak.counts["stream replies"] += 1
        soak.counts["superseded"] += len(reply["superseded"])
        for observation_id in (reply["observation_id"], *reply["superseded"]):
            ended[observation_id] += 1
    sender.join()
    if any(times != 1 for times in ended.values()):
        raise SoakError(f"{session}: observations that ended more than once: {ended.most_common(3)}")
    return count


def vandal(soak: Soak, chance: random.Random, number: int) -> None:
    """Vanishes, sends garbage, cuts messages off, sends too much."""
    message = pack(_OBSERVATION)
    while not soak.stop.is_set():
        what = chance.choice(["vanish", "garbage", "truncated", "text", "oversized", "raw", "leave", "image"])
        soak.counts[f"vandal: {what}"] += 1
        try:
            connection = open_connection(soak.daemon.port)
        except (InvalidHandshake, OSError):
            soak.counts["vandal: handshakes that failed"] += 1
            continue
        with contextlib.suppress(ConnectionClosed, OSError, TimeoutError, EOFError):
            try:
                connection.recv(30)
                _vandalize(connection, what, chance, message)
            finally:
                connection.close_socket() if what != "leave" else connection.close()
        time.sleep(0.05)


def _vandalize(connection: ClientConnection, what: str, chance: random.Random, message: bytes) -> None:
    if what == "vanish":
        connection.send(message)
        time.sleep(chance.random() * 0.02)
    elif what == "garbage":
        connection.send(chance.randbytes(chance.randrange(1, 2000)))
        connection.recv(5)
    elif what == "truncated":
        connection.send(message[: chance.randrange(len(message))])
        connection.recv(5)
    elif what == "text":
        connection.send("hello?")
        connection.recv(5)
    elif what == "oversized":
        connection.send(bytes(MAX_MESSAGE_BYTES + 1))
    elif what == "raw":
        connection.socket.sendall(chance.randbytes(500))
    elif what == "image":
        broken = {"encoding": "png", "data": chance.randbytes(3000)}
        connection.send(pack({**_OBSERVATION, "observation/image": broken}))
        connection.recv(5)


def deaf_flooder(soak: Soak, chance: random.Random, number: int) -> None:
    """Streams as fast as it can and reads nothing, until it has enough or is cut."""
    message = pack(_frame(0.0, stream=True, observation_id=0))
    while not soak.stop.is_set():
        soak.counts["deaf floods"] += 1
        with contextlib.suppress(ConnectionClosed, OSError, TimeoutError):
            connection = open_connection(soak.daemon.port, max_queue=1)
            try:
                end = time.monotonic() + chance.random() * 3
                while time.monotonic() < end and not soak.stop.is_set():
                    connection.send(message)
                    time.sleep(0.01)
            finally:
                connection.close_socket()


def worker_killer(soak: Soak, chance: random.Random, number: int) -> None:
    """Kills the engine worker now and then, but not as often as one that is broken would die."""
    pauses = itertools.chain([5.0], (HEALTHY_AFTER_S + chance.uniform(1.0, 30.0) for _ in itertools.count()))
    while not soak.stop.wait(next(pauses)):
        with connect_robot(soak.daemon.port) as robot:
            soak.counts["workers killed"] += 1
            os.kill(robot.metadata["pid"], signal.SIGKILL)


BEHAVIOURS = [*[lock_step_robot] * 6, *[streaming_robot] * 3, *[vandal] * 3, deaf_flooder, worker_killer]


def soak(seconds: float, seed: int = 0) -> dict[str, Any]:
    """Run and judge.

    Returns:
        `failures`, texts, empty where all went well; counts; resident memory of the server over time.
    """
    arguments = ("--max-message-bytes", str(MAX_MESSAGE_BYTES), "--session-seconds", "5")
    with start_scripted_daemon(*arguments, infer_s=SERVICE_S) as daemon:
        daemon.wait_ready()
        run = Soak(daemon, seed)
        resident = run.run(BEHAVIOURS, seconds)
        descriptors = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        open_connections = daemon.metric("vlad_connections")
        in_flight = sum(
            daemon.metric("vlad_requests_in_flight", phase=phase) for phase in ("queued", "running")
        )
        outcomes = {
            outcome: daemon.metric("vlad_requests_total", outcome=outcome)
            for outcome in (
                "ok",
                "invalid",
                "cancelled",
                "superseded",
                "worker_lost",
                "reset",
                "engine_error",
            )
        }
        tracebacks = daemon.log().count("Traceback")
        exit_code = daemon.stop()
    if tracebacks:
        run.failures.append(f"{tracebacks} tracebacks in the log")
    if exit_code:
        run.failures.append(f"exit code {exit_code}")
    return {
        "failures": run.failures,
        "counts": dict(sorted(run.counts.items())),
        "outcomes": outcomes,
        "open_connections_at_the_end": open_connections,
        "in_flight_at_the_end": in_flight,
        "descriptors_at_the_end": descriptors,
        "resident_mb": [round(value / 1e6, 1) for value in resident],
    }


def growth(resident_mb: list[float]) -> float:
    """By how much the last quarter of a run exceeds its second quarter, as a fraction; medians."""
    quarter = len(resident_mb) // 4
    return float(np.median(resident_mb[-quarter:]) / np.median(resident_mb[quarter : 2 * quarter]) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="write the result as JSON")
    args = parser.parse_args()
    # The client library reports what the vandals do to their own connections.
    logging.getLogger("websockets.client").setLevel(logging.CRITICAL)
    result = {
        **run_facts(),
        **soak(60 * args.minutes, args.seed),
    }
    result["memory_growth"] = round(growth(result["resident_mb"]), 4)
    text = json.dumps(result)
    print(json.dumps({name: value for name, value in result.items() if name != "resident_mb"}, indent=1))
    if args.out:
        args.out.write_text(text + "\n")
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
