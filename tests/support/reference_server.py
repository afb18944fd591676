"""A policy server with the manners of openpi's, and the faults that clients must survive.

Runs in threads on the loopback interface, with the `websockets` library's synchronous server. Its
codec is written from the wire format, not taken from the client under test.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve


class ConnectionDroppedError(Exception):
    """Raised by a policy: the connection ends without a reply and without a close frame."""


def encode(value: Any) -> bytes:
    """Pack with openpi's array markers."""

    def array(item: Any) -> Any:
        return {
            b"__ndarray__": True,
            b"data": item.tobytes(),
            b"dtype": item.dtype.str,
            b"shape": item.shape,
        }

    packed: bytes = msgpack.packb(value, default=array)
    return packed


def decode(message: bytes) -> Any:
    """Unpack openpi's array markers."""

    def array(item: Any) -> Any:
        if b"__ndarray__" in item:
            return np.frombuffer(item[b"data"], item[b"dtype"]).reshape(item[b"shape"])
        return item

    return msgpack.unpackb(message, object_hook=array)


def counting_policy(observation: dict[str, Any]) -> dict[str, Any]:
    """A chunk of 10 actions of width 7, all of them the first number of the state."""
    state = observation.get("observation/state", np.zeros(1))
    return {
        "actions": np.full((10, 7), np.asarray(state).ravel()[0], np.float64),
        "policy_timing": {"infer_ms": 1.5},
        "server_timing": {"infer_ms": 2.5, "prev_total_ms": 3.5},
    }


class ReferenceServer:
    """Metadata first, then one reply a request; a text frame and close code 1011 for an error.

    Args:
        policy: computes replies; bytes that it returns are sent as they are; may raise
            `ConnectionDroppedError`.
        metadata_gate: the metadata is held back until it is set.
        unavailable_first: so many first handshakes are answered with HTTP 503.
        api_key: others are answered with HTTP 401.
        keep_connection_on_error: send the text frame, but do not close.
    """

    def __init__(
        self,
        policy: Callable[[dict[str, Any]], Any] = counting_policy,
        *,
        port: int = 0,
        metadata: Any = None,
        metadata_gate: threading.Event | None = None,
        unavailable_first: int = 0,
        api_key: str | None = None,
        keep_connection_on_error: bool = False,
    ) -> None:
        self.policy = policy
        self.metadata = {} if metadata is None else metadata
        self.observations: list[dict[str, Any]] = []
        self.handshakes: list[dict[str, str]] = []
        self.connections = 0
        self._metadata_gate = metadata_gate
        self._unavailable = unavailable_first
        self._api_key = api_key
        self._keep_connection_on_error = keep_connection_on_error
        self._open: set[ServerConnection] = set()
        quiet = logging.getLogger("tests.reference_server")
        quiet.setLevel(logging.CRITICAL)
        self._server = serve(
            self._handle,
            "127.0.0.1",
            port,
            process_request=self._process_request,
            compression="deflate",
            max_size=None,
            logger=quiet,
        )
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def __enter__(self) -> ReferenceServer:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Free the port and cut all connections."""
        self._server.shutdown()
        self._thread.join()
        for connection in list(self._open):
            _cut(connection)

    def wait_until_deserted(self, timeout_s: float) -> bool:
        """Wait until no connection is left; False where one remains."""
        end = time.monotonic() + timeout_s
        while self._open and time.monotonic() < end:
            time.sleep(0.005)
        return not self._open

    def _process_request(self, connection: ServerConnection, request: Any) -> Any:
        self.handshakes.append(dict(request.headers.raw_items()))
        if self._unavailable:
            self._unavailable -= 1
            return connection.respond(503, "still loading\n")
        if self._api_key is not None and request.headers.get("Authorization") != f"Api-Key {self._api_key}":
            return connection.respond(401, "wrong key\n")
        return None

    def _handle(self, connection: ServerConnection) -> None:
        self.connections += 1
        self._open.add(connection)
        try:
            if self._metadata_gate is not None:
                self._metadata_gate.wait()
            metadata = self.metadata
            connection.send(metadata if isinstance(metadata, str) else encode(metadata))
            for message in connection:
                if not self._answer(connection, message):
                    break
        except ConnectionClosed:
            pass
        finally:
            self._open.discard(connection)

    def _answer(self, connection: ServerConnection, message: Any) -> bool:
        try:
            observation = decode(message)
            self.observations.append(observation)
            reply = self.policy(observation)
        except ConnectionDroppedError:
            _cut(connection)
            return False
        except Exception:
            connection.send(traceback.format_exc())
            if self._keep_connection_on_error:
                return True
            connection.close(1011, "Internal server error. Traceback included in previous frame.")
            return False
        connection.send(reply if isinstance(reply, bytes) else encode(reply))
        return True


def _cut(connection: ServerConnection) -> None:
    with contextlib.suppress(OSError):
        connection.socket.shutdown(socket.SHUT_RDWR)
