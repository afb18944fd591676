"""Where the wall time of a request went, by the clocks of the robot, the server and the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlad_engines.bench.row import STAGES

PARTS = ("client", "decode", "queue", "worker", "preprocess", "backend", "gpu", "postprocess", "answer")
"""None of them overlaps another, and those of one request add up to its wall time."""

_SERVER_TIMES = frozenset({"decode_ms", "queue_ms", "infer_ms", "total_ms"})


def split(
    wall: Sequence[float],
    policy_timing: Sequence[Mapping[str, float]],
    server_timing: Sequence[Mapping[str, float]],
) -> dict[str, list[float]] | None:
    """Cut the wall times of requests of one robot, which has the server to itself.

    Args:
        wall: seconds from the robot's call to the decoded reply, one number per request.
        policy_timing, server_timing: milliseconds, of each reply.

    Returns:
        Part -> seconds of each request; None where the server does not tell them, as openpi's does not.
    """
    if not all(server.keys() >= _SERVER_TIMES for server in server_timing):
        return None
    requests = [_parts(*each) for each in zip(wall, policy_timing, server_timing, strict=True)]
    return {part: [request[part] for request in requests] for part in PARTS}


def _parts(wall: float, policy: Mapping[str, float], server: Mapping[str, float]) -> dict[str, float]:
    gpu = sum(policy[f"{stage}_ms"] for stage in STAGES)
    # The worker's computing time ends with the chunk in host memory: post-processing comes after it.
    after = server["total_ms"] - server["decode_ms"] - server["queue_ms"] - server["infer_ms"]
    milliseconds = {
        "client": 1e3 * wall - server["total_ms"],
        "decode": server["decode_ms"],
        "queue": server["queue_ms"],
        "worker": server["infer_ms"] - policy["preprocess_ms"] - policy["infer_ms"],
        "preprocess": policy["preprocess_ms"],
        "backend": policy["infer_ms"] - gpu,
        "gpu": gpu,
        "postprocess": policy["postprocess_ms"],
        "answer": after - policy["postprocess_ms"],
    }
    return {part: 1e-3 * time_ms for part, time_ms in milliseconds.items()}
