"""A robot in real time, for asyncio."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Awaitable, Callable

from vlad_client.async_streaming_client import AsyncStreamingClient
from vlad_client.control_timer import ControlTimer
from vlad_client.errors import PolicyConnectionError
from vlad_client.real_time_config import RealTimeConfig
from vlad_client.run_record import RunRecorder
from vlad_client.runner_core import RunnerCore, RunnerStatus


class AsyncChunkRunner:
    """Executes the chunks of a streaming client, each control index exactly once; see `ChunkRunner`.

        async with AsyncStreamingClient(host, 8000) as client:
            async with AsyncChunkRunner(client, observe, apply, RealTimeConfig(control_hz=50)) as runner:
                await runner.start_episode()
                await runner.wait(30.0)

    Control steps are as punctual as the event loop: callbacks of any task that compute without awaiting
    hold them up. Use `ChunkRunner` where that cannot be avoided.

    Args:
        client: connected; used by this runner alone; it stays open.
        observe: returns an observation taken at the time of the call.
        apply: executes one action, a float array of shape [action_width] that must not be written to.
        recorder: keeps what was executed, for a plot.
    """

    def __init__(
        self,
        client: AsyncStreamingClient,
        observe: Callable[[], Awaitable[dict[str, Any]]],
        apply: Callable[[Any], Awaitable[object]],
        config: RealTimeConfig,
        *,
        recorder: RunRecorder | None = None,
    ) -> None:
        self._client = client
        self._observe = observe
        self._apply = apply
        self._core = RunnerCore(config, recorder)
        self._failure: BaseException | None = None
        self._failure_told = False
        self._tasks: list[asyncio.Task[None]] = []
        self._control_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the tasks; nothing is executed before `start_episode`."""
        # Made here, because before Python 3.10 they belong to the loop that is current on creation.
        self._acting = asyncio.Lock()
        self._running = asyncio.Event()
        self._due = asyncio.Event()
        self._over = asyncio.Event()
        works = (self._control, self._request, self._receive)
        self._tasks = [asyncio.ensure_future(self._guarded(work)) for work in works]
        self._control_task = self._tasks[0]

    async def stop(self) -> None:
        """End the episode and the tasks; an `apply` under way is cancelled."""
        self._core.schedule.end_episode()
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._over.set()

    async def start_episode(self) -> None:
        """Forget the previous episode and execute the chunks for what `observe` sees from now on.

        Raises:
            Whatever ended an earlier episode before its time.
        """
        self.check()
        await self._not_acting()
        self._core.schedule.start_episode(time.monotonic())
        self._over.clear()
        self._due.set()
        self._running.set()

    async def end_episode(self) -> None:
        """Stop executing. Once it returns, `apply` is not called before the next episode.

        Raises:
            Whatever ended the episode before its time.
        """
        self._core.schedule.end_episode()
        self._running.clear()
        await self._not_acting()
        self._over.set()
        self.check()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the episode is over, by another task or a failure; False if time is up first.

        Raises:
            What `ChunkRunner.wait` raises.
        """
        waiting = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({waiting}, timeout=timeout_s)
        finally:
            waiting.cancel()
        self.check()
        return self._over.is_set()

    def check(self) -> None:
        """Raise what went wrong, as `wait` does; returns if all is well."""
        if self._failure is not None:
            self._failure_told = True
            raise self._failure

    def status(self) -> RunnerStatus:
        """How the run is going."""
        return self._core.status()

    async def __aenter__(self) -> AsyncChunkRunner:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
        if exc_type is None and not self._failure_told:
            self.check()

    async def _not_acting(self) -> None:
        """Wait until no `apply` is under way, unless it is `apply` that asks."""
        if asyncio.current_task() is not self._control_task:
            async with self._acting:
                pass

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._failure is None:
                self._failure = error
            self._core.schedule.end_episode()
            self._running.clear()
            self._over.set()

    async def _control(self) -> None:
        while await self._running.wait():
            timer = ControlTimer(time.monotonic())
            while self._running.is_set():
                await asyncio.sleep(timer.wait_s(time.monotonic()))
                async with self._acting:
                    await self._control_step(timer)

    async def _control_step(self, timer: ControlTimer) -> None:
        now = time.monotonic()
        step = self._core.step(now)
        timer.advance(now, self._core.schedule.period_s(now))
        if self._core.schedule.request_due(now):
            self._due.set()
        if step.action is not None:
            await self._apply(step.action)

    async def _request(self) -> None:
        while await self._due.wait():
            self._due.clear()
            now = time.monotonic()
            if not self._core.schedule.request_due(now):
                continue
            number = self._client.new_observation_id()
            extras = self._core.begin_request(now, number, self._client.capabilities)
            observation = await self._observe()
            try:
                await self._client.send(observation, extras, observation_id=number)
            except PolicyConnectionError as error:
                self._core.send_failed(number, error, time.monotonic())

    async def _receive(self) -> None:
        while True:
            event = await self._client.receive()
            if event is not None:
                self._core.handle(event, time.monotonic())
