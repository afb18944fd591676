"""No interleaving of host and device lets a stage read too early or overwrite too soon."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.scripted_device import (
    LatePartedStreams,
    LateStreams,
    PartedStreams,
    RaceError,
    ScriptedEvent,
    ScriptedLane,
    ScriptedStream,
    ScriptedStreams,
    TimedLane,
    TimedStreams,
    chunk_of,
)
from vlad_configs.errors import EngineError
from vlad_engines.overlap.meter import OverlapMeter
from vlad_engines.overlap.schedule import InFlight, OverlapSchedule

Streams = Callable[[Callable[[int], int]], ScriptedStreams]

INTERLEAVINGS = st.binary(min_size=10, max_size=160)
"""One byte per decision."""


def run(requests: int, lanes: int, choices: bytes, make: Streams = ScriptedStreams) -> None:
    """Serve `requests` in an interleaving that `choices` spell out, and check every chunk."""
    script = iter(choices)

    def choose(count: int) -> int:
        return next(script, 0) % count

    streams = make(choose)
    schedule: OverlapSchedule[Any, Any, Any, Any] = OverlapSchedule(streams)
    scratch: dict[str, Any] = {}
    free = collections.deque(ScriptedLane(scratch) for _ in range(lanes))
    flights: collections.deque[InFlight[Any, Any, Any, Any]] = collections.deque()
    submitted = finished = 0
    meter = OverlapMeter(lanes)
    while finished < requests:
        moves: list[str] = []
        if free and submitted < requests:
            moves.append("submit")
        if flights:
            moves += ["finish", "step", "step", "step"]
        move = moves[choose(len(moves))]
        if move == "submit":
            flights.append(schedule.submit(free.popleft(), submitted, f"request {submitted}"))
            submitted += 1
        elif move == "finish":
            flight = flights.popleft()
            chunk, times = schedule.finish(flight)
            assert chunk == chunk_of(f"request {finished}")
            if not times.begin <= times.vision_end <= times.front_end <= times.denoise_begin:
                raise RaceError(f"a stage began before the one that it needs had ended: {times}")
            meter.add(times)
            free.append(flight.lane)  # type: ignore[arg-type]
            finished += 1
        else:
            streams.step()
    assert meter.report.requests == requests
    assert 0 <= meter.report.fraction <= 1


@pytest.mark.parametrize("make", [ScriptedStreams, PartedStreams, LateStreams, LatePartedStreams])
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.integers(2, 4), lanes=st.integers(2, 3), choices=INTERLEAVINGS)
def test_every_request_gets_its_own_chunk_in_every_interleaving(
    make: Streams, requests: int, lanes: int, choices: bytes
) -> None:
    run(requests, lanes, choices, make)


def test_a_request_that_is_alone_has_the_whole_device() -> None:
    streams = PartedStreams(lambda count: 0)
    schedule: OverlapSchedule[Any, Any, Any, Any] = OverlapSchedule(streams)
    for lone in range(2):
        flight = schedule.submit(ScriptedLane({}), lone, "lone")
        assert streams.front.work
        assert not streams.beside.work
        schedule.finish(flight)
    first = schedule.submit(ScriptedLane({}), 2, "first")
    second = schedule.submit(ScriptedLane({}), 3, "second")
    assert streams.beside.work
    for flight in (first, second):
        schedule.finish(flight)


# ---- what the property above would not forgive ----


class DenoisesAtOnce(ScriptedStreams):
    """Without the wait of denoising for its prefix."""

    def wait(self, stream: ScriptedStream, event: ScriptedEvent) -> None:
        pass


class DenoisesAfterVision(ScriptedStreams):
    """The wait is for the end of vision instead of that of prefix."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        super().__init__(choose)
        self._recorded: list[ScriptedEvent] = []

    def record(self, event: ScriptedEvent, stream: ScriptedStream) -> None:
        super().record(event, stream)
        self._recorded.append(event)

    def wait(self, stream: ScriptedStream, event: ScriptedEvent) -> None:
        assert self._recorded[-1] is event
        super().wait(stream, self._recorded[-2])


class WaitsBeforeRecording(ScriptedStreams):
    """The wait is enqueued before its event is recorded, which CUDA takes for no wait at all."""

    def wait(self, stream: ScriptedStream, event: ScriptedEvent) -> None:
        super().wait(stream, ScriptedEvent())


class NeverWaitsForTheDevice(ScriptedStreams):
    """The host takes the chunk, and gives the lane away, without having seen the end."""

    def synchronize(self, event: ScriptedEvent) -> None:
        pass


class GivesTheLaneAwayDuringDenoising(DenoisesAfterVision):
    """The host waits for the beginning of denoising instead of its end."""

    def wait(self, stream: ScriptedStream, event: ScriptedEvent) -> None:
        ScriptedStreams.wait(self, stream, event)

    def synchronize(self, event: ScriptedEvent) -> None:
        super().synchronize(self._recorded[self._recorded.index(event) - 1])


class NeverWaitsWhenLate(LateStreams):
    """Neither for the end of the prefix nor for that of denoising."""

    def synchronize(self, event: ScriptedEvent) -> None:
        pass


class RunsTwoFrontsAtOnce(PartedStreams):
    """The front stages change streams without waiting for those of the request before."""

    def wait(self, stream: ScriptedStream, event: ScriptedEvent) -> None:
        if stream is self.back:
            super().wait(stream, event)


