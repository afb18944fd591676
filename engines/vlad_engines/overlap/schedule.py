"""In which order two streams work on the requests in flight. No threads, no clock, no device of its own.

    front stream  | vision 1 | prefix 1 | vision 2 | prefix 2 | vision 3 | ...
    back stream                         | denoise 1           | denoise 2 ...

A request lives in one lane from `submit` to `finish`. What keeps its data its own:

- Its denoising waits, on the device, for the end of its prefix (producer before consumer).
- Its lane is given to another request only after `finish`, which has seen the end of its denoising, the
  last to read from the lane and the one that writes its host output (consumer before reuse).
- A stream works in order: two requests never share the scratch memory of one stage. Where the front stages
  change streams (see `DeviceStreams.beside`), the new one first waits for the old one.
- Every stage is told which request it works for, and asserts that its lane holds that one.

Nothing else waits: a lone request runs straight through, on the whole device. Where the streams ask for it
(`DeviceStreams.denoise_late`), denoising is enqueued by `finish`, when its prefix has ended.
"""

from __future__ import annotations

import dataclasses
from typing import Generic, Protocol, TypeVar

from vlad_engines.overlap.meter import RequestTimes
from vlad_engines.overlap.streams import DeviceStreams, Event, Stream

Request = TypeVar("Request")
Chunk = TypeVar("Chunk")
StreamContra = TypeVar("StreamContra", contravariant=True)
RequestContra = TypeVar("RequestContra", contravariant=True)
ChunkCo = TypeVar("ChunkCo", covariant=True)


class Lane(Protocol[StreamContra, RequestContra, ChunkCo]):
    """All memory of one request in flight, and the stages that work in it.

    Stages only enqueue. Each raises EngineError where the lane holds another request than it is told.
    """

    def load(self, request_id: int, request: RequestContra) -> None:
        """Take over a request into host memory; touches no device memory and no stream.

        Raises:
            EngineError: for a request that does not fit; the lane is free then.
        """
        ...

    def vision(self, request_id: int, stream: StreamContra) -> None:
        """Upload, then pixels to image tokens."""
        ...

    def prefix(self, request_id: int, stream: StreamContra) -> None:
        """Image tokens and prompt to keys and values."""
        ...

    def denoise(self, request_id: int, stream: StreamContra) -> None:
        """Keys and values to actions, then their download."""
        ...

    def take(self, request_id: int) -> ChunkCo:
        """A copy of the downloaded actions; the device has finished by then."""
        ...


@dataclasses.dataclass(frozen=True)
class InFlight(Generic[Stream, Event, Request, Chunk]):
    """A request whose work is enqueued.

    Attributes:
        begin, vision_end, front_end: on the front stream.
        denoise_begin, denoise_end: on the back stream. The last one comes after all work of the request.
        waits: its denoising is not enqueued yet.
        error: why not all of it could be enqueued, or None.
    """

    request_id: int
    lane: Lane[Stream, Request, Chunk]
    begin: Event
    vision_end: Event
    front_end: Event
    denoise_begin: Event
    denoise_end: Event
    waits: bool = False
    error: Exception | None = None


class OverlapSchedule(Generic[Stream, Event, Request, Chunk]):
    """Enqueues requests and waits for them. `submit` from one thread; `finish`, in the same order, from one.

    The two threads may be different ones.
    """

    def __init__(self, streams: DeviceStreams[Stream, Event]) -> None:
        self._streams = streams
        self._last_begin: tuple[Event, float] | None = None
        self._last_front: tuple[Stream, Event] | None = None
        self._submitted = self._finished = 0  # each is written by one thread

    def submit(
        self, lane: Lane[Stream, Request, Chunk], request_id: int, request: Request
    ) -> InFlight[Stream, Event, Request, Chunk]:
        """Enqueue the stages of a request in a free lane, which is taken until `finish`.

        Raises:
            EngineError: for a request that does not fit the lane, which stays free.
        """
        lane.load(request_id, request)
        streams = self._streams
        front = self._choose_front()
        flight = InFlight(
            request_id,
            lane,
            begin=streams.event(),
            vision_end=streams.event(),
            front_end=streams.event(),
            denoise_begin=streams.event(),
            denoise_end=streams.event(),
        )
        self._submitted += 1
        self._follow(front, flight.front_end)
        streams.record(flight.begin, front)
        try:
            lane.vision(request_id, front)
            streams.record(flight.vision_end, front)
            lane.prefix(request_id, front)
        except Exception as error:
            flight = dataclasses.replace(flight, error=error)
        # After an error too: what was enqueued still runs in this lane, the last event must come after it.
        streams.record(flight.front_end, front)
        if flight.error is None and streams.denoise_late:
            return dataclasses.replace(flight, waits=True)
        return self._denoise(flight)

    def finish(self, flight: InFlight[Stream, Event, Request, Chunk]) -> tuple[Chunk, RequestTimes]:
        """Wait for a request, the oldest in flight. Its lane is free afterwards, also after an error.

        Returns:
            Its chunk, and its times on a clock that all requests share.

        Raises:
            Exception: what its stages raised, or the device.
        """
        try:
            if flight.waits:
                self._streams.synchronize(flight.front_end)
                with self._streams.active():
                    flight = self._denoise(flight)
            self._streams.synchronize(flight.denoise_end)
        finally:
            self._finished += 1
        if flight.error is not None:
            raise flight.error
        return flight.lane.take(flight.request_id), self._times(flight)

    def _denoise(
        self, flight: InFlight[Stream, Event, Request, Chunk]
    ) -> InFlight[Stream, Event, Request, Chunk]:
        streams, back = self._streams, self._streams.back
        streams.wait(back, flight.front_end)
        streams.record(flight.denoise_begin, back)
        if flight.error is None:
            try:
                flight.lane.denoise(flight.request_id, back)
            except Exception as error:
                flight = dataclasses.replace(flight, error=error)
        streams.record(flight.denoise_end, back)
        return flight

    def _choose_front(self) -> Stream:
        alone = self._submitted == self._finished
        return self._streams.front if alone else self._streams.beside

    def _follow(self, front: Stream, front_end: Event) -> None:
        """Let a request's front stages come after those of the one before, in whatever stream they are."""
        if self._last_front is not None and self._last_front[0] is not front:
            self._streams.wait(front, self._last_front[1])
        self._last_front = front, front_end

    def _times(self, flight: InFlight[Stream, Event, Request, Chunk]) -> RequestTimes:
        # From request to request, not from one origin: the resolution of an event falls with the distance.
        begin = 0.0
        if self._last_begin is not None:
            event, time = self._last_begin
            begin = time + self._streams.seconds(event, flight.begin)
        self._last_begin = (flight.begin, begin)

        def after(event: Event) -> float:
            return begin + self._streams.seconds(flight.begin, event)

        return RequestTimes(
            begin=begin,
            vision_end=after(flight.vision_end),
            front_end=after(flight.front_end),
            denoise_begin=after(flight.denoise_begin),
            denoise_end=after(flight.denoise_end),
        )
