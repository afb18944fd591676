"""What a streaming client receives: chunks, refusals, and the state of its connection."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping, Union

from vlad_client.capabilities import ServerCapabilities

ObservationId = Union[int, str]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The reply to one observation.

    Attributes:
        observation_id: which one.
        actions: float64 of shape [horizon, action_width], read-only, in the robot's units.
        chunk_id: the server's count of this session's chunks; None from a server without ids.
        observation_age_ms: how long the observation had waited on the server when computing began;
            None where the server does not tell.
        superseded: observations since the previous chunk that get no reply, because a fresher one came.
        warnings: of the server, in words.
        rtc: how the chunk was tied to the previous one; None for a plain chunk.
        deadline_missed: whether it was finished after the deadline of its observation.
        timing: the reply's `policy_timing` and `server_timing`, milliseconds.
    """

    observation_id: ObservationId
    actions: Any
    chunk_id: int | None = None
    observation_age_ms: float | None = None
    superseded: tuple[ObservationId, ...] = ()
    warnings: tuple[str, ...] = ()
    rtc: Mapping[str, Any] | None = None
    deadline_missed: bool = False
    timing: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def continued(self) -> bool:
        """Whether the server computed the chunk as the continuation of the previous one."""
        return self.rtc is not None and self.rtc.get("mode") not in (None, "off")


@dataclasses.dataclass(frozen=True)
class Refusal:
    """One observation gets no chunk; the connection is in order.

    Attributes:
        observation_id: which one; None where the server does not tell and none is waited for.
        code: `invalid`, `busy`, `expired`, `superseded`, `engine`, `worker_lost`, `limited` or `reset`;
            `error` for an error without a code.
        message: of the server.
    """

    observation_id: ObservationId | None
    code: str
    message: str


@dataclasses.dataclass(frozen=True)
class ConnectionLost:
    """The connection broke; `receive` connects again.

    Attributes:
        lost: observations that were sent and get no reply.
        reason: in words.
    """

    lost: tuple[ObservationId, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Connected:
    """The server is ready.

    Attributes:
        metadata: as the server sent it.
        capabilities: what the server can do beyond openpi's protocol; None for nothing.
    """

    metadata: Mapping[str, Any]
    capabilities: ServerCapabilities | None


StreamEvent = Union[Chunk, Refusal, ConnectionLost, Connected]
