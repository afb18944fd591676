"""A device of two streams that a test drives step by step, and lanes whose buffers notice every race.

Work is split into a beginning, which reads, and an end, which writes: another stream can come in between.
A buffer that holds nothing valid holds `POISON`, and reading it is a race.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

from vlad_configs.errors import EngineError

POISON = "poison"

Choose = Callable[[int], int]
"""Picks one of so many possibilities."""


class RaceError(AssertionError):
    """Somebody read what was not there yet, or no longer."""


@dataclasses.dataclass(eq=False)
class ScriptedEvent:
    """`record_` counts its recordings; `happened` those that the device has come to."""

    recorded: int = 0
    happened: int = 0
    time: float = 0.0


@dataclasses.dataclass(eq=False)
class ScriptedStream:
    """Work in order: callables, and waits that hold it up until `ready()`."""

    name: str
    work: collections.deque[tuple[Callable[[], bool], Callable[[], None]]] = dataclasses.field(
        default_factory=collections.deque
    )

    def run(self, *parts: Callable[[], None]) -> None:
        """Enqueue work; between its parts other streams may get their turn."""
        self.work.extend((lambda: True, part) for part in parts)

    @property
    def can_step(self) -> bool:
        return bool(self.work) and self.work[0][0]()


class ScriptedStreams:
    """`DeviceStreams` in which `choose` decides whose turn it is. CUDA's rules: a wait is for the latest
    recording at the time of the call, and for nothing where there was none."""

    denoise_late = False

    def __init__(self, choose: Choose) -> None:
        self._front, self.back = ScriptedStream("front"), ScriptedStream("back")
        self.streams = [self._front, self.back]
        self._choose = choose
        self._steps = 0

    @property
    def front(self) -> ScriptedStream:
        return self._front

    @property
    def beside(self) -> ScriptedStream:
        return self.front

    def active(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def event(self) -> ScriptedEvent:
        return ScriptedEvent()

    def record(self, event: ScriptedEvent, stream: ScriptedStream) -> None:
        event.recorded += 1
        generation = event.recorded

        def happen() -> None:
            event.happened, event.time = generation, float(self._steps)

        stream.run(happen)

    def wait(self, stream: ScriptedStream, event: ScriptedEvent) -> None:
        generation = event.recorded
        stream.work.append((lambda: event.happened >= generation, lambda: None))

    def synchronize(self, event: ScriptedEvent) -> None:
        generation = event.recorded
        while event.happened < generation:
            if not self.step():
                raise AssertionError("deadlock: the host waits for what the device cannot do")

    def seconds(self, begin: ScriptedEvent, end: ScriptedEvent) -> float:
        if begin.happened < begin.recorded or end.happened < end.recorded:
            raise RaceError("a time is asked for that has not been taken yet")
        return end.time - begin.time

    def step(self) -> bool:
        """Let one stream do one piece of work; False where none can."""
        ready = [stream for stream in self.streams if stream.can_step]
        if not ready:
            return False
        self._steps += 1
        ready[self._choose(len(ready))].work.popleft()[1]()
        return True


@dataclasses.dataclass
class Scratch:
    """Memory that all lanes share in one stage; `owner` is the request that works in it."""

    owner: Any = None


class ScriptedLane:
    """A `Lane` that computes on labels. The chunk of request x is `chunk_of(x)`."""

    def __init__(self, scratch: dict[str, Scratch]) -> None:
        self._scratch = scratch
        self._request_id: int | None = None
        self.host_input: Any = POISON
        self.tokens: Any = POISON
        self.cache: Any = POISON
        self.host_output: Any = POISON

    def load(self, request_id: int, request: Any) -> None:
        if request == "misfit":
            raise EngineError("this request does not fit")
        self._request_id = request_id
        self.host_input = request

    def vision(self, request_id: int, stream: ScriptedStream) -> None:
        self._require(request_id)
        self._stage(stream, "vision", "host_input", "tokens")

    def prefix(self, request_id: int, stream: ScriptedStream) -> None:
        self._require(request_id)
        self._stage(stream, "prefix", "tokens", "cache")

    def denoise(self, request_id: int, stream: ScriptedStream) -> None:
        self._require(request_id)
        self._stage(stream, "denoise", "cache", "host_output")

    def take(self, request_id: int) -> Any:
        self._require(request_id)
        chunk = _read(self, "host_output")
        # Nobody may look at any of it again: whoever does, is late.
        self.host_input = self.tokens = self.cache = self.host_output = POISON
        return chunk

    def _require(self, request_id: int) -> None:
        if self._request_id != request_id:
            raise EngineError(f"lane holds request {self._request_id}, a stage expected {request_id}")

    def _stage(self, stream: ScriptedStream, name: str, source: str, target: str) -> None:
        scratch = self._scratch.setdefault(name, Scratch())
        seen: list[Any] = []

        def begin() -> None:
            seen.append(_read(self, source))
            setattr(self, target, POISON)
            scratch.owner = self

        def end() -> None:
            if _read(self, source) != seen[0]:
                raise RaceError(f"{source} changed while {name} read it")
            if scratch.owner is not self:
                raise RaceError(f"two requests were in {name} at once")
            if getattr(self, target) != POISON:
                raise RaceError(f"somebody else wrote {target} during {name}")
            setattr(self, target, (name, seen[0]))

        stream.run(begin, end)


def chunk_of(request: Any) -> Any:
    """What the stages make of a request."""
    return ("denoise", ("prefix", ("vision", request)))


def _read(lane: ScriptedLane, name: str) -> Any:
    value = getattr(lane, name)
    if value == POISON:
        raise RaceError(f"{name} was read while it held nothing")
    return value


class PartedStreams(ScriptedStreams):
    """With a stream of its own for the front stages beside another request."""

    def __init__(self, choose: Choose) -> None:
        super().__init__(choose)
        self._beside = ScriptedStream("beside")
        self.streams.append(self._beside)

    @property
    def beside(self) -> ScriptedStream:
        return self._beside


class LateStreams(ScriptedStreams):
    """Denoising is enqueued when its prefix has ended."""

    denoise_late = True


class LatePartedStreams(PartedStreams):
    """Both."""

    denoise_late = True


class RunningStreams(ScriptedStreams):
    """The same, stepped by a thread of its own, as a real device is."""

    def __init__(self, choose: Choose) -> None:
        super().__init__(choose)
        self._changed = threading.Condition(threading.RLock())
        self._ended = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="scripted device", daemon=True)
        self._thread.start()

    def record(self, event: ScriptedEvent, stream: ScriptedStream) -> None:
        with self._changed:
            super().record(event, stream)
            self._changed.notify_all()

    def wait(self, stream: ScriptedStream, event: ScriptedEvent) -> None:
        with self._changed:
            super().wait(stream, event)

    def synchronize(self, event: ScriptedEvent) -> None:
        with self._changed:
            generation = event.recorded
            self._changed.wait_for(lambda: event.happened >= generation or self.failure is not None)
            if self.failure is not None:
                raise self.failure

    def close(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._ended:
                    return
                try:
                    stepped = self.step()
                except RaceError as error:
                    self.failure = error
                    self._changed.notify_all()
                    return
                if stepped:
                    self._changed.notify_all()
                else:
                    self._changed.wait()


class TimedStreams:
    """Streams on which work takes time: each knows when its last piece ends. `now` is the host's clock.

    Args:
        queue_s: how much work the back stream's queue takes; who enqueues more is held up. None for any.
        denoise_late: see `DeviceStreams`.
    """

    def __init__(self, queue_s: float | None = None, *, denoise_late: bool = False) -> None:
        self.now = 0.0
        self.queue_s, self.denoise_late = queue_s, denoise_late
        self.front, self.back = TimedStream(self), TimedStream(self)
        self.beside = self.front

    def active(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def event(self) -> ScriptedEvent:
        return ScriptedEvent()

    def record(self, event: ScriptedEvent, stream: TimedStream) -> None:
        event.time = stream.end = max(stream.end, self.now)

    def wait(self, stream: TimedStream, event: ScriptedEvent) -> None:
        stream.end = max(stream.end, event.time)

    def synchronize(self, event: ScriptedEvent) -> None:
        self.now = max(self.now, event.time)

    def seconds(self, begin: ScriptedEvent, end: ScriptedEvent) -> float:
        return end.time - begin.time


@dataclasses.dataclass(eq=False)
class TimedStream:
    """When the last work enqueued so far ends."""

    device: TimedStreams
    end: float = 0.0

    def work(self, seconds: float) -> None:
        device = self.device
        self.end = max(self.end, device.now) + seconds
        if device.queue_s is not None and self is device.back and seconds > device.queue_s:
            device.now = max(device.now, self.end - device.queue_s)


@dataclasses.dataclass
class TimedLane:
    """A `Lane` whose stages take the seconds that the request names: vision, prefix, denoise."""

    request: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def load(self, request_id: int, request: tuple[float, float, float]) -> None:
        self.request = request

    def vision(self, request_id: int, stream: TimedStream) -> None:
        stream.work(self.request[0])

    def prefix(self, request_id: int, stream: TimedStream) -> None:
        stream.work(self.request[1])

    def denoise(self, request_id: int, stream: TimedStream) -> None:
        stream.work(self.request[2])

    def take(self, request_id: int) -> int:
        return request_id
