"""The streaming side of the protocol without a socket: frames in, frames and events out.

A server with the streaming capability takes observations as they come and computes the freshest. For any
other server the same is done on this side: one observation is under way, the freshest other one waits.
"""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any, Mapping

import numpy as np

from vlad_client import msgpack_numpy
from vlad_client.capabilities import ServerCapabilities, read_capabilities
from vlad_client.errors import PolicyConnectionError, WireError
from vlad_client.image_encoding import ImageEncoder
from vlad_client.observation_extras import ObservationExtras
from vlad_client.stream_events import Chunk, Connected, ConnectionLost, ObservationId, Refusal, StreamEvent

MAX_PENDING = 256


@dataclasses.dataclass(frozen=True)
class Frame:
    """One encoded observation, for the connection that it was encoded for."""

    observation_id: int
    connection: int
    message: bytes


class StreamProtocol:
    """One robot's stream over any number of connections. Only `encode` may run beside other calls.

    Args:
        session: the robot's name on the server, 1 to 128 characters; None makes one up.
        encoder: for images; None sends plain arrays.

    Raises:
        ValueError: for a name of another length.
    """

    def __init__(self, session: str | None, encoder: ImageEncoder | None) -> None:
        if session is not None and not 1 <= len(session) <= 128:
            raise ValueError(f"session must have 1 to 128 characters, not {len(session)}")
        self.session = uuid.uuid4().hex if session is None else session
        self._encoder = encoder
        self._connections = 0
        self._capabilities: ServerCapabilities | None = None
        self._pending: dict[ObservationId, None] = {}  # in the order of sending
        self._waiting: Frame | None = None
        self._superseded: list[ObservationId] = []

    @property
    def capabilities(self) -> ServerCapabilities | None:
        """Of the server connected last."""
        return self._capabilities

    def connected(self, message: bytes, uri: str) -> Connected:
        """Read the metadata that begin a connection.

        Raises:
            WireError: if they are not a map.
            PolicyConnectionError: if the server does not take images as this client sends them.
        """
        metadata = _map(message)
        capabilities = read_capabilities(metadata)
        if self._encoder is not None:
            self._encoder.check_server(uri, capabilities)
        # In this order, so that `encode` never takes an old server's capabilities for the new connection.
        self._capabilities = capabilities
        self._connections += 1
        return Connected(metadata, capabilities)

    def encode(self, observation: Mapping[str, Any], observation_id: int, extras: ObservationExtras) -> Frame:
        """Encode an observation for the present connection.

        Raises:
            ValueError, TypeError: for one that cannot be sent.
        """
        connection, capabilities = self._connections, self._capabilities
        request = dict(observation)
        if self._encoder is not None:
            request = self._encoder.encode(request)
        if capabilities is not None:
            request.update(extras.keys(capabilities))
            request["vlad/session"] = self.session
            request["vlad/observation_id"] = observation_id
            if capabilities.streaming:
                request["vlad/stream"] = True
        return Frame(observation_id, connection, msgpack_numpy.packb(request))

    def submit(self, frame: Frame) -> bytes | None:
        """Return the message to be sent now; None where the frame has to wait for a reply.

        Raises:
            PolicyConnectionError: if it was encoded for an earlier connection.
        """
        if frame.connection != self._connections:
            raise PolicyConnectionError("the connection was replaced meanwhile", retryable=True)
        if self._supersedes_here and self._pending:
            if self._waiting is not None:
                self._superseded.append(self._waiting.observation_id)
            self._waiting = frame
            return None
        if len(self._pending) >= MAX_PENDING:
            # Its reply would still be read; a server may name fewer superseded ones than there were.
            del self._pending[next(iter(self._pending))]
        self._pending[frame.observation_id] = None
        return frame.message

    def withdraw(self, observation_id: int) -> None:
        """Take note that a message could not be sent."""
        self._pending.pop(observation_id, None)

    def received(self, message: bytes | str) -> tuple[list[StreamEvent], bytes | None]:
        """Read a message; returns what it says and the message to be sent next.

        Raises:
            WireError: if it is not of this protocol; the connection is then of no more use.
        """
        if isinstance(message, str):
            events = self._refuse_all("error", message)
        else:
            content = _map(message)
            refused = "error" in content and "actions" not in content
            events = [self._refusal(content) if refused else self._chunk(content)]
        return events, self._next()

    def disconnected(self, reason: str) -> ConnectionLost:
        """Forget what was under way."""
        lost = [*self._pending, *self._superseded]
        if self._waiting is not None:
            lost.append(self._waiting.observation_id)
        self._pending, self._waiting, self._superseded = {}, None, []
        self._connections += 1
        return ConnectionLost(tuple(lost), reason)

    @property
    def _supersedes_here(self) -> bool:
        return self._capabilities is None or not self._capabilities.streaming

    def _next(self) -> bytes | None:
        frame = self._waiting
        if frame is None or self._pending:
            return None
        self._waiting = None
        self._pending[frame.observation_id] = None
        return frame.message

    def _chunk(self, content: dict[str, Any]) -> Chunk:
        actions = content.get("actions")
        if not isinstance(actions, np.ndarray):
            raise WireError(f"a reply without an array of actions: {', '.join(map(str, content)) or 'empty'}")
        observation_id = self._answered(content)
        superseded = [*self._superseded, *_list(content, "superseded")]
        self._superseded = []
        for other in superseded:
            self._pending.pop(other, None)
        rtc = content.get("rtc")
        return Chunk(
            observation_id=observation_id,
            actions=actions,
            chunk_id=content.get("chunk_id"),
            observation_age_ms=content.get("observation_age_ms"),
            superseded=tuple(superseded),
            warnings=tuple(map(str, _list(content, "warnings"))),
            rtc=rtc if isinstance(rtc, dict) else None,
            deadline_missed=content.get("deadline_missed") is True,
            timing={key: content[key] for key in ("policy_timing", "server_timing") if key in content},
        )

    def _refusal(self, content: dict[str, Any]) -> Refusal:
        return Refusal(self._answered(content), str(content.get("code", "error")), str(content["error"]))

    def _answered(self, content: dict[str, Any]) -> ObservationId:
        """The observation that a reply belongs to: by its id, or by the order where there are no ids."""
        answered = content.get("observation_id")
        if answered is None:
            if not self._pending:
                raise WireError("a reply to no observation")
            answered = next(iter(self._pending))
        elif not isinstance(answered, (int, str)):
            raise WireError(f"observation_id must be an integer or a text, received {answered!r}")
        self._pending.pop(answered, None)
        return answered

    def _refuse_all(self, code: str, text: str) -> list[StreamEvent]:
        """A text names no observation: with several under way there is no telling which it refuses."""
        refused: list[ObservationId | None] = [*self._pending] or [None]
        self._pending = {}
        return [Refusal(observation_id, code, text) for observation_id in refused]


def _map(message: bytes) -> dict[str, Any]:
    content = msgpack_numpy.unpackb(message)
    if not isinstance(content, dict):
        raise WireError(f"expected a map, received a {type(content).__name__}")
    return content


def _list(content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key, [])
    if not isinstance(value, list):
        raise WireError(f"{key} must be a list, received a {type(value).__name__}")
    return value
