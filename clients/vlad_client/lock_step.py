"""What a robot in lock-step gets, measured in a process in which nothing else runs.

Run as `python -m vlad_client.lock_step PORT WARM_UP REPETITIONS`, with an observation in the wire format on
stdin; on stdout comes JSON, see `measure`. For benchmarks of servers on this host.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from vlad_client import msgpack_numpy
from vlad_client.websocket_client_policy import WebsocketClientPolicy

CONNECT_TIMEOUT_S = 10.0
"""The server is ready."""


def measure(port: int, observation: dict[str, Any], *, warm_up: int, repetitions: int) -> dict[str, Any]:
    """Send the same observation again and again, each after the reply to the one before.

    Returns:
        `wall`: seconds of each request, from the call to the decoded reply; `timing` and `server_timing`: the
        `policy_timing` and `server_timing` of each reply, the latter empty where the server sends none;
        `elapsed`: seconds of all together. Those of the warm-up are left out.

    Raises:
        What `WebsocketClientPolicy` and its `infer` raise.
    """
    wall, timing, server_timing = [], [], []
    with WebsocketClientPolicy("127.0.0.1", port, connect_timeout_s=CONNECT_TIMEOUT_S) as policy:
        for _ in range(warm_up):
            policy.infer(observation)
        begin = time.perf_counter()
        for _ in range(repetitions):
            started = time.perf_counter()
            reply = policy.infer(observation)
            wall.append(time.perf_counter() - started)
            timing.append(reply["policy_timing"])
            server_timing.append(reply.get("server_timing", {}))
        elapsed = time.perf_counter() - begin
    return {"wall": wall, "timing": timing, "server_timing": server_timing, "elapsed": elapsed}


def main() -> None:
    """Entry point of the process."""
    port, warm_up, repetitions = map(int, sys.argv[1:])
    observation = msgpack_numpy.unpackb(sys.stdin.buffer.read())
    json.dump(measure(port, observation, warm_up=warm_up, repetitions=repetitions), sys.stdout)


if __name__ == "__main__":
    main()
