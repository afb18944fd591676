"""The pipeline's threads: many requests, many waiting threads, failures, and the end."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tests.support.scripted_device import RunningStreams, ScriptedLane, ScriptedStream, chunk_of
from vlad_configs.errors import EngineError
from vlad_engines.overlap.pipeline import Finished, OverlappedPipeline

Pipeline = OverlappedPipeline[Any, Any, Any, Any]


@pytest.fixture(params=[False, True], ids=["", "denoise late"])
def streams(request: pytest.FixtureRequest) -> Iterator[RunningStreams]:
    choice = random.Random(0)
    streams = RunningStreams(choice.randrange)
    streams.denoise_late = request.param
    yield streams
    streams.close()


def make(streams: RunningStreams, lanes: int = 3) -> Pipeline:
    scratch: dict[str, Any] = {}
    return OverlappedPipeline([ScriptedLane(scratch) for _ in range(lanes)], streams)


@pytest.mark.parametrize("lanes", [2, 3, 4])
def test_hundreds_of_requests_get_their_own_chunks_in_order(streams: RunningStreams, lanes: int) -> None:
    pipeline = make(streams, lanes)
    order: list[int] = []
    futures = []
    for number in range(300):
        future = pipeline.start(number)
        future.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
        futures.append(future)
    for number, future in enumerate(futures):
        assert future.result(60).chunk == chunk_of(number)
    pipeline.close()
    assert streams.failure is None
    assert order == list(range(300))
    report = pipeline.overlap
    assert report.requests == 300
    assert 0 < report.fraction < 1
    assert sum(future.result().overlapped_seconds for future in futures) == report.overlapped_seconds


def test_chunks_may_be_waited_for_in_other_threads(streams: RunningStreams) -> None:
    pipeline = make(streams)
    chunks: dict[int, Any] = {}

    def wait(number: int, future: Future[Finished[Any]]) -> None:
        chunks[number] = future.result(60).chunk

    threads = []
    for number in range(20):
        threads.append(threading.Thread(target=wait, args=(number, pipeline.start(number))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    pipeline.close()
    assert chunks == {number: chunk_of(number) for number in range(20)}


def test_drain_leaves_nothing_in_flight(streams: RunningStreams) -> None:
    pipeline = make(streams)
    pipeline.drain()
    futures = [pipeline.start(number) for number in range(3)]
    pipeline.drain()
    assert all(future.done() for future in futures)
    pipeline.close()


class SometimesBroken(ScriptedLane):
    def prefix(self, request_id: int, stream: ScriptedStream) -> None:
        if request_id % 3 == 1:
            raise EngineError(f"request {request_id} broke")
        super().prefix(request_id, stream)


def test_a_failed_request_harms_no_other(streams: RunningStreams) -> None:
    scratch: dict[str, Any] = {}
    pipeline: Pipeline = OverlappedPipeline([SometimesBroken(scratch) for _ in range(2)], streams)
    futures = [pipeline.start(number) for number in range(30)]
    for number, future in enumerate(futures):
        if number % 3 == 1:
            with pytest.raises(EngineError, match=f"request {number} broke"):
                future.result(60)
        else:
            assert future.result(60).chunk == chunk_of(number)
    pipeline.close()
    assert streams.failure is None


def test_requests_that_do_not_fit_take_no_lane(streams: RunningStreams) -> None:
    pipeline = make(streams, lanes=2)
    for _ in range(5):
        with pytest.raises(EngineError, match="does not fit"):
            pipeline.start("misfit")
    assert pipeline.start("request").result(60).chunk == chunk_of("request")
    pipeline.close()


def test_a_closed_pipeline_has_finished_its_requests_and_takes_no_more(streams: RunningStreams) -> None:
    pipeline = make(streams)
    futures = [pipeline.start(number) for number in range(3)]
    pipeline.close()
    pipeline.close()
    assert all(future.done() for future in futures)
    with pytest.raises(EngineError, match="the backend is closed"):
        pipeline.start(4)


def test_one_lane_overlaps_nothing_and_is_refused(streams: RunningStreams) -> None:
    with pytest.raises(ValueError, match="2 lanes or more, not 1"):
        make(streams, lanes=1)
