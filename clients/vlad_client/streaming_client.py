"""Observations out at camera rate, chunks in as they are ready, over one websocket."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Mapping

from vlad_client.connection import HANDSHAKE_TIMEOUT_S, Connection, open_connection
from vlad_client.errors import PolicyConnectionError, WireError
from vlad_client.observation_extras import ObservationExtras
from vlad_client.stream_events import StreamEvent
from vlad_client.stream_state import SILENCE_S, STEP_S, StreamState


class StreamingClient(StreamState[Connection]):
    """A stream of observations to a policy server, and of events from it.

    One thread calls `receive` in a loop, which also notices a lost connection and makes the next one;
    `send` and `close` may come from other threads. A session keeps its name across connections, so that
    a vlad server still knows the robot's last chunk afterwards.

    Works with any openpi server: one without streaming gets one observation at a time, the freshest.

    Args:
        host: name or address; or a whole `ws://` or `wss://` address.
        port: appended to the host; None for the port of the address.
        api_key: sent as `Authorization: Api-Key <key>`.
        session: name of this robot, 1 to 128 characters, no other robot's; None makes one up.
        image_encoding: `jpeg` or `png` sends images encoded, which needs Pillow; None sends plain arrays.
        quality: of JPEG, 1 to 100; None for 90.
        connect_timeout_s: how long the constructor, and `receive` after a loss, wait for a server that is
            ready; None for ever.

    Raises:
        PolicyTimeoutError: if no server is ready in `connect_timeout_s`.
        PolicyConnectionError: if waiting is useless: unknown host, wrong key, not a policy server, or one
            that does not take such images.
        PolicyServerError: if the server reports an error instead of its metadata.
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
        super().__init__(
            host,
            port,
            api_key,
            session=session,
            image_encoding=image_encoding,
            quality=quality,
            connect_timeout_s=connect_timeout_s,
        )
        self._events.append(self._wait_until_ready())

    def send(
        self,
        observation: Mapping[str, Any],
        extras: ObservationExtras | None = None,
        *,
        observation_id: int | None = None,
    ) -> int:
        """Send an observation without waiting for what becomes of it; returns its id.

        Args:
            observation_id: from `new_observation_id`, where it must be known before; None for the next.

        Raises:
            PolicyConnectionError: if there is no connection at present; nothing will come of the
                observation. `receive` connects again.
            ValueError, TypeError: if the observation cannot be sent.
        """
        number = self.new_observation_id() if observation_id is None else observation_id
        connection, message = self._submit(self._encode(observation, number, extras))
        if message is not None:
            try:
                connection.send(message)
            except PolicyConnectionError:
                self._withdraw(number)
                raise
        return number

    def receive(self, timeout_s: float | None = None) -> StreamEvent | None:
        """Wait for the next event; None if there is none in time.

        The first event is `Connected`. After `ConnectionLost` the following calls connect again; one that
        is in the middle of a handshake may exceed `timeout_s`, by at most 10 s.

        Raises:
            PolicyConnectionError: after `close`, or if connecting again is useless.
            PolicyTimeoutError: if no server was ready in `connect_timeout_s` after a loss.
            PolicyServerError: if the server reports an error instead of its metadata.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._events:
            self._raise_if_closed()
            left_s = None if end is None else max(0.0, end - time.monotonic())
            self._advance(left_s)
            if not self._events and left_s == 0:
                return None
        return self._events.popleft()

    def close(self) -> None:
        """Close the connection for good; a `receive` under way in another thread raises."""
        self._closed.set()
        connection = self._connection
        if connection is not None:
            connection.close()

    def __enter__(self) -> StreamingClient:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wait_until_ready(self) -> StreamEvent:
        try:
            while not self._events:
                self._advance(None)
        except BaseException:
            self.close()
            raise
        return self._events.popleft()

    def _advance(self, timeout_s: float | None) -> None:
        """Wait once, for a message or for the next step towards a connection, and add what came of it."""
        connection = self._connection
        if not self._ready or connection is None:
            self._connect(STEP_S if timeout_s is None else min(timeout_s, STEP_S))
            return
        try:
            message = connection.receive(timeout_s)
            if message is None:
                return
            following = self._received(message)
            if following is not None:
                connection.send(following)
        except (PolicyConnectionError, WireError) as error:
            self._lose(connection, error)

    def _connect(self, pause_s: float) -> None:
        try:
            if self._connection is None:
                wait_s = self._outage.wait_s(time.monotonic())
                if wait_s > 0:
                    self._closed.wait(min(wait_s, pause_s))
                    return
                self._connection = open_connection(
                    self._uri, headers=self._headers, timeout_s=HANDSHAKE_TIMEOUT_S, silence_s=SILENCE_S
                )
                self._raise_if_closed()
            self._received_first(self._connection.receive(pause_s))
        except PolicyConnectionError as error:
            self._connecting_failed(error)
        except BaseException:
            self._drop_connection()
            raise
