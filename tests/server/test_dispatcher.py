"""Between robots and workers, with a real worker process that follows a script."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import signal
import sys
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.support.libero import libero_observation
from vlad_configs.environments import ENVIRONMENTS
from vlad_server.dispatcher import Dispatcher
from vlad_server.metrics import ServerMetrics
from vlad_server.outcomes import Reply, WorkerLostError
from vlad_server.parcels import Work
from vlad_server.readiness import Readiness
from vlad_server.scheduler import Terms

SCRIPTED_WORKER = (sys.executable, "-m", "tests.support.scripted_worker")
POLICY_KEYS = ENVIRONMENTS["LIBERO"].request_keys


def _dispatcher(**script: Any) -> tuple[Dispatcher, Readiness]:
    metrics = ServerMetrics(CollectorRegistry())
    readiness = Readiness(metrics)
    options = {"checkpoint_dir": json.dumps(script), "env": "LIBERO", "default_prompt": None, "device": None}
    dispatcher = Dispatcher(
        SCRIPTED_WORKER,
        [options],
        request_bytes=1 << 20,
        max_waiting=8,
        hang_s=60.0,
        describe=dict,
        readiness=readiness,
        metrics=metrics,
    )
    return dispatcher, readiness


def _observation(prompt: str) -> dict[str, Any]:
    return {key: value for key, value in libero_observation(prompt=prompt).items() if key in POLICY_KEYS}


# The last worker is killed and not waited for: a daemon ends right after that.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_hears_that_a_worker_died_may_drop_what_else_it_had() -> None:
    async def scenario() -> None:
        dispatcher, readiness = _dispatcher()
        supervising = asyncio.ensure_future(dispatcher.supervise())
        await asyncio.wait_for(readiness.wait_ready(), 30)
        heard: list[Any] = []
        ended = asyncio.Event()

        def on_first(outcome: Any) -> None:
            heard.append(outcome)
            dispatcher.drop(second)
            dispatcher.submit(Work(_observation("again"), on_third), Terms("third", time.perf_counter()))

        def on_third(outcome: Any) -> None:
            heard.append(outcome)
            ended.set()

        now = time.perf_counter()
        dispatcher.submit(Work(_observation("sleep 30"), on_first), Terms("first", now))
        second = dispatcher.submit(Work(_observation("sleep 0"), heard.append), Terms("second", now))
        await asyncio.sleep(0.3)
        os.kill(readiness.metadata["pid"], signal.SIGKILL)
        await asyncio.wait({supervising, asyncio.ensure_future(ended.wait())}, return_when="FIRST_COMPLETED")
        assert not supervising.done()
        assert [type(outcome) for outcome in heard] == [WorkerLostError, Reply]
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_requests_give_their_memory_back_however_they_end() -> None:
    async def scenario() -> None:
        dispatcher, readiness = _dispatcher()
        supervising = asyncio.ensure_future(dispatcher.supervise())
        await asyncio.wait_for(readiness.wait_ready(), 30)
        observation = _observation("sleep 0")
        # More often than there are slots, so that one that is not given back is missed.
        for _ in range(60):
            outcomes: asyncio.Queue[Any] = asyncio.Queue()
            now = time.perf_counter()

            def ask(
                terms: Terms, observation: Any = observation, outcomes: Any = outcomes, **how: bool
            ) -> int:
                return dispatcher.submit(Work(observation, outcomes.put_nowait), terms, **how)

            for _ in range(3):
                ask(Terms("one", now))
            ask(Terms("late", now, expires=now - 1.0))
            ask(Terms("large", now), {"image": bytearray(1 << 20)})
            for _ in range(3):
                ask(Terms("stream", now), stream=True)
            dispatcher.drop(ask(Terms("gone", now)))
            kinds = collections.Counter([type(await outcomes.get()).__name__ for _ in range(8)])
            assert kinds["Reply"] >= 3
            assert kinds["BusyError"] == kinds["ExpiredError"] == kinds["ObservationError"] == 1
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)

    asyncio.run(scenario())
