"""The streaming client for asyncio."""

from __future__ import annotations

import asyncio
import collections
import itertools
import logging
import time
from types import TracebackType
from typing import Any, Mapping

from vlad_client.async_connection import AsyncConnection, open_async_connection
from vlad_client.capabilities import ServerCapabilities
from vlad_client.connection import address_of
from vlad_client.errors import PolicyConnectionError, PolicyServerError, WireError
from vlad_client.image_encoding import image_encoder
from vlad_client.observation_extras import ObservationExtras
from vlad_client.outage import Outage
from vlad_client.stream_events import StreamEvent
from vlad_client.stream_protocol import StreamProtocol
from vlad_client.streaming_client import SILENCE_S, STEP_S

logger = logging.getLogger("vlad_client")


class AsyncStreamingClient:
    """A stream of observations to a policy server, and of events from it; see `StreamingClient`.

    One task calls `receive` in a loop; others may `send`. Connects on entry, or by `connect`:

        async with AsyncStreamingClient("192.168.1.20", 8000) as client:
            ...

    Args and options are those of `StreamingClient`. Images are encoded in a thread of their own.

    Raises:
        ValueError, ImportError: for options that cannot work.
    """

    def __init__(
        self,
        host: str = "0.0.0.0",
        port: int | None = None,
        api_key: str | None = None,
        *,
        session: str | None = None,
        image_encoding: str | None = None,
        quality: int | None = None,
        connect_timeout_s: float | None = 600.0,
    ) -> None:
        if connect_timeout_s is not None and not connect_timeout_s > 0:
            raise ValueError(f"connect_timeout_s must be positive or None, not {connect_timeout_s}")
        self._uri = address_of(host, port)
        self._headers = {} if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._connect_timeout_s = connect_timeout_s
        self._encodes_images = image_encoding is not None
        self._protocol = StreamProtocol(session, image_encoder(image_encoding, quality))
        self._ids = itertools.count()
        self._closed = False
        self._connection: AsyncConnection | None = None
        self._ready = False
        self._outage = Outage(connect_timeout_s, time.monotonic())
        self._events: collections.deque[StreamEvent] = collections.deque()
        self._metadata: Mapping[str, Any] = {}

    @property
    def session(self) -> str:
        """The robot's name on the server."""
        return self._protocol.session

    @property
    def capabilities(self) -> ServerCapabilities | None:
        """Of the server connected last; None for one that only speaks openpi's protocol."""
        return self._protocol.capabilities

    def get_server_metadata(self) -> dict[str, Any]:
        """What the server said about its policy when the client connected last."""
        return dict(self._metadata)

    def new_observation_id(self) -> int:
        """A number for `send`, larger than those before."""
        return next(self._ids)

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
            frame = await loop.run_in_executor(
                None, self._protocol.encode, observation, number, extras or ObservationExtras()
            )
        else:
            frame = self._protocol.encode(observation, number, extras or ObservationExtras())
        connection = self._connection
        if not self._ready or connection is None:
            raise PolicyConnectionError(f"not connected to {self._uri} at present", retryable=True)
        message = self._protocol.submit(frame)
        if message is not None:
            try:
                await connection.send(message)
            except PolicyConnectionError:
                self._protocol.withdraw(number)
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
        self._closed = True
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
            events, following = self._protocol.received(message)
            self._events.extend(events)
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
            await self._await_metadata(self._connection, pause_s)
        except PolicyConnectionError as error:
            self._drop_connection()
            self._raise_if_closed()
            self._outage.failed(error, time.monotonic())
        except BaseException:
            self._drop_connection()
            raise

    async def _await_metadata(self, connection: AsyncConnection, pause_s: float) -> None:
        message = await connection.receive(pause_s)
        if message is None:
            self._outage.waited(f"{self._uri} is up, but its policy is not ready", time.monotonic())
            return
        if isinstance(message, str):
            raise PolicyServerError(message)
        event = self._protocol.connected(message, self._uri)
        self._ready = True
        self._metadata = event.metadata
        self._events.append(event)
        logger.info("connected to %s", self._uri)

    def _lose(self, connection: AsyncConnection, error: Exception) -> None:
        connection.abort()
        self._raise_if_closed()
        self._ready = False
        self._connection = None
        self._events.append(self._protocol.disconnected(str(error)))
        self._outage = Outage(self._connect_timeout_s, time.monotonic())

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise PolicyConnectionError("the client has been closed", retryable=False)
