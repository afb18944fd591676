"""A policy that a server computes."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Any

from vlad_client import msgpack_numpy
from vlad_client.base_policy import BasePolicy
from vlad_client.capabilities import read_capabilities
from vlad_client.connection import HANDSHAKE_TIMEOUT_S, Connection, address_of, open_connection
from vlad_client.errors import PolicyConnectionError, PolicyServerError, PolicyTimeoutError, WireError
from vlad_client.image_encoding import image_encoder
from vlad_client.retry import REPORT_INTERVAL_S, Retries

logger = logging.getLogger("vlad_client")


class WebsocketClientPolicy(BasePolicy):
    """Sends observations to a policy server and returns its replies; stands in for openpi's class.

    Connects on construction, waits for a server that is not up or still loads its policy, and
    connects again when the connection is lost. Calls of `infer` from several threads are served
    one after another; `close` may come from any thread and ends them.

    An observation is sent once. Where the connection breaks before its reply, `infer` raises
    PolicyConnectionError and the next call connects again: a robot then sends a fresh observation.
    With `resend_observation` the same observation is sent again instead, which suits a simulator
    that waits for its action; a robot would execute actions for a scene as old as the interruption.

    Args:
        host: name or address; or a whole `ws://` or `wss://` address.
        port: appended to the host; None for the port of the address.
        api_key: sent as `Authorization: Api-Key <key>`.
        connect_timeout_s: how long the constructor waits until the server announces its metadata,
            which it does once its policy is ready; None waits for ever.
        request_timeout_s: limit of one `infer`, connecting again included; None waits for ever.
        max_retries: failures that one `infer` overcomes, of connecting again and of resending.
        resend_observation: see above.
        image_encoding: `jpeg` or `png` sends images encoded, which needs Pillow and a server that takes
            them; None sends plain arrays.
        quality: of JPEG, 1 to 100; None for 90.

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
        connect_timeout_s: float | None = 600.0,
        request_timeout_s: float | None = 60.0,
        max_retries: int = 8,
        resend_observation: bool = False,
        image_encoding: str | None = None,
        quality: int | None = None,
    ) -> None:
        limits = {"connect_timeout_s": connect_timeout_s, "request_timeout_s": request_timeout_s}
        for name, limit_s in limits.items():
            if limit_s is not None and not limit_s > 0:
                raise ValueError(f"{name} must be positive or None, not {limit_s}")
        if max_retries < 0:
            raise ValueError(f"max_retries must not be negative, not {max_retries}")
        self._uri = address_of(host, port)
        self._headers = {} if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._request_timeout_s = request_timeout_s
        self._max_retries = max_retries
        self._resend_observation = resend_observation
        self._encoder = image_encoder(image_encoding, quality)
        self._one_request = threading.Lock()
        self._closed = threading.Event()
        self._connection: Connection | None = None
        self._last_reply_was_error = False
        self._metadata = self._connect(self._retries(connect_timeout_s, None))

    def get_server_metadata(self) -> dict[str, Any]:
        """What the server said about its policy when the client connected last."""
        return self._metadata

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Send one observation and wait for its reply; arrays in the reply are read-only.

        Whatever it raises, the client remains usable, and a late reply is never taken for that of
        another observation.

        Raises:
            PolicyServerError: if the server answers with an error.
            PolicyTimeoutError: if `request_timeout_s` passes.
            PolicyConnectionError: if there is no connection to be had, or it breaks; see the class.
            WireError: if the reply is not in the wire format.
            ValueError, TypeError: if the observation is not; nothing has been sent then.
        """
        request = msgpack_numpy.packb(
            observation if self._encoder is None else self._encoder.encode(observation)
        )
        retries = self._retries(self._request_timeout_s, self._max_retries)
        with self._one_request:
            while True:
                connection = self._connected(retries)
                try:
                    reply = self._exchange(connection, request, retries)
                except PolicyConnectionError as error:
                    self._raise_if_closed()
                    if self._last_reply_was_error:
                        # The server closed because of that error, and has not read this request.
                        self._last_reply_was_error = False
                        continue
                    if not self._resend_observation:
                        raise
                    retries.pause_after(error)
                else:
                    return self._read(reply)

    def reset(self) -> None:
        """Do nothing: the server keeps nothing between requests."""

    def close(self) -> None:
        """Close the connection for good; an `infer` under way in another thread raises."""
        self._closed.set()
        connection = self._connection
        if connection is not None:
            connection.close()

    def __enter__(self) -> WebsocketClientPolicy:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _retries(self, limit_s: float | None, max_retries: int | None) -> Retries:
        return Retries(limit_s=limit_s, max_retries=max_retries, wait=self._closed.wait)

    def _connected(self, retries: Retries) -> Connection:
        self._raise_if_closed()
        if self._connection is None or not self._connection.is_open:
            if self._connection is not None:
                self._connection.abort()
            metadata = self._connect(retries)
            if msgpack_numpy.packb(metadata) != msgpack_numpy.packb(self._metadata):
                logger.warning("%s serves another policy than before: %s", self._uri, metadata)
            self._metadata = metadata
        assert self._connection is not None
        return self._connection

    def _connect(self, retries: Retries) -> dict[str, Any]:
        """Connect, trying again while that may help; returns the metadata."""
        while True:
            try:
                metadata = self._connect_once(retries)
            except PolicyConnectionError as error:  # noqa: PERF203 - one attempt a turn is the point
                self._raise_if_closed()
                retries.pause_after(error)
                self._raise_if_closed()
            else:
                logger.info("connected to %s", self._uri)
                return metadata

    def _connect_once(self, retries: Retries) -> dict[str, Any]:
        connection = open_connection(
            self._uri,
            headers=self._headers,
            timeout_s=retries.remaining_s(at_most=HANDSHAKE_TIMEOUT_S),
            silence_s=self._request_timeout_s,
        )
        self._connection = connection
        try:
            self._raise_if_closed()
            metadata = self._read(self._receive_metadata(connection, retries))
            if self._encoder is not None:
                self._encoder.check_server(self._uri, read_capabilities(metadata))
            return metadata
        except BaseException:
            connection.abort()
            raise

    def _receive_metadata(self, connection: Connection, retries: Retries) -> bytes | str:
        while True:
            message = connection.receive(retries.remaining_s(at_most=REPORT_INTERVAL_S))
            if message is not None:
                return message
            if retries.remaining_s() == 0:
                raise PolicyTimeoutError(
                    f"{self._uri} is up, but its policy was not ready within {retries.limit_s:g} s"
                )
            logger.warning("%s is up; still waiting until its policy is ready", self._uri)

    def _exchange(self, connection: Connection, request: bytes, retries: Retries) -> bytes | str:
        """Send and receive once. Leaves no connection open on which a reply is still to come."""
        try:
            connection.send(request)
            reply = connection.receive(retries.remaining_s())
        except PolicyConnectionError as error:
            connection.abort()
            if retries.remaining_s() == 0:
                raise self._too_late(retries) from error
            raise
        except BaseException:
            connection.abort()
            raise
        if reply is None:
            connection.abort()
            raise self._too_late(retries)
        return reply

    def _too_late(self, retries: Retries) -> PolicyTimeoutError:
        return PolicyTimeoutError(
            f"{self._uri} did not answer within {retries.limit_s:g} s; the connection was cut"
        )

    def _read(self, message: bytes | str) -> dict[str, Any]:
        self._last_reply_was_error = isinstance(message, str)
        if isinstance(message, str):
            raise PolicyServerError(message)
        content = msgpack_numpy.unpackb(message)
        if not isinstance(content, dict):
            raise WireError(f"expected a map from {self._uri}, received a {type(content).__name__}")
        return content

    def _raise_if_closed(self) -> None:
        if self._closed.is_set():
            raise PolicyConnectionError("the client has been closed", retryable=False)
