"""Keeps requests in flight on a backend, and checks every chunk. Imports neither torch nor tensorrt."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ConfigError
from vlad_engines.backends.base import Backend, InferenceResult
from vlad_engines.backends.capabilities import Overlapped
from vlad_engines.overlap.futures import mapped
from vlad_engines.processing.model_inputs import ModelInputs

Requests = Sequence[tuple[ModelInputs, npt.NDArray[np.float32]]]


@dataclasses.dataclass(frozen=True)
class OverlapRow:
    """One way to serve back-to-back requests.

    Attributes:
        requests_per_s: over the whole run.
        p50_ms, p99_ms: from the hand-over of a request until its chunk lay in host memory.
        overlap: part of the busy time in which both streams worked.
        same_chunks: whether every chunk was, bit for bit, what the backend computes for a lone request.
    """

    backend: str
    in_flight: int
    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    overlap: float
    same_chunks: bool


def measure(
    name: str, backend: Backend, requests: Requests, expected: Sequence[bytes], count: int, in_flight: int
) -> OverlapRow:
    """Serve `count` requests, the given ones over and over, `in_flight` of them at a time.

    Args:
        requests: more of them than are in flight.
        expected: the bytes of each request's chunk.

    Raises:
        ConfigError: for more than one request in flight on a sequential backend.
    """
    if in_flight > 1 and not isinstance(backend, Overlapped):
        raise ConfigError(f"backend '{name}' computes one request at a time, not {in_flight}")
    before = backend.overlap if isinstance(backend, Overlapped) else None
    latencies: list[float] = []
    same = True
    flights: collections.deque[tuple[int, Future[tuple[InferenceResult, float]]]] = collections.deque()

    def take() -> None:
        nonlocal same
        index, future = flights.popleft()
        result, finished = future.result()
        same = same and result.actions.tobytes() == expected[index]
        latencies.append(finished - started[index])

    started: dict[int, float] = {}
    began = time.perf_counter()
    for number in range(count):
        index = number % len(requests)
        if len(flights) == in_flight:
            take()
        started[index] = time.perf_counter()
        flights.append((index, mapped(_start(backend, *requests[index]), _finished_now)))
        if in_flight == 1:
            take()
    while flights:
        take()
    seconds = time.perf_counter() - began
    overlap = 0.0
    if before is not None and isinstance(backend, Overlapped):
        after = backend.overlap
        busy = after.busy_seconds - before.busy_seconds
        overlap = (after.overlapped_seconds - before.overlapped_seconds) / busy if busy else 0.0
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return OverlapRow(name, in_flight, count, count / seconds, float(p50), float(p99), overlap, same)


def _start(backend: Backend, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> Future[InferenceResult]:
    if isinstance(backend, Overlapped):
        return backend.start(inputs, noise)
    computed: Future[InferenceResult] = Future()
    computed.set_result(backend.infer(inputs, noise))
    return computed


def _finished_now(result: InferenceResult) -> tuple[InferenceResult, float]:
    return result, time.perf_counter()
