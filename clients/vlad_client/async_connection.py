"""One websocket connection for asyncio, as `connection` has it for threads.

Waits with `asyncio.wait`: before Python 3.12, `asyncio.wait_for` may swallow a cancellation that comes
together with the result, and the task that was to end goes on.
"""

from __future__ import annotations

import asyncio
from typing import Any, Mapping

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.protocol import State

from vlad_client.connection import (
    CLOSE_TIMEOUT_S,
    HANDSHAKE_TIMEOUT_S,
    connection_failure,
    options_of_newer_versions,
)
from vlad_client.errors import PolicyConnectionError


class AsyncConnection:
    """An open connection that carries whole messages. Use `open_async_connection`."""

    def __init__(self, uri: str, websocket: ClientConnection, silence_s: float) -> None:
        self._uri = uri
        self._websocket = websocket
        self._silence_s = silence_s
        self._receiving: asyncio.Future[bytes | str] | None = None

    async def send(self, message: bytes) -> None:
        """Send a binary message.

        Raises:
            PolicyConnectionError: if the connection is broken, or the server took no byte for `silence_s`.
        """
        sending = asyncio.ensure_future(self._websocket.send(message))
        sending.add_done_callback(_look_at)
        await asyncio.wait({sending}, timeout=self._silence_s)
        if not sending.done():
            # Part of the message may be out: nothing else can follow it.
            self.abort()
            raise PolicyConnectionError(
                f"{self._uri} took no bytes for {self._silence_s:g} s", retryable=True
            )
        try:
            sending.result()
        except ConnectionClosed as closed:
            raise self._broken(closed) from closed

    async def receive(self, timeout_s: float | None) -> bytes | str | None:
        """Wait for the next message, text being an error; None if none comes in time.

        Raises:
            PolicyConnectionError: if the connection breaks.
        """
        receiving = self._receiving
        if receiving is None:
            receiving = self._receiving = asyncio.ensure_future(self._websocket.recv())
            receiving.add_done_callback(_look_at)
        # A message that comes after the time is up, or while the caller is cancelled, is for the next call.
        await asyncio.wait({receiving}, timeout=timeout_s)
        if not receiving.done():
            return None
        self._receiving = None
        try:
            return receiving.result()
        except ConnectionClosed as closed:
            raise self._broken(closed) from closed

    @property
    def is_open(self) -> bool:
        """False from the moment on that either side has closed, or the loss of the other was noticed."""
        return self._websocket.state is State.OPEN

    async def close(self) -> None:
        """Say goodbye to the server; waits at most `CLOSE_TIMEOUT_S`."""
        await self._websocket.close()

    def abort(self) -> None:
        """Cut the connection without waiting for the server."""
        self._websocket.transport.abort()

    def _broken(self, closed: ConnectionClosed) -> PolicyConnectionError:
        return PolicyConnectionError(f"the connection to {self._uri} broke: {closed}", retryable=True)


def _look_at(done: asyncio.Future[Any]) -> None:
    """Keep asyncio from complaining about an error that nobody waits for any more."""
    if not done.cancelled():
        done.exception()


async def open_async_connection(uri: str, *, headers: Mapping[str, str], silence_s: float) -> AsyncConnection:
    """Connect and complete the handshake; never through a proxy.

    Args:
        silence_s: how long the server may take no bytes, and answer no ping, before the connection
            counts as broken.

    Raises:
        PolicyConnectionError: if it fails, with the reason in words.
    """
    try:
        websocket = await connect(
            uri,
            additional_headers=dict(headers),
            compression=None,
            max_size=None,
            open_timeout=HANDSHAKE_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            **options_of_newer_versions(connect.__init__, silence_s),
        )
    except (OSError, EOFError, ValueError, asyncio.TimeoutError, WebSocketException) as error:
        raise connection_failure(uri, error) from error
    return AsyncConnection(uri, websocket, silence_s)
