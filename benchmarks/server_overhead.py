"""What the server costs beside the policy: codec, hand-over to the worker, whole request, eight clients.

Run from the repository root: `python -m benchmarks.server_overhead [--out FILE]`. Everything is
measured in one run, after warm-up, with a scripted policy whose own time is known.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import json
import pathlib
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.run_facts import run_facts, summary
from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot, open_connection
from vlad_configs.environments import ENVIRONMENTS
from vlad_server import wire
from vlad_server.dispatcher import Dispatcher
from vlad_server.metrics import ServerMetrics
from vlad_server.parcels import Work
from vlad_server.readiness import Readiness
from vlad_server.scheduler import Terms

WARM_UP = 200
REQUEST_BYTES = 64 << 20
SCRIPTED_WORKER = (sys.executable, "-m", "tests.support.scripted_worker")


def timed(function: Callable[[], Any], count: int) -> list[float]:
    """Seconds of `count` calls after warm-up."""
    for _ in range(WARM_UP):
        function()
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return seconds


def codec(count: int) -> dict[str, Any]:
    """Decode and check of a two-image LIBERO request, encode of its reply."""
    environment = ENVIRONMENTS["LIBERO"]
    message = wire.encode(libero_observation())
    observation = wire.decode(message)
    reply = {
        "actions": np.zeros((10, 7)),
        "policy_timing": {"infer_ms": 1.0},
        "server_timing": {"infer_ms": 1.0},
    }
    return {
        "request_bytes": len(message),
        "decode": summary(timed(lambda: wire.decode(message), count)),
        "check": summary(timed(lambda: environment.check(observation, prompt_optional=False), count)),
        "encode_reply": summary(timed(lambda: wire.encode(reply), count)),
    }


async def hand_over(count: int) -> dict[str, Any]:
    """Server to worker and back with an instant policy; the policy's own time is taken off."""
    metrics = ServerMetrics(CollectorRegistry())
    readiness = Readiness(metrics)
    options = {"checkpoint_dir": "{}", "env": "LIBERO", "default_prompt": None}
    dispatcher = Dispatcher(
        SCRIPTED_WORKER,
        [options],
        request_bytes=REQUEST_BYTES,
        max_waiting=1,
        hang_s=60.0,
        describe=dict,
        readiness=readiness,
        metrics=metrics,
    )
    supervising = asyncio.create_task(dispatcher.supervise())
    await readiness.wait_ready()
    observation = wire.decode(wire.encode(libero_observation()))
    seconds = []
    for index in range(WARM_UP + count):
        started = time.perf_counter()
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        dispatcher.submit(Work(observation, answered.set_result), Terms("robot", started))
        reply = await answered
        total = time.perf_counter() - started
        if index >= WARM_UP:
            seconds.append(total - reply.infer_s)
    supervising.cancel()
    await asyncio.gather(supervising, return_exceptions=True)
    return summary(seconds)


def whole_request(count: int) -> dict[str, Any]:
    """A bare websocket client on the same machine against the daemon with an instant policy."""
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as robot:
        observation = libero_observation()
        inside: list[float] = []

        def request() -> None:
            reply = robot.infer(observation)
            inside.append(1e-3 * reply["server_timing"]["total_ms"])

        seconds = timed(request, count)
    return {"client": summary(seconds), "server": summary(inside[WARM_UP:])}


def eight_clients(seconds: float) -> dict[str, Any]:
    """Eight lock-step clients against a 50 ms policy, with handshakes and probes in between."""
    served = [0] * 8
    waits: list[float] = []
    stop = threading.Event()

    def drive(index: int) -> None:
        observation = libero_observation(index)
        with connect_robot(daemon.port) as robot:
            while not stop.is_set():
                started = time.perf_counter()
                robot.infer(observation)
                waits.append(time.perf_counter() - started)
                served[index] += 1

    with start_scripted_daemon(infer_s=0.05) as daemon:
        daemon.wait_ready()
        cpu_before_s = daemon.metric("process_cpu_seconds_total")
        started = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(drive, index) for index in range(8)]
            handshakes, probes = _knock(daemon, seconds)
            stop.set()
            for future in futures:
                future.result()
        elapsed_s = time.perf_counter() - started
        cpu_s = daemon.metric("process_cpu_seconds_total") - cpu_before_s
    return {
        "handshake": summary(handshakes),
        "healthz": summary(probes),
        "request": summary(waits),
        "served_per_client": served,
        "requests_per_s": round(sum(served) / elapsed_s, 2),
        "server_cpu_ms_per_request_probes_included": round(1e3 * cpu_s / sum(served), 3),
    }


def _knock(daemon: Daemon, seconds: float) -> tuple[list[float], list[float]]:
    handshakes, probes = [], []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        connection = open_connection(daemon.port)
        handshakes.append(time.perf_counter() - started)
        connection.close()
        started = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}/healthz") as response:
            response.read()
        probes.append(time.perf_counter() - started)
        time.sleep(0.02)
    return handshakes, probes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="requests per measurement")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the eight-client run")
    parser.add_argument("--out", type=pathlib.Path, help="write the result as JSON")
    args = parser.parse_args()
    result = {
        **run_facts(),
        "codec": codec(args.count),
        "hand_over": uvloop.run(hand_over(args.count)),
        "whole_request": whole_request(args.count),
        "eight_clients_50ms_policy": eight_clients(args.seconds),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
