"""Observations out at camera rate, chunks in as they are ready, over one websocket."""

from __future__ import annotations

import collections
import itertools
import logging
import threading
import time
from types import TracebackType
from typing import Any, Mapping

from vlad_client.capabilities import ServerCapabilities
from vlad_client.connection import HANDSHAKE_TIMEOUT_S, Connection, address_of, open_connection
from vlad_client.errors import PolicyConnectionError, PolicyServerError, WireError
from vlad_client.image_encoding import image_encoder
from vlad_client.observation_extras import ObservationExtras
from vlad_client.outage import Outage
from vlad_client.stream_events import StreamEvent
from vlad_client.stream_protocol import StreamProtocol

logger = logging.getLogger("vlad_client")

SILENCE_S = 20.0
"""A server that takes no bytes and answers no ping for so long is given up."""

STEP_S = 0.5
"""Longest single wait while there is no connection, so that `close` is noticed soon."""


class StreamingClient:
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
        if connect_timeout_s is not None and not connect_timeout_s > 0:
            raise ValueError(f"connect_timeout_s must be positive or None, not {connect_timeout_s}")
        self._uri = address_of(host, port)
        self._headers = {} if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._connect_timeout_s = connect_timeout_s
        self._protocol = StreamProtocol(session, image_encoder(image_encoding, quality))
        self._ids = itertools.count()
        self._lock = threading.Lock()  # guards _protocol and _ready
        self._closed = threading.Event()
        self._connection: Connection | None = None
        self._ready = False
        self._outage = Outage(connect_timeout_s, time.monotonic())
        self._events: collections.deque[StreamEvent] = collections.deque()
        self._metadata: Mapping[str, Any] = {}
        self._events.append(self._wait_until_ready())

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
        frame = self._protocol.encode(observation, number, extras or ObservationExtras())
        with self._lock:
            connection = self._connection
            if not self._ready or connection is None:
                raise PolicyConnectionError(f"not connected to {self._uri} at present", retryable=True)
            message = self._protocol.submit(frame)
        if message is not None:
            try:
                connection.send(message)
            except PolicyConnectionError:
                with self._lock:
                    self._protocol.withdraw(number)
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
            with self._lock:
                events, following = self._protocol.received(message)
            self._events.extend(events)
            if following is not None:
                connection.send(following)
        except (PolicyConnectionError, WireError) as error:
            self._lose(connection, error)

    def _connect(self, pause_s: float) -> None:
        outage = self._outage
        try:
            if self._connection is None:
                wait_s = outage.wait_s(time.monotonic())
                if wait_s > 0:
                    self._closed.wait(min(wait_s, pause_s))
                    return
                self._connection = open_connection(
                    self._uri, headers=self._headers, timeout_s=HANDSHAKE_TIMEOUT_S, silence_s=SILENCE_S
                )
                self._raise_if_closed()
            self._await_metadata(self._connection, pause_s)
        except PolicyConnectionError as error:
            self._drop_connection()
            self._raise_if_closed()
            outage.failed(error, time.monotonic())
        except BaseException:
            self._drop_connection()
            raise

    def _await_metadata(self, connection: Connection, pause_s: float) -> None:
        message = connection.receive(pause_s)
        if message is None:
            self._outage.waited(f"{self._uri} is up, but its policy is not ready", time.monotonic())
            return
        if isinstance(message, str):
            raise PolicyServerError(message)
        with self._lock:
            event = self._protocol.connected(message, self._uri)
            self._ready = True
        self._metadata = event.metadata
        self._events.append(event)
        logger.info("connected to %s", self._uri)

    def _lose(self, connection: Connection, error: Exception) -> None:
        connection.abort()
        self._raise_if_closed()
        with self._lock:
            self._ready = False
            self._connection = None
            self._events.append(self._protocol.disconnected(str(error)))
        self._outage = Outage(self._connect_timeout_s, time.monotonic())

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _raise_if_closed(self) -> None:
        if self._closed.is_set():
            raise PolicyConnectionError("the client has been closed", retryable=False)
