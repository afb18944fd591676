"""One websocket connection; the only place that knows the `websockets` library and its versions.

Supports websockets 13 to 17: 13 is the last for Python 3.8, 15 brought automatic pings and proxies,
and 17.1 asks for `legacy=True` where `connect()` is called outside `with`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import ssl
import struct
from typing import Any, Callable, Mapping

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from vlad_client.errors import PolicyConnectionError
from vlad_client.large_frames import LEAST_BYTES, FrameBuffer

HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
PING_INTERVAL_S = 20.0

_STATUS_OF_BUSY_SERVERS = (500, 502, 503, 504)


class Connection:
    """An open connection that carries whole messages. Use `open_connection`."""

    def __init__(self, uri: str, websocket: ClientConnection) -> None:
        self._uri = uri
        self._websocket = websocket
        self._frames = FrameBuffer()

    def send(self, message: bytes) -> None:
        """Send a binary message.

        Raises:
            PolicyConnectionError: if the connection is broken, or the server took no byte for the
                `silence_s` of `open_connection`.
        """
        try:
            if len(message) < LEAST_BYTES:
                self._websocket.send(message)
                return
            # Sent, and the buffer free again, when the block ends; nobody else sends meanwhile.
            with self._websocket.send_context():
                self._websocket.protocol.writes.append(self._frames.masked(message))  # type: ignore[arg-type]
        except ConnectionClosed as closed:
            raise self._broken(closed) from closed

    def receive(self, timeout_s: float | None) -> bytes | str | None:
        """Wait for the next message: bytes, or a text, which is the server's way to report an error.

        Returns None if no message comes in time; the connection is then as before.

        Raises:
            PolicyConnectionError: if the connection breaks.
        """
        try:
            return self._websocket.recv(timeout=timeout_s)
        except TimeoutError:
            return None
        except ConnectionClosed as closed:
            raise self._broken(closed) from closed

    @property
    def is_open(self) -> bool:
        """False from the moment on that either side has closed, or the loss of the other was noticed."""
        return self._websocket.protocol.state is State.OPEN

    def close(self) -> None:
        """Say goodbye to the server; waits at most `CLOSE_TIMEOUT_S`."""
        self._websocket.close()

    def abort(self) -> None:
        """Cut the connection without waiting for the server."""
        with contextlib.suppress(OSError):
            self._websocket.socket.shutdown(socket.SHUT_RDWR)
        self._websocket.close()

    def _broken(self, closed: ConnectionClosed) -> PolicyConnectionError:
        return PolicyConnectionError(f"the connection to {self._uri} broke: {closed}", retryable=True)


def address_of(host: str, port: int | None) -> str:
    """The websocket address for a host, which may be a whole address already."""
    address = host if host.startswith(("ws://", "wss://")) else f"ws://{host}"
    return address if port is None else f"{address}:{port}"


def open_connection(
    uri: str, *, headers: Mapping[str, str], timeout_s: float | None, silence_s: float | None
) -> Connection:
    """Connect and complete the handshake.

    Never through a proxy: an `http_proxy` variable is meant for downloads, not for a robot's server.

    Args:
        timeout_s: limit of the attempt; None for `HANDSHAKE_TIMEOUT_S`.
        silence_s: how long the server may take no bytes, and answer no ping, before the connection
            counts as broken; None for ever.

    Raises:
        PolicyConnectionError: if it fails, with the reason in words.
    """
    try:
        websocket = connect(
            uri,
            additional_headers=dict(headers),
            compression=None,
            max_size=None,
            open_timeout=HANDSHAKE_TIMEOUT_S if timeout_s is None else timeout_s,
            close_timeout=CLOSE_TIMEOUT_S,
            **options_of_newer_versions(connect, silence_s),
        )
    except (OSError, EOFError, ValueError, WebSocketException) as error:
        raise connection_failure(uri, error) from error
    if silence_s is not None:
        _limit_blocking_sends(websocket.socket, silence_s)
    return Connection(uri, websocket)


def options_of_newer_versions(opener: Callable[..., Any], silence_s: float | None) -> dict[str, Any]:
    """Those options of `websockets` that `opener`, its `connect` of either kind, knows in this version."""
    options = {
        "proxy": None,
        "ping_interval": PING_INTERVAL_S,
        # A server that computes on its event loop, as openpi's does, answers no ping meanwhile.
        "ping_timeout": None if silence_s is None else max(silence_s, PING_INTERVAL_S),
        "legacy": True,
    }
    known = inspect.signature(opener).parameters
    return {name: value for name, value in options.items() if name in known}


def _limit_blocking_sends(endpoint: socket.socket, seconds: float) -> None:
    """Make a send to a server that reads nothing fail; `websockets` itself has no limit for it."""
    if os.name == "posix":
        whole = int(seconds)
        limit = struct.pack("@ll", whole, int(1e6 * (seconds - whole)))
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def connection_failure(uri: str, error: Exception) -> PolicyConnectionError:
    """Tell a server that is not there yet from one that never will be."""
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        words = (error.response.body or b"").decode(errors="replace").strip()
        answer = f"HTTP {status}" + (f": {words.splitlines()[0][:256]}" if words else "")
        return PolicyConnectionError(
            f"{uri} refused the connection with {answer}", retryable=status in _STATUS_OF_BUSY_SERVERS
        )
    if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
        return PolicyConnectionError(f"the host of {uri} is unknown: {error}", retryable=False)
    if isinstance(error, ssl.SSLError):
        return PolicyConnectionError(f"no TLS connection to {uri}: {error}", retryable=False)
    dropped = isinstance(error, EOFError) or isinstance(error.__cause__, EOFError)
    if dropped or isinstance(error, (OSError, ConnectionClosed)):
        return PolicyConnectionError(f"cannot connect to {uri}: {error}", retryable=True)
    if isinstance(error, (InvalidHandshake, ValueError)):
        return PolicyConnectionError(f"{uri} does not answer as a policy server: {error}", retryable=False)
    return PolicyConnectionError(f"cannot connect to {uri}: {error}", retryable=False)
