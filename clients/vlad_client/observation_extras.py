"""What a robot may tell a vlad server beside what it sees, and the keys that carry it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from vlad_client.capabilities import ServerCapabilities


@dataclasses.dataclass(frozen=True)
class RtcRequest:
    """Asks for a chunk that continues the previous one; steps are control steps.

    Attributes:
        prev_chunk_id: the chunk that the robot executes; None with `action_prefix`.
        executed: row of that chunk that the robot executes next; None with `action_prefix`.
        action_prefix: instead of both, the actions left, `[k, action width]` in the robot's units, for a
            server that does not know the chunk.
        delay: steps until the new chunk is expected to be usable; None lets the server estimate it, which
            it cannot with `action_prefix`.
        prefix_end, mode, beta, schedule: as in `RtcOptions`.

    Raises:
        ValueError: for both ways to name a chunk, or neither, and for an `action_prefix` without delay.
    """

    prev_chunk_id: int | None = None
    executed: int | None = None
    action_prefix: Any = None
    delay: int | None = None
    prefix_end: int | None = None
    mode: str = "auto"
    beta: float | None = None
    schedule: str | None = None

    def __post_init__(self) -> None:
        if (self.prev_chunk_id is None) == (self.action_prefix is None):
            raise ValueError("either prev_chunk_id or action_prefix must be given")
        if (self.prev_chunk_id is None) != (self.executed is None):
            raise ValueError("executed belongs to prev_chunk_id")
        if self.action_prefix is not None and self.delay is None:
            raise ValueError("action_prefix needs a delay")


@dataclasses.dataclass(frozen=True)
class ObservationExtras:
    """Everything is optional, and left out for a server that would not understand it.

    Attributes:
        reset: whether this is the first observation of an episode.
        deadline_s: from the receipt on; an observation that the server cannot answer by then is refused.
        remaining: actions that the robot still has.
        control_hz: how fast it executes them.
        rtc: real-time chunking.

    Raises:
        ValueError: for values that are negative, or not positive and finite where they must be.
    """

    reset: bool = False
    deadline_s: float | None = None
    remaining: int | None = None
    control_hz: float | None = None
    rtc: RtcRequest | None = None

    def __post_init__(self) -> None:
        for name, value in (("deadline_s", self.deadline_s), ("control_hz", self.control_hz)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, not {value}")
        if self.remaining is not None and self.remaining < 0:
            raise ValueError(f"remaining must not be negative, not {self.remaining}")

    def keys(self, capabilities: ServerCapabilities) -> dict[str, Any]:
        """The keys of the request, for a server with these capabilities."""
        keys: dict[str, Any] = {}
        if self.reset:
            keys["vlad/reset"] = True
        if self.deadline_s is not None and capabilities.deadlines:
            keys["vlad/deadline_ms"] = 1e3 * self.deadline_s
        if self.remaining is not None:
            keys["vlad/remaining"] = self.remaining
        if self.control_hz is not None:
            keys["vlad/control_hz"] = float(self.control_hz)
        if self.rtc is not None and capabilities.rtc is not None:
            keys["vlad/rtc"] = dataclasses.asdict(self.rtc)
        return keys
