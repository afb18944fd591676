"""The streaming client for asyncio."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Mapping

from vlad_client.async_connection import AsyncConnection, open_async_connection
from vlad_client.errors import PolicyConnectionError, WireError
from vlad_client.observation_extras import ObservationExtras
from vlad_client.outage import Outage
from vlad_client.stream_events import StreamEvent
from vlad_client.stream_state import SILENCE_S, STEP_S, StreamState


class AsyncStreamingClient(StreamState[AsyncConnection]):
    """A stream of observations to a policy server, and of events from it; see `StreamingClient`.

    One task calls `receive` in a loop; others may `send`. Connects on entry, or by `connect`:

        async with AsyncStreamingClient("192.168.1.20", 8000) as client:
            ...

    Args and options are those of `StreamingClient`. Images are encoded in a thread of their own.

    Raises:
        ValueError, ImportError: for options that cannot work.
    """

    async def connect(self) -> None:
        """Connect, and wait until the server is ready.

        Raises:
            PolicyTimeoutError, PolicyConnectionError, PolicyServerError: as `StreamingClient`.
        """
        self._outage = Outage(self._connect_timeout_s, time.monotonic())
        try:
            while not self._ready:
                await self._advance(None)
        except BaseException:
            await self.close()
            raise

    async def send(
        self,
        observation: Mapping[str, Any],
        extras: ObservationExtras | None = None,
        *,
        observation_id: int | None = None,
    ) -> int:
        """Send an observation without waiting for what becomes of it; returns its id.

        Raises:
            PolicyConnectionError, ValueError, TypeError: as `StreamingClient.send`.
        """
        number = self.new_observation_id() if observation_id is None else observation_id
        if self._encodes_images:
            loop = asyncio.get_running_loop()
            frame = await loop.run_in_executor(None, self._encode, observation, number, extras)
        else:
            frame = self._encode(observation, number, extras)
        connection, message = self._submit(frame)
        if message is not None:
            try:
                await connection.send(message)
            except PolicyConnectionError:
                self._withdraw(number)
                raise
        return number

    async def receive(self, timeout_s: float | None = None) -> StreamEvent | None:
        """Wait for the next event; None if there is none in time. See `StreamingClient.receive`.

        Raises:
            PolicyConnectionError, PolicyTimeoutError, PolicyServerError: as `StreamingClient.receive`.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._events:
            self._raise_if_closed()
            left_s = None if end is None else max(0.0, end - time.monotonic())
            await self._advance(left_s)
            if not self._events and left_s == 0:
                return None
        return self._events.popleft()

    async def close(self) -> None:
        """Close the connection for good; a `receive` under way in another task raises."""
        self._closed.set()
        if self._connection is not None:
            await self._connection.close()

    async def __aenter__(self) -> AsyncStreamingClient:
        await self.connect()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _advance(self, timeout_s: float | None) -> None:
        """Wait once, for a message or for the next step towards a connection, and add what came of it."""
        connection = self._connection
        if not self._ready or connection is None:
            await self._connect_step(STEP_S if timeout_s is None else min(timeout_s, STEP_S))
            return
        try:
            message = await connection.receive(timeout_s)
            if message is None:
                return
            following = self._received(message)
            if following is not None:
                await connection.send(following)
        except (PolicyConnectionError, WireError) as error:
            self._lose(connection, error)

    async def _connect_step(self, pause_s: float) -> None:
        try:
            if self._connection is None:
                wait_s = self._outage.wait_s(time.monotonic())
                if wait_s > 0:
                    await asyncio.sleep(min(wait_s, pause_s))
                    return
                self._connection = await open_async_connection(
                    self._uri, headers=self._headers, silence_s=SILENCE_S
                )
                self._raise_if_closed()
            self._received_first(await self._connection.receive(pause_s))
        except PolicyConnectionError as error:
            self._connecting_failed(error)
        except BaseException:
            self._drop_connection()
            raise
