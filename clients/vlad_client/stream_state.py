"""What a streaming client knows and decides, whoever waits for the network: threads or asyncio."""

from __future__ import annotations

import collections
import itertools
import logging
import threading
import time
from typing import Any, Generic, Mapping, Protocol, TypeVar

from vlad_client.capabilities import ServerCapabilities
from vlad_client.connection import address_of
from vlad_client.errors import PolicyConnectionError, PolicyServerError
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


class Abortable(Protocol):
    """A connection, as far as it matters here."""

    def abort(self) -> None:
        """Drop it without a farewell; never blocks."""
        ...


ConnectionT = TypeVar("ConnectionT", bound=Abortable)


class StreamState(Generic[ConnectionT]):
    """A stream between two calls to the network. Nothing in here waits.

    Args and what the constructor raises: see `StreamingClient`.
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
        self._lock = threading.Lock()  # guards _protocol and _ready
        self._closed = threading.Event()
        self._connection: ConnectionT | None = None
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

    def _encode(self, observation: Mapping[str, Any], number: int, extras: ObservationExtras | None) -> Any:
        return self._protocol.encode(observation, number, extras or ObservationExtras())

    def _submit(self, frame: Any) -> tuple[ConnectionT, bytes | None]:
        """The connection, and what to send over it now; None where that has to wait.

        Raises:
            PolicyConnectionError: where there is no connection at present.
        """
        with self._lock:
            connection = self._connection
            if not self._ready or connection is None:
                raise PolicyConnectionError(f"not connected to {self._uri} at present", retryable=True)
            return connection, self._protocol.submit(frame)

    def _withdraw(self, number: int) -> None:
        """An observation could not be sent."""
        with self._lock:
            self._protocol.withdraw(number)

    def _received(self, message: bytes | str) -> bytes | None:
        """Note what a message means; returns what to send in answer, if anything.

        Raises:
            WireError: for a message that is not a policy server's.
        """
        with self._lock:
            events, following = self._protocol.received(message)
        self._events.extend(events)
        return following

    def _received_first(self, message: bytes | str | None) -> None:
        """Note the first message of a connection, the metadata; None where it has not come yet.

        Raises:
            PolicyServerError: where the server reports an error instead.
            PolicyConnectionError: where this is not a policy server, or `connect_timeout_s` is over.
        """
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

    def _connecting_failed(self, error: PolicyConnectionError) -> None:
        """Raises where trying again is useless or too late."""
        self._drop_connection()
        self._raise_if_closed()
        self._outage.failed(error, time.monotonic())

    def _lose(self, connection: ConnectionT, error: Exception) -> None:
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