@pytest.mark.parametrize(
    "mistake",
    [
        DenoisesAtOnce,
        DenoisesAfterVision,
        WaitsBeforeRecording,
        NeverWaitsForTheDevice,
        GivesTheLaneAwayDuringDenoising,
        NeverWaitsWhenLate,
        RunsTwoFrontsAtOnce,
    ],
)
def test_a_mistake_in_the_waits_is_found(mistake: Streams) -> None:
    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.integers(2, 4), st.integers(2, 3), INTERLEAVINGS)
    def explore(requests: int, lanes: int, choices: bytes) -> None:
        run(requests, lanes, choices, mistake)

    with pytest.raises(RaceError):
        explore()


def test_a_lane_given_to_two_requests_is_noticed_by_its_stages() -> None:
    streams = ScriptedStreams(lambda count: 0)
    schedule: OverlapSchedule[Any, Any, Any, Any] = OverlapSchedule(streams)
    lane = ScriptedLane({})
    first = schedule.submit(lane, 0, "first")
    schedule.submit(lane, 1, "second")
    with pytest.raises(EngineError, match="lane holds request 1, a stage expected 0"):
        schedule.finish(first)


# ---- failures ----


class BrokenLane(ScriptedLane):
    """Fails while one of its stages is enqueued."""

    def __init__(self, stage: str) -> None:
        super().__init__({})
        self._broken = stage

    def _stage(self, stream: ScriptedStream, name: str, source: str, target: str) -> None:
        if name == self._broken:
            raise EngineError(f"{name} is broken")
        super()._stage(stream, name, source, target)


@pytest.mark.parametrize("make", [ScriptedStreams, LateStreams])
@pytest.mark.parametrize("stage", ["vision", "prefix", "denoise"])
def test_a_stage_that_fails_gives_its_lane_back_only_after_what_was_enqueued(
    stage: str, make: Streams
) -> None:
    streams = make(lambda count: count - 1)
    schedule: OverlapSchedule[Any, Any, Any, Any] = OverlapSchedule(streams)
    flight = schedule.submit(BrokenLane(stage), 0, "request")
    with pytest.raises(EngineError, match=f"{stage} is broken"):
        schedule.finish(flight)
    assert not streams.front.work
    assert not streams.back.work


def test_a_request_that_does_not_fit_enqueues_nothing() -> None:
    streams = ScriptedStreams(lambda count: 0)
    schedule: OverlapSchedule[Any, Any, Any, Any] = OverlapSchedule(streams)
    with pytest.raises(EngineError, match="does not fit"):
        schedule.submit(ScriptedLane({}), 0, "misfit")
    assert not streams.front.work
    assert not streams.back.work


# ---- time ----


def serve(
    requests: list[tuple[float, float, float]], lanes: int, streams: TimedStreams | None = None
) -> tuple[TimedStreams, OverlapMeter]:
    """Keep as many in flight as there are lanes."""
    streams = TimedStreams() if streams is None else streams
    schedule: OverlapSchedule[Any, Any, Any, int] = OverlapSchedule(streams)
    free = collections.deque(TimedLane() for _ in range(lanes))
    flights: collections.deque[InFlight[Any, Any, Any, int]] = collections.deque()
    meter, waiting = OverlapMeter(lanes), collections.deque(enumerate(requests))
    while waiting or flights:
        while waiting and free:
            request_id, request = waiting.popleft()
            flights.append(schedule.submit(free.popleft(), request_id, request))
        flight = flights.popleft()
        _, times = schedule.finish(flight)
        meter.add(times)
        free.append(flight.lane)  # type: ignore[arg-type]
    return streams, meter


def test_a_lone_request_takes_the_time_of_its_stages() -> None:
    streams, meter = serve([(1.0, 4.0, 5.0)], lanes=3)
    assert streams.now == pytest.approx(10.0)
    assert meter.report.overlapped_seconds == 0
    assert meter.report.busy_seconds == pytest.approx(10.0)


@pytest.mark.parametrize(("stages", "period"), [((1.0, 4.0, 5.0), 5.0), ((1.0, 2.0, 7.0), 7.0)])
def test_back_to_back_requests_take_the_longer_of_the_two_streams(
    stages: tuple[float, float, float], period: float
) -> None:
    streams, meter = serve([stages] * 20, lanes=3)
    assert streams.now == pytest.approx(sum(stages) + 19 * period)
    shorter = sum(stages) - period
    assert meter.report.overlapped_seconds == pytest.approx(19 * shorter)
    assert meter.report.busy_seconds == pytest.approx(streams.now)
    assert meter.report.fraction == pytest.approx(19 * shorter / streams.now)


@pytest.mark.parametrize(("late", "period"), [(False, 8.0), (True, 5.0)])
def test_kernels_that_the_queue_does_not_take_hold_no_other_request_up_when_enqueued_late(
    late: bool, period: float
) -> None:
    streams, meter = serve([(1.0, 4.0, 5.0)] * 20, 3, TimedStreams(queue_s=2.0, denoise_late=late))
    assert streams.now == pytest.approx(10.0 + 19 * period)
    assert meter.report.overlapped_seconds == pytest.approx(19 * (10.0 - period))


def test_a_lone_request_takes_no_longer_when_its_denoising_is_enqueued_late() -> None:
    streams, _ = serve([(1.0, 4.0, 5.0)], 3, TimedStreams(queue_s=2.0, denoise_late=True))
    assert streams.now == pytest.approx(10.0)


def test_stage_seconds_leave_out_the_wait_for_the_other_stream() -> None:
    streams = TimedStreams()
    schedule: OverlapSchedule[Any, Any, Any, int] = OverlapSchedule(streams)
    flights = [schedule.submit(TimedLane(), number, (1.0, 2.0, 7.0)) for number in range(2)]
    for flight in flights:
        _, times = schedule.finish(flight)
        assert times.stage_seconds == pytest.approx({"vision": 1.0, "prefix": 2.0, "denoise": 7.0})
    assert times.denoise_begin - times.front_end == pytest.approx(4.0)
