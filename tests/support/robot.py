"""A bare robot: the wire protocol with the `websockets` library and nothing of ours in between."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
from websockets.sync.client import ClientConnection, connect

_LEGACY = {"legacy": True} if "legacy" in inspect.signature(connect).parameters else {}
"""websockets 17.1 and newer warn of connect() outside a with-block unless told."""


def pack(value: Any) -> bytes:
    """Encode as openpi's client does; written apart from the daemon's own codec."""

    def default(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": item.tobytes(),
                b"dtype": item.dtype.str,
                b"shape": item.shape,
            }
        return {b"__npgeneric__": True, b"data": item.item(), b"dtype": item.dtype.str}

    packed: bytes = msgpack.packb(value, default=default)
    return packed


def unpack(message: str | bytes) -> Any:
    """Decode as openpi's client does."""

    def object_hook(item: dict[Any, Any]) -> Any:
        if b"__ndarray__" in item:
            return np.ndarray(item[b"shape"], np.dtype(item[b"dtype"]), item[b"data"])
        return item

    assert isinstance(message, bytes), message
    return msgpack.unpackb(message, object_hook=object_hook)


class Robot:
    """One open connection whose metadata has arrived."""

    def __init__(self, connection: ClientConnection, timeout_s: float) -> None:
        self.connection = connection
        self.metadata = unpack(connection.recv(timeout_s))

    def send(self, observation: Any) -> None:
        """Send a request and do not wait."""
        self.connection.send(pack(observation))

    def receive(self, timeout_s: float = 20.0) -> Any:
        """The next reply, decoded."""
        return unpack(self.connection.recv(timeout_s))

    def receive_error(self, timeout_s: float = 20.0) -> str:
        """The next frame, which must be a text frame."""
        text = self.connection.recv(timeout_s)
        assert isinstance(text, str), "expected an error, received a reply"
        return text

    def infer(self, observation: Any, timeout_s: float = 20.0) -> Any:
        """Send a request and wait for its reply."""
        self.send(observation)
        return self.receive(timeout_s)


@contextlib.contextmanager
def connect_robot(port: int, *, timeout_s: float = 60.0, path: str = "", **options: Any) -> Iterator[Robot]:
    """Connect to a daemon on this machine and wait for its metadata."""
    with open_connection(port, path=path, **options) as connection:
        yield Robot(connection, timeout_s)


def open_connection(port: int, *, path: str = "", scheme: str = "ws", **options: Any) -> ClientConnection:
    """A websocket as openpi's client opens it; nothing is read yet."""
    options = {"compression": None, "max_size": None, "proxy": None, **_LEGACY, **options}
    connection: ClientConnection = connect(f"{scheme}://127.0.0.1:{port}{path}", **options)
    return connection
