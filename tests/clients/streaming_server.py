"""A server with the streaming manners of the protocol, and the faults that clients must survive.

Stands in for the daemon in the client's own tests, where every chunk shall tell which observation it
answers and every fault comes on command. Its codec is that of the reference server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from tests.support.reference_server import decode, encode

CAPABILITIES: dict[str, Any] = {
    "protocol": 1,
    "streaming": True,
    "deadlines": True,
    "session_ttl_s": 60.0,
    "image_encodings": ["jpeg", "png"],
    "rtc": {
        "modes": ["guided_identity"],
        "default_mode": "guided_identity",
        "schedules": ["exp", "linear", "ones", "zeros"],
        "default_schedule": "exp",
        "beta": 10,
        "trained_max_delay": None,
    },
}


class RefusedError(Exception):
    """Raised by a policy: the observation is answered with an error of this code."""

    def __init__(self, code: str) -> None:
        super().__init__(f"refused: {code}")
        self.code = code


def numbered_rows(observation: dict[str, Any]) -> Any:
    """12 rows of width 3: the number of the observation, the row, and 0."""
    number = float(np.asarray(observation["observation/state"]).ravel()[0])
    return np.stack([np.full(12, number), np.arange(12.0), np.zeros(12)], axis=1)


@dataclasses.dataclass
class Session:
    """What the server remembers of a robot."""

    chunks: int = 0
    resets: int = 0
    known: int | None = None


class StreamingServer:
    """Computes the freshest observation of each connection; one at a time.

    Args:
        policy: gives the actions for an observation, may take its time, and may raise `RefusedError`.
        capabilities: the `vlad` map of the metadata; None for a server that has none and answers each
            observation in turn.
    """

    def __init__(
        self,
        policy: Callable[[dict[str, Any]], Any] = numbered_rows,
        *,
        port: int = 0,
        capabilities: dict[str, Any] | None = CAPABILITIES,
        metadata_gate: threading.Event | None = None,
    ) -> None:
        self.policy = policy
        self.capabilities = capabilities
        self.sessions: dict[str, Session] = {}
        self.observations: list[dict[str, Any]] = []
        self.connections = 0
        self.warnings: list[str] = []
        self._metadata_gate = metadata_gate
        self._open: set[ServerConnection] = set()
        quiet = logging.getLogger("tests.streaming_server")
        quiet.setLevel(logging.CRITICAL)
        self._server = serve(self._handle, "127.0.0.1", port, compression=None, max_size=None, logger=quiet)
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def __enter__(self) -> StreamingServer:
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
        self.cut_connections()

    def cut_connections(self) -> None:
        """Break all connections without a word."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    def send_to_all(self, message: str | bytes) -> None:
        """Send a message that nobody asked for."""
        for connection in list(self._open):
            connection.send(message)

    def _handle(self, connection: ServerConnection) -> None:
        self.connections += 1
        self._open.add(connection)
        mailbox = Mailbox(keep_all=self.capabilities is None or not self.capabilities["streaming"])
        computing = threading.Thread(target=self._compute, args=(connection, mailbox))
        try:
            if self._metadata_gate is not None:
                self._metadata_gate.wait()
            connection.send(encode({} if self.capabilities is None else {"vlad": self.capabilities}))
            computing.start()
            for message in connection:
                observation = decode(message)
                self.observations.append(observation)
                if observation.get("vlad/reset"):
                    session = self._session(observation)
                    session.resets, session.known = session.resets + 1, None
                mailbox.put(observation)
        except ConnectionClosed:
            pass
        finally:
            mailbox.close()
            if computing.ident is not None:
                computing.join()
            self._open.discard(connection)

    def _session(self, observation: dict[str, Any]) -> Session:
        return self.sessions.setdefault(observation["vlad/session"], Session())

    def _compute(self, connection: ServerConnection, mailbox: Mailbox) -> None:
        with contextlib.suppress(ConnectionClosed):
            while (taken := mailbox.take()) is not None:
                observation, superseded = taken
                connection.send(self._answer(observation, superseded))

    def _answer(self, observation: dict[str, Any], superseded: list[Any]) -> str | bytes:
        observation_id = observation.get("vlad/observation_id")
        try:
            actions = self.policy(observation)
        except RefusedError as error:
            if observation_id is None:
                return str(error)
            return encode({"error": str(error), "code": error.code, "observation_id": observation_id})
        reply = {"actions": actions, "policy_timing": {"infer_ms": 1.0}, "server_timing": {}}
        if observation_id is None:
            return encode(reply)
        session = self._session(observation)
        rtc = observation.get("vlad/rtc")
        continued = rtc is not None and rtc["prev_chunk_id"] == session.known
        session.chunks += 1
        session.known = session.chunks
        reply.update(
            chunk_id=session.chunks,
            session=observation["vlad/session"],
            observation_id=observation_id,
            observation_age_ms=1.5,
            superseded=superseded,
            warnings=self.warnings,
            deadline_missed=False,
        )
        if rtc is not None:
            reply["rtc"] = {"mode": "guided_identity" if continued else "off", "delay": rtc["delay"]}
        return encode(reply)


class Mailbox:
    """Observations on their way to the policy: only the freshest, or all of them."""

    def __init__(self, *, keep_all: bool) -> None:
        self._keep_all = keep_all
        self._waiting: list[dict[str, Any]] = []
        self._superseded: list[Any] = []
        self._closed = False
        self._changed = threading.Condition()

    def put(self, observation: dict[str, Any]) -> None:
        """Add an observation."""
        with self._changed:
            if not self._keep_all:
                self._superseded += [waiting["vlad/observation_id"] for waiting in self._waiting]
                self._waiting.clear()
            self._waiting.append(observation)
            self._changed.notify()

    def take(self) -> tuple[dict[str, Any], list[Any]] | None:
        """Wait for an observation; with it, the ids of those that it replaces. None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            superseded, self._superseded = self._superseded, []
            return self._waiting.pop(0), superseded

    def close(self) -> None:
        """Wake who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
