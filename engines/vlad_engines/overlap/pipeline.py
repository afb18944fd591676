"""The overlapped schedule at work: lanes that are given out, and one thread that waits for the device."""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Generic

from vlad_configs.errors import EngineError
from vlad_engines.overlap.meter import OverlapMeter, OverlapReport, RequestTimes
from vlad_engines.overlap.schedule import Chunk, InFlight, Lane, OverlapSchedule, Request
from vlad_engines.overlap.streams import DeviceStreams, Event, Stream

MIN_LANES = 2
DEFAULT_LANES = 3
"""One denoises, one is in the front stages, and one lies ready behind it, so that no stream waits for the
host between two requests."""


@dataclasses.dataclass(frozen=True)
class Finished(Generic[Chunk]):
    """A chunk in host memory.

    Attributes:
        times: of its stages on the device.
        overlapped_seconds: how long its vision and prefix ran beside earlier requests' denoising.
    """

    chunk: Chunk
    times: RequestTimes
    overlapped_seconds: float


class OverlappedPipeline(Generic[Stream, Event, Request, Chunk]):
    """Keeps as many requests in flight as there are lanes.

    `start`, `drain` and `close` belong to one thread; futures may be waited for in any.

    Args:
        lanes: two or more, each with memory of its own.
        streams: of the device that the lanes are on.
    """

    def __init__(
        self, lanes: Sequence[Lane[Stream, Request, Chunk]], streams: DeviceStreams[Stream, Event]
    ) -> None:
        if len(lanes) < MIN_LANES:
            raise ValueError(f"overlap needs {MIN_LANES} lanes or more, not {len(lanes)}")
        self._schedule: OverlapSchedule[Stream, Event, Request, Chunk] = OverlapSchedule(streams)
        self._meter = OverlapMeter(len(lanes))
        self._request_ids = itertools.count()
        self._free: queue.SimpleQueue[Lane[Stream, Request, Chunk]] = queue.SimpleQueue()
        for lane in lanes:
            self._free.put(lane)
        self._started: queue.SimpleQueue[
            tuple[InFlight[Stream, Event, Request, Chunk], Future[Finished[Chunk]]] | None
        ] = queue.SimpleQueue()
        self._last: Future[Finished[Chunk]] | None = None
        self._closed = False
        self._waiter = threading.Thread(target=self._finish_all, name="vlad-device-waiter", daemon=True)
        self._waiter.start()

    @property
    def overlap(self) -> OverlapReport:
        """What was measured so far; may be read from any thread."""
        return self._meter.report

    def start(self, request: Request) -> Future[Finished[Chunk]]:
        """Enqueue a request; returns at once where a lane is free, else when the next one is.

        Requests finish in the order in which they start. A started request cannot be cancelled.

        Raises:
            EngineError: for a request that does not fit, or after `close`.
        """
        if self._closed:
            raise EngineError("the backend is closed")
        lane = self._free.get()
        try:
            flight = self._schedule.submit(lane, next(self._request_ids), request)
        except Exception:
            self._free.put(lane)
            raise
        future: Future[Finished[Chunk]] = Future()
        future.set_running_or_notify_cancel()
        self._last = future
        self._started.put((flight, future))
        return future

    def drain(self) -> None:
        """Wait until nothing is in flight. Failed requests say so through their futures only."""
        if self._last is not None:
            self._last.exception()

    def close(self) -> None:
        """Finish what is in flight and end the thread."""
        if not self._closed:
            self._closed = True
            self._started.put(None)
            self._waiter.join()

    def _finish_all(self) -> None:
        while (item := self._started.get()) is not None:
            flight, future = item
            try:
                chunk, times = self._schedule.finish(flight)
                finished = Finished(chunk, times, self._meter.add(times))
            except Exception as error:
                self._free.put(flight.lane)
                future.set_exception(error)
            else:
                self._free.put(flight.lane)
                future.set_result(finished)
