"""How many multiprocessors vision and prefix leave to denoising: what serves most requests, by trying it.

With none kept free, each small kernel of a denoising request waits for room among the large ones of another
request's prefix; with too many, the prefix itself takes longer. Which wins depends on GPU, engines and
precision. A lone request always has the whole GPU.

Trying takes seconds, so the choice is remembered for these engines on this GPU; delete the file to try again.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from vlad_configs.errors import EngineError
from vlad_engines.backends.tensorrt.cache import write_atomically
from vlad_engines.backends.tensorrt.device import Device, Stream
from vlad_engines.backends.tensorrt.manifest import EngineManifest
from vlad_engines.backends.tensorrt_pipelined.device_order import DeviceOrder
from vlad_engines.backends.tensorrt_pipelined.lane import Batch, TensorRtLane
from vlad_engines.overlap.pipeline import OverlappedPipeline

logger = logging.getLogger("vlad.tensorrt")

CANDIDATES = (8, 16, 24, 32)
"""Multiprocessors. Partitions of current GPUs come in eights."""

_LARGEST_SHARE = 4
"""No more than this part of a GPU is kept free: a quarter."""

_IN_FLIGHT = 2
_ROUNDS = 2
_REQUESTS = 6
_LEAST_GAIN = 1.02
"""What a partition must gain over none, because a lone request's neighbour pays for it."""

Pipeline = OverlappedPipeline[Any, Any, Batch, Any]


class Choice:
    """What was found best for some engines on some GPU, in a small file.

    Args:
        folder: where it is kept.
        manifests: of the engines.
        denoise_late: as of the streams that it is tried with.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        device: Device,
        manifests: Sequence[EngineManifest],
        *,
        denoise_late: bool,
    ) -> None:
        plans = [manifest.plan_digest for manifest in manifests]
        of = [device.name, device.multiprocessors, denoise_late, *plans]
        digest = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:24]
        self._path = folder / f"sharing-{digest}.json"

    def load(self) -> int | None:
        """The multiprocessors to spare; None where that is not known."""
        try:
            spared = json.loads(self._path.read_text("utf-8"))["spared"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return spared if spared in (0, *CANDIDATES) else None

    def store(self, spared: int) -> None:
        """Remember. A place that cannot be written costs later starts some seconds, no more."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps({"spared": spared}).encode())
        except OSError as error:
            logger.warning("how the GPU is shared cannot be remembered: %s", error)


def choose_spared(
    device: Device, order: DeviceOrder, lanes: Sequence[TensorRtLane], batch: Batch, choice: Choice
) -> None:
    """Take what was chosen before; else try the candidates on one shape and keep the best.

    Nothing may be in flight. What is tried counts neither as calls nor in any overlap report.
    """
    if CANDIDATES[0] * _LARGEST_SHARE > device.multiprocessors:
        return
    remembered = choice.load()
    if remembered is not None:
        with contextlib.suppress(EngineError):  # another driver; then it is tried again
            order.spare(remembered)
            return
    counted = [lane.calls for lane in lanes]
    pipeline: Pipeline = OverlappedPipeline(lanes, order)
    try:
        _try_all(device, order, lanes, pipeline, batch)
        choice.store(order.spared)
    finally:
        pipeline.close()
        for lane, calls in zip(lanes, counted, strict=True):
            lane.calls = calls


def _try_all(
    device: Device, order: DeviceOrder, lanes: Sequence[TensorRtLane], pipeline: Pipeline, batch: Batch
) -> None:
    rates: dict[int, float] = {}
    streams: dict[int, Stream] = {}
    for count in (0, *CANDIDATES):
        if count * _LARGEST_SHARE > device.multiprocessors:
            break
        try:
            order.spare(count)
            for lane in lanes:
                lane.prepare(batch)
            rates[count] = _requests_per_second(pipeline, batch)
        except EngineError as error:
            if not count:
                raise
            # An older driver, or a GPU that cannot be parted, serves without.
            logger.warning("the GPU cannot be parted, everything shares all of it: %s", error)
            break
        streams[count] = order.beside
    best = max(rates, key=lambda count: rates[count] / (_LEAST_GAIN if count else 1.0))
    order.use(streams[best], best)
    for count, stream in streams.items():
        if count not in (0, best):
            for lane in lanes:
                lane.forget(stream)
    logger.info(
        "vision and prefix leave %d of %d multiprocessors to another request's denoising; requests/s with 2 "
        "in flight: %s",
        best,
        device.multiprocessors,
        ", ".join(f"{rate:.1f} with {count}" for count, rate in rates.items()),
    )


def _requests_per_second(pipeline: Pipeline, batch: Batch) -> float:
    """The best of a few short runs: what disturbs one of them from outside only makes it slower."""
    _serve(pipeline, batch, _IN_FLIGHT)
    return max(_REQUESTS / _serve(pipeline, batch, _REQUESTS) for _ in range(_ROUNDS))


def _serve(pipeline: Pipeline, batch: Batch, count: int) -> float:
    flights: collections.deque[Future[Any]] = collections.deque()
    began = time.perf_counter()
    for _ in range(count):
        if len(flights) == _IN_FLIGHT:
            flights.popleft().result()
        flights.append(pipeline.start(batch))
    while flights:
        flights.popleft().result()
    return time.perf_counter() - began
