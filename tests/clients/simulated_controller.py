"""A robot, a network and a server on one simulated clock, around the schedule under test.

Every row of a chunk says for which index, episode and request it was computed, so that what the robot
executes can be held against what it should.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable

import numpy as np

from vlad_client.chunk_schedule import ChunkRequest, ChunkSchedule
from vlad_client.real_time_config import RealTimeConfig


@dataclasses.dataclass(frozen=True)
class Fate:
    """What becomes of one request.

    Attributes:
        outcome: `reply`, `silence`, `refusal`, `garbage` or `superseded`.
        latency_s: until the outcome.
        horizon: rows of the chunk.
    """

    outcome: str = "reply"
    latency_s: float = 0.05
    horizon: int = 10


@dataclasses.dataclass(frozen=True)
class Executed:
    """One step of the robot."""

    time: float
    kind: str
    index: int
    episode: int
    value: tuple[float, ...] | None


class SimulatedController:
    """Runs the schedule against `fates`, request by request, and then against a healthy server.

    Args:
        jitter_s: by how much each control step is late, repeated for ever.
        continues: whether the server continues the chunk that a request names.
    """

    def __init__(
        self,
        config: RealTimeConfig,
        fates: list[Fate],
        jitter_s: list[float],
        healthy: Fate,
        *,
        continues: bool = False,
    ) -> None:
        self.schedule = ChunkSchedule(config)
        self.steps: list[Executed] = []
        self.requests: list[ChunkRequest] = []
        self.episode = 0
        self._fates = itertools.chain(fates, itertools.repeat(healthy))
        self._jitter = itertools.cycle(jitter_s or [0.0])
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count()
        self._on_the_way: set[int] = set()
        self._continues = continues
        self._current: int | None = None

    def at(self, time: float, action: Callable[[float], None]) -> None:
        """Let something happen at a time."""
        heapq.heappush(self._events, (time, next(self._order), action))

    def run(self, until: float) -> None:
        """Start the first episode and play all events."""
        self.schedule.connected(continues=self._continues)
        self.start_episode(0.0)
        self.at(0.0, self._tick)
        while self._events and self._events[0][0] <= until:
            time, _, action = heapq.heappop(self._events)
            action(time)

    def start_episode(self, now: float) -> None:
        """Begin an episode; what is under way stays under way."""
        self.episode += 1
        self._current = None
        self.schedule.start_episode(now)

    def disconnect(self, now: float) -> None:
        """Lose all requests that are under way."""
        lost, self._on_the_way = self._on_the_way, set()
        self.schedule.fail(lost, now)
        self.schedule.connected(continues=self._continues)

    def _tick(self, now: float) -> None:
        before = self.schedule.remaining
        step = self.schedule.step()
        assert (step.kind == "action") == (before > 0), "held although there was an action, or invented one"
        value = None if step.action is None else tuple(float(number) for number in step.action)
        self.steps.append(Executed(now, step.kind, step.index, self.episode, value))
        self.at(now + self.schedule.period_s(now) + next(self._jitter), self._tick)
        if self.schedule.request_due(now):
            self._send(now)

    def _send(self, now: float) -> None:
        request = self.schedule.begin_request(now, next(self._numbers))
        self.requests.append(request)
        self._on_the_way.add(request.number)
        fate, episode = next(self._fates), self.episode
        self.at(now + fate.latency_s, lambda then: self._arrive(request, fate, episode, then))

    def _arrive(self, request: ChunkRequest, fate: Fate, episode: int, now: float) -> None:
        if request.number not in self._on_the_way or fate.outcome == "silence":
            return
        self._on_the_way.discard(request.number)
        if fate.outcome == "refusal":
            self.schedule.fail([request.number], now)
        elif fate.outcome == "superseded":
            self.schedule.supersede([request.number])
        elif fate.outcome == "garbage":
            try:
                spliced = self.schedule.accept(request.number, np.full((fate.horizon, 3), np.nan), now)
            except ValueError:
                return
            assert spliced is None
        else:
            rows = [[request.anchor + row, episode, request.number] for row in range(fate.horizon)]
            before, left = self._current, self.schedule.remaining
            continued = self._continues and request.previous is not None
            splice = self.schedule.accept(
                request.number, np.array(rows, float), now, chunk_id=request.number, continued=continued
            )
            if splice is not None:
                assert not (continued and left) or request.previous == before, "continues another chunk"
                self._current = request.number
