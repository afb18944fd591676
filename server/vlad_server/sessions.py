"""What the daemon remembers of each robot: its latest chunks, its episode, its latencies.

A session belongs to one connection at a time and outlives it for a while, so that a robot that comes back
goes on where it was. Pure logic: the clock is passed in.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vlad_server.request_options import ObservationId

KEPT_CHUNKS = 4
"""A streaming robot still executes a chunk when the next one or two are on their way to it."""

LATENCY_WINDOW = 64
LATENCY_PERCENTILE = 95.0
MAX_SUPERSEDED_IDS = 512
"""A camera at 30 Hz while an engine worker restarts."""

MAX_IDLE_SESSIONS = 4096
"""About 30 KiB each with chunks of 50 actions."""


@dataclasses.dataclass(frozen=True)
class KeptChunk:
    """A chunk that a robot may still execute.

    Attributes:
        chunk_id: as in the reply.
        model_actions: float32 `[action_horizon, action_dim]` in the model's space.
        anchor_state: float64 `[state_width]`, the robot's state that belongs to it.
    """

    chunk_id: int
    model_actions: npt.NDArray[np.float32]
    anchor_state: npt.NDArray[np.float64]


class SessionOwner(Protocol):
    """The connection that a session belongs to."""

    def on_session_taken(self, session: Session) -> None:
        """Another connection has it now; nothing may be answered in its name any more."""
        ...


class Session:
    """The memory of one robot.

    Args:
        session_id: the robot's id; None for a connection whose robot names none.
    """

    def __init__(self, session_id: str | None = None) -> None:
        self.session_id = session_id
        self._next_chunk_id = 0
        self._chunks: collections.deque[KeptChunk] = collections.deque(maxlen=KEPT_CHUNKS)
        self._latencies: collections.deque[float] = collections.deque(maxlen=LATENCY_WINDOW)
        self._superseded: collections.deque[tuple[int, ObservationId]] = collections.deque(
            maxlen=MAX_SUPERSEDED_IDS
        )
        self._untold = 0

    def begin_episode(self) -> None:
        """Forget the chunks and observations of the episode before."""
        self._chunks.clear()
        self._superseded.clear()

    def keep(self, model_actions: Any, anchor_state: Any) -> int:
        """Give a new chunk its id, and remember it where the policy can continue chunks."""
        chunk_id = self._next_chunk_id
        self._next_chunk_id += 1
        if model_actions is not None and anchor_state is not None:
            self._chunks.append(KeptChunk(chunk_id, model_actions, anchor_state))
        return chunk_id

    def chunk(self, chunk_id: int) -> KeptChunk | None:
        """A chunk of this episode; None where it is not kept (any more)."""
        return next((chunk for chunk in self._chunks if chunk.chunk_id == chunk_id), None)

    def note_latency(self, seconds: float) -> None:
        """A request took `seconds` from receipt to reply."""
        self._latencies.append(seconds)

    def expected_delay(self, control_hz: float) -> int:
        """Control steps that pass until a reply, from recent latencies; 0 where there were none yet.

        A percentile of a window, so that neither a spike nor a slow start counts for ever.
        """
        if not self._latencies:
            return 0
        seconds = float(np.percentile(np.fromiter(self._latencies, float), LATENCY_PERCENTILE))
        return math.ceil(seconds * control_hz)

    def note_superseded(self, number: int, observation_id: ObservationId | None) -> None:
        """An observation was dropped for a newer one; the next reply says so.

        Args:
            number: of the request, ascending in the order in which they came.
        """
        if observation_id is not None:
            self._untold += len(self._superseded) == MAX_SUPERSEDED_IDS
            self._superseded.append((number, observation_id))

    def take_superseded(self) -> tuple[list[ObservationId], int]:
        """The ids of the observations dropped since the last reply, the latest `MAX_SUPERSEDED_IDS`.

        Returns:
            The ids, and how many more there were.
        """
        # One that lay ready for a worker is known to be dropped after those that came later.
        ids = [observation_id for _, observation_id in sorted(self._superseded, key=lambda item: item[0])]
        untold, self._untold = self._untold, 0
        self._superseded.clear()
        return ids, untold


class SessionRegistry:
    """Sessions of robots that name themselves.

    Args:
        ttl_s: seconds for which a session without a connection is kept.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._owned: dict[str, tuple[Session, SessionOwner]] = {}
        self._idle: collections.OrderedDict[str, tuple[Session, float]] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._owned) + len(self._idle)

    def attach(self, session_id: str, owner: SessionOwner, now: float) -> Session:
        """The session of a robot, new or as it was left; `owner` has it from now on.

        A robot that reconnects may be faster than the end of its old connection: the old owner is told.
        """
        self._forget_old(now)
        if session_id in self._owned:
            session, previous = self._owned[session_id]
            if previous is not owner:
                self._owned[session_id] = (session, owner)
                previous.on_session_taken(session)
            return session
        idle = self._idle.pop(session_id, None)
        session = Session(session_id) if idle is None else idle[0]
        self._owned[session_id] = (session, owner)
        return session

    def detach(self, owner: SessionOwner, now: float) -> None:
        """Keep the sessions of a connection that is gone, for a while."""
        for session_id in [name for name, (_, holder) in self._owned.items() if holder is owner]:
            self._idle[session_id] = (self._owned.pop(session_id)[0], now)
        self._forget_old(now)

    def _forget_old(self, now: float) -> None:
        while self._idle:
            session_id, (_, since) = next(iter(self._idle.items()))
            if now - since < self._ttl_s and len(self._idle) <= MAX_IDLE_SESSIONS:
                return
            del self._idle[session_id]
