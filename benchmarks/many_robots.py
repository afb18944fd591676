"""Many robots on one engine: fairness, waiting, freshness, and what the server itself costs.

Run from the repository root: `python -m benchmarks.many_robots [--seconds S] [--out FILE]`. The policy is
scripted, and what it takes is given, so that what robots should get is known.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.run_facts import run_facts, summary
from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot, pack

PARTS = ("lock_step", "bare_websockets", "streams")
STREAMS = 8
STREAM_SERVICE_S = 0.020
CAMERA_HZ = 30.0
MAX_CONNECTIONS = 256
"""The daemon's limit where it is not told another one."""


@dataclasses.dataclass(frozen=True)
class LockStep:
    """Robots that wait for each chunk, all asking at once.

    Attributes:
        service_s: seconds that the policy takes for a chunk.
        seconds: length of the measurement.
    """

    robots: int
    service_s: float
    seconds: float

    def __post_init__(self) -> None:
        if not 1 <= self.robots <= MAX_CONNECTIONS:
            raise ValueError(f"1 to {MAX_CONNECTIONS} robots, not {self.robots}")
        if not 0 < self.service_s < self.seconds:
            raise ValueError("the policy must take some time, and less than the measurement")


def lock_step(load: LockStep) -> dict[str, Any]:
    """The robots at the daemon."""
    with start_scripted_daemon(infer_s=load.service_s) as daemon:
        daemon.wait_ready()
        return _lock_step(daemon.port, daemon.process.pid, load)


def bare_websockets(load: LockStep) -> dict[str, Any]:
    """The same robots at the library's own server, which looks at nothing: what the network alone costs."""
    command = [sys.executable, "-m", "benchmarks.bare_server", str(load.service_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            return _lock_step(int(process.stdout.readline()), process.pid, load)
        finally:
            process.kill()


def _lock_step(port: int, pid: int, load: LockStep) -> dict[str, Any]:
    message = pack(libero_observation())
    ready, stop = threading.Barrier(load.robots + 1), threading.Event()

    def drive(_: int) -> list[float]:
        waits = []
        with connect_robot(port) as robot:
            robot.connection.send(message)
            robot.connection.recv()
            ready.wait()
            while not stop.is_set():
                started = time.perf_counter()
                robot.connection.send(message)
                robot.connection.recv()
                waits.append(time.perf_counter() - started)
        return waits

    with concurrent.futures.ThreadPoolExecutor(load.robots) as pool:
        futures = [pool.submit(drive, number) for number in range(load.robots)]
        ready.wait()
        cpu_s, began = _cpu_s(pid), time.perf_counter()
        time.sleep(load.seconds)
        cpu_s, elapsed_s = _cpu_s(pid) - cpu_s, time.perf_counter() - began
        stop.set()
        waits = [future.result() for future in futures]
    served = [len(each) for each in waits]
    # Each robot's last chunk comes after the clock has stopped.
    in_time = sum(served) - load.robots
    together = list(itertools.chain.from_iterable(waits))
    return {
        "robots": load.robots,
        "service_ms": 1e3 * load.service_s,
        "served_min": min(served),
        "served_max": max(served),
        "wait": summary(together),
        "wait_p99_over_robots_times_service": round(
            float(np.percentile(together, 99)) / (load.robots * load.service_s), 4
        ),
        "requests_per_s": round(in_time / elapsed_s, 2),
        "server_cpu_ms_per_request": round(1e3 * cpu_s / in_time, 4),
    }


def streams(seconds: float) -> dict[str, Any]:
    """Robots that send at camera rate, five times as much as the engine can serve."""

    def drive(number: int) -> dict[str, Any]:
        return _stream(daemon, f"robot {number}", seconds)

    with start_scripted_daemon(infer_s=STREAM_SERVICE_S) as daemon:
        daemon.wait_ready()
        cpu_s = _cpu_s(daemon.process.pid)
        with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
            results = list(pool.map(drive, range(STREAMS)))
        cpu_s = _cpu_s(daemon.process.pid) - cpu_s
    served = [result["served"] for result in results]
    sent = sum(result["sent"] for result in results)
    overlooked = [age for result in results for age in result["overlooked_s"]]
    return {
        "robots": STREAMS,
        "service_ms": 1e3 * STREAM_SERVICE_S,
        "camera_hz": CAMERA_HZ,
        "sent": sent,
        "served_min": min(served),
        "served_max": max(served),
        "observation_age": summary([age for result in results for age in result["ages_s"]]),
        # How long a newer observation had left its robot when computing an older one began.
        "stale_at_start": len(overlooked),
        "stale_at_start_by_max_ms": round(1e3 * max(overlooked, default=0.0), 3),
        "server_cpu_ms_per_observation": round(1e3 * cpu_s / sent, 4),
    }


def _stream(daemon: Daemon, session: str, seconds: float) -> dict[str, Any]:
    base = {**libero_observation(), "vlad/session": session, "vlad/stream": True}
    begun: list[float] = []
    sent: list[float] = []
    stop = threading.Event()

    def send() -> None:
        for number in itertools.count():
            if stop.wait(1 / CAMERA_HZ):
                return
            message = pack({**base, "vlad/observation_id": number})
            begun.append(time.perf_counter())
            robot.connection.send(message)
            sent.append(time.perf_counter())

    ages, overlooked = [], []
    with connect_robot(daemon.port) as robot:
        sender = threading.Thread(target=send)
        sender.start()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            reply = robot.receive()
            age = 1e-3 * reply["observation_age_ms"]
            ages.append(age)
            # Computing began at this time, or a little later.
            started = begun[reply["observation_id"]] + age
            newest = [other for other in sent[reply["observation_id"] + 1 :] if other < started]
            overlooked += [started - newest[0]] if newest else []
        stop.set()
        sender.join()
    return {"served": len(ages), "sent": len(sent), "ages_s": ages, "overlooked_s": overlooked}


def _cpu_s(pid: int) -> float:
    """Seconds that all threads of a process have run, in user mode and in the kernel; not its children's."""
    nanoseconds = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
            nanoseconds += int(file.read().split()[0])
    return nanoseconds * 1e-9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each measurement")
    parser.add_argument("--robots", type=int, default=64, help="in lock-step; there are always 8 streams")
    parser.add_argument(
        "--service-ms", type=float, default=20.0, help="of the policy of robots in lock-step; streams have 20"
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, with commas; default: all")
    parser.add_argument("--out", type=pathlib.Path, help="write the result as JSON")
    args = parser.parse_args()
    wanted = args.only.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        parser.error(f"--only takes {', '.join(PARTS)}, not '{unknown[0]}'")
    try:
        load = LockStep(args.robots, 1e-3 * args.service_ms, args.seconds)
    except ValueError as error:
        parser.error(str(error))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "lock_step": lambda: lock_step(load),
        "bare_websockets": lambda: bare_websockets(load),
        "streams": lambda: streams(load.seconds),
    }
    result = run_facts() | {name: run() for name, run in parts.items() if name in wanted}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
