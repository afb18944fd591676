"""The asyncio classes behind the calls of those for threads, so that one test serves both."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from vlad_client import AsyncChunkRunner, AsyncStreamingClient

GENEROUS_S = 40.0


class EventLoop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Any) -> Any:
        """Run a coroutine in the loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(GENEROUS_S)

    def end(self) -> None:
        """Stop the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class BlockingAsyncClient:
    """An `AsyncStreamingClient` that looks like a `StreamingClient`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.loop = EventLoop()
        try:
            self.wrapped = self.loop.run(self._make(*arguments, **options))
            self.loop.run(self.wrapped.connect())
        except BaseException:
            self.loop.end()
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def send(self, *arguments: Any, **options: Any) -> int:
        number: int = self.loop.run(self.wrapped.send(*arguments, **options))
        return number

    def receive(self, timeout_s: float | None = None) -> Any:
        return self.loop.run(self.wrapped.receive(timeout_s))

    def close(self) -> None:
        self.loop.run(self.wrapped.close())

    def __enter__(self) -> BlockingAsyncClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.loop.end()

    @staticmethod
    async def _make(*arguments: Any, **options: Any) -> AsyncStreamingClient:
        return AsyncStreamingClient(*arguments, **options)


class BlockingAsyncRunner:
    """An `AsyncChunkRunner` that looks like a `ChunkRunner`; it runs in the loop of its client."""

    def __init__(
        self, client: BlockingAsyncClient, observe: Any, apply: Any, config: Any, **options: Any
    ) -> None:
        async def async_observe() -> Any:
            return observe()

        async def async_apply(action: Any) -> None:
            apply(action)

        self._run = client.loop.run
        self._runner = AsyncChunkRunner(client.wrapped, async_observe, async_apply, config, **options)

    def start_episode(self) -> None:
        self._run(self._runner.start_episode())

    def end_episode(self) -> None:
        self._run(self._runner.end_episode())

    def wait(self, timeout_s: float | None = None) -> bool:
        done: bool = self._run(self._runner.wait(timeout_s))
        return done

    def status(self) -> Any:
        return self._runner.status()

    def __enter__(self) -> BlockingAsyncRunner:
        self._run(self._runner.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._run(self._runner.__aexit__(*error))
